"""Is RWKV-7 what its authors run? A float64 reference with a loop for each position and head."""

import json
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.context import Context
from model.decoder import build
from model.mixers.rwkv7 import Spec
from model.spec import BlockSpec, ModelSpec
from tests.mixers.test_deltanet import DOCUMENTS, Arrays, sigmoid
from tests.properties import alone, assert_close, batch, mean_loss, stream, trained_params
from train.spec import RunSpec, from_dict, to_dict

VARIANTS = [
    {"d_head": 8, "rank": 4, "gate_rank": 6, "chunk": 16},
    {"d_head": 8, "rank": 4, "gate_rank": 6, "chunk": 4, "norm_epsilon": 8e-5},
]


def reference(
    params: Arrays, x_TD: np.ndarray, documents_T: np.ndarray, spec: Spec, first: Any = None
):
    """One row; y and the values before any mixing. The memory is (M, K), as the authors write."""
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    H, K = p["bonus"].shape
    y_TD, values_THK = np.zeros(x_TD.shape), np.zeros((len(x_TD), H, K))
    S_HMK = np.zeros((H, K, K))
    for t, x_D in enumerate(x_TD):
        last_D = np.zeros_like(x_D)
        if t > 0 and documents_T[t] == documents_T[t - 1]:
            last_D = x_TD[t - 1]
        else:
            S_HMK = np.zeros((H, K, K))
        xr, xw, xk, xv, xa, xg = (x_D + m * (last_D - x_D) for m in p["mix"])
        for h in range(H):
            r, k, v = xr @ p["r"][:, h], xk @ p["k"][:, h], xv @ p["v"][:, h]
            values_THK[t, h] = v
            if spec.value_residual == "mix":
                share = sigmoid(p["v_bias"][h] + xv @ p["v_down"] @ p["v_up"][:, h])
                v = v + (first[t, h] - v) * share
            w = sigmoid(p["w_bias"][h] + np.tanh(xw @ p["w_down"]) @ p["w_up"][:, h])
            w = np.exp(-w / np.sqrt(np.e))
            a = sigmoid(p["a_bias"][h] + xa @ p["a_down"] @ p["a_up"][:, h])
            g = sigmoid(xg @ p["gate_down"]) @ p["gate_up"][:, h]
            kk = k * p["removal"][h]
            kk = kk / np.linalg.norm(kk)
            k = k * (1 + (a - 1) * p["writing"][h])
            S = S_HMK[h]
            S = S @ np.diag(w) - S @ np.outer(kk, kk * a) + np.outer(v, k)
            S_HMK[h] = S
            y = S @ r
            y = (y - y.mean()) / np.sqrt(y.var() + spec.norm_epsilon) * p["gain"][h] + p["bias"][h]
            y = y + np.sum(r * k * p["bonus"][h]) * v
            y_TD[t] += (y * g) @ p["out"][h]
    return y_TD, values_THK


PUBLISHING = {"d_head": 16, "rank": 4, "gate_rank": 6, "value_residual": "publish"}


@pytest.mark.parametrize("knobs", [*VARIANTS, PUBLISHING], ids=str)
def test_values_equal_the_reference(knobs: dict):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    y_BTD = layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS))
    params, rows = {k: np.asarray(v) for k, v in layer.params.items()}, np.asarray(x_BTD)
    expected = [reference(params, rows[b], DOCUMENTS[b], spec)[0] for b in range(2)]
    assert_close(y_BTD, np.stack(expected))


# -- the first layer's values in the layers after it -----------------------------------------------


def model_spec(first: str = "publish", others: str = "mix", layers: int = 3) -> ModelSpec:
    def block(role: str) -> BlockSpec:
        knobs = {**VARIANTS[0], "kind": "rwkv7", "value_residual": role}
        return BlockSpec(mixer=knobs, ffn={"kind": "relu2"})

    return ModelSpec(
        d_model=32, n_layers=layers, vocab=64, first=(block(first),), repeat=(block(others),)
    )


def context(tokens_BT, **more) -> Context:
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
    return Context(positions_BT=positions_BT, segments_BT=None, **more)


