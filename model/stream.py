"""How does a block run a few positions at a time? As its layers say that they can.

Norms, chunked feed-forward layers and the queries of chunked mixers go by chunks. Any other mixer
runs over all positions and its output is cut; any other feed-forward layer runs over all positions
behind the chunks, its input kept beside the block's. A block that reads a source runs as a whole.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.block import Block, add_aux, counted
from model.chunked import Aux, ChunkedFfn, ChunkedMixer
from model.context import Context, unplaced
from parallelism.stream import Plan, Run, plan, streamed

Arrays = Mapping[str, jax.Array]
ALONG = ("positions_BT", "segments_BT", "prefix_BT")  # what a context has of each position


def streamed_block(block: Block, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, Aux]:
    """What `block(x_BTD, ctx)` gives."""
    mixes = _mixes(block, ctx) is not None
    if block.cross is not None or not mixes and _feeds(block, ctx) is None:
        return _again(lambda block, x_BTD: block(x_BTD, ctx), block, x_BTD)
    graph, state = nnx.split(block)
    cuts = _Cuts(ctx)

    def ahead(params: Any, fixed: Any, x_BTD: jax.Array):
        block, own = _merged(graph, params, fixed, ctx)
        if block.mixer is None or block.mixer_norm is None:
            return {}, {}, {}
        x_BTD = block.mixer_norm(cuts.whole(x_BTD))
        mixer = _mixes(block, ctx)
        if mixer is not None:
            return mixer.keys(x_BTD, own), {}, {}
        y_BTD, aux = block.mixer(x_BTD, own)
        return {}, {"y_BTD": cuts.apart(y_BTD)}, counted(aux)

    def part(params: Any, fixed: Any, x_BTD: Any, own: Any, keys: Any, *, low: Any, run: Run):
        block, whole = _merged(graph, params, fixed, ctx)
        some, mixer, ffn = cuts.some(whole, low, run), _mixes(block, ctx), _feeds(block, ctx)
        if mixer is not None and block.mixer_norm is not None:
            seen_BTS = _seen(whole, some, low, run)
            x_BTD = x_BTD + mixer.part(block.mixer_norm(x_BTD), keys, seen_BTS, some)
        elif own:
            x_BTD = x_BTD + own["y_BTD"]
        if ffn is None or block.ffn_norm is None:
            return x_BTD, {}
        y_BTD, sums = ffn.part(block.ffn_norm(x_BTD), some)
        return y_BTD if block.ffn_replaces else x_BTD + y_BTD, sums

    T, params = x_BTD.shape[1], (state, dict(ctx.shared))
    made = cuts.plan(T, grows=mixes and ctx.prefix_BT is None)
    y_BTD, aux, sums = streamed(ahead, part, made)(params, _fixed(ctx), cuts.apart(x_BTD))
    x_BTD = ctx.residual(cuts.whole(y_BTD), "B T D")
    ffn = _feeds(block, ctx)
    if ffn is not None:
        return x_BTD, add_aux(aux, block.said(cuts.added(sums), ctx, positions=T))
    return _again(lambda block, x_BTD: block.feed_forward(x_BTD, ctx, aux), block, x_BTD)


def streamed_sums(
    read: Callable[..., Any],
    params: Any,
    x_BTD: jax.Array,
    ctx: Context,
    along: Arrays,
    whole: Any = None,
) -> Any:
    """`read(params, x_BTD, ctx, along, whole)`, whose results are sums over positions; `along` are
    arrays (B, T), which with `whole` are not differentiated.
    """
    cuts = _Cuts(ctx)

    def part(params: Any, fixed: Any, x_BTD: Any, own: Any, keys: Any, *, low: Any, run: Run):
        held, along, whole = fixed
        some = cuts.some(_context(ctx, held, {}), low, run)
        along = {name: _rows(array, low, run) for name, array in along.items()}
        return None, read(params, x_BTD, some, along, whole)

    run = streamed(lambda *_: ({}, {}, {}), part, cuts.plan(x_BTD.shape[1], grows=False))
    along = {name: cuts.apart(array) for name, array in along.items()}
    return run(params, (_fixed(ctx), along, whole), cuts.apart(x_BTD))[2]


class _Cuts:
    """Where chunks of positions are cut. Where devices share a sequence a chunk has as many
    positions of each: what each holds becomes rows of its own, the device's number slowest.
    """

    def __init__(self, ctx: Context):
        self.ways = 1 if ctx.sequence is None else ctx.sequence.ways
        self.chunk = ctx.remat_chunk

    def plan(self, length: int, *, grows: bool) -> Plan:
        chunk = None if self.chunk is None else -(-self.chunk // self.ways)
        return plan(length // self.ways, chunk=chunk, grows=grows)

    def apart(self, x_BT: jax.Array) -> jax.Array:
        if self.ways == 1:
            return x_BT
        B, T, *rest = x_BT.shape
        x_BWT = x_BT.reshape(B, self.ways, T // self.ways, *rest)
        return x_BWT.swapaxes(0, 1).reshape(self.ways * B, T // self.ways, *rest)

    def whole(self, x_BT: jax.Array) -> jax.Array:
        if self.ways == 1:
            return x_BT
        rows, T, *rest = x_BT.shape
        x_WBT = x_BT.reshape(self.ways, rows // self.ways, T, *rest)
        return x_WBT.swapaxes(0, 1).reshape(rows // self.ways, self.ways * T, *rest)

    def added(self, sums: Any) -> Any:
        """Sums by row."""
        if self.ways == 1:
            return sums
        return jax.tree.map(lambda a: jnp.sum(a.reshape(self.ways, -1, *a.shape[1:]), axis=0), sums)

    def some(self, ctx: Context, low: Any, run: Run) -> Context:
        """The context of the chunk at `low`. What it says of axis T no longer holds."""
        own = {name: getattr(ctx, name) for name in ALONG}
        own = {k: None if a is None else _rows(self.apart(a), low, run) for k, a in own.items()}
        return replace(ctx, **own, constrain=unplaced, residual=unplaced, sequence=None)


def _mixes(block: Block, ctx: Context) -> ChunkedMixer | None:
    """The mixer if it goes by chunks; that of a scheme is the scheme's own to make anew."""
    return block.mixer if isinstance(block.mixer, ChunkedMixer) and ctx.sequence is None else None


