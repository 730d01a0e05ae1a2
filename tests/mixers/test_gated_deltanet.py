"""Is Gated DeltaNet what its paper says? A float64 reference with a loop for each position and
head.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from model.decoder import build
from model.mixers import deltanet
from model.mixers.gated_deltanet import Spec
from model.spec import BlockSpec, ModelSpec
from tests.mixers.test_deltanet import DOCUMENTS, Arrays, convolved, sigmoid, silu
from tests.properties import alone, assert_close, stream

VARIANTS = [
    {"d_head": 8, "chunk": 16},
    {"d_head": 8, "chunk": 4, "key_ratio": 0.5, "value_ratio": 2, "negative_eigenvalues": True},
]


def reference(params: Arrays, x_BTD: np.ndarray, documents_BT: np.ndarray, spec: Spec):
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    y_BTD = np.zeros(x_BTD.shape)
    for b in range(len(x_BTD)):
        for h in range(p["out"].shape[0]):
            S_KM, begin = np.zeros(0), 0
            for t in range(x_BTD.shape[1]):
                x_D = x_BTD[b, t]
                if t == 0 or documents_BT[b, t] != documents_BT[b, t - 1]:
                    S_KM, begin = np.zeros((p["q"].shape[2], p["v"].shape[2])), t
                q, k, v = (convolved(p, n, h, x_BTD[b, begin : t + 1]) for n in "qkv")
                q, k = (x / np.sqrt(x @ x + 1e-6) for x in (q, k))
                beta = (2 if spec.negative_eigenvalues else 1) * sigmoid(x_D @ p["beta"][:, h])
                step = np.log1p(np.exp(x_D @ p["step"][:, h] + p["step_bias"][h]))
                S_KM = np.exp(-np.exp(p["log_rate"][h]) * step) * S_KM
                S_KM = S_KM + beta * np.outer(k, v - S_KM.T @ k)
                y_M = S_KM.T @ q / np.sqrt(len(q))
                y_M = y_M / np.sqrt(np.mean(y_M**2) + 1e-5) * p["gain"]
                if spec.gate:
                    y_M = y_M * silu(x_D @ p["gate"][:, h])
                y_BTD[b, t] += y_M @ p["out"][h]
    return y_BTD


@pytest.mark.parametrize("knobs", [*VARIANTS, {"d_head": 16, "gate": False}], ids=str)
def test_values_equal_the_reference(knobs: dict):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    params = {k: np.asarray(v) for k, v in layer.params.items()}
    assert ("gate" in params) == spec.gate
    y_BTD = layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS))
    assert_close(y_BTD, reference(params, np.asarray(x_BTD, np.float64), DOCUMENTS, spec))


def test_a_memory_that_does_not_fade_is_deltanets():
    knobs = {"d_head": 8, "gate": True, "value_ratio": 2}
    plain = alone(deltanet.Spec(**knobs), room="mixers")
    gated = alone(Spec(**knobs), room="mixers")
    x_BTD = stream(2, 9, 32)
    shared = {**gated.params, **plain.params}
    assert set(shared) - set(plain.params) == {"step", "step_bias", "log_rate"}
    still = {**shared, "log_rate": jnp.full_like(shared["log_rate"], -40.0)}
    expected = plain.apply(plain.params, x_BTD)
    assert_close(gated.apply(still, x_BTD), expected)
    assert float(jnp.max(jnp.abs(gated.apply(shared, x_BTD) - expected))) > 0.01


def test_decays_start_between_nothing_and_everything_and_differ_between_heads():
    block = BlockSpec(mixer={"kind": "gated_deltanet", "d_head": 8}, ffn=None)
    start = build(ModelSpec(d_model=512, n_layers=1, repeat=(block,))).initialise(0)
    rate_H = np.exp(start["repeat.0.mixer.log_rate"][0])
    step_H = np.log1p(np.exp(start["repeat.0.mixer.step_bias"][0]))
    assert 0 < rate_H.min() < 2 and 14 < rate_H.max() < 16
    assert 1e-3 * 0.999 <= step_H.min() < 2e-3 and 0.05 < step_H.max() <= 0.1 * 1.001
    kept_H = np.exp(-rate_H * step_H)
    assert 0.2 < kept_H.min() < 0.7 and kept_H.max() > 0.995


def test_sizes_that_do_not_divide_are_refused_with_what_to_write():
    with pytest.raises(ValueError, match="d_head 12 does not divide 1 .*; write a divisor"):
        Spec(d_head=12).sizes({"D": 32})
    with pytest.raises(ValueError, match=r"0.75 \(key_ratio\) x 40 .* a multiple of 10.6667"):
        Spec(d_head=8, key_ratio=0.75).sizes({"D": 40})
    assert Spec(d_head=8, key_ratio=0.75).sizes({"D": 32})["H"] == 3
