"""What is a run, as a value?

`RunSpec` = science (hashed into the run id) + execution (recorded). The same science on 1 or 64
devices is the same run. JSON both ways. `canonical` is what the id is made of; its golden ids are
in tests/golden/run_ids.json.
"""

import hashlib
import json
from dataclasses import fields
from typing import Annotated, Any, Literal, cast, get_args, get_type_hints

from pydantic import BeforeValidator, Field, PlainSerializer, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from model.spec import ModelSpec
from parallelism.axes import SPEC
from parallelism.errors import InputError
from train import fit_mesh, translation_checks
from train.carry_check import check_order
from train.execution_spec import ExecutionSpec as ExecutionSpec
from train.migration import fill, strip
from train.spec_error import input_error, no_truth_for_numbers
from train.start_spec import StartSpec

FORMAT = 1  # of spec.json; a reader refuses newer ones

# Fields added after format 1: dotted path -> the value that reproduces runs made before the field
# existed. Canonical JSON leaves a field out while it holds that value, so old ids stand; an old
# file that lacks it is read with it. `*` is every item of a list, and `mixer:attention` a mixer of
# that kind: "model.repeat.*.mixer:attention.sinks".
ADDED_SINCE_FORMAT_1: dict[str, Any] = {
    "model.parametrisation.base_d_head": None,  # heads of any width scaled as K^-1/2
    "model.streams": None,
    "model.causal": True,
    "model.extra_inputs": 0,
    "model.series": None,
    "model.encoder": None,
    "model.first.*.cross": None,
    "model.repeat.*.cross": None,
    "model.last.*.cross": None,
    "data.sources.*.source_column": None,
    "data.source_len": None,
    **{f"model.{part}.*.mixer:attention.qkv_bias": False for part in ("first", "repeat", "last")},
    "start": None,
    "data.order": "shuffled",
    "data.carry_state": False,
}


@dataclass(frozen=True, kw_only=True, config=SPEC)
class OptimSpec:
    """AdamW with decoupled, per-parameter multiplied learning rate and decay; every number is data
    to the step.
    """

    lr: float = Field(default=8e-3, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    clip_norm: float = Field(default=1.0, gt=0)


@dataclass(frozen=True, kw_only=True, config=SPEC)
class ScheduleSpec:
    """Learning rate over the run, as fractions of its steps: warm-up, then cosine, wsd or constant.

    `wsd` holds the peak and decays linearly over the last `decay` of the steps; cosine decays after
    the warm-up.
    """

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, le=1)
    decay: float = Field(default=0.2, ge=0, le=1)
    final: float = Field(
        default=0.1, ge=0, le=1
    )  # learning rate at the end as a fraction of the peak


@dataclass(frozen=True, kw_only=True, config=SPEC)
class SourceSpec:
    """One corpus. `path` is a folder, file or glob for every kind but `stdlib`.

    Kinds that are generated are in train/data/tasks, each with knobs of its own.
    """

    kind: Literal["stdlib", "text", "jsonl", "parquet", "tokens"] = "stdlib"
    path: str | None = None
    column: str = "text"  # jsonl and parquet
    source_column: str | None = None  # rows are pairs: `column` is what this one is translated to
    weight: float = Field(default=1.0, gt=0)  # share of rows in a mixture, relative to the others

    @property
    def gives(self) -> str:
        """Which kind of rows, as objectives take them."""
        return "text" if self.source_column is None else "pairs"

    def __post_init__(self):
        if self.kind == "stdlib" and self.path is not None:
            raise ValueError(
                "the embedded corpus takes no path; write kind text for a folder of your own"
            )
        if self.kind != "stdlib" and not self.path:
            raise ValueError(
                f"a {self.kind} source needs a path; write the folder or file of the corpus"
            )
        if self.source_column is not None and self.kind not in ("jsonl", "parquet"):
            raise ValueError(
                f"pairs are two columns of a row, and a {self.kind} source has none; write kind "
                f"jsonl or parquet, or source_column null"
            )


TEXTS = get_args(get_type_hints(SourceSpec)["kind"])


