"""Is banded attention softmax over the keys that each query sees? A float64 loop, and limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops.attention import naive_attention
from model.ops.banded_attention import (
    Reach,
    banded_attention,
    extend_band,
    naive_banded_attention,
    start_band,
)
from tests.properties import assert_close, stream

T, H, J, K = 21, 4, 2, 8
REACHES = [
    Reach(blocks=5),
    Reach(blocks=5, sinks=2),
    Reach(blocks=1),
    Reach(blocks=1, sinks=3),
    Reach(blocks=2, block=4, sinks=4),
    Reach(blocks=30),
]
SEGMENTS = np.array([[0] * 2 + [1] * 13 + [2] * 6, [0] * 20 + [1]])


def arrays():
    return tuple(stream(2, T, n, K, seed=i) for i, n in enumerate((H, J, J)))


def visible(reach: Reach, t: int, s: int, segments_T: np.ndarray) -> bool:
    """The rule in words: same document, not later, and near by whole blocks or among the first."""
    if s > t or segments_T[s] != segments_T[t]:
        return False
    begin = min(i for i in range(len(segments_T)) if segments_T[i] == segments_T[t])
    blocks_apart = (t - begin) // reach.block - (s - begin) // reach.block
    return blocks_apart < reach.blocks or s - begin < reach.sinks


def reference(q, k, v, segments_BT, *, reach: Reach, scale: float):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    y = np.zeros_like(q)
    for b in range(2):
        for h in range(H):
            for t in range(T):
                seen = [s for s in range(T) if visible(reach, t, s, segments_BT[b])]
                score = np.array([scale * q[b, t, h] @ k[b, s, h * J // H] for s in seen])
                weight = np.exp(score - score.max())
                weight /= weight.sum()
                y[b, t, h] = sum(w * v[b, s, h * J // H] for w, s in zip(weight, seen, strict=True))
    return y


CASES = [*((reach, True) for reach in REACHES), (REACHES[1], False), (REACHES[4], False)]


@pytest.mark.parametrize("reach, documents", CASES, ids=str)
def test_both_forms_equal_the_loop(reach: Reach, documents: bool):
    q, k, v = arrays()
    segments = SEGMENTS if documents else np.zeros_like(SEGMENTS)
    given = jnp.asarray(segments) if documents else None
    expected = reference(q, k, v, segments, reach=reach, scale=0.4)
    chunked = [functools.partial(banded_attention, chunk=chunk) for chunk in (1, 6)]
    for form in (naive_banded_attention, *chunked):
        form = jax.jit(functools.partial(form, reach=reach, scale=0.4))
        assert_close(form(q, k, v, given), expected, what=str(form))


@pytest.mark.parametrize("reach", [REACHES[1], REACHES[4]], ids=str)
def test_gradients_of_the_fast_form_are_those_of_the_naive_one(reach: Reach):
    q, k, v = arrays()
    project = stream(2, T, H, K, seed=9)

    def gradients(form):
        def value(q, k, v):
            return jnp.sum(form(q, k, v, jnp.asarray(SEGMENTS), reach=reach, scale=0.4) * project)

        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))(q, k, v)

    fast = gradients(functools.partial(banded_attention, chunk=4))
    assert_close(fast, gradients(naive_banded_attention))


def test_a_band_as_long_as_the_row_is_plain_attention_and_a_shorter_one_is_not():
    q, k, v = arrays()
    plain = naive_attention(q, k, v, None, scale=0.4)

    @functools.partial(jax.jit, static_argnums=0)
    def of(window: int) -> jax.Array:
        reach = Reach(blocks=window)
        return banded_attention(q, k, v, None, reach=reach, scale=0.4, chunk=4)

    whole, short = of(T), of(T - 1)
    assert_close(whole, plain)
    assert_close(short[:, :-1], plain[:, :-1])
    assert float(jnp.max(jnp.abs(short[:, -1] - plain[:, -1]))) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [(1,) * T, (7, 1, 9, 4), (3, 18)], ids=str)
@pytest.mark.parametrize("reach", [REACHES[1], REACHES[3], REACHES[4]], ids=str)
def test_what_is_held_suffices_after_it_has_turned_over_several_times(reach: Reach, pieces):
    q, k, v = arrays()
    whole = naive_banded_attention(q, k, v, None, reach=reach, scale=0.4)
    state = start_band(2, J, K, reach=reach, dtype=jnp.float32)
    assert reach.lookback < T // 2
    step = jax.jit(functools.partial(extend_band, reach=reach, scale=0.4, chunk=4))
    out, first = [], 0
    for length in pieces:
        now = slice(first, first + length)
        y, state = step(q[:, now], k[:, now], v[:, now], state, first=first)
        out.append(y)
        first += length
    assert state["k_BSJK"].shape[1] == reach.held
    assert_close(jnp.concatenate(out, axis=1), whole)


def test_the_work_is_linear_in_the_length_and_no_array_is_square_in_it():
    reach = Reach(blocks=16, sinks=4)

    def flops_and_largest(T: int):
        shape = jax.ShapeDtypeStruct((1, T, 2, 64), jnp.float32)
        form = functools.partial(banded_attention, reach=reach, scale=1.0, chunk=16)
        traced = jax.jit(lambda q, k, v: form(q, k, v, None)).trace(shape, shape, shape)
        largest = max(x.aval.size for eqn in traced.jaxpr.eqns for x in eqn.outvars)
        analysis = traced.lower().cost_analysis()
        assert analysis is not None
        return analysis["flops"], largest

    (few, small), (many, large) = flops_and_largest(256), flops_and_largest(1024)
    assert many / few == pytest.approx(4, rel=0.02)
    assert large / small == pytest.approx(4, rel=0.02)
    counted = 4 * 1024 * reach.computed(1024, chunk=16) * 2 * 64
    assert counted < many < 1.07 * counted  # softmax and masks are a few operations a score


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_the_counts_of_keys_are_those_of_the_mask(reach: Reach):
    t = np.arange(T)
    mask = reach.sees(t[:, None], t[None], 0)
    assert np.array_equal(
        mask, [[visible(reach, a, b, np.zeros(T)) for b in range(T)] for a in range(T)]
    )
    assert reach.seen(T) == pytest.approx(mask.sum() / T - 0.5)
    for chunk in (1, 4, T):
        assert mask.sum(1).max() <= reach.computed(T, chunk=chunk)
