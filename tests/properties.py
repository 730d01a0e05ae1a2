"""What must every mixer and every ffn satisfy? Found by file, checked by tests/test_properties.py.

A layer's own test module may name `VARIANTS`, a list of knobs; the first is the one that the
properties of a whole model use.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import TypeAdapter

from model.context import Context, State
from model.decoder import Model
from model.param import Declaration, Declare, initial
from model.spec import (
    BlockSpec,
    EncoderSpec,
    LayerSpec,
    ModelSpec,
    Parametrisation,
    layer_kinds,
    resolve,
    users_module,
)
from train.objectives import next_token

ROOMS = ("mixers", "ffns")
D_MODEL, VOCAB = 32, 64
SOURCE_SEGMENTS = (0, 0, 1, 1, 2)  # of a layer's source: a stretch for each document of its tests
PARTNER = {
    "mixers": {"kind": "attention", "d_head": 8, "queries_per_kv": 2},
    "ffns": {"kind": "swiglu"},
}
# Differences of the order of sums only; relative to the largest entry.
CLOSE = {"float32": 2e-5, "bfloat16": 4e-2}
ROUNDING = 5e-2  # smaller arrays are what is left of numbers around 1 that cancel: 1e-6 of those

Params = Mapping[str, jax.Array]
Batch = dict[str, jax.Array]


@dataclass(frozen=True)
class Case:
    room: str
    kind: str
    knobs: tuple[tuple[str, Any], ...]
    one_form: str = ""  # why it has no slow form beside the fast one

    def __str__(self) -> str:
        return "-".join([self.kind, *(f"{k}={v}" for k, v in self.knobs)])

    @property
    def spec(self) -> LayerSpec:
        module = resolve(self.kind, room=self.room)
        return TypeAdapter(module.Spec).validate_python({"kind": self.kind, **dict(self.knobs)})

    @property
    def of_source(self) -> bool:
        """Whether it reads a source beside the stream, of which each position sees itself alone."""
        return "source" in self.spec.reads

    @property
    def mixes(self) -> bool:
        """Whether positions of the stream see one another."""
        return self.room == "mixers" and not self.of_source

    @property
    def model(self) -> ModelSpec:
        """Two repeated layers of it, beside a plain partner; of a decoder with two layers of an
        encoder where it reads a source.
        """
        place = "cross" if self.of_source else {"mixers": "mixer", "ffns": "ffn"}[self.room]
        plain = {"mixer": PARTNER["mixers"], "ffn": PARTNER["ffns"]}
        encoder = EncoderSpec(n_layers=2, repeat=(BlockSpec(**plain),))
        return ModelSpec(
            d_model=D_MODEL,
            n_layers=2,
            vocab=VOCAB,
            repeat=(BlockSpec(**{**plain, place: self.spec}),),
            encoder=encoder if self.of_source else None,
            objective="translation" if self.of_source else "next_token",
            parametrisation=Parametrisation(base_d_model=16),
        )


USERS: list[tuple[str, str]] = []  # (room, module) of layers outside the project; tests/conftest.py


def cases(*, every_variant: bool) -> list[Case]:
    found = []
    for room in ROOMS:
        kinds = [(kind, test_module(room, kind)) for kind in layer_kinds(room)]
        kinds += [(kind, users_module(kind)) for own, kind in USERS if own == room]
        for kind, module in kinds:
            variants = vars(module).get("VARIANTS", [{}])
            why = vars(module).get("ONE_FORM", "")
            for knobs in variants if every_variant else variants[:1]:
                found.append(Case(room, kind, knobs=tuple(knobs.items()), one_form=why))
    return found


def test_module(room: str, kind: str) -> Any:
    return importlib.import_module(f"tests.{room}.test_{kind}")


test_module.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]  named like a test


# -- one layer -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alone:
    """A layer outside any model: declarations, and y (B, T, D) of (params, x, segments)."""

    declarations: Mapping[str, Declaration]
    params: Params
    apply: Callable[..., jax.Array]  # and of a source (1, S, D), where it reads one
    naive: Callable[..., jax.Array]  # the same, in the layer's slow and obvious form
    start: Callable[..., State]  # (rows, length=, dtype=): what a mixer remembers of no position
    extend: Callable[..., tuple[jax.Array, State]]  # (params, x, state, position): the next ones


def alone(spec: LayerSpec, *, room: str, d_model: int = D_MODEL, base: int = 16) -> Alone:
    """Every parameter is moved off its initial value, so that zeros and ones count too."""
    shared = {"D": d_model, "V": VOCAB, "Z": 1}
    declare = Declare(
        sizes={**shared, **spec.sizes(shared)},
        base={**shared, "D": base, **spec.sizes({**shared, "D": base})},
        rule=Parametrisation(base_d_model=base),
        n_layers=1,
        tied=False,
    )
    layer = resolve(spec.kind, room=room).Layer(spec, declare)
    graph, state = nnx.split(layer)
    paths = [leaf.decl.path for leaf in jax.tree.leaves(state, is_leaf=_is_parameter)]
    tree = jax.tree.structure(state)
    rng = np.random.default_rng(0)
    params = {
        path: jnp.asarray(initial(d, 0) + 0.3 * rng.standard_normal(d.shape, np.float32))
        for path, d in declare.made.items()
    }

    def module(params: Params) -> Any:
        return nnx.merge(graph, jax.tree.unflatten(tree, [params[path] for path in paths]))

    def context(
        x_BTD: jax.Array, segments_BT: Any, source_1SD: Any = None, *, first: Any = 0, **more: Any
    ) -> Context:
        rows, length = x_BTD.shape[:2]
        positions_BT = jnp.broadcast_to(first + jnp.arange(length)[None], (rows, length))
        if source_1SD is None:
            source_1SD = stream(1, len(SOURCE_SEGMENTS), d_model, seed=2)
        shared = {
            "source": jnp.tile(source_1SD, (rows, 1, 1)),
            "source_segments": jnp.tile(jnp.asarray([SOURCE_SEGMENTS]), (rows, 1)),
        }
        return Context(positions_BT=positions_BT, segments_BT=segments_BT, shared=shared, **more)

    def apply(
        params: Params, x_BTD: jax.Array, segments_BT: Any = None, source_1SD: Any = None
    ) -> jax.Array:
        return module(params)(x_BTD, context(x_BTD, segments_BT, source_1SD))[0]

    def naive(params: Params, x_BTD: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        return module(params)(x_BTD, context(x_BTD, segments_BT, naive=True))[0]

    naive.__name__ = apply.__name__  # programs are compared, and hold the names of what they call

    def extend(
        params: Params,
        x_BTD: jax.Array,
        state: State,
        position: Any,
        segments_BT: jax.Array | None = None,
    ):
        return module(params).extend(x_BTD, state, context(x_BTD, segments_BT, first=position))[:2]

    def start(rows: int, *, length: int, dtype: Any) -> State:
        if "source" not in spec.reads:
            return module(params).start(rows, length=length, dtype=dtype)
        return module(params).read(context(jnp.zeros((rows, length)), None), dtype=dtype)

    return Alone(
        declarations=dict(declare.made),
        params=params,
        apply=jax.jit(apply),
        naive=jax.jit(naive),
        start=start,
        extend=jax.jit(extend),
    )


def _is_parameter(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def stream(*shape: int, seed: int = 0, dtype: Any = np.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def sensitivity(layer: Alone, x_1TD: jax.Array, segments_1T: jax.Array | None = None) -> np.ndarray:
    """(T, T): largest |d (a random projection of y at t) / d x at s|."""
    project_TD = stream(*x_1TD.shape[1:], seed=1)

    def projected(x_1TD: jax.Array) -> jax.Array:
        return jnp.sum(layer.apply(layer.params, x_1TD, segments_1T)[0] * project_TD, axis=-1)

    jacobian_T1TD = jax.jit(jax.jacrev(projected))(x_1TD)
    return np.asarray(jnp.max(jnp.abs(jacobian_T1TD[:, 0]), axis=-1))


# -- a whole model ---------------------------------------------------------------------------------


def batch(
    rows: int, seq_len: int, *, vocab: int = VOCAB, seed: int = 0, source: int | None = None
) -> Batch:
    """Random tokens in two documents a row; no loss across the boundary. `source`: the length of a
    source for them, of two documents and padding.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, (rows, seq_len + 1)).astype(np.int32)
    cut_B1 = rng.integers(1, seq_len, (rows, 1))
    segments_BT = (np.arange(seq_len)[None] >= cut_B1).astype(np.int32)
    weights_BT = (np.arange(1, seq_len + 1)[None] != cut_B1).astype(np.float32)
    named = {
        "tokens_BT": tokens[:, :-1],
        "targets_BT": tokens[:, 1:],
        "segments_BT": segments_BT,
        "weights_BT": weights_BT,
    }
    if source is not None:
        ends_B1 = np.sort(rng.permuted(np.tile(np.arange(1, source), (rows, 1)), axis=1)[:, :2])
        at_1S = np.arange(source)[None]
        segments_BS = np.where(at_1S < ends_B1[:, :1], 0, np.where(at_1S < ends_B1[:, 1:], 1, -1))
        named["source_BS"] = rng.integers(0, vocab, (rows, source)).astype(np.int32)
        named["source_segments_BS"] = segments_BS.astype(np.int32)
    return {k: jnp.asarray(v) for k, v in named.items()}