def _source(value: Any) -> Any:
    """A SourceSpec, or the Spec that the kind names (train/data/tasks, train/data/values)."""
    from train.data import task  # which reads corpora by this file's specs

    if isinstance(value, SourceSpec | task.TaskSpec | task.ValueSource):
        return value
    if not isinstance(value, dict):
        raise PydanticCustomError(
            "no_source", 'a source is an object; write {"kind": "text", "path": "..."}'
        )
    made: type = SourceSpec
    kind = value.get("kind", TEXTS[0])
    if isinstance(kind, str) and kind not in TEXTS:
        made = task.resolve(kind, others=TEXTS)
    others = [SourceSpec, *(task.resolve(name, others=TEXTS) for name in task.names())]
    value = _without_defaults(value, of=others, own=made)
    try:
        return TypeAdapter(made).validate_python(value)
    except ValidationError as error:
        known = {
            "errors": error.errors(include_url=False),
            "fields": [f.name for f in fields(made)],
        }
        raise PydanticCustomError("nested", "invalid source", known) from None


def _without_defaults(value: dict[str, Any], *, of: list[type], own: type) -> dict[str, Any]:
    """Leave out what only other kinds say, where it is their default: it was left over where no
    more than the kind was changed.
    """
    left = [(f.name, f.default) for kind in of for f in fields(kind)]
    defaults = {(name, str(getattr(default, "default", default))) for name, default in left}
    known = {f.name for f in fields(own)}

    def kept(name: str, given: Any) -> bool:
        shown = str(tuple(given) if isinstance(given, list) else given)
        return name in known or (name, shown) not in defaults

    return {k: v for k, v in value.items() if kept(k, v)}


def _dump(value: Any) -> Any:
    return TypeAdapter(type(value)).dump_python(value, mode="json")


Source = Annotated[Any, BeforeValidator(_source), PlainSerializer(_dump)]


def _objective(value: Any) -> Any:
    from train import objectives  # which takes rows, and those read corpora by this file's specs

    return objectives.read(value)


Objective = Annotated[Any, BeforeValidator(_objective), PlainSerializer(_dump)]


@dataclass(frozen=True, kw_only=True, config=SPEC)
class DataSpec:
    """What is read: sources, tokeniser, sequence length, validation split."""

    sources: tuple[Source, ...] = Field(default=(SourceSpec(),), min_length=1)
    tokenizer: str = "bytes"  # or the path of a Hugging Face tokenizer.json
    seq_len: int = Field(default=256, ge=2)
    source_len: int | None = Field(default=None, ge=2)  # of what an encoder reads; None: seq_len
    validation: float = Field(default=0.05, gt=0, lt=1)  # share of documents held out
    isolate_documents: bool = True  # attention does not cross document boundaries
    # contiguous: row b of a step is the text that follows row b of the step before
    order: Literal["shuffled", "contiguous"] = "shuffled"
    carry_state: bool = False  # and the model goes on from what it remembers of it

    def __post_init__(self):
        for source in self.sources:
            if not isinstance(source, SourceSpec):
                source.check(min(self.seq_len, self.source_length))

    @property
    def source_length(self) -> int:
        return self.seq_len if self.source_len is None else self.source_len


@dataclass(frozen=True, kw_only=True, config=SPEC)
class BudgetSpec:
    """How much is trained: tokens in all and tokens in a batch (whole sequences)."""

    tokens: int = Field(default=20_000_000, ge=1)
    batch_tokens: int = Field(default=8192, ge=1)


@dataclass(frozen=True, kw_only=True, config=SPEC)
class EvaluationSpec:
    """Evaluation is tied to steps: `every` steps and always at the end, on the same `tokens` of the
    held-out split.
    """

    every: int | None = Field(default=None, ge=1)
    tokens: int = Field(default=262_144, ge=1)


