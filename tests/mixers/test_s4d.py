"""Is S4D what its paper says? A float64 recurrence in loops, where it starts, its decoding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.mixers.s4d import Spec
from model.ops.hippo import diagonal
from tests.properties import Alone, alone, assert_close, stream

VARIANTS = [
    {"d_state": 8, "chunk": 16},
    {"d_state": 4, "init": "legs", "discretisation": "bilinear", "chunk": 4},
]
DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1]])


def reference(layer: Alone, x_BTD: np.ndarray, segments_BT: np.ndarray, rule: str) -> np.ndarray:
    """Every row, channel and mode by itself: x = decay x + gain u, y = 2 Re C x + skip u."""
    p = {k: np.asarray(v, np.float64) for k, v in layer.params.items()}
    B, T, D = x_BTD.shape
    h_BTD = np.zeros((B, T, D))
    for b in range(B):
        for d in range(D):
            step = math.exp(p["log_step"][d])
            for n in range(p["c_re"].shape[1]):
                a = complex(-math.exp(p["log_decay"][d, n]), p["frequency"][d, n])
                c = complex(p["c_re"][d, n], p["c_im"][d, n])
                if rule == "zoh":
                    decay, gain = np.exp(step * a), (np.exp(step * a) - 1) / a
                else:
                    below = 1 - step * a / 2
                    decay, gain = (1 + step * a / 2) / below, step / below
                state = 0j
                for t in range(T):
                    if t and segments_BT[b, t] != segments_BT[b, t - 1]:
                        state = 0j
                    state = decay * state + gain * x_BTD[b, t, d]
                    h_BTD[b, t, d] += 2 * (c * state).real
            for t in range(T):
                y = h_BTD[b, t, d] + p["skip"][d] * x_BTD[b, t, d]
                cubed = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
                h_BTD[b, t, d] = 0.5 * y * (1 + math.tanh(cubed))
    return (h_BTD @ p["out"]) / (1 + np.exp(-h_BTD @ p["gate"]))


@pytest.mark.parametrize("knobs", VARIANTS, ids=str)
def test_values_equal_the_reference(knobs: dict):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    y_BTD = layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS))
    expected = reference(layer, np.asarray(x_BTD, np.float64), DOCUMENTS, spec.discretisation)
    assert_close(y_BTD, expected)
    whole = reference(layer, np.asarray(x_BTD, np.float64), 0 * DOCUMENTS, spec.discretisation)
    assert np.max(np.abs(whole - expected)) > 0.01, "documents changed nothing"


@pytest.mark.parametrize("init", ["lin", "inv", "inv2", "quad", "real", "legs"])
def test_poles_start_where_the_paper_puts_them(init: str):
    n = np.arange(8)
    layer = alone(Spec(d_state=16, init=init), room="mixers")  # pyright: ignore[reportArgumentType]
    made = {
        name: layer.declarations[name].init(np.random.default_rng(0), (3, 8), None)  # pyright: ignore
        for name in ("log_decay", "frequency", "c_re")
    }
    frequency = {
        "lin": math.pi * n,
        "inv": 16 / math.pi * (16 / (1 + 2 * n) - 1),
        "inv2": 16 / math.pi * (16 / (1 + n) - 1),
        "quad": (1 + 2 * n) ** 2 / math.pi,
        "real": 0 * n,
    }
    real = -(n + 1.0) if init == "real" else np.full(8, -0.5)
    for row in range(3):
        np.testing.assert_allclose(-np.exp(made["log_decay"][row]), real, rtol=1e-12)
        if init != "legs":
            np.testing.assert_allclose(made["frequency"][row], frequency[init], rtol=1e-12)
    if init == "legs":
        _, b_N = diagonal("legs", 16)
        plain = diagonal("lin", 16)[1] * made["c_re"] / b_N
        # C times LegS's input vector, clipped; the draw itself is the plain one
        expected = np.random.default_rng(0).standard_normal((3, 8)) * 0.5**0.5
        np.testing.assert_allclose(plain, expected)
        assert np.max(b_N) == 2.0 and np.min(b_N) < 2.0


def test_a_step_that_vanishes_leaves_the_skip_alone():
    layer = alone(Spec(d_state=4), room="mixers")
    x_BTD = stream(1, 9, 32)

    def hidden(log_step: float) -> np.ndarray:
        return np.asarray(layer.apply({**layer.params, "log_step": jnp.full(32, log_step)}, x_BTD))

    p = {k: np.asarray(v, np.float64) for k, v in layer.params.items()}
    h_BTD = np.asarray(jax.nn.gelu(jnp.asarray(p["skip"] * np.asarray(x_BTD))))
    alone_BTD = (h_BTD @ p["out"]) / (1 + np.exp(-h_BTD @ p["gate"]))
    assert_close(hidden(-30.0), alone_BTD)
    assert np.max(np.abs(hidden(-1.0) - alone_BTD)) > 0.1


def test_decoding_a_long_sequence_does_not_drift_from_the_whole():
    layer = alone(Spec(d_state=8, chunk=16), room="mixers")
    x_BTD = stream(1, 300, 32)
    state = layer.start(1, length=300, dtype=jnp.float32)
    first_BTD, state = layer.extend(layer.params, x_BTD[:, :260], state, 0)
    rest = []
    for t in range(260, 300):
        y_BTD, state = layer.extend(layer.params, x_BTD[:, t : t + 1], state, t)
        rest.append(y_BTD)
    assert_close(jnp.concatenate([first_BTD, *rest], 1), layer.apply(layer.params, x_BTD))


def test_step_sizes_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="step_max 0.001 is below step_min 0.1; write a larger"):
        Spec(step_min=0.1, step_max=0.001)
    with pytest.raises(ValueError, match="lin"):
        Spec(init="hippo")  # pyright: ignore[reportArgumentType]
