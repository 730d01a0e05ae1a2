"""How good is a model on the held-out split? The same rows for every run, summed in float64 on the host."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np


def evaluate(
    step: Callable[[Any, Any], tuple[Any, Any]], params: Any, batches: Iterable[Mapping[str, Any]], *, bytes_per_token: float
) -> dict[str, float]:
    """`loss/val` in nats per token and `bpb/val` in bits per byte of the evaluation text."""
    sums = [step(params, batch) for batch in batches]  # dispatched together, then read
    nats = math.fsum(float(np.asarray(n)) for n, _ in sums)
    weights = math.fsum(float(np.asarray(w)) for _, w in sums)
    loss = nats / weights
    return {"loss/val": loss, "bpb/val": loss / (bytes_per_token * math.log(2))}
