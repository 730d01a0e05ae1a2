"""How does a decoder run? Embedding, blocks over depth (scanned or unrolled), norm, readout.

`build` gives a `Model`: the declarations of every parameter and a pure function of a flat dict of
arrays keyed by dotted path. Layers of the repeated unit are stored stacked on a leading Z whatever
way they are run, so a checkpoint does not depend on the execution.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.block import Block, Norm, add_aux
from model.context import Constrain, Context, State, unplaced
from model.depth import once, per_layer, settled, stacked
from model.encoder_decoder import Encoder, places, read
from model.ends import Tokens, Values
from model.param import Declaration, Declare, Parameter, initial
from model.spec import BlockSpec, ModelSpec
from model.stream import streamed_sums
from model.streams import streams

Params = Mapping[str, jax.Array]
DecodeState = dict[str, Any]  # `position`, and each block's memory under first, repeat (on Z), last


class Decoder(nnx.Module):
    def __init__(self, spec: ModelSpec, declare: Declare):
        self.spec = spec
        self.ends = (
            Tokens(spec, declare) if spec.series is None else Values(spec, declare.within("series"))
        )

        self.encoder = Encoder(spec, declare) if spec.encoder else None

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
        return self.said(x_BTD, ctx), _means(aux)

    def sums(
        self, tokens_BT: jax.Array, ctx: Context, measure: Any, along: Params, *, dtype: Any
    ) -> tuple[Any, dict[str, jax.Array]]:
        """`measure(logits_BTV, along)`, sums over positions, made of a few at a time; and aux."""
        x_BTD, aux = self.stream(tokens_BT, ctx, dtype=dtype)

        def reads(path: tuple[Any, ...], _: Any) -> bool:
            return path[0] in ("norm", "streams") or path[0] == "ends" and path[1] in self.ends.read

        graph, head, body = nnx.split(self, reads, ...)

        def said(head: Any, x_BTD: jax.Array, ctx: Context, along: Params, body: Any) -> Any:
            own = nnx.merge(graph, head, body)
            return measure(own.said(x_BTD, ctx), along)

        return streamed_sums(said, head, x_BTD, ctx, along, body), _means(aux)

    def stream(
        self, tokens_BT: jax.Array, ctx: Context, *, dtype: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The residual stream (B, T, D) after the last block, before the final norm, and aux; of
        each parallel stream, B P rows, where there are several.
        """
        if not self.spec.causal:
            ctx = replace(ctx, prefix_BT=jnp.ones(tokens_BT.shape, bool))
        aux: dict[str, jax.Array] = {}
        if self.encoder is not None:
            if ctx.segments_BT is not None:
                ctx = replace(ctx, positions_BT=places(ctx.segments_BT))
            ctx, aux = self.encoder(self.ends.embedded, ctx, dtype=dtype)
        x_BTD, more, _ = self._through(tokens_BT, ctx, None, dtype=dtype)
        return x_BTD, add_aux(aux, more)

    def settled(self, sums_M: Mapping[str, Any], *, positions: int, source: int) -> dict[str, Any]:
        """aux of a batch that came in M parts, each with `Context.apart`; and the lengths of its
        rows and of their sources.
        """
        aux: dict[str, jax.Array] = {}
        if self.encoder is not None:
            aux = settled(self.encoder.repeat, sums_M, positions=source, stack=True)
        for blocks in (self.first, self.repeat, self.last):
            stack = blocks is self.repeat
            aux = add_aux(aux, settled(blocks, sums_M, positions=positions, stack=stack))
        return _means(aux)

    def start(self, rows: int, *, length: int, dtype: Any) -> DecodeState:
        """What the decoder remembers of no position, with room for `length` of them."""
        if self.encoder is not None:
            raise ValueError("a decoder with an encoder starts from a source; call read")
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
    ) -> tuple[jax.Array, dict[str, jax.Array], DecodeState]:
        """Logits (B, T, V) of the next T tokens after those in `state`, aux, and the state after
        them.

        The positions are the state's own; those of `ctx` are not read. What is remembered is of the
        document of the first position.
        """
        if not self.spec.causal:
            raise ValueError("a model that is not causal has no next position to go on with")
        T = tokens_BT.shape[1]
        positions_T = state["position"] + jnp.arange(T, dtype=jnp.int32)
        ctx = replace(ctx, positions_BT=jnp.broadcast_to(positions_T, tokens_BT.shape))
        if self.encoder is not None:
            ctx = replace(ctx, shared={"source_segments": state["source_segments"]})
        x_BTD, aux, held = self._through(tokens_BT, ctx, state, dtype=dtype)
        after = {**state, **held, "position": state["position"] + T}
        return self.said(x_BTD, ctx), _means(aux), after

    def _through(
        self, tokens_BT: jax.Array, ctx: Context, state: DecodeState | None, *, dtype: Any
    ) -> tuple[jax.Array, dict[str, jax.Array], DecodeState]:
        """The stream after the last block, aux, and what every block remembers then: nothing where
        there is no `state` to go on from.
        """
        held = dict.fromkeys(("first", "repeat", "last")) if state is None else state
        after: DecodeState = {}
        x_BTD, ctx = self._apart(tokens_BT, ctx, dtype=dtype)
        x_BTD, aux, after["first"], ctx = once(self.first, x_BTD, ctx, held["first"])
        x_BTD, more, after["repeat"] = stacked(
            self.repeat,
            self.spec.n_repeats,
            x_BTD,
            ctx,
            held["repeat"],
            together=self.spec.n_streams,
        )
        aux = add_aux(aux, more)
        x_BTD, more, after["last"], _ = once(self.last, x_BTD, ctx, held["last"])
        return x_BTD, add_aux(aux, more), after

    def said(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
        return self.ends.readout(self._together(x_BTD, ctx), ctx)

    def _apart(
        self, tokens_BT: jax.Array, ctx: Context, *, dtype: Any
    ) -> tuple[jax.Array, Context]:
        """What enters the blocks."""
        x_BTD = self.ends.embedded(tokens_BT, ctx, dtype=dtype)
        return (x_BTD, ctx) if self.streams is None else self.streams.apart(x_BTD, ctx)

    def _together(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
        """What is read out of what leaves the blocks."""
        x_BTD = ctx.constrain(self.norm(x_BTD), "B T D")
        return x_BTD if self.streams is None else self.streams.together(x_BTD, ctx)


def _means(aux: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {k: v[0] / v[1] if k.startswith("stat/") else v for k, v in aux.items()}


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
        return self._unfilled.start(rows, length=length, dtype=dtype)

    def settled(
        self, sums_M: Mapping[str, Any], *, positions: int, source: int = 0
    ) -> dict[str, jax.Array]:
        """aux of a batch whose M parts each went through with `Context.apart`, from the sums that
        they gave, with M before their axes; `positions` and `source` are lengths of its rows.
        """
        return self._unfilled.settled(sums_M, positions=positions, source=source)

    def read(
        self,
        params: Params,
        source_BS: jax.Array,
        segments_BS: jax.Array | None = None,
        *,
        length: int,
        dtype: Any,
    ) -> DecodeState:
        """What is remembered of sources (B, S) and of no position, in place of `start` where there
        is an encoder: segment 0 is the source, whatever else there is is padding.
        """
        ctx = Context(
            positions_BT=source_BS,
            segments_BT=None,
            source_BS=source_BS,
            source_segments_BS=segments_BS,
        )
        return read(self.module(params), ctx, length=length, dtype=dtype)

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
        logits_BTV, _, state = self.go_on(params, tokens_BT, state, ctx, dtype=dtype)
        return logits_BTV, state

    def go_on(
        self, params: Params, tokens_BT: jax.Array, state: DecodeState, ctx: Context, *, dtype: Any
    ) -> tuple[jax.Array, dict[str, jax.Array], DecodeState]:
        """`extend` as training asks for it: run as the context says, and with aux."""
        return self.module(params).extend(tokens_BT, state, ctx, dtype=dtype)

    def _abstract(self, path: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.declarations[path].shape, jnp.float32)

    @property
    def _unfilled(self) -> Decoder:
        """The module, for what reads no parameter."""
        leaves = [self._abstract(path) for path in self.paths]
        return nnx.merge(self.graph, jax.tree.unflatten(self.tree, leaves))

    def module(self, params: Params) -> Decoder:
        """The Flax module holding these arrays."""
        state = jax.tree.unflatten(self.tree, [params[path] for path in self.paths])
        return nnx.merge(self.graph, state)


@lru_cache(maxsize=256)
def _aux_names(model: Model) -> tuple[str, ...]:
    def run(params: Params) -> dict[str, jax.Array]:
        tokens_BT = jnp.zeros((1, 2), jnp.int32 if model.spec.series is None else jnp.float32)
        source_BS = tokens_BT if model.spec.encoder else None
        ctx = Context(
            positions_BT=tokens_BT, segments_BT=None, layers="unroll", source_BS=source_BS
        )
        return model(params, tokens_BT, ctx, dtype=jnp.float32)[1]

    params = {path: model._abstract(path) for path in model.paths}
    return tuple(sorted(k for k in jax.eval_shape(run, params) if not per_layer(k)))


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
