"""Does the long convolution sum what it says, and touch nothing else? float64, beside loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops.long_convolution import FFT, long_convolution, naive_long_convolution
from model.ops.monarch import MONARCH, monarch_dft, monarch_inverse

SHAPES = [(1, 4), (9, 4), (37, 8)]
D = 3


def arrays(T: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(T)
    segments_BT = np.cumsum(rng.random((2, T)) < 0.1, axis=1)
    segments_BT[1] = np.arange(T) >= T // 2 + 1  # one boundary, inside a span
    return rng.standard_normal((2, T, D)), rng.standard_normal((T, D)), segments_BT


def reference(u_BTD: np.ndarray, kernel_TD: np.ndarray, segments_BT: np.ndarray) -> np.ndarray:
    y_BTD = np.zeros_like(u_BTD)
    B, T, _ = u_BTD.shape
    for b in range(B):
        for t in range(T):
            for s in range(t + 1):
                if segments_BT[b, s] == segments_BT[b, t]:
                    y_BTD[b, t] += kernel_TD[t - s] * u_BTD[b, s]
    return y_BTD


@pytest.mark.parametrize(("T", "short"), SHAPES)
@pytest.mark.parametrize("transform", [FFT, MONARCH], ids=["fft", "monarch"])
@pytest.mark.parametrize("documents", [True, False])
def test_both_forms_equal_the_sum_over_lags(T, short, transform, documents):
    u_BTD, kernel_TD, segments_BT = arrays(T)
    expected = reference(u_BTD, kernel_TD, segments_BT if documents else 0 * segments_BT)
    with jax.enable_x64(True):
        segments = jnp.asarray(segments_BT) if documents else None
        fast = functools.partial(long_convolution, transform=transform, short=short)
        for form in (fast, naive_long_convolution):
            y_BTD = jax.jit(form)(jnp.asarray(u_BTD), jnp.asarray(kernel_TD), segments)
            np.testing.assert_allclose(y_BTD, expected, atol=1e-12)


def test_gradients_equal_those_of_the_toeplitz_matrix():
    u_BTD, kernel_TD, segments_BT = arrays(37)
    with jax.enable_x64(True):
        project_BTD = jnp.asarray(np.random.default_rng(5).standard_normal(u_BTD.shape))

        def gradients(form):
            def value(u_BTD, kernel_TD):
                return jnp.sum(form(u_BTD, kernel_TD, jnp.asarray(segments_BT)) * project_BTD)

            return jax.jit(jax.grad(value, argnums=(0, 1)))(
                jnp.asarray(u_BTD), jnp.asarray(kernel_TD)
            )

        fast = gradients(functools.partial(long_convolution, short=4))
        for a, b in zip(fast, gradients(naive_long_convolution), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("transform", [FFT, MONARCH], ids=["fft", "monarch"])
def test_the_future_and_other_documents_get_exactly_zero_gradient(transform):
    """A transform of the whole, beside it, leaves its rounding there."""
    T = 37
    u_BTD, kernel_TD, segments_BT = (jnp.asarray(x) for x in arrays(T))
    u_T, kernel_TD = u_BTD[0, :, 0].astype(jnp.float32), kernel_TD.astype(jnp.float32)

    def exact(u_T):
        fast = functools.partial(long_convolution, transform=transform, short=4)
        return fast(u_T[None, :, None], kernel_TD[:, :1], segments_BT[:1])[0, :, 0]

    def whole(u_T):
        product = jnp.fft.rfft(u_T, n=2 * T) * jnp.fft.rfft(kernel_TD[:, 0], n=2 * T)
        return jnp.fft.irfft(product, n=2 * T)[:T]

    seen_TT = np.tril(np.asarray(segments_BT[0, :, None] == segments_BT[0]))
    jacobian_TT = np.asarray(jax.jit(jax.jacrev(exact))(u_T))
    assert np.all(jacobian_TT[~seen_TT] == 0)
    assert np.all(jacobian_TT[seen_TT] != 0)
    assert np.any(np.asarray(jax.jit(jax.jacrev(whole))(u_T))[np.triu_indices(T, 1)] != 0)


def test_spans_change_the_order_of_sums_only():
    u_BTD, kernel_TD, segments_BT = (jnp.asarray(x, jnp.float32) for x in arrays(70))
    expected = naive_long_convolution(u_BTD, kernel_TD, segments_BT)
    programs = set()
    for short in (1, 5, 16, 128):
        form = jax.jit(functools.partial(long_convolution, short=short))
        programs.add(str(form.trace(u_BTD, kernel_TD, segments_BT).jaxpr))
        y_BTD = form(u_BTD, kernel_TD, segments_BT)
        np.testing.assert_allclose(y_BTD, expected, atol=2e-5 * float(jnp.max(jnp.abs(expected))))
    assert len(programs) == 4


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 12, 16, 30, 64])
def test_the_monarch_transform_is_a_permuted_fourier_transform_and_has_an_inverse(n: int):
    x_N = np.random.default_rng(n).standard_normal(n)
    with jax.enable_x64(True):
        found = np.asarray(monarch_dft(jnp.asarray(x_N)))
        back = np.asarray(monarch_inverse(jnp.asarray(found), n))
    wanted = np.fft.fft(x_N)
    a, b = found.shape
    for first in range(a):
        for second in range(b):
            assert abs(found[first, second] - wanted[first + a * second]) < 1e-12 * n
    np.testing.assert_allclose(back, x_N, atol=1e-13)
