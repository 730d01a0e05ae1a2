"""Is S4 what its papers say? A float64 reference of dense matrices, and what a length changes."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from model.mixers.s4 import Spec
from model.ops.hippo import legs
from tests.properties import Alone, alone, assert_close, stream

# the first so small that the kernel, which is not counted per token, is small beside the products
VARIANTS = [{"d_state": 4, "step_min": 0.05, "step_max": 0.5}, {"d_state": 8}]
DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1]])


def dense(p: dict[str, np.ndarray], d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A_, B_, C of one channel: modes and their conjugates, the trapezoid rule, dense inverses."""

    def both(re: str, im: str) -> np.ndarray:
        half = p[re][d] + 1j * p[im][d]
        return np.concatenate([half, half.conj()])

    decay = np.minimum(-np.exp(p["log_decay"][d]), -1e-4)
    half = decay + 1j * p["frequency"][d]
    p_N, b_N, c_N = both("p_re", "p_im"), both("b_re", "b_im"), both("c_re", "c_im")
    a_NN = np.diag(np.concatenate([half, half.conj()])) - np.outer(p_N, p_N.conj())
    step, one = math.exp(p["log_step"][d]), np.eye(len(b_N))
    below = np.linalg.inv(one - step / 2 * a_NN)
    return below @ (one + step / 2 * a_NN), below @ b_N * step, c_N


def reference(layer: Alone, x_BTD: np.ndarray, segments_BT: np.ndarray) -> np.ndarray:
    p = {k: np.asarray(v, np.float64) for k, v in layer.params.items()}
    B, T, D = x_BTD.shape
    h_BTD = np.zeros((B, T, D))
    for d in range(D):
        a_NN, b_N, c_N = dense(p, d)
        for b in range(B):
            state_N = np.zeros(len(b_N), complex)
            for t in range(T):
                if t and segments_BT[b, t] != segments_BT[b, t - 1]:
                    state_N = np.zeros(len(b_N), complex)
                state_N = a_NN @ state_N + b_N * x_BTD[b, t, d]
                read = c_N @ state_N
                assert abs(read.imag) < 1e-9 * (1 + abs(read))
                y = read.real + p["skip"][d] * x_BTD[b, t, d]
                cubed = math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)
                h_BTD[b, t, d] = 0.5 * y * (1 + math.tanh(cubed))
    return (h_BTD @ p["out"]) / (1 + np.exp(-h_BTD @ p["gate"]))


@pytest.mark.parametrize("knobs", VARIANTS, ids=str)
def test_values_equal_the_reference(knobs: dict):
    layer, x_BTD = alone(Spec(**knobs), room="mixers"), stream(2, 9, 32)
    y_BTD = layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS))
    expected = reference(layer, np.asarray(x_BTD, np.float64), DOCUMENTS)
    assert_close(y_BTD, expected)
    whole = reference(layer, np.asarray(x_BTD, np.float64), 0 * DOCUMENTS)
    assert np.max(np.abs(whole - expected)) > 0.01, "documents changed nothing"


def test_a_layer_starts_from_hippo_legs():
    """In another basis: the same response to an impulse as the dense matrix of the papers."""
    N, step = 16, 0.02
    drawn = alone(Spec(d_state=N), room="mixers").declarations
    p = {
        name: np.asarray(drawn[name].init(None, (1, N // 2), None))  # pyright: ignore
        for name in ("log_decay", "frequency", "p_re", "p_im", "b_re", "b_im")
    }
    p |= {"c_re": p["b_re"], "c_im": -p["b_im"], "log_step": np.array([math.log(step)])}
    a_NN, b_N, c_N = dense(p, 0)
    plain_NN, plain_N, _ = legs(N)
    below = np.linalg.inv(np.eye(N) - step / 2 * plain_NN)
    wanted_NN, wanted_N = below @ (np.eye(N) + step / 2 * plain_NN), below @ plain_N * step
    for _ in range(50):  # C is B here, which the change of basis keeps
        np.testing.assert_allclose(c_N @ b_N, plain_N @ wanted_N, rtol=1e-9, atol=1e-9)
        b_N, wanted_N = a_NN @ b_N, wanted_NN @ wanted_N


def test_lengths_of_any_kind_have_one_kernel():
    """Even, odd, prime and power of two; a kernel bound to a length would differ."""
    layer, x_BTD = alone(Spec(d_state=8), room="mixers"), stream(1, 64, 32)
    whole = layer.apply(layer.params, x_BTD)
    for length in (1, 2, 31, 37, 48, 63):
        assert_close(layer.apply(layer.params, x_BTD[:, :length]), whole[:, :length])


def test_step_sizes_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="step_max 0.001 is below step_min 0.1; write a larger"):
        Spec(step_min=0.1, step_max=0.001)
