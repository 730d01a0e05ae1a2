"""How does the repeated unit run in the stages of a pipeline? As parallelism/pipeline.py moves it.

A stage sees some rows of the batch. What a layer says of the whole batch (the balance of experts,
counts of buffers) is made of sums that its parts give, when all of them are through.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.block import add_aux, of_parts
from model.context import Context

ALONG = ("positions_BT", "segments_BT", "prefix_BT")  # what a context has of each row


def pipelined(
    blocks: nnx.List,
    x_BTD: jax.Array,
    ctx: Context,
    *,
    together: int,
    rematerialised: Callable[[Any], Any],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The repeated unit over parameters stacked on Z, and aux on Z. Of rows of the batch `together`
    in a row stay in one part.
    """
    assert ctx.pipeline is not None
    graph, state_Z = nnx.split(blocks)
    stages = ctx.pipeline.stages
    own = {name: getattr(ctx, name) for name in ALONG}

    def unit(moving: Any, layer: Any):
        state, held = layer
        inner = replace(ctx, pipeline=None, apart=True, shared=moving["shared"], **held)
        x_BTD, sums = moving["x_BTD"], {}
        for block in nnx.merge(graph, state):
            x_BTD, more = block(x_BTD, inner)
            sums |= of_parts(more, field="execution.mesh.pipeline", given=stages)
        return {**moving, "x_BTD": x_BTD}, sums

    def run(state_Z: Any, moving: Any, held: Any):
        one = rematerialised(unit)
        if ctx.layers == "scan":
            return jax.lax.scan(lambda moving, state: one(moving, (state, held)), moving, state_Z)
        sums = []
        for state in unstacked(state_Z):
            moving, more = one(moving, (state, held))
            sums.append(more)
        return moving, jax.tree.map(lambda *each: jnp.stack(each), *sums)

    def settled(state: Any, sums: Any) -> dict[str, jax.Array]:
        aux: dict[str, jax.Array] = {}
        for block in nnx.merge(graph, state):
            aux = add_aux(aux, block.settled(sums, positions=x_BTD.shape[1]))
        return aux

    moving = {"x_BTD": x_BTD, "shared": dict(ctx.shared)}
    moved, sums_Z = ctx.pipeline(run, state_Z, moving, own, together=together)
    aux_Z = sums_Z if ctx.apart else jax.vmap(settled)(state_Z, sums_Z)
    return ctx.residual(moved["x_BTD"], "B T D"), aux_Z


def unstacked(state_Z: Any) -> list[Any]:
    """The state of each layer."""
    # split, not indexing: its transpose is one concatenation, indexing's is n padded sums
    leaves, tree = jax.tree.flatten(state_Z)
    n = leaves[0].shape[0]
    split = [jax.lax.split(leaf, [1] * n, axis=0) for leaf in leaves]
    return [
        jax.tree.unflatten(tree, [parts[z].reshape(parts[z].shape[1:]) for parts in split])
        for z in range(n)
    ]