def _feeds(block: Block, ctx: Context) -> ChunkedFfn | None:
    return block.ffn if isinstance(block.ffn, ChunkedFfn) and block.ffn.in_chunks(ctx) else None


def _again(run: Callable[[Block, jax.Array], Any], block: Block, x_BTD: jax.Array):
    """All positions at once, made anew in the backward pass."""
    graph, state = nnx.split(block)
    return jax.checkpoint(lambda state, x_BTD: run(nnx.merge(graph, state), x_BTD))(state, x_BTD)


def _fixed(ctx: Context) -> dict[str, Any]:
    """The arrays of a context that nothing is differentiated in."""
    return {name: getattr(ctx, name) for name in (*ALONG, "progress")}


def _context(ctx: Context, fixed: Mapping[str, Any], shared: Arrays) -> Context:
    # a source has been read by now
    return replace(ctx, **fixed, shared=shared, source_BS=None, source_segments_BS=None)


def _merged(graph: Any, params: Any, fixed: Any, ctx: Context) -> tuple[Block, Context]:
    state, shared = params
    return nnx.merge(graph, state), _context(ctx, fixed, shared)


def _rows(a: jax.Array, low: Any, run: Run) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(a, low, run.size, axis=1)


def _seen(whole: Context, some: Context, low: Any, run: Run) -> jax.Array:
    """(B or 1, T, S): earlier positions of the query's document, and any of a prefix it is of."""
    t_T, s_S = low + jnp.arange(run.size), jnp.arange(run.end)
    seen_BTS = (t_T[:, None] >= s_S[None])[None]

    def pairs(name: str) -> tuple[jax.Array, jax.Array]:
        return getattr(some, name)[:, :, None], getattr(whole, name)[:, None, : run.end]

    if whole.prefix_BT is not None:
        a, b = pairs("prefix_BT")
        seen_BTS = seen_BTS | (a & b)
    if whole.segments_BT is not None:
        a, b = pairs("segments_BT")
        seen_BTS = seen_BTS & (a == b)
    return seen_BTS
