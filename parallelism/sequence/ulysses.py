"""Whole sequences of some heads instead of some positions of all heads (DeepSpeed-Ulysses, Jacobs
et al. 2023): all-to-all before attention and after it.

Every device does the same work, and what it does has no collective in it. Heads set the limit:
key-value heads must divide by the devices.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from parallelism.axes import MeshSpec
from parallelism.blockwise import Marks, Sight, heads_first, keys_back, queries_back, wide
from parallelism.errors import InputError
from parallelism.sequence import AXIS, Recurrent, Softmax, Traffic
from parallelism.sharded_softmax import Ahead, Kept, SoftmaxScheme, of_all


@dataclass(frozen=True)
class Scheme(SoftmaxScheme):
    @classmethod
    def check_heads(cls, heads: int, kv_heads: int, *, mesh: MeshSpec, what: str) -> None:
        tensor = mesh.tensor if kv_heads % mesh.tensor == 0 else 1
        if kv_heads // tensor % mesh.sequence:
            each = "" if tensor == 1 else f" of a device of execution.mesh.tensor {tensor}"
            raise InputError(
                f"execution.mesh.{AXIS}",
                mesh.sequence,
                f"ulysses gives each device whole heads, and it does not divide the "
                f"{kv_heads // tensor} key-value heads{each} of a {what} layer; write a divisor "
                f"of them, or execution.sequence=zigzag",
            )

    def forward(
        self, sight: Sight, q: jax.Array, k: jax.Array, v: jax.Array, ahead: Ahead, marks: Marks
    ) -> tuple[jax.Array, Kept]:
        kept = {name: _to_heads(x) for name, x in (("q", q), ("k", k), ("v", v))}
        q, k, v = heads_first(kept["q"], kept["k"], kept["v"])

        def block(_: None, one: Any):
            query, q = one
            part = self.begun(sight, q, ahead)
            return None, sight.visit_all(part, q, (k, v), marks, query)

        every = (jnp.arange(sight.blocks), sight.by_block(q))
        _, (y, lse) = jax.lax.scan(block, None, every)
        y = queries_back(sight.whole(y), kept["q"].dtype)
        return _to_positions(y), {**kept, "y": y, "lse": lse}

    def backward(
        self, sight: Sight, kept: Kept, ahead: Ahead, marks: Marks, dy: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, Ahead]:
        dy = _to_heads(dy)
        q, k, v = heads_first(kept["q"], kept["k"], kept["v"])
        y, dy = (heads_first(x, kept["k"], kept["v"])[0] for x in (kept["y"], dy))

        def block(sums: Any, one: Any):
            query, q, y, dy, lse = one
            every = of_all({"lse": lse}, y, dy)
            more, dahead = self.begun_backward(sight, q, ahead, every, shared=False)
            dq, dk, dv = sight.visit_all_backward(q, (k, v), marks, query, **every)
            return jax.tree.map(jnp.add, sums, (dk, dv, dahead)), dq + more

        kind = wide(k.dtype)
        zeros = [jnp.zeros(x.shape, kind) for x in sight.by_block((k, v))]
        none = None if ahead is None else tuple(jnp.zeros_like(x) for x in ahead)
        every = (jnp.arange(sight.blocks), *sight.by_block((q, y, dy)), kept["lse"])
        (dk, dv, dahead), dq = jax.lax.scan(block, (*zeros, none), every)
        return (
            _to_positions(queries_back(sight.whole(dq), kept["q"].dtype)),
            _to_positions(keys_back(sight.whole(dk), kept["k"].dtype)),
            _to_positions(keys_back(sight.whole(dv), kept["v"].dtype)),
            dahead,
        )

    def kept_specs(self, kv_heads: int) -> dict[str, PartitionSpec]:
        heads = (*self.heads(kv_heads), AXIS)
        tokens = PartitionSpec(self.batch_axes, None, heads, None)
        by_head = PartitionSpec(None, self.batch_axes, heads, None, None)
        return {"q": tokens, "k": tokens, "v": tokens, "y": tokens, "lse": by_head}

    def ahead_spec(self, kv_heads: int) -> PartitionSpec:
        return PartitionSpec(self.batch_axes, None, (*self.heads(kv_heads), AXIS), None)

    def traffic(self, layer: Softmax | Recurrent) -> Traffic:
        assert isinstance(layer, Softmax)
        rows, heads, kv_heads = self.share(layer)
        place = rows * (layer.length // self.ways) * layer.per_head * layer.item
        # q and y, k and v: each leaves but for the share of the device itself
        once = place * 2 * (heads + kv_heads) * (self.ways - 1) // self.ways
        return Traffic(once, once)


def _to_heads(x_BTHK: jax.Array) -> jax.Array:
    return jax.lax.all_to_all(x_BTHK, AXIS, split_axis=2, concat_axis=1, tiled=True)


def _to_positions(x_BTHK: jax.Array) -> jax.Array:
    return jax.lax.all_to_all(x_BTHK, AXIS, split_axis=1, concat_axis=2, tiled=True)
