"""Does the chunked recurrence equal the recurrence? Against loops in numpy, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops.scalar_decay import naive_scalar_decay, scalar_decay
from tests.properties import assert_close

B, T, J, H, K, M = 2, 23, 2, 4, 3, 5
DOCUMENTS = np.stack(
    [np.repeat([0, 1, 2, 3, 4, 5], [3, 1, 8, 1, 6, 4]), np.repeat([0, 7], [16, 7])]
)
Draw = dict[str, np.ndarray]


def draw(*, decay: float = 1.0, seed: int = 0) -> Draw:
    rng = np.random.default_rng(seed)
    return {
        "q": rng.standard_normal((B, T, J, K)),
        "k": rng.standard_normal((B, T, J, K)),
        "v": rng.standard_normal((B, T, H, M)),
        "a": -decay * rng.exponential(size=(B, T, H)),
        "state": rng.standard_normal((B, H, K, M)),
    }


def reference(d: Draw, segments_BT: np.ndarray, *, state: np.ndarray | None = None):
    y_BTHM, last_BHKM = np.zeros((B, T, H, M)), np.zeros((B, H, K, M))
    for b, h in np.ndindex(B, H):
        s_KM = np.zeros((K, M)) if state is None else state[b, h].copy()
        for t in range(T):
            if t > 0 and segments_BT[b, t] != segments_BT[b, t - 1]:
                s_KM[:] = 0
            k_K, q_K = d["k"][b, t, h // (H // J)], d["q"][b, t, h // (H // J)]
            s_KM = np.exp(d["a"][b, t, h]) * s_KM + np.outer(k_K, d["v"][b, t, h])
            y_BTHM[b, t, h] = q_K @ s_KM
        last_BHKM[b, h] = s_KM
    return y_BTHM, last_BHKM


def run(form, d: Draw, *, documents=None, state=None, dtype: Any = np.float64, **more):
    q, k, v, a = (jnp.asarray(d[name], dtype) for name in ("q", "k", "v", "a"))
    segments_BT = None if documents is None else jnp.asarray(documents)
    held = None if state is None else jnp.asarray(state, dtype)
    return jax.jit(lambda *x: form(*x, segments_BT, state_BHKM=held, **more))(q, k, v, a)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "documents"])
@pytest.mark.parametrize("with_state", [False, True], ids=["start", "state"])
def test_both_forms_equal_the_reference_to_1e_10_in_float64(documents, with_state):
    d = draw()
    state = d["state"] if with_state else None
    expected = reference(d, np.zeros((B, T)) if documents is None else documents, state=state)
    if documents is not None:  # else the boundaries under test would change nothing
        other = reference(d, np.zeros((B, T)), state=state)
        assert np.max(np.abs(other[0] - expected[0])) > 0.1
    with jax.enable_x64(True):
        found = [run(naive_scalar_decay, d, documents=documents, state=state)]
        for chunk in (1, 4, 7, 16, T, 64):  # 4, 7 and 16 do not divide T
            found.append(run(scalar_decay, d, documents=documents, state=state, chunk=chunk))
    for made in found:
        for x, y in zip(made, expected, strict=True):
            assert x.dtype == np.float64
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-10)


def test_gradients_equal_those_of_the_scan_in_float64():
    d, project = draw(), draw(seed=1)["v"]

    def grads(form, **more):
        def value(q, k, v, a, state):
            y, last = form(q, k, v, a, jnp.asarray(DOCUMENTS), state_BHKM=state, **more)
            return jnp.sum(y * project) + jnp.sum(last**2)

        return jax.jit(jax.grad(value, argnums=(0, 1, 2, 3, 4)))(*map(jnp.asarray, d.values()))

    with jax.enable_x64(True):
        slow, fast = grads(naive_scalar_decay), grads(scalar_decay, chunk=7)
    for x, y in zip(fast, slow, strict=True):
        assert np.max(np.abs(y)) > 0.1
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-10)


def test_decays_and_states_may_be_shared_by_rows_and_heads():
    d = draw()
    few = {**d, "a": d["a"][:1, :, :1]}
    many = {**d, "a": np.broadcast_to(few["a"], d["a"].shape)}
    for chunk in (5, 64):
        for documents in (None, DOCUMENTS):
            made = run(scalar_decay, few, documents=documents, dtype=np.float32, chunk=chunk)
            expected = run(scalar_decay, many, documents=documents, dtype=np.float32, chunk=chunk)
            assert_close(made, expected)
    slow = [run(naive_scalar_decay, x, dtype=np.float32) for x in (few, many)]
    assert_close(*slow)


@pytest.mark.parametrize("chunk", [8, 23])
def test_strong_decays_cost_no_digits(chunk):
    """A sum of decays in the thousands, then weights near one: their digits must survive."""
    d = draw(decay=0.05)
    d["a"][:, 2:7] = -400.0
    expected, _ = reference(d, np.zeros((B, T)))
    made, _ = run(scalar_decay, d, dtype=np.float32, chunk=chunk)
    plain = np.cumsum(d["a"], axis=1, dtype=np.float32)
    lost = np.abs((plain[:, 10] - plain[:, 9]) - d["a"][:, 10]).max()
    assert lost > 3e-5, "a plain sum would do"
    assert np.max(np.abs(made - expected)) < 2e-6 * np.max(np.abs(expected))


@pytest.mark.parametrize("strength", [0.0, 1e-6, 50.0, 1e4])
def test_values_and_gradients_are_finite_at_every_strength(strength):
    d = draw(decay=strength)

    def value(q, k, v, a):
        y, state = scalar_decay(q, k, v, a, jnp.asarray(DOCUMENTS), chunk=8)
        return jnp.sum(y**2) + jnp.sum(state**2)

    arrays = [jnp.asarray(d[name], jnp.float32) for name in ("q", "k", "v", "a")]
    for leaf in jax.tree.leaves(jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3)))(*arrays)):
        assert bool(jnp.all(jnp.isfinite(leaf)))


def test_no_decay_is_causal_attention_without_a_softmax():
    d = draw(decay=0.0)
    score_BTSH = np.einsum("btjk,bsjk->btsj", d["q"], d["k"]).repeat(H // J, axis=3)
    seen_TS = np.tril(np.ones((T, T)))
    expected = np.einsum("btsh,ts,bshm->bthm", score_BTSH, seen_TS, d["v"])
    assert_close(run(scalar_decay, d, dtype=np.float32, chunk=8)[0], expected)


@pytest.mark.slow
def test_the_state_is_wide_in_bfloat16_and_errors_do_not_grow_with_length():
    rng = np.random.default_rng(0)
    shape = (1, 1024, 1, 8)
    q, k, v = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for _ in range(3))
    a = jnp.full((1, 1024, 1), -1e-3)
    y, state = scalar_decay(q, k, v, a, None, chunk=32)
    wide_q, wide_k, wide_v = (x.astype(jnp.float32) for x in (q, k, v))
    exact, _ = scalar_decay(wide_q, wide_k, wide_v, a, None, chunk=32)
    assert y.dtype == state.dtype == jnp.float32
    off_T = np.max(np.abs(y - exact), axis=(0, 2, 3)) / np.max(np.abs(exact), axis=(0, 2, 3))
    assert np.median(off_T[-128:]) < 2 * np.median(off_T[:128]) < 0.02
