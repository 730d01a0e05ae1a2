"""Is the whole decoder what its description says? The same forward pass in float64 numpy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import archs
from model.context import Context
from model.decoder import build
from model.spec import ModelSpec
from tests.ffns import test_gelu, test_swiglu
from tests.mixers import test_attention
from tests.properties import trained_params

# float32 through two layers against float64, relative to the largest logit
FORWARD = 1e-5
EPSILON = 1e-6
Arrays = dict[str, np.ndarray]


def reference(spec: ModelSpec, params: Arrays, tokens_BT: np.ndarray, segments_BT: np.ndarray):
    """Logits (B, T, V): embed, blocks one after the other, norm, read out."""
    params = {k: np.asarray(v, np.float64) for k, v in params.items()}
    x_BTD = params["embed"][tokens_BT]
    if spec.learned_positions:
        x_BTD = x_BTD + params["positions"][np.arange(tokens_BT.shape[1])]
    for block, own in _blocks(spec, params):
        mixed = _norm(x_BTD, _under(own, "mixer_norm"))
        scale = block.mixer.d_head**-0.5  # heads of one width in every model, so muP agrees
        x_BTD = x_BTD + test_attention.reference(
            _under(own, "mixer"), mixed, segments_BT, block.mixer, scale
        )
        ffn = {"gelu": test_gelu, "swiglu": test_swiglu}[block.ffn.kind].reference
        x_BTD = x_BTD + ffn(_under(own, "ffn"), _norm(x_BTD, _under(own, "ffn_norm")))
    rule = spec.parametrisation
    scale = rule.output_multiplier
    if rule.kind == "mup":
        scale = scale * rule.base_d_model / spec.d_model
    head = params["embed"].T if spec.tied else params["readout"]
    return scale * (_norm(x_BTD, _under(params, "norm")) @ head)


def _blocks(spec: ModelSpec, params: Arrays):
    for i, block in enumerate(spec.first):
        yield block, _under(params, f"first.{i}")
    for z in range(spec.n_repeats):
        for i, block in enumerate(spec.repeat):
            yield block, {k: v[z] for k, v in _under(params, f"repeat.{i}").items()}
    for i, block in enumerate(spec.last):
        yield block, _under(params, f"last.{i}")


def _under(params: Arrays, scope: str) -> Arrays:
    head = f"{scope}."
    return {k.removeprefix(head): v for k, v in params.items() if k.startswith(head)}


def _norm(x_BTD: np.ndarray, params: Arrays) -> np.ndarray:
    if "bias" in params:
        x_BTD = x_BTD - x_BTD.mean(-1, keepdims=True)
    x_BTD = x_BTD / np.sqrt((x_BTD**2).mean(-1, keepdims=True) + EPSILON)
    return x_BTD * params["gain"] + params.get("bias", 0.0)


def mixed() -> ModelSpec:
    """Different blocks at both ends and a unit of two in between."""
    one, other = archs.build("dense", 32).repeat[0], archs.build("gpt2", 32).repeat[0]
    spec = archs.build("dense", 32)
    return replace(spec, n_layers=6, first=(other,), repeat=(one, other), last=(one,))


SPECS = {
    "dense": archs.build("dense", 32),
    "gpt2": archs.build("gpt2", 32),
    "mixed": mixed(),
    "tied mup": replace(archs.build("dense", 32), tied=True),
}


@pytest.mark.parametrize("name", SPECS)
def test_logits_equal_a_float64_forward_pass(name: str):
    spec, T = SPECS[name], 7
    model = build(spec)
    params = trained_params(model)
    tokens_BT = np.random.default_rng(0).integers(0, spec.vocab, (2, T))
    segments_BT = np.array([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1]])

    @jax.jit
    def forward(params, tokens_BT, segments_BT):
        positions_BT = jnp.broadcast_to(jnp.arange(T)[None], tokens_BT.shape)
        ctx = Context(positions_BT=positions_BT, segments_BT=segments_BT)
        return model(params, tokens_BT, ctx, dtype=jnp.float32)[0]

    found = np.asarray(forward(params, tokens_BT, segments_BT))
    expected = reference(
        spec, {k: np.asarray(v) for k, v in params.items()}, tokens_BT, segments_BT
    )
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.max(np.abs(found - expected)) <= FORWARD * np.max(np.abs(expected))


@pytest.mark.slow
def test_bfloat16_compute_keeps_float32_masters_logits_and_gradients():
    model = build(SPECS["dense"])
    params = trained_params(model)

    def loss(params, dtype):
        tokens_BT = jnp.asarray([[1, 2, 3, 4]])
        ctx = Context(positions_BT=jnp.arange(4)[None], segments_BT=None)
        stream_BTD, _ = model.module(params).stream(tokens_BT, ctx, dtype=dtype)
        logits_BTV, _ = model(params, tokens_BT, ctx, dtype=dtype)
        return jnp.mean(logits_BTV**2), (stream_BTD, logits_BTV)

    def run(dtype):
        return jax.jit(lambda p: jax.grad(loss, has_aux=True)(p, dtype))(params)

    grads, (stream_BTD, logits_BTV) = run(jnp.bfloat16)
    assert stream_BTD.dtype == jnp.bfloat16 and logits_BTV.dtype == jnp.float32
    assert all(g.dtype == jnp.float32 for g in grads.values())
    exact, (_, exact_BTV) = run(jnp.float32)
    off = float(jnp.max(jnp.abs(logits_BTV - exact_BTV)) / jnp.max(jnp.abs(exact_BTV)))
    assert 1e-5 < off < 0.05, "bfloat16 was not used, or went wrong"
    assert set(exact) == set(grads)
