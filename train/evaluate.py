"""How good is a model on the held-out split? The same rows for every run, summed in float64 on the
host.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from train.batches import HeldOut


def evaluate(
    step: Callable[[Any, Any], tuple[Any, Any, Any]],
    params: Any,
    measure: HeldOut,
) -> dict[str, float]:
    """`loss/<name>` in nats per token; `bpb/<name>` in bits per byte where the text's bytes are
    known; `accuracy/<name>`, the share of right answers, where only answers are asked for.
    """
    name = measure.name
    sums = [step(params, batch) for batch in measure.batches]  # dispatched together, then read
    nats, weights, right = (
        math.fsum(float(np.asarray(value)) for value in column)
        for column in zip(*sums, strict=True)
    )
    out = {f"loss/{name}": nats / weights}
    if measure.bytes_per_token is not None:
        out[f"bpb/{name}"] = nats / weights / (measure.bytes_per_token * math.log(2))
    if measure.answers:
        out[f"accuracy/{name}"] = right / weights
    return out