def test_later_layers_mix_the_first_ones_values_into_their_own():
    spec = Spec(**{**VARIANTS[0], "value_residual": "mix"})
    x_BTD = stream(1, 9, 32)
    model = build(model_spec(layers=2))
    whole = trained_params(model)
    module = model.module({k: jnp.asarray(v) for k, v in whole.items()})
    ctx = context(jnp.zeros((1, 9), jnp.int32))
    y_BTD, aux = jax.jit(lambda x: module.first[0].mixer(x, ctx))(x_BTD)
    assert set(aux) == {"share/first_values"}
    shared = {"first_values": aux["share/first_values"]}

    def part(prefix: str, index: Any = ...) -> Arrays:
        return {
            k.removeprefix(prefix): np.asarray(v)[index]
            for k, v in whole.items()
            if k.startswith(prefix)
        }

    row = np.asarray(x_BTD[0])
    first, values = reference(
        part("first.0.mixer."), row, np.zeros(9), replace(spec, value_residual="publish")
    )
    assert_close(y_BTD[0], first)
    assert_close(aux["share/first_values"][0], values)
    # another stream than the first layer's, so that the two kinds of values differ
    other_BTD = stream(1, 9, 32, seed=1)
    second = alone(spec, room="mixers")
    params = part("repeat.0.mixer.", 0)
    assert set(params) == set(second.params)
    block = jax.tree.map(lambda x: x[0], module.repeat)
    y_BTD, _ = jax.jit(lambda x: block[0].mixer(x, replace(ctx, shared=shared)))(other_BTD)
    expected, _ = reference(params, np.asarray(other_BTD[0]), np.zeros(9), spec, first=values)
    assert_close(y_BTD[0], expected)
    without, _ = reference(params, np.asarray(other_BTD[0]), np.zeros(9), spec, first=0 * values)
    assert np.max(np.abs(without - expected)) > 1e-3 * np.max(np.abs(expected))


def test_a_model_that_mixes_is_causal_and_keeps_documents_apart():
    model = build(model_spec())
    params, data = trained_params(model), batch(1, 9)
    module_ctx = replace(context(data["tokens_BT"]), segments_BT=data["segments_BT"])

    def logits(embedded_BTV):
        # the embedding as a product, so that there is a gradient by position
        table = params["embed"]
        decoder = model.module(params)
        x_BTD, ctx = embedded_BTV @ table, module_ctx
        for block in decoder.first:
            x_BTD, aux = block(x_BTD, ctx)
            shared = {k.removeprefix("share/"): v for k, v in aux.items()}
            ctx = replace(ctx, shared=shared)
        for z in range(2):
            block = jax.tree.map(lambda x, z=z: x[z], decoder.repeat)
            x_BTD, _ = block[0](x_BTD, ctx)
        return jnp.sum(jnp.sin(x_BTD[0]), axis=-1)

    jacobian = jax.jit(jax.jacrev(logits))(jax.nn.one_hot(data["tokens_BT"], 64))
    seen_TT = np.asarray(jnp.max(jnp.abs(jacobian[:, 0]), axis=-1))
    segments_T = np.asarray(data["segments_BT"][0])
    allowed_TT = np.tril(segments_T[:, None] == segments_T[None])
    assert 0 < segments_T.sum() < 9
    assert np.all(seen_TT[~allowed_TT] == 0) and np.all(seen_TT[allowed_TT] > 0)


def test_a_model_that_mixes_decodes_as_it_trains():
    model = build(model_spec())
    params, tokens_BT = trained_params(model), batch(2, 9)["tokens_BT"]
    whole, _ = jax.jit(lambda p: model(p, tokens_BT, context(tokens_BT), dtype=jnp.float32))(params)
    extend = jax.jit(lambda p, t, s: model.extend(p, t, s, dtype=jnp.float32))
    state, out, begin = model.start(2, length=9, dtype=jnp.float32), [], 0
    for length in (5, 1, 1, 2):
        logits, state = extend(params, tokens_BT[:, begin : begin + length], state)
        out.append(logits)
        begin += length
    assert_close(jnp.concatenate(out, axis=1), whole)


