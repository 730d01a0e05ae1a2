"""The ring with equal work for all: a device holds the r-th run of positions from the front and the
r-th from the back, so that every hop brings each device as many pairs as any other.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from parallelism.sequence import ring


def zigzag(block: Any, index: Any, *, blocks: int, length: int) -> Any:
    """Runs 0 to 2W-1 of half a block each: device r holds runs r and 2W-1-r."""
    half = length // 2
    where = np.where if isinstance(block, np.ndarray | int) else jnp.where
    run = where(index < half, block, 2 * blocks - 1 - block)
    return run * half + index % half


@dataclass(frozen=True)
class Scheme(ring.Scheme):
    parts: ClassVar[int] = 2
    permutes: ClassVar[bool] = True
    place = staticmethod(zigzag)
