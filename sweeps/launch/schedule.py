"""Which cell does a free worker take next? The longest, unless a shape it has compiled is near.

Longest first keeps the end of a sweep short. Within a factor `NEAR` of the longest, a cell whose
shape this worker has compiled comes first, then one whose shape no other worker is compiling now,
because compilation of one shape is exclusive.
"""

import dataclasses
import json
from collections.abc import Collection
from typing import Any

from train.counted import counted
from train.spec import RunSpec, to_dict

NEAR = 2.0  # guess: a worker idle at the end costs at most half a cell of the longest kind


def shape_of(spec: RunSpec) -> str:
    """Equal for runs that execute the same program: hyper-parameters, tokens and seed are data."""
    tree = to_dict(spec)
    del tree["model"]["arch"]
    parts: list[Any] = [tree["model"], spec.data.seq_len, spec.data.isolate_documents]
    keys = ("mesh", "sequence", "remat", "accumulate", "compute_dtype", "layers")
    parts += [spec.sequences_per_batch, [tree["execution"][key] for key in keys]]
    return json.dumps(parts, sort_keys=True)


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
