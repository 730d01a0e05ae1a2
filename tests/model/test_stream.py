"""Does a model that runs a few positions at a time train as it does all at once?"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from pydantic import TypeAdapter

from model import archs
from model.context import unplaced
from model.count import count
from model.decoder import Model, build
from model.spec import BlockSpec, ModelSpec
from tests.properties import batch, trained_params
from train.objectives import next_token
from train.step import forward

T, S, WIDTH = 21, 12, 16
RELATIVE = {"float32": 1e-5, "float64": 1e-10}  # of an array's largest entry
OFTEN = ("moe",)  # the others run with the slow tests
# What each says is made of sums over chunks: of loads, streams, prefixes. Each size of chunk once.
OF_SUMS = {"moe": 1, "chain_of_experts": 7, "parscale": 16, "span_mixture": T}
# Float32 does not tell: the gradient of its steps differs by 3e-4 there, and by 1e-14 in float64.
STIFF = ("s4",)
ALIKE = [n for n in archs.names() if n in OFTEN or n not in (*OF_SUMS, *STIFF)]
# smaller arrays are what is left of numbers around this that cancel
ROUNDING = {"float32": 5e-2, "float64": 1e-6}  # as tests/properties.py has it


def gradients(model: Model, params: Any, data: Any, *, dtype: str, chunk: int | None) -> Any:
    """Of the mean loss and the layers' own; the logits' shapes seen on the way."""
    seen = []

    def objective(logits_BTV: jax.Array, batch: Any):
        seen.append(logits_BTV.shape)
        return next_token(logits_BTV, batch)

    def loss(params: Any):
        nats, weights, aux = forward(
            model,
            params,
            data,
            constrain=unplaced,
            layers="scan",
            remat="none" if chunk is None else "stream",
            remat_chunk=chunk,
            dtype=jnp.dtype(dtype),
            isolate=True,
            objective=objective,
            progress=jnp.float32(0.1),
        )
        own = [value for key, value in aux.items() if key.startswith("loss/")]
        return nats / weights + sum(own), aux

    (value, aux), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return {"loss": value, "aux": aux, "gradient": grads}, seen


def assert_same(model: Model, *, dtype: str, chunks: tuple[int, ...]) -> None:
    params: Any = trained_params(model)
    data = batch(2, T, vocab=model.spec.vocab, source=S if model.spec.encoder else None)
    data["weights_BT"] = data["weights_BT"].at[0, :9].set(0.0)  # labels that are masked
    if not model.spec.causal:
        data["counted_BT"] = jnp.ones((2, T), jnp.float32)
    with jax.enable_x64(dtype == "float64"):
        params, data = jax.tree.map(lambda a: jnp.asarray(a, _wide(a, dtype)), (params, data))
        expected, whole = gradients(model, params, data, dtype=dtype, chunk=None)
        assert whole == [(2, T, model.spec.vocab)]
        for chunk in chunks:
            found, seen = gradients(model, params, data, dtype=dtype, chunk=chunk)
            assert {shape[1] for shape in seen} <= {chunk, T % chunk}, "there were logits of all"
            flat = jax.tree.leaves_with_path(expected)
            for (path, a), b in zip(flat, jax.tree.leaves(found), strict=True):
                size = max(float(jnp.max(jnp.abs(a), initial=0.0)), ROUNDING[dtype])
                off = float(jnp.max(jnp.abs(a - b), initial=0.0)) / size
                assert off <= RELATIVE[dtype], f"{chunk} {jax.tree_util.keystr(path)} {off}"


def _wide(a: jax.Array, dtype: str) -> Any:
    return dtype if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype


def grouped(**model: Any) -> Model:
    block = TypeAdapter(BlockSpec).validate_python(
        {
            "mixer": {"kind": "attention", "d_head": 4, "queries_per_kv": 2, "qk_norm": True},
            "ffn": {"kind": "swiglu"},
        }
    )
    return build(ModelSpec(d_model=WIDTH, n_layers=2, vocab=32, repeat=(block,), **model))


@pytest.mark.parametrize(
    "chunk", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 16, T))]
)
def test_grouped_queries_and_masked_labels_in_every_chunk(chunk: int, no_float32: None):
    assert_same(grouped(), dtype="float64", chunks=(chunk,))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in OFTEN else pytest.mark.slow) for n in ALIKE],
)
def test_every_architecture(name: str):
    spec = archs.build(name, 32)
    if spec.series is not None:
        pytest.skip("values have an objective of their own, which does not go by chunks")
    assert_same(build(spec), dtype="float32", chunks=(8,))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chunk"), [*OF_SUMS.items(), *((n, 8) for n in STIFF)])
def test_losses_of_layers_and_streams_in_float64(name: str, chunk: int, no_float32: None):
    assert_same(build(archs.build(name, 32)), dtype="float64", chunks=(chunk,))


def temporary(model: Model, remat: str, seq_len: int) -> int:
    """Bytes besides arguments and results, as the compiler lays them out."""
    data = batch(1, seq_len, vocab=model.spec.vocab)
    params = {p: jax.ShapeDtypeStruct(d.shape, jnp.float32) for p, d in model.declarations.items()}
    loss = partial(
        forward,
        model,
        constrain=unplaced,
        layers="scan",
        remat=remat,
        dtype=jnp.float32,
        isolate=True,
    )
    compiled = jax.jit(jax.grad(lambda p, d: loss(p, d)[0])).lower(params, data).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def test_temporary_memory_falls():
    spec = replace(grouped().spec, vocab=2048)
    full, stream = (temporary(build(spec), remat, 512) for remat in ("full", "stream"))
    assert stream < full / 2.5


def test_hardware_flops_count_what_is_made_again_and_the_scores_left_out():
    spec = replace(archs.build("dense", 64), n_layers=2)
    plain, full, stream = (
        count(spec, seq_len=1024, remat=remat).flops_per_token
        for remat in ("none", "full", "stream")
    )
    scores = 2 * (plain["full_attn"] - plain["causal_attn"]) / 3  # of a forward pass
    logits = 2 * spec.d_model * spec.vocab
    # eight runs of two chunks see 1/8, 2/8 .. of the keys
    expected = full["hardware"] + logits - 4 * scores * (1 - 9 / 16)
    assert stream["hardware"] == pytest.approx(expected, rel=1e-12)
    assert stream["causal_attn"] == plain["causal_attn"]
