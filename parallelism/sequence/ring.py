"""Ring attention: keys and values go round the devices, one block at a time, and every device joins
what its own queries get from each (Liu et al. 2023; online softmax).

Blocks are runs of neighbouring positions: later devices have more to do, and a window stops the
ring as soon as no band reaches further. The backward pass sends keys and values round again, and
their gradients with them, so that nothing is kept of the blocks that passed by.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from parallelism.blockwise import (
    Marks,
    Sight,
    attend,
    attend_backward,
    heads_first,
    join,
    queries_back,
    some,
    wide,
)
from parallelism.sequence import AXIS, Band, Recurrent, Softmax, Traffic
from parallelism.sharded_softmax import Ahead, Kept, SoftmaxScheme, grads_back, of_all
from parallelism.sinks import Sinks


@dataclass(frozen=True)
class Scheme(SoftmaxScheme):
    def sight(self, length: int, *, scale: float, band: Band | None, causal: bool) -> Sight:
        sight = super().sight(length, scale=scale, band=band, causal=causal)
        if band is None or not band.sinks or self.permutes:
            return sight
        apart = replace(sight, sinks_apart=True)
        return apart if hops(apart) < self.ways - 1 else sight

    def forward(
        self, sight: Sight, q: jax.Array, k: jax.Array, v: jax.Array, ahead: Ahead, marks: Marks
    ) -> tuple[jax.Array, Kept]:
        kept: dict[str, Any] = {"q": q, "k": k, "v": v}
        q, k, v = heads_first(q, k, v)
        rank, last = jax.lax.axis_index(AXIS), hops(sight)
        part = sight.visit(self.begun(sight, q, ahead), q, (k, v), marks, rank, rank)

        def step(carry: Any, t: jax.Array):
            part, both = carry
            after = self.turn(both)  # while the block that is here is worked on
            return (
                sight.visit(part, q, tuple(both), marks, rank, self._source(rank, t)),
                after,
            ), None

        if last:
            both = self.turn(jnp.stack([k, v]))
            if last > 1:
                (part, both), _ = jax.lax.scan(step, (part, both), jnp.arange(1, last))
            part = sight.visit(part, q, tuple(both), marks, rank, self._source(rank, last))
        kept["sinks"] = None
        if sight.sinks_apart:
            sinks = Sinks(sight, last)
            kept["sinks"] = sinks.fetch((k, v), marks)
            seen = sinks.seen(marks, rank, q.shape[0])
            part = join(part, attend(q, *kept["sinks"], seen, scale=sight.scale))
        y = queries_back(part[0], kept["q"].dtype)
        return y, {**kept, "y": y, "lse": part[1]}

    def backward(
        self, sight: Sight, kept: Kept, ahead: Ahead, marks: Marks, dy: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, Ahead]:
        q, k, v = heads_first(kept["q"], kept["k"], kept["v"])
        y, dy = (heads_first(x, kept["k"], kept["v"])[0] for x in (kept["y"], dy))
        every: dict[str, Any] = of_all(kept, y, dy)
        rank, last = jax.lax.axis_index(AXIS), hops(sight)
        own = sight.visit_backward(q, (k, v), marks, rank, rank, **every)
        more, dahead = self.begun_backward(sight, q, ahead, every)

        def step(carry: Any, t: Any):
            dq, both, given = carry
            after = self.turn(both)
            dq, given = here(dq, both, given, t)
            return (dq, after, self.turn(given)), None

        def here(dq: jax.Array, both: jax.Array, given: jax.Array, t: Any):
            held, source = (both[1], both[0]), self._source(rank, t)
            found = sight.visit_backward(q, held, marks, rank, source, **every)
            return dq + found[0], given + jnp.stack(found[1:])

        dq, dk, dv = own[0] + more, *own[1:]
        if last:
            both = jnp.stack([v, k])
            carry = (dq, self.turn(both), jnp.zeros(both.shape, wide(both.dtype)))
            if last > 1:
                carry, _ = jax.lax.scan(step, carry, jnp.arange(1, last))
            dq, given = here(*carry, last)
            home = self.turn(given, by=-last)  # a device's own gradients never left it
            dk, dv = dk + home[0], dv + home[1]
        if sight.sinks_apart:
            sinks = Sinks(sight, last)
            seen = sinks.seen(marks, rank, q.shape[0])
            k_BJSK, v_BJSK = kept["sinks"]
            found = attend_backward(q, k_BJSK, v_BJSK, seen, scale=sight.scale, **every)
            own = sinks.give_back((found[1], found[2]), (k, v), marks)
            dq, dk, dv = dq + found[0], dk + own[0], dv + own[1]
        return *grads_back((dq, dk, dv), kept), dahead

    def kept_specs(self, kv_heads: int) -> dict[str, PartitionSpec]:
        by_device = PartitionSpec(self.batch_axes, self.heads(kv_heads), AXIS, None)
        return {**super().kept_specs(kv_heads), "sinks": by_device}

    def traffic(self, layer: Softmax | Recurrent) -> Traffic:
        assert isinstance(layer, Softmax)
        sight = self.sight(layer.length, scale=1.0, band=layer.band, causal=layer.causal)
        ring = self.ring_traffic(layer, hops=hops(sight))
        if not sight.sinks_apart:
            return ring
        assert layer.band is not None
        rows, _, kv_heads = self.share(layer)
        fetched = 2 * (self.ways - 1) * rows * kv_heads * layer.band.sinks * layer.per_head
        return ring + Traffic(fetched * layer.item, fetched * layer.wide)

    def ring_traffic(self, layer: Softmax, *, hops: int) -> Traffic:
        rows, _, kv_heads = self.share(layer)
        pair = 2 * rows * (layer.length // self.ways) * kv_heads * layer.per_head
        forward = hops * pair * layer.item
        more = self.ahead_bytes(layer)
        return Traffic(forward, forward + hops * pair * layer.wide + more)

    def turn(self, held: Any, by: int = 1) -> Any:
        """To the device `by` places on."""
        ring = [(i, (i + by) % self.ways) for i in range(self.ways)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, ring), held)

    def _source(self, rank: jax.Array, t: Any) -> jax.Array:
        """Whose block is here after `t` hops."""
        return jnp.mod(rank - t, self.ways)


def hops(sight: Sight) -> int:
    """How far a block must go: to the last device of which a query may see it."""
    rank = np.arange(sight.blocks)
    wanted = [some(sight)[rank, :, rank - t].any() for t in range(sight.blocks)]
    return int(np.max(np.nonzero(wanted)[0]))
