"""How does a decoder run? Embedding, blocks over depth (scanned or unrolled), norm, readout.

`build` gives a `Model`: the declarations of every parameter and a pure function of a flat dict of
arrays keyed by dotted path. Layers of the repeated unit are stored stacked on a leading Z whatever
way they are run, so a checkpoint does not depend on the execution.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.block import Block, Norm, add_aux
from model.context import Constrain, Context, State, unplaced
from model.ends import Tokens, Values
from model.param import Declaration, Declare, Parameter, initial
from model.spec import BlockSpec, ModelSpec
from model.streams import streams

Params = Mapping[str, jax.Array]
DecodeState = dict[str, Any]  # `position`, and each block's memory under first, repeat (on Z), last


class Decoder(nnx.Module):
    def __init__(self, spec: ModelSpec, declare: Declare):
        self.spec = spec
        self.ends = (
            Tokens(spec, declare) if spec.series is None else Values(spec, declare.within("series"))
        )

        def blocks(name: str, specs: tuple[BlockSpec, ...], begin: int, stop: int) -> nnx.List:
            stack = "Z" if name == "repeat" else None
            scope = declare.within(name, stack=stack, block=True, times=spec.n_streams)
            made = []
            for i, s in enumerate(specs):
                layers = tuple(range(begin + i, stop, len(specs)))
                made.append(Block(s, scope.within(str(i), layers=layers), norm=spec.norm))
            return nnx.List(made)

        body, tail = len(spec.first), spec.n_layers - len(spec.last)
        self.first = blocks("first", spec.first, 0, body)
        self.repeat = blocks("repeat", spec.repeat, body, tail)
        self.last = blocks("last", spec.last, tail, spec.n_layers)
        self.norm = Norm(spec.norm, declare.within("norm"))
        self.streams = streams(spec.streams, declare)

    def __call__(
        self, tokens_BT: jax.Array, ctx: Context, *, dtype: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits (B, T, V) in float32 (of a series, forecasts (B, T, O)), and aux: `loss/` summed
        over layers, `stat/` their mean, `buffer/PATH` what a buffer's update is made from.
        """
        x_BTD, aux = self.stream(tokens_BT, ctx, dtype=dtype)
        aux = {k: v[0] / v[1] if k.startswith("stat/") else v for k, v in aux.items()}
        return self.ends.readout(self._together(x_BTD, ctx), ctx), aux

    def stream(
        self, tokens_BT: jax.Array, ctx: Context, *, dtype: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The residual stream (B, T, D) after the last block, before the final norm, and aux; of
        each parallel stream, B P rows, where there are several.
        """
        if not self.spec.causal:
            ctx = replace(ctx, prefix_BT=jnp.ones(tokens_BT.shape, bool))
        x_BTD, ctx = self._apart(tokens_BT, ctx, dtype=dtype)
        x_BTD, aux, ctx = _once(self.first, x_BTD, ctx)
        x_BTD, more = _stacked(self.repeat, self.spec.n_repeats, x_BTD, ctx)
        aux = add_aux(aux, more)
        x_BTD, more, _ = _once(self.last, x_BTD, ctx)
        return x_BTD, add_aux(aux, more)

    def start(self, rows: int, *, length: int, dtype: Any) -> DecodeState:
        """What the decoder remembers of no position, with room for `length` of them."""
        rows = rows * self.spec.n_streams

        def states(blocks: nnx.List) -> list[State]:
            return [block.start(rows, length=length, dtype=dtype) for block in blocks]

        n = self.spec.n_repeats
        return {
            "position": jnp.zeros((), jnp.int32),
            "first": states(self.first),
            "repeat": jax.tree.map(lambda x: jnp.stack([x] * n), states(self.repeat)) if n else [],
            "last": states(self.last),
        }

    def extend(
        self, tokens_BT: jax.Array, state: DecodeState, ctx: Context, *, dtype: Any
    ) -> tuple[jax.Array, DecodeState]:
        """Logits (B, T, V) of the next T tokens after those in `state`, and the state after them.

        The positions are the state's own; those of `ctx` are not read.
        """
        if not self.spec.causal:
            raise ValueError("a model that is not causal has no next position to go on with")
        T = tokens_BT.shape[1]
        positions_T = state["position"] + jnp.arange(T, dtype=jnp.int32)
        ctx = replace(ctx, positions_BT=jnp.broadcast_to(positions_T, tokens_BT.shape))
        x_BTD, ctx = self._apart(tokens_BT, ctx, dtype=dtype)
        after: DecodeState = {"position": state["position"] + T}

        def through(name: str, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, Context]:
            after[name] = []
            for block, held in zip(getattr(self, name), state[name], strict=True):
                x_BTD, held, aux = block.extend(x_BTD, held, ctx)
                _, ctx = _published(aux, ctx)
                after[name].append(held)
            return x_BTD, ctx

        x_BTD, ctx = through("first", x_BTD, ctx)
        graph, params_Z = nnx.split(self.repeat)

        def unit(x_BTD: jax.Array, layer: Any):
            params, held = layer
            out = []
            for block, one in zip(nnx.merge(graph, params), held, strict=True):
                x_BTD, one, _ = block.extend(x_BTD, one, ctx)
                out.append(one)
            return x_BTD, out

        after["repeat"] = []
        if self.spec.n_repeats:
            x_BTD, after["repeat"] = jax.lax.scan(unit, x_BTD, (params_Z, state["repeat"]))
        x_BTD, ctx = through("last", x_BTD, ctx)
        return self.ends.readout(self._together(x_BTD, ctx), ctx), after

    def _apart(
        self, tokens_BT: jax.Array, ctx: Context, *, dtype: Any
    ) -> tuple[jax.Array, Context]:
        """What enters the blocks."""
        x_BTD = self.ends.embedded(tokens_BT, ctx, dtype=dtype)
        return (x_BTD, ctx) if self.streams is None else self.streams.apart(x_BTD, ctx)

    def _together(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
        """What is read out of what leaves the blocks."""
        x_BTD = self.norm(x_BTD)
        return x_BTD if self.streams is None else self.streams.together(x_BTD, ctx)


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
    """Each block once; the context that comes back holds what they published."""
    aux: dict[str, jax.Array] = {}
    for block in blocks:
        graph, state = nnx.split(nnx.List([block]))
        x_BTD, more = _rematerialised(ctx, partial(_run, graph, ctx))(x_BTD, state)
        more, ctx = _published(more, ctx)
        aux = add_aux(aux, more)
    return x_BTD, aux, ctx


def _published(aux: Mapping[str, jax.Array], ctx: Context) -> tuple[dict[str, jax.Array], Context]:
    """Move `share/` entries of aux into the context of the layers that follow."""
    shared = {k.removeprefix("share/"): v for k, v in aux.items() if k.startswith("share/")}
    rest = {k: v for k, v in aux.items() if not k.startswith("share/")}
    return rest, replace(ctx, shared={**ctx.shared, **shared}) if shared else ctx


def _stacked(blocks: nnx.List, n: int, x_BTD: jax.Array, ctx: Context):
    """The repeated unit n times over parameters stacked on Z."""
    if n == 0:
        return x_BTD, {}
    graph, state_Z = nnx.split(blocks)
    run = _rematerialised(ctx, partial(_run, graph, ctx))
    if ctx.layers == "scan":
        x_BTD, aux_Z = jax.lax.scan(run, x_BTD, state_Z)
        return x_BTD, {k: v if _per_layer(k) else jnp.sum(v, axis=0) for k, v in aux_Z.items()}
    # split, not indexing: its transpose is one concatenation, indexing's is n padded sums
    leaves, tree = jax.tree.flatten(state_Z)
    split = [jax.lax.split(leaf, [1] * n, axis=0) for leaf in leaves]
    aux: dict[str, jax.Array] = {}
    apart: dict[str, list[jax.Array]] = {}
    for z in range(n):
        state = jax.tree.unflatten(tree, [parts[z].reshape(parts[z].shape[1:]) for parts in split])
        x_BTD, more = run(x_BTD, state)
        for k in [k for k in more if _per_layer(k)]:
            apart.setdefault(k, []).append(more.pop(k))
        aux = add_aux(aux, more)
    return x_BTD, aux | {k: jnp.stack(v) for k, v in apart.items()}


def _per_layer(key: str) -> bool:
    """Stacked over layers like the parameter it is for, not summed."""
    return key.startswith("buffer/")


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
        """Logits (B, T, V) float32 of tokens (B, T), or forecasts (B, T, O) of values, and aux
        (`loss/` and `stat/` scalars, `buffer/PATH` arrays).
        """
        return self.module(params)(tokens_BT, ctx, dtype=dtype)

    @property
    def aux(self) -> tuple[str, ...]:
        """Names of the `loss/` and `stat/` scalars that a forward pass gives, in order."""
        return _aux_names(self)

    def start(self, rows: int, *, length: int, dtype: Any) -> DecodeState:
        """What is remembered of `rows` empty sequences, with room for `length` positions each."""
        module = nnx.merge(
            self.graph, jax.tree.unflatten(self.tree, [self._abstract(p) for p in self.paths])
        )
        return module.start(rows, length=length, dtype=dtype)

    def extend(
        self,
        params: Params,
        tokens_BT: jax.Array,
        state: DecodeState,
        *,
        dtype: Any,
        constrain: Constrain = unplaced,
    ) -> tuple[jax.Array, DecodeState]:
        """Logits (B, T, V) float32 of the next T tokens of each row, and the state after them.

        One call with a whole prompt is the prefill, calls with T = 1 are decoding: the same sums.
        """
        ctx = Context(  # the state knows the positions
            positions_BT=jnp.zeros(tokens_BT.shape, jnp.int32),
            segments_BT=None,
            constrain=constrain,
        )
        return self.module(params).extend(tokens_BT, state, ctx, dtype=dtype)

    def _abstract(self, path: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.declarations[path].shape, jnp.float32)

    def module(self, params: Params) -> Decoder:
        """The Flax module holding these arrays."""
        state = jax.tree.unflatten(self.tree, [params[path] for path in self.paths])
        return nnx.merge(self.graph, state)


@lru_cache(maxsize=256)
def _aux_names(model: Model) -> tuple[str, ...]:
    def run(params: Params) -> dict[str, jax.Array]:
        tokens_BT = jnp.zeros((1, 2), jnp.int32 if model.spec.series is None else jnp.float32)
        ctx = Context(positions_BT=tokens_BT, segments_BT=None, layers="unroll")
        return model(params, tokens_BT, ctx, dtype=jnp.float32)[1]

    params = {path: model._abstract(path) for path in model.paths}
    return tuple(sorted(k for k in jax.eval_shape(run, params) if not _per_layer(k)))


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
