"""Is retention what its paper says? All pairs of positions, in numpy and float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.mixers.linear import Spec as Linear
from model.mixers.retnet import Spec
from tests.properties import alone, assert_close, stream

VARIANTS = [
    {"d_head": 8},
    {"d_head": 8, "expand_v": 1, "rotary_theta": None, "first_decay": 1, "chunk": 16},
]
DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1]])


def turned(x_K: np.ndarray, t: int, theta: float | None) -> np.ndarray:
    """Pair (k, k + K/2) of position t as a complex number times e^(i t theta^(-2k/K))."""
    if theta is None:
        return x_K
    half = len(x_K) // 2
    z = (x_K[:half] + 1j * x_K[half:]) * np.exp(1j * t * theta ** (-np.arange(half) / half))
    return np.concatenate([z.real, z.imag])


def reference(params, x_BTD, segments_BT, spec: Spec):
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    x_BTD = np.asarray(x_BTD, np.float64)
    y_BTD = np.zeros_like(x_BTD)
    B, T, D = x_BTD.shape
    for b, h, t in np.ndindex(B, D // spec.d_head, T):
        keeps = 1 - 2.0 ** (-spec.first_decay - h)
        q_K = turned(x_BTD[b, t] @ p["q"][:, h], t, spec.rotary_theta) * spec.d_head**-0.5
        y_M = np.zeros(spec.d_head * spec.expand_v)
        for s in range(t + 1):
            if segments_BT[b, s] == segments_BT[b, t]:
                k_K = turned(x_BTD[b, s] @ p["k"][:, h], s, spec.rotary_theta)
                y_M += keeps ** (t - s) * (q_K @ k_K) * (x_BTD[b, s] @ p["v"][:, h])
        y_M = y_M / np.sqrt(np.mean(y_M**2) + 1e-6) * p["gain"]
        g_M = x_BTD[b, t] @ p["gate"][:, h]
        y_BTD[b, t] += (y_M * g_M / (1 + np.exp(-g_M))) @ p["out"][h]
    return y_BTD


@pytest.mark.parametrize("knobs", VARIANTS, ids=str)
def test_values_equal_the_reference(knobs: dict):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    expected = reference(layer.params, x_BTD, DOCUMENTS, spec)
    assert_close(layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS)), expected)


def test_head_h_keeps_1_minus_2_to_the_minus_5_minus_h():
    kept_H = np.exp(Spec().log_decay(5).astype(np.float64))
    np.testing.assert_allclose(
        kept_H, [31 / 32, 63 / 64, 127 / 128, 255 / 256, 511 / 512], rtol=1e-7
    )
    many_H = Spec().log_decay(200)
    assert np.all(np.isfinite(many_H)) and np.all(many_H <= 0) and np.all(np.diff(many_H) >= 0)


def test_without_decay_and_rotary_it_is_basic_linear_attention():
    spec = Spec(d_head=8, expand_v=1, rotary_theta=None, first_decay=60)  # 1 - 2^-60 is 1
    basic = Linear(d_head=8, feature_map="identity", gate=True)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    same = alone(basic, room="mixers")
    assert set(layer.params) == set(same.params)
    y_BTD = layer.apply(layer.params, x_BTD)
    assert_close(y_BTD, same.apply(layer.params, x_BTD))
    decaying = alone(Spec(d_head=8, expand_v=1, rotary_theta=None, first_decay=1), room="mixers")
    assert float(jnp.max(jnp.abs(decaying.apply(layer.params, x_BTD) - y_BTD))) > 0.1


def test_a_head_that_does_not_divide_is_refused_with_what_to_write():
    with pytest.raises(ValueError, match="d_head 12 does not divide d_model 32; write an even"):
        Spec(d_head=12).sizes({"D": 32})
