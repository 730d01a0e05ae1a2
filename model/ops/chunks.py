"""What do recurrences in chunks share? Which positions meet, sums of decays, the carried state.

A chunk holds c positions; n chunks cover the sequence, the last filled up with positions that decay
nothing and add nothing.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

EXACT = 256.0  # decays are split at multiples of 1/256; float32 adds 512 of up to 100 exactly
SMALLEST = -100.0  # exp(-100) is 0 beside anything that a float32 sum holds


@dataclass(frozen=True)
class Documents:
    """Who is in one document, by chunk: pairs of positions, the later one first (`within`, causal);
    a position and the chunk before (`entering`); a position and the end of its chunk (`leaving`);
    the chunk before and that end (`kept`).
    """

    within: jax.Array
    entering: jax.Array
    leaving: jax.Array
    kept: jax.Array

    def over(self, dims: int) -> "Documents":
        """The same with dims of 1 for heads, between the chunks and the positions."""
        parts = (self.within, self.entering, self.leaving, self.kept)
        return Documents(*(x.reshape(*x.shape[:2], *(1,) * dims, *x.shape[2:]) for x in parts))


def documents(segments_BT: jax.Array | None, *, n: int, c: int, short: int) -> Documents:
    """Of n chunks of c positions, the last `short` of which are filling."""
    causal_ts = jnp.tril(jnp.ones((c, c), bool))[None, None]
    if segments_BT is None:
        every = jnp.ones((1, 1, c), bool)
        return Documents(causal_ts, every, every, every[:, :, :1])
    own_Bnt = jnp.pad(segments_BT, ((0, 0), (0, short)), mode="edge").reshape(-1, n, c)
    end_Bn1 = own_Bnt[:, :, -1:]
    before_Bn1 = jnp.concatenate([own_Bnt[:, :1, :1], end_Bn1[:, :-1]], axis=1)
    within_Bnts = causal_ts & (own_Bnt[..., :, None] == own_Bnt[..., None, :])
    return Documents(within_Bnts, own_Bnt == before_Bn1, own_Bnt == end_Bn1, before_Bn1 == end_Bn1)


@dataclass(frozen=True)
class Sums:
    """Sums of decays as a coarse part, exact in float32, and a small rest.

    The difference of two of them has the rounding of the difference, not of the sums: after a few
    strong decays the weights of later positions would lose their last digits.
    """

    coarse: jax.Array
    rest: jax.Array

    def at(self, index: Any) -> "Sums":
        return Sums(self.coarse[index], self.rest[index])

    def __sub__(self, other: "Sums") -> jax.Array:
        return (self.coarse - other.coarse) + (self.rest - other.rest)

    @property
    def whole(self) -> jax.Array:
        return self.coarse + self.rest


jax.tree_util.register_dataclass(Sums)


def sums(decay: jax.Array, within: jax.Array) -> Sums:
    """Sums over positions, the last dim but one, up to each one's own and in its document alone.

    As a product with the mask, because in one cumulative sum the rounding of a document would
    depend on the document before it.
    """
    decay = jnp.maximum(decay, SMALLEST)
    coarse = jax.lax.stop_gradient(jnp.round(decay * EXACT) / EXACT)
    exact = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # no TensorFloat32
    within = within.astype(decay.dtype)
    return Sums(exact(within, coarse), exact(within, decay - coarse))


def carried(first: jax.Array, fade_Bn: jax.Array, added_Bn: jax.Array):
    """The state before each chunk, and after the last: fade x state + added."""

    def chunk(state, now):
        fade, added = now
        return fade * state + added, state

    over_chunks = (jnp.moveaxis(fade_Bn, 1, 0), jnp.moveaxis(added_Bn, 1, 0))
    if added_Bn.shape[1] == 1:
        last, before = chunk(first, jax.tree.map(lambda x: x[0], over_chunks))
        return before[:, None], last
    last, before_n = jax.lax.scan(chunk, first, over_chunks)
    return jnp.moveaxis(before_n, 0, 1), last


def wide(dtype: Any) -> Any:
    """The type of decays, states and sums over positions: float32, or wider."""
    return jnp.promote_types(dtype, jnp.float32)
