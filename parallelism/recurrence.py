"""What does a scheme ask of a linear recurrence whose positions devices share? How the state after
some positions follows from that before them, and their outputs, given that state.

The recurrence is affine in its state S (K, M): S after is A S + M, with A a number, one a row of S
or a matrix (K, K). So what crosses devices is A and M, whatever the length.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

Arrays = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Recurrence:
    """`run(arrays, segments_BT, state_BHKM)` gives y (B, T, H, M) and the state after;
    `transfer(arrays, segments_BT)` gives A (B, H), (B, H, K) or (B, H, K, K), and M (B, H, K, M).
    The state before is of the first position's document.
    """

    run: Callable[[Arrays, jax.Array | None, Any], tuple[jax.Array, jax.Array]]
    transfer: Callable[[Arrays, jax.Array | None], tuple[jax.Array, jax.Array]]


def onward(a: jax.Array, state_BHKM: jax.Array) -> jax.Array:
    """A S."""
    if a.ndim == 4:
        return jnp.einsum("bhkl,bhlm->bhkm", a, state_BHKM, precision="highest")
    return a.reshape(*a.shape, *(1,) * (4 - a.ndim)) * state_BHKM
