"""Do the forms of a state space agree? float64, beside loops and dense matrices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops import structured_state_space as structured
from model.ops.hippo import diagonal, legs, legs_diagonal_plus_rank_one
from model.ops.long_convolution import long_convolution
from model.ops.state_space import (
    diagonal_chunked,
    diagonal_kernel,
    diagonal_recurrence,
    discretise,
    powers,
)

INITS = ("lin", "inv", "inv2", "quad", "real", "legs")
D, T = 2, 70
FLOAT64 = 1e-10


def documents(T: int) -> np.ndarray:
    segments_BT = np.cumsum(np.random.default_rng(3).random((2, T)) < 0.1, axis=1)
    segments_BT[1] = np.arange(T) >= T // 2 + 1
    return segments_BT


def channels(init: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, C and steps of D channels; the outer steps of the papers' range."""
    rng = np.random.default_rng(1)
    a_N, b_N = diagonal(init, 16)  # pyright: ignore[reportArgumentType]
    c_DN = b_N * (rng.standard_normal((D, 8)) + 1j * rng.standard_normal((D, 8)))
    return np.broadcast_to(a_N, (D, 8)), c_DN, np.array([1e-3, 1e-1])


def loops(a_DN, c_DN, step_D, rule: str, u_BTD, segments_BT) -> np.ndarray:
    y_BTD = np.zeros_like(u_BTD)
    for b in range(len(u_BTD)):
        for d in range(D):
            for n in range(a_DN.shape[1]):
                z, state = step_D[d] * a_DN[d, n], 0j
                if rule == "zoh":
                    decay, gain = np.exp(z), (np.exp(z) - 1) / a_DN[d, n]
                else:
                    decay, gain = (1 + z / 2) / (1 - z / 2), step_D[d] / (1 - z / 2)
                for t in range(T):
                    if t and segments_BT[b, t] != segments_BT[b, t - 1]:
                        state = 0j
                    state = decay * state + gain * u_BTD[b, t, d]
                    y_BTD[b, t, d] += 2 * (c_DN[d, n] * state).real
    return y_BTD


@functools.partial(jax.jit, static_argnames="rule")
def every_form(a_DN, c_DN, step_D, u_BTD, segments_BT, *, rule):
    decay_DN, gain_DN = discretise(a_DN, step_D, rule=rule)
    system = (u_BTD, decay_DN, c_DN * gain_DN, segments_BT)
    kernel_TD = diagonal_kernel(*system[1:3], T)
    chunked = [diagonal_chunked(*system, chunk=c) for c in (16, T)]
    return long_convolution(u_BTD, kernel_TD, segments_BT), diagonal_recurrence(*system), *chunked


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_convolution_recurrence_and_chunks_agree(init: str, rule):
    system, segments_BT = channels(init), documents(T)
    u_BTD = np.random.default_rng(0).standard_normal((2, T, D))
    whole = loops(*system, rule, u_BTD, 0 * segments_BT)
    parted = loops(*system, rule, u_BTD, segments_BT)
    assert np.max(np.abs(whole - parted)) > 1e-3 * np.max(np.abs(whole))
    with jax.enable_x64(True):
        for segments, expected in ((None, whole), (segments_BT, parted)):
            convolved, *stepped = every_form(*system, u_BTD, segments, rule=rule)
            np.testing.assert_allclose(convolved, expected, atol=FLOAT64)
            for y_BTD, state_BDN in stepped:
                np.testing.assert_allclose(y_BTD, expected, atol=FLOAT64)
                np.testing.assert_allclose(state_BDN, stepped[0][1], atol=FLOAT64)


