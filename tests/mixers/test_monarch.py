"""Is the Monarch mixer what its paper says? A float64 reference in loops, and the algebra behind:
evaluation by Monarch matrices, causal because of degrees.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.mixers.monarch import Spec
from model.ops.monarch import factors, monarch_dft, monarch_inverse
from model.spec import BlockSpec, ModelSpec
from tests.properties import Alone, alone, assert_close, sensitivity, stream

SMALL = {"d_filter": 8, "filter_layers": 2, "max_len": 16, "sine": 2.0}
# the compiler counts a real transform at 3 times 2.5 n log2 n: its count is compared for the other
VARIANTS = [
    {**SMALL, "transform": "monarch"},
    {**SMALL, "transform": "fft", "projection": "dense"},
]
DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1]])
Arrays = dict[str, np.ndarray]


def project(p: Arrays, name: str, x_D: np.ndarray) -> np.ndarray:
    """Block g of the input, then entry k of every block: (g, k) -> (k, g)."""
    if f"{name}.dense" in p:
        return x_D @ p[f"{name}.dense"]
    inner, outer = p[f"{name}.inner"], p[f"{name}.outer"]
    blocks, per_block = inner.shape[:2]
    h = [x_D[g * per_block : (g + 1) * per_block] @ inner[g] for g in range(blocks)]
    return np.concatenate(
        [np.array([h[g][k] for g in range(blocks)]) @ outer[k] for k in range(per_block)]
    )


def kernel(p: Arrays, name: str, spec: Spec, lag: int, D: int) -> np.ndarray:
    t = lag / spec.max_len
    turns = [2 * math.pi * t * f for f in np.linspace(1e-4, spec.bands - 1, spec.bands)]
    h = np.array([t, *(math.cos(a) for a in turns), *(-math.sin(a) for a in turns)])
    for i in range(spec.filter_layers):
        h = h @ p[f"{name}.weight{i}"] + p[f"{name}.bias{i}"]
        h = np.sin(spec.sine * p[f"{name}.sine"] * h)
    rate = np.linspace(math.log(100) / 1.5, math.log(100) / 0.3, D)
    return (
        (h @ p[f"{name}.out"]) * np.exp(-rate * t) * np.sqrt(1 - np.exp(-2 * rate / spec.max_len))
    )


def reference(layer: Alone, x_BTD: np.ndarray, segments_BT: np.ndarray, spec: Spec) -> np.ndarray:
    p = {k: np.asarray(v, np.float64) for k, v in layer.params.items()}
    B, T, D = x_BTD.shape
    y_BTD = np.zeros((B, T, D))
    for b in range(B):
        same = segments_BT[b][:, None] == segments_BT[b]
        made = {}
        for name in ("first", "second", "value"):
            x_TD = [project(p, name, x_BTD[b, t]) for t in range(T)]
            made[name] = [
                sum(
                    p[f"{name}_taps"][w] * x_TD[t - w]
                    for w in range(spec.taps)
                    if t >= w and same[t, t - w]
                )
                for t in range(T)
            ]
        u = [made["first"][t] * made["value"][t] for t in range(T)]
        for t in range(T):
            y_D = p["skip"] * u[t]
            for s in range(T):
                if same[t, s] and s <= t:
                    y_D = y_D + kernel(p, "before", spec, t - s, D) * u[s]
                if same[t, s] and s > t and not spec.causal:
                    y_D = y_D + kernel(p, "after", spec, s - t - 1, D) * u[s]
            y_BTD[b, t] = project(p, "out", y_D * made["second"][t])
    return y_BTD


@pytest.mark.parametrize("knobs", [*VARIANTS, {**SMALL, "causal": False}], ids=str)
def test_values_equal_the_reference(knobs: dict):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    y_BTD = layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS))
    expected = reference(layer, np.asarray(x_BTD, np.float64), DOCUMENTS, spec)
    assert_close(y_BTD, expected)
    whole = reference(layer, np.asarray(x_BTD, np.float64), 0 * DOCUMENTS, spec)
    assert np.max(np.abs(whole - expected)) > 0.01, "documents changed nothing"


def test_a_bidirectional_mixer_sees_its_whole_document_and_refuses_to_decode():
    layer = alone(Spec(**SMALL, causal=False), room="mixers")  # pyright: ignore[reportArgumentType]
    segments_1T = jnp.asarray([[0] * 4 + [1] * 3 + [2] * 2])
    seen_TT = sensitivity(layer, stream(1, 9, 32), segments_1T)
    same_TT = np.asarray(segments_1T[0, :, None] == segments_1T[0])
    assert np.all(seen_TT[~same_TT] == 0) and np.all(seen_TT[same_TT] > 0)
    x_BTD = stream(2, 37, 32)
    assert_close(layer.apply(layer.params, x_BTD), layer.naive(layer.params, x_BTD))
    with pytest.raises(ValueError, match="cannot decode; write causal true"):
        layer.start(1, length=4, dtype=jnp.float32)


def test_a_monarch_projection_is_a_full_matrix_of_fewer_numbers():
    layer = alone(Spec(**SMALL), room="mixers")  # pyright: ignore[reportArgumentType]
    p = {k: np.asarray(v, np.float64) for k, v in layer.params.items()}
    matrix_DD = np.stack([project(p, "value", row) for row in np.eye(32)])
    assert np.all(matrix_DD != 0)
    assert p["value.inner"].size + p["value.outer"].size == 32 * (4 + 8) < 32 * 32
    for n in (16, 64, 96, 1024):
        a, b = factors(n)
        assert a * b == n and a <= b <= 2 * a


# -- the algebra: y = M^-1 (M u * M k) with M an evaluation of polynomials, in float64 -------------


def evaluation(degrees_NN: np.ndarray) -> np.ndarray:
    """M: values at the roots of unity of basis polynomials, row j of coefficients being q_j."""
    N = len(degrees_NN)
    roots = np.exp(-2j * np.pi * np.arange(N) / N)
    return np.stack([roots**k for k in range(N)], axis=1) @ degrees_NN.T


def operator(degrees_NN: np.ndarray, u_T: np.ndarray, k_T: np.ndarray) -> np.ndarray:
    M, T = evaluation(degrees_NN), len(u_T)
    padded = (np.concatenate([x, np.zeros(T)]) for x in (u_T, k_T))
    values = np.prod([M @ x for x in padded], axis=0)
    y_N = np.linalg.solve(M, values)
    assert np.max(np.abs(y_N.imag)) < 1e-9
    return y_N.real[:T]


def leak(degrees_NN: np.ndarray) -> float:
    """The largest change of y_t when u_s or k_s changes at one s > t."""
    T = len(degrees_NN) // 2
    u_T, k_T = np.random.default_rng(1).standard_normal((2, T))
    plain, worst = operator(degrees_NN, u_T, k_T), 0.0
    for s in range(1, T):
        change = np.eye(T)[s]
        for moved in (
            operator(degrees_NN, u_T + change, k_T),
            operator(degrees_NN, u_T, k_T + change),
        ):
            worst = max(worst, float(np.max(np.abs((moved - plain)[:s]))))
    return worst


def basis(violate: bool) -> np.ndarray:
    """N = 32 polynomials: q_j has least degree j, and below N / 2 degree below N / 2.

    `violate` gives one of them a term below its least degree.
    """
    N, rng = 32, np.random.default_rng(0)
    q_NN = np.triu(0.3 * rng.standard_normal((N, N)), 1) + np.eye(N)
    q_NN[: N // 2, N // 2 :] = 0
    if violate:
        q_NN[5, 2] = 1.0
    return q_NN


def test_evaluation_is_causal_by_the_least_degree_and_not_otherwise():
    assert leak(basis(violate=False)) < 1e-10
    assert leak(basis(violate=True)) > 0.1


def test_monomials_at_roots_of_unity_by_monarch_matrices_are_the_causal_convolution():
    T = 18
    u_T, k_T = np.random.default_rng(2).standard_normal((2, T))
    toeplitz_TT = np.array([[k_T[t - s] if s <= t else 0.0 for s in range(T)] for t in range(T)])
    np.testing.assert_allclose(operator(np.eye(2 * T), u_T, k_T), toeplitz_TT @ u_T, atol=1e-12)
    with jax.enable_x64(True):

        def by_matrices(pad: int) -> np.ndarray:
            u, k = (jnp.pad(jnp.asarray(x), (0, pad)) for x in (u_T, k_T))
            y_N = monarch_inverse(monarch_dft(u) * monarch_dft(k), T + pad)
            return np.asarray(y_N[:T])

        np.testing.assert_allclose(by_matrices(T), toeplitz_TT @ u_T, atol=1e-12)
        assert np.max(np.abs(by_matrices(0) - toeplitz_TT @ u_T)) > 0.1, "padding changed nothing"


def test_a_mixer_that_sees_later_positions_is_refused_in_a_causal_model():
    block = BlockSpec(mixer=Spec(**SMALL, causal=False), ffn=None)  # pyright: ignore[reportArgumentType]
    size = {"d_model": 16, "n_layers": 1, "repeat": (block,)}
    with pytest.raises(ValueError, match="sees later positions, which a causal model"):
        ModelSpec(**size)
    assert ModelSpec(**size, causal=False).causal is False


def test_the_filter_reaches_slow_times_max_len_in_a_row_of_any_length():
    x_BTD = stream(1, 64, 32)

    def share_beyond_12(max_len: int) -> float:
        one = alone(Spec(max_len=max_len, taps=1), room="mixers")
        by_lag = jax.grad(lambda x: jnp.sum(one.apply(one.params, x)[0, -1]))(x_BTD)[0, ::-1]
        return float(jnp.sum(by_lag[13:] ** 2) / jnp.sum(by_lag[1:] ** 2))

    assert share_beyond_12(8) < Spec().floor ** 2  # 12 = slow x max_len
    assert share_beyond_12(256) > 0.1  # a unit longer than the row


def test_a_slowest_window_that_falls_before_the_fastest_is_refused():
    with pytest.raises(ValueError, match="slow 1.5 is below fast 2; write a slow of at least 2"):
        Spec(fast=2.0)


def test_a_prime_width_is_refused_with_another_to_write():
    with pytest.raises(ValueError, match="d_model 37 is prime.*write 36, another product, or"):
        Spec().sizes({"D": 37})
    assert "G" not in Spec(projection="dense").sizes({"D": 37})