def inputs(spec: ModelSpec, rows: int, seq_len: int, *, seed: int = 0) -> jax.Array:
    """What a model of this spec reads: random ids, or random numbers."""
    rng = np.random.default_rng(seed)
    if spec.series is not None:
        return jnp.asarray(rng.standard_normal((rows, seq_len)), jnp.float32)
    return jnp.asarray(rng.integers(0, spec.vocab, (rows, seq_len)), jnp.int32)


def trained_params(model: Model, seed: int = 0) -> dict[str, jax.Array]:
    """Initial values moved a little, so that a zero readout hides nothing."""
    rng = np.random.default_rng(seed + 1)
    start = model.initialise(seed)
    return {
        path: jnp.asarray(value + 0.05 * rng.standard_normal(value.shape, np.float32))
        for path, value in start.items()
    }


def mean_loss(model: Model, *, dtype: Any = jnp.float32, **execution: Any) -> Callable[..., Any]:
    """(params, batch) -> mean nats, run as `layers` and `remat` say."""

    def loss(params: Params, data: Batch) -> jax.Array:
        shape = data["tokens_BT"].shape
        positions_BT = jnp.broadcast_to(jnp.arange(shape[1])[None], shape)
        ctx = Context(
            positions_BT=positions_BT,
            segments_BT=data["segments_BT"],
            source_BS=data.get("source_BS"),
            source_segments_BS=data.get("source_segments_BS"),
            **execution,
        )
        nats, weights = next_token(model(params, data["tokens_BT"], ctx, dtype=dtype)[0], data)
        return nats / weights

    return loss


def assert_close(a: Any, b: Any, *, dtype: str = "float32", what: str = "") -> None:
    """Every entry within CLOSE of the largest entry of its array."""
    flat_a, flat_b = jax.tree.leaves_with_path(a), jax.tree.leaves(b)
    assert len(flat_a) == len(flat_b)
    for (path, x), y in zip(flat_a, flat_b, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape
        off = float(np.max(np.abs(x - y), initial=0.0))
        size = float(max(np.max(np.abs(y), initial=0.0), ROUNDING))
        name = f"{what} {jax.tree_util.keystr(path)}"
        assert off <= CLOSE[dtype] * size, f"{name}: differs by {off:.3g} of {size:.3g}"


def with_layer(spec: ModelSpec, room: str, **knobs: Any) -> ModelSpec:
    """The same model with knobs of its repeated layer changed."""
    name = {"mixers": "mixer", "ffns": "ffn"}[room]
    (block,) = spec.repeat
    return replace(spec, repeat=(replace(block, **{name: replace(getattr(block, name), **knobs)}),))
