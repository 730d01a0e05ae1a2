"""Is it Mamba-2's block? The recurrence one position after the other, in numpy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from model.mixers.ssd import Spec
from model.param import initial
from tests.properties import alone, assert_close, stream

VARIANTS: list[dict] = [
    {"d_head": 8, "d_state": 4, "groups": 2},
    {"d_head": 16, "d_state": 8, "expand": 1, "chunk": 16},
]
DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1]])


def silu(x):
    return x / (1 + np.exp(-x))


def reference(params, x_BTD, segments_BT, spec: Spec):
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    x_BTD = np.asarray(x_BTD, np.float64)
    B, T, D = x_BTD.shape
    heads = spec.expand * D // spec.d_head
    each = heads // spec.groups
    out_BTD = np.zeros_like(x_BTD)

    def convolved(name: str, b: int, t: int) -> np.ndarray:
        y = p[f"{name}_bias"].copy()
        for w in range(min(spec.taps, t + 1)):
            if segments_BT[b, t - w] == segments_BT[b, t]:
                projected = np.tensordot(x_BTD[b, t - w], p[name], axes=1)
                y += p[f"{name}_taps"][w] * projected
        return silu(y)

    for b in range(B):
        S_HNM = np.zeros((heads, spec.d_state, spec.d_head))
        for t in range(T):
            if t > 0 and segments_BT[b, t] != segments_BT[b, t - 1]:
                S_HNM[:] = 0
            x_HM, b_JN, c_JN = (convolved(name, b, t) for name in "xbc")
            y_HM = np.zeros_like(x_HM)
            for h in range(heads):
                dt = np.log1p(np.exp(x_BTD[b, t] @ p["dt"][:, h] + p["dt_bias"][h]))
                keep = np.exp(-np.exp(p["A_log"][h]) * dt)
                S_HNM[h] = keep * S_HNM[h] + dt * np.outer(b_JN[h // each], x_HM[h])
                y_HM[h] = c_JN[h // each] @ S_HNM[h] + p["skip"][h] * x_HM[h]
            y_HM = y_HM * silu(np.tensordot(x_BTD[b, t], p["z"], axes=1))
            for j in range(spec.groups):
                of_group = slice(j * each, (j + 1) * each)
                y_HM[of_group] /= np.sqrt(np.mean(y_HM[of_group] ** 2) + 1e-6)
            out_BTD[b, t] = np.tensordot(y_HM * p["gain"], p["out"], axes=2)
    return out_BTD


@pytest.mark.parametrize("knobs", [*VARIANTS, {**VARIANTS[0], "taps": 1, "chunk": 4}], ids=str)
def test_values_equal_the_reference(knobs: dict):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    expected = reference(layer.params, x_BTD, DOCUMENTS, spec)
    assert_close(layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS)), expected)


def test_it_starts_as_the_paper_says():
    spec = Spec(d_head=1, d_state=4)
    made = {
        k: initial(d, 0) for k, d in alone(spec, room="mixers", d_model=512).declarations.items()
    }
    step_H, decay_H = np.log1p(np.exp(made["dt_bias"])), np.exp(made["A_log"])
    assert 1e-3 <= step_H.min() < 1.2e-3 and 0.08 < step_H.max() <= 0.1 + 1e-6
    assert abs(np.median(np.log(step_H)) - np.log(1e-2)) < 0.2  # log-uniform
    assert 1 <= decay_H.min() < 1.2 and 15.8 < decay_H.max() <= 16
    assert abs(np.median(decay_H) - 8.5) < 0.6  # uniform
    assert np.all(made["skip"] == 1) and np.all(made["gain"] == 1)
    assert 0.4 < np.abs(made["x_taps"]).max() <= 0.5
    for path, d in alone(spec, room="mixers").declarations.items():
        if path in ("A_log", "dt_bias", "skip", "gain") or path.endswith(("_taps", "_bias")):
            assert d.scaling.weight_decay == 0, path


def test_a_step_of_zero_leaves_the_state_and_the_output_to_the_skip():
    spec = Spec(**VARIANTS[0])
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    still = {**layer.params, "dt": 0 * layer.params["dt"], "dt_bias": jnp.full((8,), -40.0)}
    y_BTD, state = layer.extend(still, x_BTD, layer.start(2, length=9, dtype=jnp.float32), 0)
    assert float(jnp.max(jnp.abs(state["state_BHNM"]))) < 1e-12
    _, moved = layer.extend(layer.params, x_BTD, layer.start(2, length=9, dtype=jnp.float32), 0)
    assert float(jnp.max(jnp.abs(moved["state_BHNM"]))) > 0.1
    # without a state a position sees what the short convolution reaches, three positions back
    jacobian = jax.jacrev(lambda x: layer.apply(still, x)[0, 8].sum())(x_BTD)[0]
    reach_T = np.max(np.abs(jacobian), axis=-1)
    assert np.all(reach_T[:5] < 1e-12) and np.all(reach_T[5:] > 1e-3)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"d_head": 12}, "d_head 12 does not divide the inner width 64 .* write a divisor of 64"),
        ({"d_head": 16, "groups": 3}, "groups 3 does not divide the 4 heads"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_what_to_write(knobs, message):
    with pytest.raises(ValueError, match=message):
        Spec(**knobs).sizes({"D": 32})


def test_a_range_upside_down_is_refused():
    with pytest.raises(ValidationError, match="step_min 0.5 is above step_max 0.1; write"):
        Spec(step_min=0.5)
