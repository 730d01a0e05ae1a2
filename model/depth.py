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

from model.block import add_aux
from model.context import Context


def _run(graph: Any, ctx: Context, x_BTD: jax.Array, state: Any):
    """One unit of blocks on one layer's parameters."""
    aux: dict[str, jax.Array] = {}
    for block in nnx.merge(graph, state):
        x_BTD, more = block(x_BTD, ctx)
        aux = add_aux(aux, more)
    return x_BTD, aux


def _rematerialised(ctx: Context, run: Any) -> Any:
    if ctx.remat == "none":
        return run
    policies = {
        "full": jax.checkpoint_policies.nothing_saveable,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    }
    # under scan the barrier against common subexpressions is not needed (jax.checkpoint's own
    # advice)
    return jax.checkpoint(run, policy=policies[ctx.remat], prevent_cse=ctx.layers == "unroll")


def once(blocks: nnx.List, x_BTD: jax.Array, ctx: Context):
    """Each block once; the context that comes back holds what they published."""
    aux: dict[str, jax.Array] = {}
    for block in blocks:
        graph, state = nnx.split(nnx.List([block]))
        x_BTD, more = _rematerialised(ctx, partial(_run, graph, ctx))(x_BTD, state)
        more, ctx = published(more, ctx)
        aux = add_aux(aux, more)
    return x_BTD, aux, ctx


def published(aux: Mapping[str, jax.Array], ctx: Context) -> tuple[dict[str, jax.Array], Context]:
    """Move `share/` entries of aux into the context of the layers that follow."""
    shared = {k.removeprefix("share/"): v for k, v in aux.items() if k.startswith("share/")}
    rest = {k: v for k, v in aux.items() if not k.startswith("share/")}
    return rest, replace(ctx, shared={**ctx.shared, **shared}) if shared else ctx


def stacked(blocks: nnx.List, n: int, x_BTD: jax.Array, ctx: Context):
    """The repeated unit n times over parameters stacked on Z."""
    if n == 0:
        return x_BTD, {}
    graph, state_Z = nnx.split(blocks)
    run = _rematerialised(ctx, partial(_run, graph, ctx))
    if ctx.layers == "scan":
        x_BTD, aux_Z = jax.lax.scan(run, x_BTD, state_Z)
        return x_BTD, {k: v if per_layer(k) else jnp.sum(v, axis=0) for k, v in aux_Z.items()}
    # split, not indexing: its transpose is one concatenation, indexing's is n padded sums
    leaves, tree = jax.tree.flatten(state_Z)
    split = [jax.lax.split(leaf, [1] * n, axis=0) for leaf in leaves]
    aux: dict[str, jax.Array] = {}
    apart: dict[str, list[jax.Array]] = {}
    for z in range(n):
        state = jax.tree.unflatten(tree, [parts[z].reshape(parts[z].shape[1:]) for parts in split])
        x_BTD, more = run(x_BTD, state)
        for k in [k for k in more if per_layer(k)]:
            apart.setdefault(k, []).append(more.pop(k))
        aux = add_aux(aux, more)
    return x_BTD, aux | {k: jnp.stack(v) for k, v in apart.items()}


def per_layer(key: str) -> bool:
    """Stacked over layers like the parameter it is for, not summed."""
    return key.startswith("buffer/")
