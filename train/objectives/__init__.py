"""What is minimised, and measured? An objective turns rows of text into what the model is asked, on
the host, and logits into a loss, on the device.

An objective is one file here, or anybody's module: its `Spec` has the objective's knobs. What it
draws for a row is a function of the seed and of the row's number in the run, so that resuming and
sharing among processes change nothing; what it draws for a held-out row is the same in every run.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from model.spec import ModelSpec, users_module
from parallelism.axes import SPEC
from parallelism.errors import nearest
from train.data.rows import Batch
from train.spec import DataSpec

Arrays = dict[str, np.ndarray]  # a batch by name: the arrays of `Batch`, and the objective's own
Sums = Callable[[jax.Array, Mapping[str, jax.Array]], Any]
TOKENS = {
    "tokens_BT": np.int32,
    "targets_BT": np.int32,
    "segments_BT": np.int32,
    "weights_BT": np.float32,
}


def normaliser(batch: Mapping[str, jax.Array]) -> jax.Array:
    """What the nats of a batch are divided by: the tokens it counts, or the sum of its weights."""
    return jnp.sum(batch["counted_BT"] if "counted_BT" in batch else batch["weights_BT"])


def next_token(
    logits_BTV: jax.Array, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the targets in nats, summed with the batch's weights, and the normaliser.

    Weights are 0 where the target lies in another document than the input, and on padding. float32
    throughout.
    """
    peak_BT1 = jax.lax.stop_gradient(jnp.max(logits_BTV, axis=-1, keepdims=True))
    shifted_BTV = logits_BTV - peak_BT1
    normaliser_BT = jnp.log(jnp.sum(jnp.exp(shifted_BTV), axis=-1))
    target_BT = jnp.take_along_axis(shifted_BTV, batch["targets_BT"][..., None], axis=-1)[..., 0]
    return jnp.sum((normaliser_BT - target_BT) * batch["weights_BT"]), normaliser(batch)


