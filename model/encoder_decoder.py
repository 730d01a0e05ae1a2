"""How is a source read for a decoder? Embedding, blocks that see the whole source, a norm; what
comes out is there for every `cross` layer of the decoder.

A source has segments as a target has: a position of the target sees the source of its own segment
number, and padding has a number that no text has. The table of tokens is the decoder's.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.block import Block, Norm
from model.context import Context, State
from model.depth import stacked
from model.param import Declare
from model.spec import ModelSpec


class Encoder(nnx.Module):
    def __init__(self, spec: ModelSpec, declare: Declare):
        assert spec.encoder is not None
        self.spec = spec.encoder
        n = self.spec.n_repeats
        own = declare.within(
            "encoder",
            sizes={"Z": n},
            base={"Z": n},
            n_layers=self.spec.n_layers,
            of_source=True,
        )
        self.positions = own.table("positions", "T D") if spec.learned_positions else None
        scope = own.within("repeat", stack="Z", block=True)
        self.repeat = nnx.List(
            Block(
                block,
                scope.within(
                    str(i), layers=tuple(range(i, self.spec.n_layers, len(self.spec.repeat)))
                ),
                norm=spec.norm,
            )
            for i, block in enumerate(self.spec.repeat)
        )
        self.norm = Norm(spec.norm, own.within("norm"))

    def __call__(
        self,
        embed: Callable[..., jax.Array],
        ctx: Context,
        *,
        dtype: Any,
    ) -> tuple[Context, dict[str, jax.Array]]:
        """The context of a decoder that reads `ctx.source_BS`, and the layers' aux.

        `embed(tokens, ctx, dtype=, positions=)` is the decoder's.
        """
        tokens_BS, segments_BS = ctx.source_BS, ctx.source_segments_BS
        if tokens_BS is None:
            raise ValueError("a model with an encoder reads a source; give it as ctx.source_BS")
        if segments_BS is None:
            segments_BS = jnp.zeros(tokens_BS.shape, jnp.int32)
        inside = replace(
            ctx,
            positions_BT=places(segments_BS),
            segments_BT=segments_BS,
            prefix_BT=jnp.ones(tokens_BS.shape, bool),
        )
        x_BSD = embed(tokens_BS, inside, dtype=dtype, positions=self.positions)
        x_BSD, aux, _ = stacked(self.repeat, self.spec.n_repeats, x_BSD, inside, None)
        source_BSD = ctx.constrain(self.norm(x_BSD), "B S D")
        shared = {"source": source_BSD, "source_segments": segments_BS}
        return replace(ctx, shared={**ctx.shared, **shared}), aux


def places(segments_BT: jax.Array) -> jax.Array:
    """(B, T) int32: where each position stands in its segment, from 0."""
    at_BT = jnp.broadcast_to(jnp.arange(segments_BT.shape[1], dtype=jnp.int32), segments_BT.shape)
    opens_BT = jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1]) != 0
    return at_BT - jax.lax.cummax(jnp.where(opens_BT, at_BT, 0), axis=1)


def read(decoder: Any, ctx: Context, *, length: int, dtype: Any) -> dict[str, Any]:
    """The memory of a decoder that has read `ctx.source_BS` and said nothing, with room for
    `length` positions: keys and values of the source in every `cross` layer, computed here once.
    """
    rows = ctx.source_BS.shape[0] if ctx.source_BS is not None else 0
    ctx, _ = decoder.encoder(decoder.ends.embedded, ctx, dtype=dtype)

    def states(blocks: nnx.List) -> list[State]:
        return [
            block.start(rows, length=length, dtype=dtype) | block.read(ctx, dtype=dtype)
            for block in blocks
        ]

    graph, params_Z = nnx.split(decoder.repeat)
    repeat: list[State] = []
    if decoder.spec.n_repeats:
        _, repeat = jax.lax.scan(
            lambda _, one: (None, states(nnx.merge(graph, one))), None, params_Z
        )
    return {
        "position": jnp.zeros((), jnp.int32),
        "first": states(decoder.first),
        "repeat": repeat,
        "last": states(decoder.last),
        "source_segments": ctx.shared["source_segments"],
    }
