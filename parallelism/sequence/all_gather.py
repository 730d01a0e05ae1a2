"""Keys and values of a whole row on every device, for the time of a layer: one collective each way.

Queries stay where they are. The backward pass gathers again rather than keep W blocks of keys a
layer, and sums the gradients of keys where they belong (reduce-scatter). The softmax layers of a
hybrid under LASP-2H do the same.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from parallelism.blockwise import Marks, Pair, Sight, heads_first, queries_back
from parallelism.sequence import AXIS, Recurrent, Softmax, Traffic
from parallelism.sharded_softmax import Ahead, Kept, SoftmaxScheme, grads_back, of_all


@dataclass(frozen=True)
class Scheme(SoftmaxScheme):
    def forward(
        self, sight: Sight, q: jax.Array, k: jax.Array, v: jax.Array, ahead: Ahead, marks: Marks
    ) -> tuple[jax.Array, Kept]:
        kept = {"q": q, "k": k, "v": v}
        q, k, v = heads_first(q, k, v)
        rank = jax.lax.axis_index(AXIS)
        y, lse = sight.visit_all(self.begun(sight, q, ahead), q, _gather(k, v), marks, rank)
        y = queries_back(y, kept["q"].dtype)
        return y, {**kept, "y": y, "lse": lse}

    def backward(
        self, sight: Sight, kept: Kept, ahead: Ahead, marks: Marks, dy: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, Ahead]:
        q, k, v = heads_first(kept["q"], kept["k"], kept["v"])
        y, dy = (heads_first(x, kept["k"], kept["v"])[0] for x in (kept["y"], dy))
        every, rank = of_all(kept, y, dy), jax.lax.axis_index(AXIS)
        more, dahead = self.begun_backward(sight, q, ahead, every)
        values, keys = _gather(v, k)
        dq, *by_block = sight.visit_all_backward(q, (keys, values), marks, rank, **every)
        dk, dv = (jax.lax.psum_scatter(x, AXIS, scatter_dimension=0) for x in by_block)
        return *grads_back((dq + more, dk, dv), kept), dahead

    def traffic(self, layer: Softmax | Recurrent) -> Traffic:
        assert isinstance(layer, Softmax)
        rows, _, kv_heads = self.share(layer)
        pair = 2 * rows * (layer.length // self.ways) * kv_heads * layer.per_head
        others = (self.ways - 1) * pair
        return Traffic(
            others * layer.item,
            others * (layer.item + layer.wide) + self.ahead_bytes(layer),
        )


def _gather(one_BJSK: jax.Array, other_BJSK: jax.Array) -> Pair:
    both = jax.lax.all_gather(jnp.stack([one_BJSK, other_BJSK]), AXIS, axis=3, tiled=True)
    return both[0], both[1]
