"""Ring self-attention (Li et al. 2021): keys go round, then values, and each device holds all
scores of its queries in between.

The simple form: memory grows with the whole length, and what is masked is computed too. Unlike the
published code the gradients of keys and values are summed by reduce-scatter, half of an all-reduce,
and are not divided by the devices.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from parallelism.blockwise import (
    MASKED,
    Marks,
    Sight,
    heads_first,
    keys_back,
    product,
    queries_back,
    where,
)
from parallelism.sequence import AXIS, Band, Recurrent, Softmax, Traffic, ring
from parallelism.sharded_softmax import Ahead, Kept, SoftmaxScheme, grads_back


@dataclass(frozen=True)
class Scheme(ring.Scheme):
    def forward(
        self, sight: Sight, q: jax.Array, k: jax.Array, v: jax.Array, ahead: Ahead, marks: Marks
    ) -> tuple[jax.Array, Kept]:
        kept = {"q": q, "k": k, "v": v}
        q, k, v = heads_first(q, k, v)
        rank = jax.lax.axis_index(AXIS)
        whole = (0, sight.length)

        def scores(key: Any, k: jax.Array) -> jax.Array:
            seen_BTS = sight.seen(marks, rank, whole, key, whole)
            score_BJGTS = sight.scale * product("bjgtk,bjsk->bjgts", q, k)
            return where(seen_BTS, score_BJGTS, MASKED)

        def score(held: jax.Array, t: Any):
            return self.turn(held), scores(self._source(rank, t), held)

        # by hop, then what came last: it goes no further
        held, first = jax.lax.scan(score, k, jnp.arange(self.ways - 1))
        last = scores(self._source(rank, self.ways - 1), held)
        by_hop = jnp.concatenate([first, last[None]])
        peak = jnp.max(by_hop, axis=(0, -1))[..., None]
        parts = {"weights": by_hop}
        if ahead is not None:
            parts["ahead"] = sight.scale * product("bjgtk,bsjk->bjgts", q, ahead[0])
            peak = jnp.maximum(peak, jnp.max(parts["ahead"], axis=-1, keepdims=True))
        parts = {name: jnp.exp(part - peak) for name, part in parts.items()}
        total = jnp.sum(parts["weights"], axis=(0, -1))[..., None]
        if ahead is not None:
            total = total + jnp.sum(parts["ahead"], axis=-1, keepdims=True)
        parts = {name: part / total for name, part in parts.items()}

        def value(carry: Any, weight: jax.Array):
            y, held = carry
            return (y + _weighed(weight, held), self.turn(held)), None

        weights = parts["weights"]
        zero = jnp.zeros(q.shape, weights.dtype)
        (y, held), _ = jax.lax.scan(value, (zero, v), weights[:-1])
        y = y + _weighed(weights[-1], held)
        if ahead is not None:
            y = y + _weighed(parts["ahead"], ahead[1].swapaxes(1, 2))
        y = queries_back(y, kept["q"].dtype)
        return y, {**kept, "y": y, "ahead": None, **parts}

    def backward(
        self, sight: Sight, kept: Kept, ahead: Ahead, marks: Marks, dy: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, Ahead]:
        q, k, v = heads_first(kept["q"], kept["k"], kept["v"])
        y, dy = (heads_first(x, kept["k"], kept["v"])[0] for x in (kept["y"], dy))
        weights = kept["weights"]
        kind, dtype = weights.dtype, q.dtype
        shift = jnp.sum(y.astype(kind) * dy.astype(kind), axis=-1, keepdims=True)

        def of_scores(weight: jax.Array, v: jax.Array) -> jax.Array:
            dweight = product("bjgtk,bjsk->bjgts", dy, v)
            return (sight.scale * weight * (dweight - shift)).astype(dtype)

        def grads(weight: jax.Array, k: jax.Array, v: jax.Array):
            dscore = of_scores(weight, v)
            dk = product("bjgts,bjgtk->bjsk", dscore, q)
            dv = product("bjgts,bjgtk->bjsk", weight.astype(dtype), dy)
            return product("bjgts,bjsk->bjgtk", dscore, k), (dk, dv)

        def step(carry: Any, weight: jax.Array):
            dq, both = carry
            found, keys = grads(weight, both[1], both[0])
            return (dq + found, self.turn(both)), keys

        carry = (jnp.zeros(q.shape, kind), jnp.stack([v, k]))
        (dq, both), by_hop = jax.lax.scan(step, carry, weights[:-1])
        found, keys = grads(weights[-1], both[1], both[0])
        dq, dahead = dq + found, None
        if ahead is not None:
            first = (x.swapaxes(1, 2) for x in ahead)
            more, pair = grads(kept["ahead"], *first)
            dq, pair = dq + more, jax.lax.psum(pair, AXIS)
            dahead = tuple(keys_back(x, a.dtype) for x, a in zip(pair, ahead, strict=True))
        whose = self._source(jax.lax.axis_index(AXIS), jnp.arange(self.ways))

        def home(by_hop: jax.Array, last: jax.Array) -> jax.Array:
            every = jnp.concatenate([by_hop, last[None]])[whose]  # hop t brought block r - t
            return jax.lax.psum_scatter(every, AXIS, scatter_dimension=0)

        dk, dv = (home(a, b) for a, b in zip(by_hop, keys, strict=True))
        return *grads_back((dq, dk, dv), kept), dahead  # pyright: ignore[reportReturnType]

    def sight(self, length: int, *, scale: float, band: Band | None, causal: bool) -> Sight:
        return SoftmaxScheme.sight(self, length, scale=scale, band=band, causal=causal)

    def kept_specs(self, kv_heads: int) -> dict[str, PartitionSpec]:
        specs = SoftmaxScheme.kept_specs(self, kv_heads)
        del specs["lse"]
        heads = self.heads(kv_heads)
        specs["ahead"] = PartitionSpec(self.batch_axes, heads, None, AXIS, None)
        specs["weights"] = PartitionSpec(None, self.batch_axes, heads, None, AXIS, None)
        return specs

    def traffic(self, layer: Softmax | Recurrent) -> Traffic:
        assert isinstance(layer, Softmax)
        # the gradients of keys and values: reduce-scatter moves as much as the ring would
        return self.ring_traffic(layer, hops=self.ways - 1)


def _weighed(weight_BJGTS: jax.Array, v_BJSK: jax.Array) -> jax.Array:
    return product("bjgts,bjsk->bjgtk", weight_BJGTS.astype(v_BJSK.dtype), v_BJSK)