@pytest.mark.slow
def test_scanned_or_unrolled_rematerialised_or_not_a_model_that_mixes_is_the_same():
    model = build(model_spec())
    params, data = trained_params(model), batch(2, 9)
    results = []
    for layers, remat in (("scan", "none"), ("unroll", "none"), ("scan", "full")):
        loss = mean_loss(model, layers=layers, remat=remat)
        results.append(jax.jit(jax.value_and_grad(loss))(params, data))
    for result in results[1:]:
        assert_close(result, results[0])
    assert float(jnp.max(jnp.abs(results[0][1]["repeat.0.mixer.v_down"]))) > 0


def test_a_model_that_mixes_survives_json():
    run = RunSpec(model=model_spec())
    assert from_dict(json.loads(json.dumps(to_dict(run)))).model == run.model


def test_a_layer_that_mixes_needs_one_that_publishes_before_it():
    with pytest.raises(ValueError, match="reads first_values, which no block before it publishes"):
        model_spec(first="none")
    with pytest.raises(ValueError, match="publishes first_values; only blocks of `first` can"):
        model_spec(others="publish")


# -- initial values --------------------------------------------------------------------------------


def test_initial_values_are_the_authors_by_channel_and_layer():
    """Their formulas, written out for one channel at a time."""
    model = build(model_spec(layers=3))
    start, C, N, L = model.initialise(0), 32, 8, 3
    for layer in range(L):
        prefix, index = ("first.0", ...) if layer == 0 else ("repeat.0", layer - 1)

        def value(name: str, prefix=prefix, index=index) -> np.ndarray:
            return start[f"{prefix}.mixer.{name}"][index]

        up, down = layer / (L - 1), 1 - layer / L
        for c in range(C):
            zigzag = (c % N - (N - 1) / 2) / ((N - 1) / 2)
            zigzag *= abs(zigzag)
            linear = c / (C - 1) - 0.5
            where = (c // N, c % N)
            slow = -6 + 6 * (c / (C - 1)) ** (1 + up**0.3)
            expected = {
                "w_bias": slow + 0.5 + zigzag * 2.5,
                "a_bias": -0.19 + zigzag * 0.3 + linear * 0.4,
                "removal": 0.71 - linear * 0.1,
                "writing": 1.02,
                "bonus": -0.04,
                "gain": ((layer + 1) / L) ** 0.7,
            }
            if layer:
                expected["v_bias"] = 0.73 - linear * 0.4
            for name, number in expected.items():
                assert value(name)[where] == pytest.approx(number, rel=1e-5, abs=1e-6), name
            powers = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)
            mix = [1 - (c / C) ** (power * down) for power in powers]
            assert value("mix")[:, c] == pytest.approx(mix, rel=1e-5, abs=1e-6)
        for name, gain in (("r", 1.0), ("k", 0.1), ("v", 1.0), ("w_up", 0.1), ("gate_up", 0.1)):
            flat = value(name).reshape(len(value(name)), -1)
            assert flat @ flat.T == pytest.approx(gain**2 * np.eye(len(flat)), abs=1e-5)
        assert not any(np.any(value(n)) for n in ("out", "bias", "w_down", "a_down", "gate_down"))


def test_decays_stay_where_the_chunks_need_them():
    """Whatever the logits, a step keeps between e^-e^-1/2 and 1 of a channel."""
    layer, x_BTD = alone(Spec(**VARIANTS[0]), room="mixers"), stream(1, 37, 32)
    extreme = {**layer.params, "w_bias": 50.0 * jnp.ones_like(layer.params["w_bias"])}
    assert_close(layer.apply(extreme, x_BTD), layer.naive(extreme, x_BTD))
    assert math.exp(-math.exp(-0.5)) == pytest.approx(0.5452, abs=1e-4)


def test_a_chunk_whose_factors_overflow_is_refused():
    with pytest.raises(ValueError, match="less than or equal to 128"):
        Spec(chunk=256)


@pytest.mark.parametrize("name", ["rank", "gate_rank"])
def test_a_rank_above_the_width_is_refused(name: str):
    with pytest.raises(ValueError, match=f"{name} 33 is above d_model 32.*write at most 32"):
        Spec(**{**VARIANTS[0], name: 33}).sizes({"D": 32})
