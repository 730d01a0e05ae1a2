"""Which features stand for queries and keys in linear attention? One function a map.

`KINDS` says how wide the features are beside the head, and whether they are never negative: only
then is a sum of products of them a denominator.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

Kind = Literal["elu1", "relu", "identity", "t2r", "hedgehog", "dpfp", "hadamard"]


@dataclass(frozen=True)
class Map:
    widening: int  # features per channel of the head
    positive: bool
    matrices: int = 0  # learned ones, per-head, for queries and for keys
    bias: bool = False


KINDS: dict[str, Map] = {
    "elu1": Map(1, True),  # Katharopoulos et al. 2020
    "relu": Map(1, True),
    "identity": Map(1, False),
    "t2r": Map(1, True, matrices=1),  # Kasai et al. 2021
    "hedgehog": Map(2, True, matrices=1, bias=True),  # Zhang et al. 2024
    "dpfp": Map(2, True),  # Schlag et al. 2021; 2 per channel and shift
    "hadamard": Map(1, False, matrices=2, bias=True),  # product of two learned maps
}


def features(
    x_BTHK: jax.Array, mapped: tuple[jax.Array, ...], *, kind: Kind, shifts: int
) -> jax.Array:
    """(B, T, H, X); `mapped` holds x through each learned matrix. In float32, back in x's type."""
    x = x_BTHK.astype(jnp.promote_types(x_BTHK.dtype, jnp.float32))
    learned = [m.astype(x.dtype) for m in mapped]
    match kind:
        case "elu1":
            # exp of a negative number, else 1 + x: no overflow on the branch not taken
            y = jnp.where(x > 0, 1 + x, jnp.exp(jnp.minimum(x, 0)))
        case "relu":
            y = jax.nn.relu(x)
        case "identity":
            y = x
        case "t2r":
            y = jax.nn.relu(learned[0])
        case "hedgehog":
            y = jax.nn.softmax(jnp.concatenate([2 * learned[0], -2 * learned[0]], axis=-1), axis=-1)
        case "dpfp":
            both = jax.nn.relu(jnp.concatenate([x, -x], axis=-1))
            turned = [jnp.roll(both, shift, axis=-1) for shift in range(1, shifts + 1)]
            y = jnp.concatenate([both * other for other in turned], axis=-1)
        case "hadamard":
            y = learned[0] * learned[1]
    return y.astype(x_BTHK.dtype)
