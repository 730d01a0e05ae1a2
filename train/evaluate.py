"""How good is a model on the held-out split? The same rows for every run, summed in float64 on the
host.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np


def evaluate(
    step: Callable[[Any, Any], tuple[Any, Any]],
    params: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    name: str,
    bytes_per_token: float | None,
) -> dict[str, float]:
    """`loss/<name>` in nats per token; `bpb/<name>` in bits per byte where the text's bytes are
    known.
    """
    sums = [step(params, batch) for batch in batches]  # dispatched together, then read
    nats = math.fsum(float(np.asarray(n)) for n, _ in sums)
    weights = math.fsum(float(np.asarray(w)) for _, w in sums)
    loss = nats / weights
    if bytes_per_token is None:
        return {f"loss/{name}": loss}
    return {f"loss/{name}": loss, f"bpb/{name}": loss / (bytes_per_token * math.log(2))}