def test_pieces_with_state_are_the_whole():
    a_DN, c_DN, step_D = channels("lin")
    u_BTD = np.random.default_rng(0).standard_normal((2, T, D))

    @jax.jit
    def whole_and_pieces(u_BTD):
        decay_DN, gain_DN = discretise(jnp.asarray(a_DN), jnp.asarray(step_D), rule="zoh")
        form = functools.partial(
            diagonal_chunked,
            decay_DN=decay_DN,
            weight_DN=c_DN * gain_DN,  # pyright: ignore[reportArgumentType]
            segments_BT=None,
            chunk=8,
        )
        state_BDN, parts = None, []
        for begin, stop in ((0, 37), (37, 38), (38, T)):
            y_BTD, state_BDN = form(u_BTD[:, begin:stop], state_BDN=state_BDN)
            parts.append(y_BTD)
        whole_BTD, end_BDN = form(u_BTD)
        forgot_BTD, _ = form(u_BTD[:, 38:])
        return whole_BTD, end_BDN, jnp.concatenate(parts, axis=1), state_BDN, forgot_BTD

    with jax.enable_x64(True):
        whole_BTD, end_BDN, pieces_BTD, state_BDN, forgot_BTD = whole_and_pieces(u_BTD)
    np.testing.assert_allclose(pieces_BTD, whole_BTD, atol=FLOAT64)
    np.testing.assert_allclose(state_BDN, end_BDN, atol=FLOAT64)
    assert float(np.max(np.abs(forgot_BTD - pieces_BTD[:, 38:]))) > 1e-3


@pytest.mark.parametrize("lags", [1, 2, 3, 1000])
def test_powers_by_doubling_keep_the_phase_to_the_rounding_of_the_lag(lags: int):
    decay = np.exp(complex(-1e-4, 3.0)).astype(np.complex64)
    wanted_T = decay.astype(np.complex128) ** np.arange(lags)
    found_T11 = jax.jit(powers, static_argnums=1)(jnp.full((1, 1), decay), lags)
    assert found_T11.shape == (lags, 1, 1)
    rounding = float(np.finfo(np.float32).eps) * lags
    np.testing.assert_allclose(found_T11[:, 0, 0], wanted_T, atol=rounding)


def test_hippo_is_minus_half_and_skew_less_a_matrix_of_rank_one():
    a_NN, b_N, p_N = legs(64)
    for n in range(64):
        for k in range(64):
            if n > k:
                assert a_NN[n, k] == pytest.approx(-math.sqrt(2 * n + 1) * math.sqrt(2 * k + 1))
            else:
                assert a_NN[n, k] == (-(n + 1) if n == k else 0)
    normal_NN = a_NN + np.outer(p_N, p_N)
    skew_NN = normal_NN + 0.5 * np.eye(64)
    assert np.max(np.abs(skew_NN + skew_NN.T)) < 1e-12
    lam_N, p_half, b_half = legs_diagonal_plus_rank_one(64)
    assert lam_N.shape == (32,) and np.all(np.imag(lam_N) > 0)
    # a change of basis keeps the moments B* S^m B of the normal part
    for m in range(4):
        moment = 2 * np.sum(np.abs(b_half) ** 2 * (lam_N + 0.5) ** (2 * m)).real
        wanted = b_N @ np.linalg.matrix_power(skew_NN, 2 * m) @ b_N
        assert moment == pytest.approx(wanted, rel=1e-9)
    assert 2 * np.sum(p_half.conj() * b_half).real == pytest.approx(p_N @ b_N, rel=1e-9)


