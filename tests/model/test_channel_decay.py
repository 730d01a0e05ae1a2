"""Does the chunked recurrence with a decay per channel equal the recurrence? In float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops.channel_decay import channel_decay, naive_channel_decay
from model.ops.scalar_decay import scalar_decay
from tests.properties import assert_close

B, T, H, K, M = 2, 39, 2, 3, 5
DOCUMENTS = np.stack(
    [np.repeat([0, 1, 2, 3, 4, 5], [3, 1, 15, 1, 6, 13]), np.repeat([0, 7], [32, 7])]
)
Draw = dict[str, np.ndarray]


def draw(*, decay: float = 1.0, seed: int = 0) -> Draw:
    rng = np.random.default_rng(seed)
    return {
        "q": rng.standard_normal((B, T, H, K)),
        "k": rng.standard_normal((B, T, H, K)),
        "v": rng.standard_normal((B, T, H, M)),
        "a": -decay * rng.exponential(size=(B, T, H, K)),
        "state": rng.standard_normal((B, H, K, M)),
    }


def reference(d: Draw, segments_BT: np.ndarray, *, state: np.ndarray | None = None):
    y_BTHM, last_BHKM = np.zeros((B, T, H, M)), np.zeros((B, H, K, M))
    for b, h in np.ndindex(B, H):
        s_KM = np.zeros((K, M)) if state is None else state[b, h].copy()
        for t in range(T):
            if t > 0 and segments_BT[b, t] != segments_BT[b, t - 1]:
                s_KM[:] = 0
            s_KM = np.exp(d["a"][b, t, h])[:, None] * s_KM
            s_KM = s_KM + np.outer(d["k"][b, t, h], d["v"][b, t, h])
            y_BTHM[b, t, h] = d["q"][b, t, h] @ s_KM
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
    with jax.enable_x64(True):
        found = [run(naive_channel_decay, d, documents=documents, state=state)]
        for chunk in (1, 7, 20, 64):  # one block, several, and lengths that do not divide
            found.append(run(channel_decay, d, documents=documents, state=state, chunk=chunk))
    for made in found:
        for x, y in zip(made, expected, strict=True):
            assert x.dtype == np.float64
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk", [7, 36])
def test_gradients_equal_those_of_the_scan_in_float64(chunk):
    d, project = draw(), draw(seed=1)["v"]

    def grads(form, **more):
        def value(q, k, v, a, state):
            y, last = form(q, k, v, a, jnp.asarray(DOCUMENTS), state_BHKM=state, **more)
            return jnp.sum(y * project) + jnp.sum(last**2)

        return jax.jit(jax.grad(value, argnums=(0, 1, 2, 3, 4)))(*map(jnp.asarray, d.values()))

    with jax.enable_x64(True):
        slow, fast = grads(naive_channel_decay), grads(channel_decay, chunk=chunk)
    for x, y in zip(fast, slow, strict=True):
        assert np.max(np.abs(y)) > 0.1
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("strength", [1e-6, 10.0, 1e4])
def test_decays_whose_factors_would_overflow_keep_their_digits(strength):
    """exp(-A) of a chunk is beyond float32; values and gradients stay those of the scan."""
    d = draw(decay=strength)
    d["a"][:, 10:] = -1e-3  # slow ones after strong ones
    if strength > 1:
        with np.errstate(over="ignore"):
            factors = np.exp(-np.cumsum(d["a"], axis=1, dtype=np.float32))
        assert np.isinf(factors).any(), "a product of two factors would do"
    expected, _ = reference(d, np.zeros((B, T)))

    def value(q, k, v, a):
        y, state = channel_decay(q, k, v, a, None, chunk=48)
        return jnp.sum(y**2) + jnp.sum(state**2), y

    arrays = [jnp.asarray(d[name], jnp.float32) for name in ("q", "k", "v", "a")]
    (_, y), grads = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3), has_aux=True))(*arrays)
    assert np.max(np.abs(y - expected)) < 2e-6 * np.max(np.abs(expected))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in grads)


def test_one_decay_for_all_channels_is_the_scalar_kernel():
    d = draw()
    same = {**d, "a": np.repeat(d["a"][..., :1], K, axis=-1)}
    scalar = {**d, "a": d["a"][..., 0]}
    for chunk in (7, 32):
        ours = run(channel_decay, same, documents=DOCUMENTS, dtype=np.float32, chunk=chunk)
        theirs = run(scalar_decay, scalar, documents=DOCUMENTS, dtype=np.float32, chunk=chunk)
        assert_close(ours, theirs)
