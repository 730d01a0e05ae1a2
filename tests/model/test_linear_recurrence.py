"""Is the parallel scan the recurrence? A float64 loop, with documents and a start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops.linear_recurrence import linear_recurrence, naive_linear_recurrence


def reference(f_BTHK, u_BTHK, segments_BT, start_BHK):
    h_BTHK = np.zeros_like(u_BTHK)
    for b in range(f_BTHK.shape[0]):
        h_HK = start_BHK[b]
        for t in range(f_BTHK.shape[1]):
            if t > 0 and segments_BT[b, t] != segments_BT[b, t - 1]:
                h_HK = np.zeros_like(h_HK)
            h_HK = f_BTHK[b, t] * h_HK + u_BTHK[b, t]
            h_BTHK[b, t] = h_HK
    return h_BTHK


def inputs(T: int):
    rng = np.random.default_rng(0)
    f_BTHK = rng.uniform(0.5, 1.0, (2, T, 2, 3))
    u_BTHK, start_BHK = rng.standard_normal((2, T, 2, 3)), rng.standard_normal((2, 2, 3))
    cut_B = np.array([T // 3, T - 1])
    segments_BT = (np.arange(T)[None] >= cut_B[:, None]).astype(np.int32)
    return f_BTHK, u_BTHK, segments_BT, start_BHK


@pytest.mark.parametrize("T", [1, 2, 37])
def test_both_forms_equal_the_loop_in_float64(T: int):
    f, u, segments, start = inputs(T)
    expected = reference(f, u, segments, start)
    assert T == 1 or not np.allclose(expected, reference(f, u, 0 * segments, start))
    with jax.enable_x64(True):
        for form in (linear_recurrence, naive_linear_recurrence):
            h = form(jnp.asarray(f), jnp.asarray(u), jnp.asarray(segments), start_BHK=start)  # pyright: ignore[reportArgumentType]
            assert h.dtype == jnp.float64
            np.testing.assert_allclose(h, expected, rtol=1e-13, atol=1e-13)


def test_the_written_gradient_is_that_of_the_loop_in_float64():
    f, u, segments, start = inputs(11)
    with jax.enable_x64(True):
        project = jnp.asarray(np.random.default_rng(1).standard_normal(u.shape))

        def gradient(form):
            def value(f, u, start):
                h = form(f, u, jnp.asarray(segments), start_BHK=start)
                return jnp.sum(jnp.sin(h) * project)

            return jax.jit(jax.grad(value, argnums=(0, 1, 2)))(f, u, start)

        fast, naive = gradient(linear_recurrence), gradient(naive_linear_recurrence)
        for a, b in zip(fast, naive, strict=True):
            assert np.max(np.abs(b)) > 0.1
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_what_a_document_leaves_reaches_no_other_exactly():
    f, u, segments, start = inputs(12)

    def of(u, start):
        h = linear_recurrence(jnp.asarray(f), u, jnp.asarray(segments), start_BHK=start)
        return jnp.sum(h[0, 4:])  # all of row 0's second document

    du, dstart = jax.grad(of, argnums=(0, 1))(jnp.asarray(u), jnp.asarray(start))
    assert np.all(np.asarray(du[:, :4]) == 0) and np.all(np.asarray(du[0, 4:]) != 0)
    assert np.all(np.asarray(dstart) == 0)


def test_gates_of_one_make_sums_and_gates_of_zero_copies():
    u = jnp.asarray(inputs(9)[1])
    np.testing.assert_allclose(linear_recurrence(jnp.ones_like(u), u), np.cumsum(u, 1), atol=1e-5)
    assert np.array_equal(linear_recurrence(jnp.zeros_like(u), u), u)
