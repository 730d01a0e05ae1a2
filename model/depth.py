"""How do blocks run one after another? Scanned or unrolled, their products kept or made again; what
a block publishes goes on to those after it.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.block import SUMS, add_aux
from model.context import Context, State
from model.pipelined import pipelined, unstacked
from model.stream import streamed_block


def _run(graph: Any, ctx: Context, x_BTD: jax.Array, layer: Any):
    """One unit of blocks on one layer's parameters and on what it remembers, which is None where
    nothing is kept.
    """
    params, held = layer
    aux: dict[str, jax.Array] = {}
    after: list[State] = []
    for i, block in enumerate(nnx.merge(graph, params)):
        if held is None:
            run = partial(streamed_block, block) if ctx.remat == "stream" else block
            x_BTD, more = run(x_BTD, ctx)
        else:
            x_BTD, one, more = block.extend(x_BTD, held[i], ctx)
            after.append(one)
        aux = add_aux(aux, more)
    return x_BTD, (aux, after)


def _rematerialised(ctx: Context, run: Any, *, fresh: bool) -> Any:
    if ctx.remat == "none" or (ctx.remat == "stream" and fresh):  # the latter is each block's own
        return run
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "stream": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    # under scan the barrier against common subexpressions is not needed (jax.checkpoint's own
    # advice)
    return jax.checkpoint(run, policy=policies[ctx.remat], prevent_cse=ctx.layers == "unroll")


def once(blocks: nnx.List, x_BTD: jax.Array, ctx: Context, held: list[State] | None):
    """Each block once; the context that comes back holds what they published. Also what each
    remembers after what it `held`, where it goes on from that.
    """
    aux: dict[str, jax.Array] = {}
    after: list[State] = []
    for i, block in enumerate(blocks):
        graph, params = nnx.split(nnx.List([block]))
        own = None if held is None else [held[i]]
        run = _rematerialised(ctx, partial(_run, graph, ctx), fresh=held is None)
        x_BTD, (more, one) = run(x_BTD, (params, own))
        more, ctx = published(more, ctx)
        aux, after = add_aux(aux, more), after + one
    return x_BTD, aux, after, ctx


def published(aux: Mapping[str, jax.Array], ctx: Context) -> tuple[dict[str, jax.Array], Context]:
    """Move `share/` entries of aux into the context of the layers that follow."""
    shared = {k.removeprefix("share/"): v for k, v in aux.items() if k.startswith("share/")}
    rest = {k: v for k, v in aux.items() if not k.startswith("share/")}
    return rest, replace(ctx, shared={**ctx.shared, **shared}) if shared else ctx


def stacked(
    blocks: nnx.List, n: int, x_BTD: jax.Array, ctx: Context, held_Z: Any, *, together: int = 1
):
    """The repeated unit n times over parameters stacked on Z, and over what each layer held. Of
    rows of the batch, `together` in a row stay in one part of a pipeline.
    """
    if n == 0:
        return x_BTD, {}, []
    if ctx.pipeline is not None and held_Z is None:
        again = partial(_rematerialised, ctx, fresh=False)
        x_BTD, aux_Z = pipelined(blocks, x_BTD, ctx, together=together, rematerialised=again)
        return x_BTD, _over_layers(aux_Z), []
    graph, params_Z = nnx.split(blocks)
    run = _rematerialised(ctx, partial(_run, graph, ctx), fresh=held_Z is None)
    if ctx.layers == "scan":
        x_BTD, (aux_Z, after_Z) = jax.lax.scan(run, x_BTD, (params_Z, held_Z))
        return x_BTD, _over_layers(aux_Z), after_Z
    aux: dict[str, jax.Array] = {}
    apart: dict[str, list[Any]] = {}
    after = []
    for layer in unstacked((params_Z, held_Z)):
        x_BTD, (more, one) = run(x_BTD, layer)
        for k in [k for k in more if per_layer(k)]:
            apart.setdefault(k, []).append(more.pop(k))
        aux = add_aux(aux, more)
        after.append(one)
    aux = aux | {k: jax.tree.map(lambda *z: jnp.stack(z), *v) for k, v in apart.items()}
    return x_BTD, aux, jax.tree.map(lambda *z: jnp.stack(z), *after)


def settled(
    blocks: nnx.List, sums_M: Mapping[str, Any], *, positions: int, stack: bool
) -> dict[str, jax.Array]:
    """aux of blocks through which the batch went in M parts, from the sums by row that each gave:
    arrays (M, rows, ...), or (M, Z, rows, ...) of blocks that are a `stack`.
    """

    def whole(sums_M: Mapping[str, Any]) -> dict[str, jax.Array]:
        # rows of all parts beside one another, as the strided parts were cut
        sums = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:]), dict(sums_M))
        aux: dict[str, jax.Array] = {}
        for block in blocks:
            aux = add_aux(aux, block.settled(sums, positions=positions))
        return aux

    own_M = {b.sums: sums_M[b.sums] for b in blocks if b.sums in sums_M}
    if not stack or not own_M:
        return whole(own_M)
    return _over_layers(jax.vmap(whole, in_axes=1)(own_M))


def _over_layers(aux_Z: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {k: v if per_layer(k) else jnp.sum(v, axis=0) for k, v in aux_Z.items()}


def per_layer(key: str) -> bool:
    """Stacked over layers like the parameter it is for, not summed; sums of a block, too."""
    return key.startswith(("buffer/", SUMS))
