"""Which cell does a free worker take next? The longest, unless a shape it has compiled is near.

Longest first keeps the end of a sweep short. Within a factor `NEAR` of the longest, a cell whose
shape this worker has compiled comes first, then one whose shape no other worker is compiling now,
because compilation of one shape is exclusive.
"""

import dataclasses
import json
from collections.abc import Collection

from train.counted import counted
from train.programs import RESOLVED, shape
from train.spec import RunSpec

NEAR = 2.0  # guess: a worker idle at the end costs at most half a cell of the longest kind


def shape_of(spec: RunSpec) -> str:
    """Equal for runs that execute the same program: hyper-parameters, tokens and seed are data."""
    # what `auto` means is the worker's to say: the same for all of one shape
    asked = [vars(spec.execution)[name] for name in RESOLVED]
    return json.dumps([*shape(spec), asked], sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A run as the launcher sees it."""

    run_id: str
    spec: RunSpec
    shape: str
    flops: float  # causal_attn


def cell(spec: RunSpec) -> Cell:
    counts = counted(spec)
    return Cell(
        spec.run_id, spec, shape_of(spec), counts.flops_per_token["causal_attn"] * spec.tokens
    )


def together(
    first: Cell, pending: Collection[Cell], *, workers: int, places: int | None
) -> tuple[list[Cell], int]:
    """The cells that are trained in one stack with `first`, and in how many places.

    As many as its `execution.stack` allows of those that run the same program, the longest first;
    in equal parts, and a part for each worker where there is no other shape to work on. `places` is
    what was chosen for the shape before, if it was: a stack of other places is another program.
    """
    run = first.spec.execution
    if run.stack == 1:
        return [first], 1
    like = [c for c in pending if c.shape == first.shape and c.spec.execution.stack == run.stack]
    if places is None:
        alone = all(c.shape == first.shape for c in pending)
        parts = max(-(-len(like) // run.stack), min(workers, len(like)) if alone else 1)
        places = -(-len(like) // parts)
        places = -(-places // run.mesh.run) * run.mesh.run
    others = sorted((c for c in like if c is not first), key=lambda c: (-c.flops, c.run_id))
    return [first, *others[: places - 1]], places


def choose(pending: Collection[Cell], *, compiled: set[str], elsewhere: set[str]) -> Cell | None:
    """The next cell of a worker; `compiled` are its shapes, `elsewhere` others' current ones."""
    if not pending:
        return None
    longest = max(cell.flops for cell in pending)

    def rank(cell: Cell) -> tuple[bool, bool, float, str]:
        return (
            cell.shape not in compiled,
            cell.shape in elsewhere,
            -cell.flops,
            cell.run_id,
        )

    return min((cell for cell in pending if cell.flops * NEAR >= longest), key=rank)
