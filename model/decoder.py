"""How does a decoder run? Embedding, blocks over depth (scanned or unrolled), norm, readout.

`build` gives a `Model`: the declarations of every parameter and a pure function of a flat dict of
arrays keyed by dotted path. Layers of the repeated unit are stored stacked on a leading Z whatever
way they are run, so a checkpoint does not depend on the execution.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import scaling
from model.block import Block, Norm, add_aux
from model.context import Context
from model.param import Declaration, Declare, Parameter, initial, linear
from model.spec import BlockSpec, ModelSpec

Params = Mapping[str, jax.Array]


class Decoder(nnx.Module):
    def __init__(self, spec: ModelSpec, declare: Declare):
        self.spec = spec
        self.embed = declare.table("embed", "V D", matmuls=1.0 if spec.tied else 0.0)
        self.positions = declare.table("positions", "T D") if spec.learned_positions else None

        def blocks(name: str, specs: tuple[BlockSpec, ...], stack: str | None) -> nnx.List:
            scope = declare.within(name, stack=stack, block=True)
            return nnx.List(
                [Block(s, scope.within(str(i)), norm=spec.norm) for i, s in enumerate(specs)]
            )

        self.first = blocks("first", spec.first, None)
        self.repeat = blocks("repeat", spec.repeat, "Z")
        self.last = blocks("last", spec.last, None)
        self.norm = Norm(spec.norm, declare.within("norm"))
        self.readout = (
            None
            if spec.tied
            else declare.matrix("readout", "D V", contract="D", role=scaling.READOUT)
        )

    def __call__(
        self, tokens_BT: jax.Array, ctx: Context, *, dtype: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits (B, T, V) in float32 and the sum of the layers' aux."""
        x_BTD, aux = self.stream(tokens_BT, ctx, dtype=dtype)
        return ctx.constrain(self._readout(self.norm(x_BTD)), "B T V"), aux

    def stream(
        self, tokens_BT: jax.Array, ctx: Context, *, dtype: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The residual stream (B, T, D) after the last block, before the final norm, and aux."""
        x_BTD = self.embed[...][tokens_BT]
        if self.positions is not None:
            x_BTD = x_BTD + self.positions[...][ctx.positions_BT]
        x_BTD = ctx.constrain(x_BTD.astype(dtype), "B T D")
        aux: dict[str, jax.Array] = {}
        for run in (
            partial(_once, self.first),
            partial(_stacked, self.repeat, self.spec.n_repeats),
            partial(_once, self.last),
        ):
            x_BTD, more = run(x_BTD, ctx)
            aux = add_aux(aux, more)
        return x_BTD, aux

    def _readout(self, x_BTD: jax.Array) -> jax.Array:
        if self.readout is not None:
            return linear(x_BTD, self.readout, dtype=jnp.float32)
        B, T, D = x_BTD.shape
        flat = jax.lax.dot_general(
            x_BTD.reshape(B * T, D),
            self.embed[...].astype(x_BTD.dtype),
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        scale = scaling.tied_readout_scale(self.spec.parametrisation, d_model=D)
        return flat.reshape(B, T, -1) * scale


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


def _once(blocks: nnx.List, x_BTD: jax.Array, ctx: Context):
    aux: dict[str, jax.Array] = {}
    for block in blocks:
        graph, state = nnx.split(nnx.List([block]))
        x_BTD, more = _rematerialised(ctx, partial(_run, graph, ctx))(x_BTD, state)
        aux = add_aux(aux, more)
    return x_BTD, aux


def _stacked(blocks: nnx.List, n: int, x_BTD: jax.Array, ctx: Context):
    """The repeated unit n times over parameters stacked on Z."""
    if n == 0:
        return x_BTD, {}
    graph, state_Z = nnx.split(blocks)
    run = _rematerialised(ctx, partial(_run, graph, ctx))
    if ctx.layers == "scan":
        x_BTD, aux_Z = jax.lax.scan(run, x_BTD, state_Z)
        return x_BTD, {k: jnp.sum(v, axis=0) for k, v in aux_Z.items()}
    # split, not indexing: its transpose is one concatenation, indexing's is n padded sums
    leaves, tree = jax.tree.flatten(state_Z)
    split = [jax.lax.split(leaf, [1] * n, axis=0) for leaf in leaves]
    aux: dict[str, jax.Array] = {}
    for z in range(n):
        state = jax.tree.unflatten(tree, [parts[z].reshape(parts[z].shape[1:]) for parts in split])
        x_BTD, more = run(x_BTD, state)
        aux = add_aux(aux, more)
    return x_BTD, aux


@dataclass(frozen=True, eq=False)
class Model:
    """A built architecture: declarations, and the forward pass as a pure function of a flat dict of
    arrays.
    """

    spec: ModelSpec
    declarations: Mapping[str, Declaration]
    graph: Any
    tree: Any
    paths: tuple[str, ...]  # of the leaves of `tree`, in its order

    def initialise(self, seed: int) -> dict[str, np.ndarray]:
        return {path: initial(d, seed) for path, d in self.declarations.items()}

    def __call__(
        self, params: Params, tokens_BT: jax.Array, ctx: Context, *, dtype: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits (B, T, V) float32 of tokens (B, T), and aux (`loss/` and `stat/` scalars)."""
        return self.module(params)(tokens_BT, ctx, dtype=dtype)

    def module(self, params: Params) -> Decoder:
        """The Flax module holding these arrays."""
        state = jax.tree.unflatten(self.tree, [params[path] for path in self.paths])
        return nnx.merge(self.graph, state)


@lru_cache(maxsize=256)
def build(spec: ModelSpec) -> Model:
    """Declare every parameter of a spec; makes no array."""
    sizes = dict(spec.shared_sizes)
    base = {**sizes, "D": spec.d_model / spec.width_multiple}
    if spec.learned_positions is not None:
        sizes["T"] = base["T"] = spec.learned_positions
    declare = Declare(
        sizes=sizes, base=base, rule=spec.parametrisation, n_layers=spec.n_layers, tied=spec.tied
    )
    graph, state = nnx.split(Decoder(spec, declare))
    leaves, tree = jax.tree.flatten(state, is_leaf=lambda x: isinstance(x, Parameter))
    paths = tuple(leaf.decl.path for leaf in leaves)
    if sorted(paths) != sorted(declare.made):
        raise RuntimeError(f"declared {sorted(declare.made)} but the module holds {sorted(paths)}")
    tree = jax.tree.structure(state)
    return Model(spec=spec, declarations=dict(declare.made), graph=graph, tree=tree, paths=paths)