@dataclass(frozen=True, kw_only=True, config=SPEC)
class RunSpec:
    """Everything that affects the numbers of one run."""

    model: ModelSpec
    optim: OptimSpec = Field(default_factory=OptimSpec)
    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec)
    data: DataSpec = cast(DataSpec, None)  # read as what the objective reads
    budget: BudgetSpec = Field(default_factory=BudgetSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    objective: Objective = None  # read as the one that the model is made for
    start: StartSpec | None = None  # from another run; None: from scratch
    seed: int = Field(default=0, ge=0, lt=2**31)
    execution: ExecutionSpec = Field(default_factory=ExecutionSpec)

    def __post_init__(self):
        objective = _objective(self.objective or self.model.objective).of(self.model)
        object.__setattr__(self, "objective", objective)  # None was the model's own
        object.__setattr__(self, "data", self.data or objective.data)
        data, budget = self.data, self.budget
        for source in data.sources:
            objective.check_source(source.gives)
        objective.check(self.model)
        objective.check_length(self.model, data.seq_len)
        translation_checks.check(self)
        check_order(self)
        if budget.batch_tokens % data.seq_len:
            below = max(1, budget.batch_tokens // data.seq_len) * data.seq_len
            raise ValueError(
                f"budget.batch_tokens {budget.batch_tokens} is not a whole number of "
                f"sequences of data.seq_len "
                f"{data.seq_len}; write {below}"
            )
        if budget.tokens < budget.batch_tokens:
            raise ValueError(
                f"budget.tokens {budget.tokens} is less than one batch; write at least "
                f"{budget.batch_tokens}"
            )
        if self.model.learned_positions is not None and data.seq_len > self.model.learned_positions:
            raise ValueError(
                f"data.seq_len {data.seq_len} exceeds model.learned_positions "
                f"{self.model.learned_positions}; write at "
                f"most that, or raise model.learned_positions"
            )
        fit_mesh.check(self)

    @property
    def sequences_per_batch(self) -> int:
        return self.budget.batch_tokens // self.data.seq_len

    @property
    def microbatches(self) -> int:
        """Parts of a (micro-)batch that follow one another through a pipeline."""
        return fit_mesh.microbatches(self)

    @property
    def steps(self) -> int:
        """Whole batches that come nearest to budget.tokens."""
        return max(1, round(self.budget.tokens / self.budget.batch_tokens))

    @property
    def tokens(self) -> int:
        """Tokens that the run sees: steps x batch_tokens."""
        return self.steps * self.budget.batch_tokens

    @property
    def run_id(self) -> str:
        return hashlib.sha256(canonical(self).encode()).hexdigest()[:12]


_ADAPTER = TypeAdapter(RunSpec)


def to_dict(spec: RunSpec) -> dict[str, Any]:
    return _ADAPTER.dump_python(spec, mode="json")


def to_json(spec: RunSpec) -> str:
    return json.dumps({"format": FORMAT, **to_dict(spec)}, indent=2)


def from_dict(tree: dict[str, Any], *, source: str = "spec") -> RunSpec:
    """A validated RunSpec; raises InputError with every wrong path in one line."""
    if not isinstance(tree, dict):
        raise InputError(source, tree, "a spec is an object of fields; write {...}")
    tree = dict(tree)
    made = tree.pop("format", FORMAT)
    if not isinstance(made, int) or made > FORMAT:
        raise InputError(
            f"{source}: format",
            made,
            f"this ladder reads formats up to {FORMAT}; upgrade ladder to read a newer one",
        )
    try:
        spec = _ADAPTER.validate_python(migrate(tree))
    except ValidationError as error:
        raise input_error(error, source=source, root=RunSpec) from None
    no_truth_for_numbers(tree, to_dict(spec), "" if source == "spec" else f"{source}: ")
    return spec


def migrate(tree: dict[str, Any], added: dict[str, Any] | None = None) -> dict[str, Any]:
    """Fill fields that did not exist when the file was written with the value that reproduces it.

    Only files are migrated, and a file written by this version has every field, so a missing field
    is an old one unless a person left it out by hand; either way the legacy value is a declared
    default, never a guess.
    """
    tree = json.loads(json.dumps(tree))
    fill(tree, ADDED_SINCE_FORMAT_1 if added is None else added)
    return tree


def canonical(spec: RunSpec, added: dict[str, Any] | None = None) -> str:
    """Canonical JSON of the science: sorted keys, no execution, no labels, no field that holds its
    legacy value.
    """
    tree = to_dict(spec)
    del tree["execution"]
    del tree["model"]["arch"]  # a label: the blocks say what the architecture is
    del tree["model"]["objective"]  # a label too: `objective` says what the run's is
    if tree["objective"] == {"kind": "next_token"}:  # all there was before the field
        del tree["objective"]
    if spec.start is not None:
        tree["start"]["run"] = spec.start.run_id  # wherever its folder lies
    strip(tree, ADDED_SINCE_FORMAT_1 if added is None else added)
    return json.dumps(
        {"identity": 1, **tree}, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
