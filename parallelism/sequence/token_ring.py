"""TokenRing: keys and values stay, queries go round one way, and what they found comes straight
home the other way, so that both directions of a full-duplex link work.

Moves U = queries where the ring moves keys and values: no help for few key-value heads. Layout of
the zigzag, for equal work. The backward pass sends queries round again with the gradient of what
they found, and the gradients of queries home.
"""

import functools
from dataclasses import dataclass
from typing import Any

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
        coming, home, wanted = self.turn(q, by=-1), None, stops(sight)
        for t, stop in enumerate(wanted, start=1):
            here = _after(part, coming)
            if t < len(wanted):
                coming = self.turn(here, by=-1)  # while the queries that are here are worked on
            before, home = home, None
            if stop:
                owner = self._source(rank, -t)
                found = sight.visit(nothing(q), here, (k, v), marks, owner, rank)
                home = self.turn(found, by=t)  # while the next are
            part = part if before is None else join(part, before)
        part = part if home is None else join(part, home)
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
        coming = self.turn((both, every["lse"], every["dlse"]), by=-1)
        home, wanted = None, stops(sight)
        for t, stop in enumerate(wanted, start=1):
            here = _after((dq, dk, dv), coming)
            if t < len(wanted):
                coming = self.turn(here, by=-1)
            before, home = home, None
            if stop:
                owner, (both, lse, dlse) = self._source(rank, -t), here
                theirs = {"lse": lse, "dy": both[1], "dlse": dlse}
                found = sight.visit_backward(both[0], (k, v), marks, owner, rank, **theirs)
                home = self.turn(found[0], by=t)
                dk, dv = dk + found[1], dv + found[2]
            dq = dq if before is None else dq + before
        dq = dq if home is None else dq + home
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


def _after(done: Any, held: Any) -> Any:
    """`held`, and not before `done` is there, bit for bit unless that has a NaN. Hops are written
    out, as each sends home over another distance, and XLA is free to send all queries ahead and to
    keep what every hop found: memory would grow with the ring. On CPU it does so, and drops
    `optimization_barrier`.
    """
    there = functools.reduce(jnp.maximum, [jnp.max(x) for x in jax.tree.leaves(done)])
    return jax.tree.map(lambda x: jnp.where(there == there, x, jnp.nan), held)


def stops(sight: Sight) -> list[bool]:
    """After each hop, whether any query sees keys where it is by then; up to the last that does."""
    rank = np.arange(sight.blocks)
    wanted = [
        bool(some(sight)[(rank + t) % sight.blocks, :, rank].any()) for t in range(1, sight.blocks)
    ]
    while wanted and not wanted[-1]:
        wanted.pop()
    return wanted
