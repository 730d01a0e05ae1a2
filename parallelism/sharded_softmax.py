"""What do the sequence schemes of softmax attention have in common? One differentiable function of
whole arrays, of which a scheme writes the forward and the backward pass of one device.

The gradient is written out rather than left to autodiff: what a device saved would grow with the
number of blocks it has seen, and every collective is counted. The backward pass sends other arrays
than the forward pass (values and keys, where that sent keys and values): or the compiler may find
that they have been sent before, and keep all that came by.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from parallelism.blockwise import (
    Grads,
    Marks,
    Part,
    Sight,
    attend,
    attend_backward,
    keys_back,
    nothing,
    queries_back,
    wide,
)
from parallelism.sequence import AXIS, Band, Scheme, Softmax

Ahead = tuple[jax.Array, jax.Array] | None  # keys and values (B, S, J, K)
Kept = Mapping[str, Any]  # between the passes


@dataclass(frozen=True)
class SoftmaxScheme(Scheme):
    """Abstract. `forward` and `backward` see a device's own part of each array."""

    def forward(
        self, sight: Sight, q: jax.Array, k: jax.Array, v: jax.Array, ahead: Ahead, marks: Marks
    ) -> tuple[jax.Array, Kept]:
        """y (B, T, H, K), and what `backward` needs."""
        raise NotImplementedError

    def backward(
        self, sight: Sight, kept: Kept, ahead: Ahead, marks: Marks, dy: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, Ahead]:
        """Gradients of q, k, v and of `ahead`."""
        raise NotImplementedError

    def sight(self, length: int, *, scale: float, band: Band | None, causal: bool) -> Sight:
        each = length // self.ways
        return Sight(self.ways, each, scale, place=self.place, band=band, causal=causal)

    def softmax(
        self,
        q_BTHK: jax.Array,
        k_BTJK: jax.Array,
        v_BTJK: jax.Array,
        segments_BT: jax.Array | None,
        *,
        scale: float,
        prefix_BT: jax.Array | None = None,
        ahead: Ahead = None,
        band: Band | None = None,
    ) -> jax.Array:
        length = q_BTHK.shape[1]
        if length % (self.ways * self.parts):
            raise ValueError(f"{length} positions, not a multiple of {self.ways * self.parts}")
        if band is not None:
            prefix_BT = None  # bands are of causal layers
        sight = self.sight(length, scale=scale, band=band, causal=prefix_BT is None)
        marks = sight.marks(segments_BT, prefix_BT)
        return _softmax(self, sight, q_BTHK, k_BTJK, v_BTJK, ahead, marks)

    # Layouts

    def tokens_spec(self, kv_heads: int) -> PartitionSpec:
        return PartitionSpec(self.batch_axes, AXIS, self.heads(kv_heads), None)

    def ahead_spec(self, kv_heads: int) -> PartitionSpec:
        return PartitionSpec(self.batch_axes, None, self.heads(kv_heads), None)

    def kept_specs(self, kv_heads: int) -> dict[str, PartitionSpec]:
        tokens = self.tokens_spec(kv_heads)
        by_head = PartitionSpec(self.batch_axes, self.heads(kv_heads), None, AXIS)
        return {"q": tokens, "k": tokens, "v": tokens, "y": tokens, "lse": by_head}

    def ahead_bytes(self, layer: Softmax) -> int:
        """Of the sum over devices of the gradient of the keys ahead, by all-reduce."""
        rows, _, kv_heads = self.share(layer)
        numbers = 2 * rows * layer.ahead * kv_heads * layer.per_head
        return 2 * (self.ways - 1) * numbers * layer.wide // self.ways

    # What most devices do with what is theirs

    def begun(self, sight: Sight, q_BJGTK: jax.Array, ahead: Ahead) -> Part:
        """The part of the learned keys ahead of the first position, if there are any."""
        if ahead is None:
            return nothing(q_BJGTK)
        k_BJSK, v_BJSK = (x.swapaxes(1, 2) for x in ahead)
        return attend(q_BJGTK, k_BJSK, v_BJSK, None, scale=sight.scale)

    def begun_backward(
        self,
        sight: Sight,
        q_BJGTK: jax.Array,
        ahead: Ahead,
        every: Mapping[str, jax.Array],
        *,
        shared: bool = True,
    ) -> tuple[jax.Array, Ahead]:
        """The gradient of queries through those keys, and of the keys: a sum over the devices that
        share them.
        """
        if ahead is None:
            return jnp.zeros(q_BJGTK.shape, wide(q_BJGTK.dtype)), None
        k_BJSK, v_BJSK = (x.swapaxes(1, 2) for x in ahead)
        dq, dk, dv = attend_backward(q_BJGTK, k_BJSK, v_BJSK, None, scale=sight.scale, **every)
        if shared:
            dk, dv = jax.lax.psum((dk, dv), AXIS)
        return dq, (keys_back(dk, ahead[0].dtype), keys_back(dv, ahead[1].dtype))


def of_all(kept: Kept, y_BJGTK: jax.Array, dy_BJGTK: jax.Array) -> dict[str, jax.Array]:
    """What the backward pass of any block needs to know of all the others."""
    kind = kept["lse"].dtype
    dlse_BJGT = jnp.sum(y_BJGTK.astype(kind) * dy_BJGTK.astype(kind), axis=-1)
    return {"lse": kept["lse"], "dy": dy_BJGTK, "dlse": dlse_BJGT}


def grads_back(grads: Grads, like: Kept) -> Grads:
    """As the arrays came in."""
    return (
        queries_back(grads[0], like["q"].dtype),
        keys_back(grads[1], like["k"].dtype),
        keys_back(grads[2], like["v"].dtype),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _softmax(scheme: SoftmaxScheme, sight: Sight, q, k, v, ahead: Ahead, marks: Marks):
    return _forward(scheme, sight, q, k, v, ahead, marks)[0]


def _forward(scheme: SoftmaxScheme, sight: Sight, q, k, v, ahead: Ahead, marks: Marks):
    J = k.shape[2]
    tokens, kept = scheme.tokens_spec(J), scheme.kept_specs(J)
    y, kept = scheme.manual(
        partial(scheme.forward, sight),
        (tokens, tokens, tokens, scheme.ahead_spec(J), scheme.marks_spec()),
        (tokens, kept),
    )(q, k, v, ahead, marks)
    return y, (kept, ahead, marks)


def _backward(scheme: SoftmaxScheme, sight: Sight, saved: Any, dy: jax.Array):
    kept, ahead, marks = saved
    J = kept["k"].shape[2]
    tokens, before = scheme.tokens_spec(J), scheme.ahead_spec(J)
    dq, dk, dv, dahead = scheme.manual(
        partial(scheme.backward, sight),
        (scheme.kept_specs(J), before, scheme.marks_spec(), tokens),
        (tokens, tokens, tokens, before),
    )(kept, ahead, marks, dy)
    return dq, dk, dv, dahead, None


_softmax.defvjp(_forward, _backward)
