"""How good is a model on the held-out split? The same rows for every run, summed in float64 on the
host.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from train.batches import HeldOut
from train.objectives import ObjectiveSpec


def evaluate(
    step: Callable[[Any, Any], tuple[Any, ...]],
    params: Any,
    measure: HeldOut,
    objective: ObjectiveSpec,
    *,
    carry: Any = None,
) -> dict[str, float]:
    """What the objective reports of a held-out set, by the names of the ledger. With a `carry`, the
    memory of nothing read, each batch goes on from the one before.
    """
    sums = []  # dispatched together, then read
    for batch in measure.batches:
        if carry is None:
            sums.append(step(params, batch))
        else:
            *told, carry = step(params, {**batch, "carry": carry})
            sums.append(told)
    return report(measure, sums, objective)


def report(
    measure: HeldOut, sums: Sequence[Sequence[Any]], objective: ObjectiveSpec
) -> dict[str, float]:
    """The same from the sums of each batch."""
    return objective.report(
        measure.name,
        [_total(column) for column in zip(*sums, strict=True)],
        bytes_per_token=measure.bytes_per_token,
        answers=measure.answers,
    )


def _total(column: Sequence[Any]) -> np.ndarray:
    """The exact sum of arrays of one shape, rounded once."""
    rows = np.stack([np.asarray(value, np.float64) for value in column])
    each = [math.fsum(entries) for entries in rows.reshape(len(rows), -1).T.tolist()]
    return np.reshape(each, rows.shape[1:])
