"""Is Lightning attention what its paper says? All pairs of positions, in numpy and float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.mixers.lightning import Spec
from model.mixers.retnet import Spec as RetNet
from tests.properties import alone, assert_close, stream

VARIANTS = [
    {"d_head": 8},
    {"d_head": 8, "activation": "identity", "gate": "silu", "chunk": 16},
]
DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1]])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(params, x_BTD, segments_BT, spec: Spec):
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    x_BTD = np.asarray(x_BTD, np.float64)
    y_BTD = np.zeros_like(x_BTD)
    B, T, D = x_BTD.shape
    heads = D // spec.d_head

    def one(name: str, x_D: np.ndarray, h: int) -> np.ndarray:
        z = x_D @ p[name][:, h]
        return z * sigmoid(z) if spec.activation == "silu" else z

    for b, h, t in np.ndindex(B, heads, T):
        slope = 2.0 ** (-8 * (h + 1) / heads)
        y_M = np.zeros(spec.d_head)
        for s in range(t + 1):
            if segments_BT[b, s] == segments_BT[b, t]:
                score = one("q", x_BTD[b, t], h) @ one("k", x_BTD[b, s], h) * spec.d_head**-0.5
                y_M += np.exp(-slope * (t - s)) * score * one("v", x_BTD[b, s], h)
        y_M = y_M / np.sqrt(np.mean(y_M**2) + 1e-6) * p["gain"]
        g_M = x_BTD[b, t] @ p["gate"][:, h]
        gate_M = sigmoid(g_M) * (g_M if spec.gate == "silu" else 1)
        y_BTD[b, t] += (y_M * gate_M) @ p["out"][h]
    return y_BTD


@pytest.mark.parametrize("knobs", VARIANTS, ids=str)
def test_values_equal_the_reference(knobs: dict):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    expected = reference(layer.params, x_BTD, DOCUMENTS, spec)
    assert_close(layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS)), expected)


def test_the_slopes_are_alibis():
    expected_H = [2.0**-n for n in range(1, 9)]  # of 8 heads: 1/2, 1/4, ... 1/256
    np.testing.assert_allclose(-Spec().log_decay(8), expected_H, rtol=1e-7)


def test_it_is_retention_but_for_decays_activation_and_gate():
    """With one head it keeps e^-1/256 a position; retention can be asked for 255/256."""
    x_BTD = stream(2, 9, 32)
    plain = Spec(d_head=32, activation="identity", gate="silu")
    lightning = alone(plain, room="mixers", base=32)

    def off(first_decay: int) -> float:
        spec = RetNet(d_head=32, expand_v=1, rotary_theta=None, first_decay=first_decay)
        other = alone(spec, room="mixers", base=32)
        y_BTD = other.apply(lightning.params, x_BTD)
        return float(jnp.max(jnp.abs(y_BTD - lightning.apply(lightning.params, x_BTD))))

    assert off(8) < 1e-3 < 0.05 < off(2)


def test_a_head_that_does_not_divide_is_refused_with_what_to_write():
    with pytest.raises(ValueError, match="d_head 12 does not divide d_model 32; write a divisor"):
        Spec(d_head=12).sizes({"D": 32})