def scored(
    logits_BTV: jax.Array, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`next_token`, and the weights of the targets that the model would say: those whose logit lies
    above every other, so that a model that tells nothing apart is never right.
    """
    nats, weights = next_token(logits_BTV, batch)
    target_BT1 = jnp.take_along_axis(logits_BTV, batch["targets_BT"][..., None], axis=-1)
    right_BT = jnp.sum(logits_BTV >= target_BT1, axis=-1) == 1
    return nats, weights, jnp.sum(jnp.where(right_BT, batch["weights_BT"], 0.0))


DEFAULT = "next_token"


@dataclass(frozen=True, kw_only=True, config=SPEC)
class ObjectiveSpec:
    """Abstract: an objective's knobs. They act on the host alone: one compilation serves them all,
    but for the `compiled` ones.

    `loss`, `normaliser` and `score` are compiled, and see arrays only. A loss of several parts
    gives a sum and a normaliser for each, and is the mean of their quotients.
    """

    kind: str

    unit: ClassVar[str] = "nats/token"  # of `loss/<set>`, as analysis shows and compares it
    takes: ClassVar[tuple[str, ...]] = ("text",)  # kinds of rows: what its sources may give
    reads_order: ClassVar[bool] = False  # whether its loss finds neighbours by their places

    @property
    def loss(self) -> Sums:
        """(logits, batch) -> (summed nats, normaliser)."""
        return next_token

    @property
    def normaliser(self) -> Callable[[Mapping[str, jax.Array]], jax.Array]:
        """Of a whole batch, what `loss` gives for its parts together."""
        return normaliser

    @property
    def score(self) -> Sums:
        """(logits, batch) -> what `report` is made from, summed over held-out rows."""
        return scored

    def report(
        self, name: str, sums: Sequence[Any], *, bytes_per_token: float | None, answers: bool
    ) -> dict[str, float]:
        """What is recorded of `score` summed over the set `name`: `loss/<name>` in `unit`;
        `bpb/<name>` in bits per byte where the text's bytes are known; `accuracy/<name>`, the share
        of right answers, where only answers are asked for.
        """
        nats, weights, right = (float(value) for value in sums)
        out = {f"loss/{name}": nats / weights}
        if bytes_per_token is not None:
            out[f"bpb/{name}"] = nats / weights / (bytes_per_token * math.log(2))
        if answers:
            out[f"accuracy/{name}"] = right / weights
        return out

    def blind(self, model: ModelSpec) -> float | None:
        """The loss of a model that does not look at its input, None where nobody knows."""
        return math.log(model.vocab)

    @property
    def compiled(self) -> tuple[Any, ...]:
        """Knobs that are constants of the compiled programs."""
        return ()

    @property
    def batch(self) -> Mapping[str, Any]:
        """Every array of its batches."""
        return {**TOKENS, **self.arrays}

    @property
    def over_positions(self) -> bool:
        """Whether `loss` and `score` are sums over positions, each of its own logits and entries of
        the arrays (B, T) alone.
        """
        return False

    @property
    def arrays(self) -> Mapping[str, Any]:
        """Arrays of its batches besides those of `Batch`: name -> type. A name ends with the dims,
        as in `counted_BT`, of sizes that train.programs.abstract_batch knows.
        """
        return {}

    @property
    def reserved(self) -> int:
        """How many ids at the top of the model's vocabulary are its own, and none of the text's."""
        return 0

    @property
    def both_ways(self) -> bool:
        """Whether its model sees both ways. Such an objective asks for the first token of a
        document too.
        """
        return False

    def of(self, model: ModelSpec) -> "ObjectiveSpec":
        """This objective, which may have to know what the model is."""
        return self

    @property
    def data(self) -> DataSpec:
        """What a run of it reads, where nothing is said."""
        return DataSpec()

    def check_source(self, gives: str) -> None:
        """Raises ValueError for a source of rows (`gives`, of SourceSpec and TaskSpec) that it does
        not take.
        """
        if gives not in self.takes:
            other = next(n for n in [DEFAULT, *names()] if gives in resolve(n).takes)
            raise ValueError(
                f"objective {self.kind} asks for {self.takes[0]} and not for {gives}; write "
                f"objective={other}, or sources of {' or '.join(self.takes)}"
            )

    def check(self, model: ModelSpec) -> None:
        """Raises ValueError, with what to write instead, for a model that it cannot train."""
        if model.series is not None and "values" not in self.takes:
            raise ValueError(
                f"objective {self.kind} asks for tokens and the model says real values; write "
                f"objective.kind=forecast, or model.series=null"
            )
        if model.encoder is not None and "pairs" not in self.takes:
            raise ValueError(
                f"objective {self.kind} asks for one text and the model reads a source besides; "
                f"write objective.kind=translation, or model.encoder=null"
            )
        if self.both_ways and model.causal:
            raise ValueError(
                f"objective {self.kind} asks for tokens from both sides and the model is causal; "
                f"write model.causal=false, or start from the architecture diffusion"
            )
        if not (self.both_ways or model.causal):
            raise ValueError(
                f"objective {self.kind} would let a model that is not causal see what it is asked "
                f"for; write objective.kind=masked_diffusion, or model.causal=true"
            )

    def check_length(self, model: ModelSpec, seq_len: int) -> None:
        """Raises ValueError for rows that are too short for it."""

    def prepare(self, batch: Any, *, rows_B: np.ndarray, seed: int, vocab: int) -> Arrays:
        """What is trained on: rows of text and their numbers in the run."""
        raise NotImplementedError

    def held_out(
        self, batch: Any, *, rows_B: np.ndarray, vocab: int
    ) -> Iterator[tuple[str, Arrays]]:
        """What is evaluated on: a name, empty for the model's loss, and a batch under that name."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, config=SPEC)
class NextToken(ObjectiveSpec):
    """Every token from those before it."""

    kind: Literal["next_token"] = "next_token"  # pyright: ignore[reportIncompatibleVariableOverride]

    takes: ClassVar[tuple[str, ...]] = ("text", "answers")

    @property
    def over_positions(self) -> bool:
        return True

    def prepare(self, batch: Batch, *, rows_B: np.ndarray, seed: int, vocab: int) -> Arrays:
        return batch._asdict()

    def held_out(
        self, batch: Batch, *, rows_B: np.ndarray, vocab: int
    ) -> Iterator[tuple[str, Arrays]]:
        yield "", batch._asdict()


def names() -> list[str]:
    return sorted([DEFAULT, *(m.name for m in pkgutil.iter_modules(__path__))])


def resolve(kind: str) -> type[ObjectiveSpec]:
    """The Spec of an objective: of a file here, or of a dotted module of the user's own."""
    if kind == DEFAULT:
        return NextToken
    hint = {"hint": nearest(kind, names())}
    unknown = "unknown objective; {hint}, or the dotted name of a module of your own"
    name = kind if "." in kind else f"{__name__}.{kind}"
    if not all(part.isidentifier() for part in name.split(".")):
        raise PydanticCustomError("unknown_kind", unknown, hint)
    try:
        module = users_module(name) if "." in kind else importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # the objective's file exists, and lacks a package of its own
        raise PydanticCustomError("unknown_kind", unknown, hint) from None
    spec = vars(module).get("Spec")
    if not (isinstance(spec, type) and issubclass(spec, ObjectiveSpec)):
        raise PydanticCustomError(
            "unknown_kind",
            "module {name} has no Spec that is an ObjectiveSpec, so it is no objective; {hint}",
            {"name": name, **hint},
        )
    return spec


def read(value: Any) -> Any:
    """An objective from its kind or from an object of its fields; None stays."""
    if value is None or isinstance(value, ObjectiveSpec):
        return value
    tree = {"kind": value} if isinstance(value, str) else value
    if not isinstance(tree, dict) or not isinstance(tree.get("kind"), str):
        said = 'an objective is an object with a kind; write {"kind": "next_token"}'
        raise PydanticCustomError("no_objective", said)
    made = resolve(tree["kind"])
    try:
        return TypeAdapter(made).validate_python(tree)
    except ValidationError as error:
        known = {
            "errors": error.errors(include_url=False),
            "fields": [f.name for f in fields(made)],
        }
        raise PydanticCustomError("nested", "invalid objective", known) from None
