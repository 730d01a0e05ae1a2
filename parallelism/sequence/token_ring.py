"""TokenRing: keys and values stay, queries go round one way, and what they found comes straight
home the other way, so that both directions of a full-duplex link work.

Moves U = queries where the ring moves keys and values: no help for few key-value heads. Layout of
the zigzag, for equal work. The backward pass sends queries round again with the gradient of what
they found, and the gradients of queries home.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from parallelism.blockwise import Marks, Sight, heads_first, join, nothing, queries_back, some
from parallelism.sequence import AXIS, Recurrent, Softmax, Traffic, zigzag
from parallelism.sharded_softmax import Ahead, Kept, SoftmaxScheme, grads_back, of_all


@dataclass(frozen=True)
class Scheme(zigzag.Scheme):
    def forward(
        self, sight: Sight, q: jax.Array, k: jax.Array, v: jax.Array, ahead: Ahead, marks: Marks
    ) -> tuple[jax.Array, Kept]:
        kept = {"q": q, "k": k, "v": v}
        q, k, v = heads_first(q, k, v)
        rank = jax.lax.axis_index(AXIS)
        part = sight.visit(self.begun(sight, q, ahead), q, (k, v), marks, rank, rank)
        here = q
        for t, wanted in enumerate(stops(sight), start=1):
            here = self.turn(here, by=-1)
            if wanted:
                owner = self._source(rank, -t)
                found = sight.visit(nothing(q), here, (k, v), marks, owner, rank)
                part = join(part, self.turn(found, by=t))
        y = queries_back(part[0], kept["q"].dtype)
        return y, {**kept, "y": y, "lse": part[1]}

    def backward(
        self, sight: Sight, kept: Kept, ahead: Ahead, marks: Marks, dy: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, Ahead]:
        q, k, v = heads_first(kept["q"], kept["k"], kept["v"])
        y, dy = (heads_first(x, kept["k"], kept["v"])[0] for x in (kept["y"], dy))
        every, rank = of_all(kept, y, dy), jax.lax.axis_index(AXIS)
        dq, dk, dv = sight.visit_backward(q, (k, v), marks, rank, rank, **every)
        more, dahead = self.begun_backward(sight, q, ahead, every)
        dq, both = dq + more, jnp.stack([q, every["dy"]])
        here = (both, every["lse"], every["dlse"])
        for t, wanted in enumerate(stops(sight), start=1):
            here = self.turn(here, by=-1)
            if wanted:
                owner, (both, lse, dlse) = self._source(rank, -t), here
                theirs = {"lse": lse, "dy": both[1], "dlse": dlse}
                found = sight.visit_backward(both[0], (k, v), marks, owner, rank, **theirs)
                dq = dq + self.turn(found[0], by=t)
                dk, dv = dk + found[1], dv + found[2]
        return *grads_back((dq, dk, dv), kept), dahead

    def kept_specs(self, kv_heads: int) -> dict[str, PartitionSpec]:
        return SoftmaxScheme.kept_specs(self, kv_heads)

    def traffic(self, layer: Softmax | Recurrent) -> Traffic:
        out, home = self.both_ways(layer)
        return Traffic(out.forward + home.forward, out.backward + home.backward)

    def both_ways(self, layer: Softmax | Recurrent) -> tuple[Traffic, Traffic]:
        """Bytes on the way round and on the way home: the larger of the two takes the time."""
        assert isinstance(layer, Softmax)
        sight = self.sight(layer.length, scale=1.0, band=layer.band, causal=layer.causal)
        rows, heads, _ = self.share(layer)
        rates = rows * (layer.length // self.ways) * heads
        queries = rates * layer.per_head
        hops, stopped = len(stops(sight)), sum(stops(sight))
        round_ = Traffic(
            hops * queries * layer.item,
            hops * (2 * queries * layer.item + 2 * rates * layer.wide) + self.ahead_bytes(layer),
        )
        home = Traffic(stopped * (queries + rates) * layer.wide, stopped * queries * layer.wide)
        return round_, home


def stops(sight: Sight) -> list[bool]:
    """After each hop, whether any query sees keys where it is by then; up to the last that does."""
    rank = np.arange(sight.blocks)
    wanted = [
        bool(some(sight)[(rank + t) % sight.blocks, :, rank].any()) for t in range(1, sight.blocks)
    ]
    while wanted and not wanted[-1]:
        wanted.pop()
    return wanted