def legs_system(dtype: type, N: int = 64) -> structured.System:
    lam_N, p_N, b_N = legs_diagonal_plus_rank_one(N)
    rng = np.random.default_rng(0)
    steps_D = np.array([1e-3, 1e-2, 1e-1])
    c_DN = rng.standard_normal((3, N // 2)) + 1j * rng.standard_normal((3, N // 2))
    wide = (np.broadcast_to(x, c_DN.shape) for x in (lam_N, p_N, b_N))
    lam, p, b, c = (jnp.asarray(x, np.result_type(dtype, 1j)) for x in (*wide, c_DN))
    return structured.System(lam, p, b, c, jnp.asarray(steps_D, dtype))


def impulse_response(system: structured.System, T: int) -> np.ndarray:
    """C A_^t B_ with dense (N, N) matrices of modes and their conjugates."""
    out = np.zeros((T, 3))
    for d in range(3):
        lam_N, p_N, b_N, c_N = (
            np.concatenate([np.asarray(x[d]), np.asarray(x[d]).conj()])
            for x in (system.lam_DN, system.p_DN, system.b_DN, system.c_DN)
        )
        a_NN, step = np.diag(lam_N) - np.outer(p_N, p_N.conj()), float(system.step_D[d])
        one = np.eye(len(b_N))
        below = np.linalg.inv(one - step / 2 * a_NN)
        forward_NN, state_N = below @ (one + step / 2 * a_NN), below @ b_N * step
        for t in range(T):
            out[t, d] = (c_N @ state_N).real
            state_N = forward_NN @ state_N
    return out


def kernel_of(system: structured.System, length: int) -> np.ndarray:
    return np.asarray(jax.jit(lambda: structured.kernel(system, length))())


@pytest.mark.parametrize("length", [1, 37, 256])  # at even lengths a root of unity is -1
def test_generating_function_and_recurrence_give_the_dense_impulse_response(length: int):
    with jax.enable_x64(True):
        system = legs_system(np.float64)
        wanted_TD = impulse_response(system, length)
        impulse_BTD = jnp.zeros((1, length, 3)).at[:, 0].set(1.0)
        np.testing.assert_allclose(kernel_of(system, length), wanted_TD, atol=FLOAT64)
        y_BTD, _ = jax.jit(lambda u: structured.recurrence(system, u, None))(impulse_BTD)
        np.testing.assert_allclose(y_BTD[0], wanted_TD, atol=FLOAT64)
    single_TD = kernel_of(legs_system(np.float32), length)
    assert single_TD.dtype == np.float32
    np.testing.assert_allclose(single_TD, wanted_TD, atol=1e-5 * np.max(np.abs(wanted_TD)))


def test_without_rank_one_the_structured_recurrence_is_the_diagonal_one():
    with jax.enable_x64(True):
        a_DN, c_DN, step_D = (jnp.asarray(x) for x in channels("lin"))
        u_BTD = jnp.asarray(np.random.default_rng(0).standard_normal((2, T, D)))
        ones_DN = jnp.ones_like(a_DN)
        segments_BT = jnp.asarray(documents(T))
        decay_DN, gain_DN = discretise(a_DN, step_D, rule="bilinear")
        wanted, _ = diagonal_recurrence(u_BTD, decay_DN, c_DN * gain_DN, segments_BT)

        @jax.jit
        def found(p_DN):
            system = structured.System(a_DN, p_DN, ones_DN, c_DN, step_D)
            return structured.recurrence(system, u_BTD, segments_BT)[0]

        np.testing.assert_allclose(found(0 * ones_DN), wanted, atol=FLOAT64)
        assert float(jnp.max(jnp.abs(found(ones_DN) - wanted))) > 1e-2


def test_gradients_of_the_generating_function_are_those_of_the_recurrence():
    with jax.enable_x64(True):
        system, weight = legs_system(np.float64, N=8), np.random.default_rng(4)
        project_TD = jnp.asarray(weight.standard_normal((21, 3)))
        impulse_BTD = jnp.zeros((1, 21, 3)).at[:, 0].set(1.0)
        leaves = (system.lam_DN, system.p_DN, system.b_DN, system.c_DN, system.step_D)

        def gradients(form):
            value = lambda *parts: jnp.sum(form(structured.System(*parts)) * project_TD)  # noqa: E731
            return jax.jit(jax.grad(value, argnums=tuple(range(5))))(*leaves)

        fast = gradients(lambda s: structured.kernel(s, 21))
        slow = gradients(lambda s: structured.recurrence(s, impulse_BTD, None)[0][0])
        for a, b in zip(fast, slow, strict=True):
            np.testing.assert_allclose(a, b, atol=FLOAT64 * float(jnp.max(jnp.abs(b))) + 1e-12)
            assert float(jnp.max(jnp.abs(b))) > 0
