"""What does a layer get besides the stream? One frozen value, the same for every layer of a forward
pass.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax

Constrain = Callable[[jax.Array, str], jax.Array]


def unplaced(x: jax.Array, dims: str) -> jax.Array:
    """The constrain of a single device: nothing to say."""
    return x


@dataclass(frozen=True)
class Context:
    """positions_BT counts from the start of the row; segments_BT numbers documents, None when they
    are not isolated.
    """

    positions_BT: jax.Array
    segments_BT: jax.Array | None
    constrain: Constrain = unplaced
    layers: str = "scan"  # or unroll
    remat: str = "none"
