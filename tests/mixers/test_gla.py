"""Is it gated linear attention? The recurrence position after position, in numpy and float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.mixers.gla import Spec
from model.mixers.linear import Spec as Linear
from tests.properties import alone, assert_close, stream

# Keys wider than values: the first output of a document is (q . k) v, and where that product of few
# channels nearly cancels, the norm blows up the rounding of either form (3e-5 of the gradient of q
# from one position with 8 channels, whose q . k was 0.3 % of its terms; 1e-7 elsewhere).
VARIANTS = [
    {"d_head": 8, "d_key": 16, "gate_rank": 4},
    {"d_head": 8, "d_key": 8, "gate_rank": 4, "gate_divisor": 0.25, "chunk": 32},
]
DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1]])


def reference(params, x_BTD, segments_BT, spec: Spec):
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    x_BTD = np.asarray(x_BTD, np.float64)
    y_BTD = np.zeros_like(x_BTD)
    B, T, D = x_BTD.shape
    for b, h in np.ndindex(B, D // spec.d_head):
        S_KM = np.zeros((spec.d_key, spec.d_head))
        for t in range(T):
            if t > 0 and segments_BT[b, t] != segments_BT[b, t - 1]:
                S_KM[:] = 0
            x_D = x_BTD[b, t]
            logit_K = (x_D @ p["decay_in"]) @ p["decay_out"][:, h] + p["decay_bias"][h]
            keep_K = (1 / (1 + np.exp(-logit_K))) ** (1 / spec.gate_divisor)
            S_KM = keep_K[:, None] * S_KM + np.outer(x_D @ p["k"][:, h], x_D @ p["v"][:, h])
            y_M = (x_D @ p["q"][:, h] * spec.d_key**-0.5) @ S_KM
            y_M = y_M / np.sqrt(np.mean(y_M**2) + 1e-6) * p["gain"]
            g_M = x_D @ p["gate"][:, h]
            y_BTD[b, t] += (y_M * g_M / (1 + np.exp(-g_M))) @ p["out"][h]
    return y_BTD


@pytest.mark.parametrize("knobs", VARIANTS, ids=str)
def test_values_equal_the_reference(knobs: dict):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    expected = reference(layer.params, x_BTD, DOCUMENTS, spec)
    assert_close(layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS)), expected)


def test_a_gate_that_is_open_is_basic_linear_attention():
    spec = Spec(d_head=8, d_key=8, gate_rank=4)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    basic = alone(Linear(d_head=8, feature_map="identity", gate=True), room="mixers")
    open_ = {**layer.params, "decay_bias": jnp.full((4, 8), 60.0)}
    shared = {k: layer.params[k] for k in basic.params}
    expected_BTD = basic.apply(shared, x_BTD)
    assert_close(layer.apply(open_, x_BTD), expected_BTD)
    assert float(jnp.max(jnp.abs(layer.apply(layer.params, x_BTD) - expected_BTD))) > 0.05


def test_a_gate_that_is_shut_leaves_a_position_to_itself():
    spec = Spec(d_head=8, d_key=8, gate_rank=4)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    shut = {**layer.params, "decay_bias": jnp.full((4, 8), -4000.0)}
    each_BTD = layer.apply(shut, x_BTD.reshape(18, 1, 32)).reshape(2, 9, 32)
    assert_close(layer.apply(shut, x_BTD), each_BTD)


def test_a_head_that_does_not_divide_is_refused_with_what_to_write():
    with pytest.raises(ValueError, match="d_head 12 does not divide d_model 32; write a divisor"):
        Spec(d_head=12).sizes({"D": 32})


def test_a_rank_above_the_width_is_refused():
    with pytest.raises(ValueError, match="gate_rank 33 is above d_model 32.*write at most 32"):
        Spec(d_head=8, gate_rank=33).sizes({"D": 32})
