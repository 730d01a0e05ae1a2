"""Which runs does the zoo consist of? Equal FLOPs on text, equal steps on the tasks.

An architecture that cannot be built at these sizes is left out with its reason, never silently.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from model import archs
from parallelism.errors import InputError
from sweeps.grid import axis, product
from sweeps.make import grid, isoflop
from sweeps.plan import Plan, PlannedRun
from train import objectives
from train.paths import put
from train.spec import RunSpec

CONVENTION = "causal_attn"

# Common to all architectures; the learning rate and the small batch are the demo's, which were
# chosen for `dense`. muP carries them to other widths, nothing carries them to other layers.
TEXT = {
    "data.seq_len": 128,
    "budget.batch_tokens": 256,
    "optim.lr": 0.006,
    "evaluation.tokens": 65_536,
    "execution.checkpoint_every": 100_000,
    "execution.log_every": 200,
}


ROWS = 1024  # held-out rows of a task that are asked


@dataclasses.dataclass(frozen=True)
class Task:
    """A generated source at one width; every learning rate is tried, the best is reported."""

    source: dict[str, Any]
    chance: float  # accuracy of a guess among the answers that can be
    seq_len: int
    sequences: int  # of a batch
    steps: int
    lrs: tuple[float, ...]

    def settings(self) -> dict[str, Any]:
        batch = self.seq_len * self.sequences
        return {
            "data.sources": [self.source],
            "data.seq_len": self.seq_len,
            "budget.batch_tokens": batch,
            "budget.tokens": batch * self.steps,
            "schedule.kind": "wsd",
            "evaluation.tokens": ROWS * self.seq_len,
            "execution.checkpoint_every": 100_000,
            "execution.log_every": 200,
        }


@dataclasses.dataclass(frozen=True)
class Zoo:
    """Sizes of everything; `widths` are trained at every budget, with every seed."""

    archs: tuple[str, ...]
    budgets: tuple[float, ...] = (1e10, 3e10, 9e10)
    widths: tuple[int, ...] = (16, 24, 32)
    seeds: tuple[int, ...] = (0, 1, 2)
    tasks: dict[str, Task] = dataclasses.field(default_factory=dict)
    task_archs: tuple[str, ...] = ()  # those that do the tasks; none named: all
    task_width: int = 64
    reference: tuple[int, int, int] = (128, 512, 4)  # width, tokens of a sequence, sequences
    out: str = "zoo"  # of the page, its JSON and its figure

    def reference_run(self, arch: str) -> RunSpec:
        """The run whose speed, memory and decode state are in the table."""
        width, length, rows = self.reference
        settings = {
            "data.seq_len": length,
            "budget.batch_tokens": length * rows,
            "budget.tokens": length * rows,
        }
        return put(RunSpec(model=archs.build(arch, width)), settings)


def tasks(steps: int, lrs: tuple[float, ...], *, pairs: int = 4) -> dict[str, Task]:
    """Recall of `pairs` pairs, where guessing among the row's values is right once in so many;
    parity and S3, where guessing is right once in two and in six.

    Four pairs, because `dense` at width 64 finds them within a few hundred steps and had not found
    eight after 800. The learning rate stays until the last fifth, because recall is found at once
    or not at all, and a cosine may have decayed before: `dense` had 0.37 right after 500 steps of
    cosine, and 1.00 within the first 340 of 2000 (one seed each).
    """
    recall = {"kind": "recall", "pairs": pairs, "keys": 32, "values": 32}
    shape: dict[str, Any] = {"steps": steps, "lrs": lrs}
    long = {**shape, "seq_len": 32, "sequences": 32}
    return {
        "recall": Task(recall, 1 / pairs, seq_len=4 * pairs, sequences=64, **shape),
        "parity": Task({"kind": "state_tracking", "group": "parity"}, 1 / 2, **long),
        "s3": Task({"kind": "state_tracking", "group": "s3"}, 1 / 6, **long),
    }


def plans(zoo: Zoo) -> tuple[Plan | None, Plan | None, dict[str, str]]:
    """The runs on text, those on tasks, and why an architecture is in neither."""
    left_out: dict[str, str] = {}
    text: list[PlannedRun] = []
    task: list[PlannedRun] = []
    for arch in zoo.archs:
        takes = objectives.resolve(archs.build(arch).objective).takes
        if "text" not in takes:  # its losses would be of something else
            left_out[arch] = f"reads {takes[0]}, and no text"
            continue
        try:
            ours = _text(zoo, arch) if zoo.budgets else []
            asked = zoo.tasks if not zoo.task_archs or arch in zoo.task_archs else ()
            more = [run for name in asked for run in _task(zoo, arch, name)]
            zoo.reference_run(arch)
        except (InputError, ValueError) as error:
            left_out[arch] = " ".join(str(error).split())[:300]
            continue
        text += ours
        task += more
    return (
        _plan("zoo-text", "every architecture at equal training FLOPs on text", zoo, text),
        _plan("zoo-tasks", "recall and state tracking at equal steps", zoo, task),
        left_out,
    )


def _plan(name: str, why: str, zoo: Zoo, runs: Sequence[PlannedRun]) -> Plan | None:
    if not runs:
        return None
    # two names may stand for one architecture: then one run is both
    kept = {(run.run_id, run.labels["arch"]): run for run in runs}
    ids: set[str] = set()
    unique = tuple(
        run
        for run in kept.values()
        if not (run.run_id in ids or ids.add(run.run_id))  # type: ignore[func-returns-value]
    )
    return Plan(name, why, unique, {"kind": "zoo", "archs": list(zoo.archs)})


def _text(zoo: Zoo, arch: str) -> list[PlannedRun]:
    made = isoflop(
        name=f"zoo-{word(arch)}",
        arch=arch,
        budgets=zoo.budgets,
        widths=zoo.widths,
        seeds=zoo.seeds,
        convention=CONVENTION,
        set=TEXT,
    )
    return [_labelled(run, arch=arch, task="text") for run in made.runs]


def _task(zoo: Zoo, arch: str, name: str) -> list[PlannedRun]:
    task = zoo.tasks[name]
    made = grid(
        name=f"zoo-{word(arch)}-{name}",
        arch=arch,
        width=zoo.task_width,
        cells=product(axis("optim.lr", task.lrs), axis("seed", zoo.seeds)),
        convention=CONVENTION,
        set=task.settings(),
    )
    return [_labelled(run, arch=arch, task=name) for run in made.runs]


def word(arch: str) -> str:
    """The name of an architecture of one's own (`module:function`) as part of a plan's."""
    return arch.rpartition(":")[2]


def _labelled(run: PlannedRun, **labels: Any) -> PlannedRun:
    return PlannedRun(run.spec, {**run.labels, **labels})


def by_arch(plan: Plan) -> dict[str, list[PlannedRun]]:
    """Runs of each architecture, in the plan's order."""
    runs = sorted(plan.runs, key=lambda run: run.labels["arch"])
    return {k: list(v) for k, v in itertools.groupby(runs, key=lambda run: run.labels["arch"])}
