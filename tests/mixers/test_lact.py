"""Is LaCT its equations? A float64 loop over positions, and the limits in which it is plainer.

Muon is in no variant: an orthogonalised step magnifies what is left of rounding in the directions
that a chunk's few keys do not reach, up to 500 times, so float32 cannot tell the forms apart within
the common tolerance. Here they are compared in float64, with it and without.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.mixers.lact import Spec, extra_flops
from model.ops import fast_weights as ops
from model.ops.newton_schulz import NEWTON_SCHULZ, orthogonalised
from tests.properties import alone, assert_close, stream

VARIANTS = [
    {"d_head": 8, "d_fast": 8, "update_every": 4, "window": 9, "rank": 4, "rate": 0.1, "chunk": 4},
    {
        "d_head": 16,
        "d_fast": 16,
        "update_every": 8,
        "window": 12,
        "rank": None,
        "rate": 0.05,
        "momentum": False,
        "hidden_ratio": 0.5,
    },
]
B, G, T, N, F = 2, 2, 19, 4, 3
SEGMENTS = np.array([[0] * 6 + [1] * 8 + [2] * 5, [0] * 8 + [1] * 2 + [2] * 9])


def inputs():
    rng = np.random.default_rng(0)
    draw = rng.standard_normal
    initial = (draw((G, N, F)), draw((G, F, N)), draw((G, N, F)))
    read = (
        *(draw((B, G, T, N)) for _ in range(3)),
        rng.uniform(0.02, 0.2, (B, G, T, 3)),
        rng.uniform(0, 1, (B, G, T, 1)),
    )
    return initial, read


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(initial, read, segments_BT, *, every: int, muon: bool):
    """Each row and head by itself, each position's gradient written out by the chain rule."""
    q, k, v, rates, gate = read
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for g in range(q.shape[1]):
            w, before, document = [m[g] for m in initial], [0.0] * 3, segments_BT[b, 0]
            for low in range(0, q.shape[2], every):
                chunk = range(low, min(low + every, q.shape[2]))
                for t in chunk:
                    old = segments_BT[b, t] == document
                    out[b, g, t] = network(w if old else [m[g] for m in initial], q[b, g, t])
                last = segments_BT[b, chunk[-1]]
                if last != document:
                    w, before, document = [m[g] for m in initial], [0.0] * 3, last
                sums = [np.zeros_like(m) for m in w]
                for t in chunk:
                    if segments_BT[b, t] == document:
                        slopes = slope(w, k[b, g, t], v[b, g, t])
                        sums = [s + rates[b, g, t, i] * slopes[i] for i, s in enumerate(sums)]
                mean = np.mean([gate[b, g, t, 0] for t in chunk])
                before = [s + mean * d for s, d in zip(sums, before, strict=True)]
                for i in range(3):
                    moved = w[i] + (orthogonal(before[i]) if muon else before[i])
                    for column in range(moved.shape[1]):
                        size = np.linalg.norm(initial[i][g][:, column])
                        moved[:, column] *= size / np.linalg.norm(moved[:, column])
                    w[i] = moved
    return out


def network(w, x):
    h = x @ w[0]
    return (h * sigmoid(h) * (x @ w[2])) @ w[1]


def slope(w, k, v):
    """Of <f(k), v> in each matrix."""
    h, u = k @ w[0], k @ w[2]
    silu, of_silu = h * sigmoid(h), sigmoid(h) * (1 + h * (1 - sigmoid(h)))
    back = w[1] @ v
    return np.outer(k, back * u * of_silu), np.outer(silu * u, v), np.outer(k, back * silu)


def orthogonal(x):
    x = x / np.sqrt(np.sum(x * x) + ops.TINY)
    for a, b, c in NEWTON_SCHULZ:
        square = x @ x.T
        x = a * x + b * square @ x + c * square @ square @ x
    return x


@pytest.mark.parametrize("knobs", VARIANTS, ids=str)
def test_values_of_the_layer_equal_the_reference(knobs: dict):
    """What reaches the fast weights, and what becomes of it, position by position."""
    spec, x_BTD = Spec(**knobs), stream(2, 19, 32)
    layer = alone(spec, room="mixers")
    p = {k: np.asarray(x, np.float64) for k, x in layer.params.items()}
    x = np.asarray(x_BTD, np.float64)
    H, G = 32 // spec.d_head, 32 // spec.d_fast
    q, k, v = (np.einsum("btd,dhk->bthk", x, p[name]) for name in "qkv")
    window, fast = [], []
    for name, y in (("q", q), ("k", k)):
        size = np.sqrt(np.mean(y**2, axis=(2, 3), keepdims=True) + 1e-6)
        y = y / size * p[f"{name}_gain"]
        window.append(rotated(y, spec.rotary_theta))
        y = y * p[f"{name}_scale"] + p[f"{name}_offset"]
        y = (y * sigmoid(y)).reshape(2, 19, G, -1)
        y = y / np.linalg.norm(y, axis=-1, keepdims=True)
        y = rotated(y.reshape(2, 19, H, -1), spec.rotary_theta)
        fast.append(y.reshape(2, 19, G, -1).swapaxes(1, 2))
    fast.append((v * sigmoid(v)).reshape(2, 19, G, -1).swapaxes(1, 2))
    inverse = np.log(np.expm1(spec.rate))
    rates = [np.log1p(np.exp(x @ p[f"rate_{i}"] + p[f"rate_bias_{i}"] + inverse)) for i in range(3)]
    gate = np.zeros((2, 19, G))
    if spec.momentum:
        gate = sigmoid(x @ p["momentum"] + p["momentum_bias"])
    read = (*fast, np.stack(rates, -1).swapaxes(1, 2), gate[..., None].swapaxes(1, 2))
    w0, w2 = (
        p[n] if spec.rank is None else p[f"{n}_in"] @ p[f"{n}_out"] + 0.5 * np.eye(spec.d_fast)
        for n in ("w0", "w2")
    )
    documents = np.repeat([[0, 1], [0, 0]], [6, 13], axis=1)
    every = spec.update_every
    far = reference((w0, p["w1"], w2), read, documents, every=every, muon=spec.muon)
    far = far * spec.d_fast
    far = far / np.sqrt(np.mean(far**2, axis=-1, keepdims=True) + 1e-6) * p["norm_gain"]
    scale = x @ p["scale"] + p["scale_bias"]
    far = far.swapaxes(1, 2) * (scale * sigmoid(scale))[..., None]
    near = np.zeros_like(q)
    for b, t, h in np.ndindex(2, 19, H):
        seen = [
            s for s in range(t + 1) if t - s < spec.window and documents[b, s] == documents[b, t]
        ]
        score = np.array([window[0][b, t, h] @ window[1][b, s, h] for s in seen])
        weight = np.exp(score * spec.d_head**-0.5)
        near[b, t, h] = weight @ v[b, seen, h] / weight.sum()
    expected = np.einsum("bthk,hkd->btd", near + far.reshape(near.shape), p["out"])
    assert_close(layer.apply(layer.params, x_BTD, jnp.asarray(documents)), expected)


def rotated(x_BTHK, theta):
    half = x_BTHK.shape[-1] // 2
    turn = np.exp(1j * np.arange(x_BTHK.shape[1])[:, None] * theta ** (-np.arange(half) / half))
    z = (x_BTHK[..., :half] + 1j * x_BTHK[..., half:]) * turn[None, :, None]
    return np.concatenate([z.real, z.imag], axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize("muon", [False, True])
def test_both_forms_equal_the_reference_and_each_others_gradients_in_float64(muon: bool):
    initial, read = inputs()
    expected = reference(initial, read, SEGMENTS, every=4, muon=muon)
    assert not np.allclose(expected, reference(initial, read, 0 * SEGMENTS, every=4, muon=muon))
    assert not np.allclose(expected, reference(initial, read, SEGMENTS, every=5, muon=muon))
    project = np.random.default_rng(1).standard_normal((B, G, T, N))
    gradients = []
    with jax.enable_x64(True):
        for form in (ops.fast_weights, ops.naive_fast_weights):

            def value(initial, read, form=form):
                read = ops.Read(*read)
                y = form(initial, read, jnp.asarray(SEGMENTS), every=4, muon=muon)
                return jnp.sum(y * project), y

            (_, y), grads = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(initial, read)
            np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)
            gradients.append(grads)
        for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
            assert np.max(np.abs(b)) > 1e-3
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-7 * np.max(np.abs(b)))


def test_gradients_through_the_steps_are_finite_differences_in_float64():
    initial, read = inputs()
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):

        @jax.jit
        def value(initial, read):
            read = ops.Read(*read)
            return jnp.sum(jnp.sin(ops.fast_weights(initial, read, None, every=4, muon=False)))

        where = (initial, read)
        toward = jax.tree.map(lambda x: rng.standard_normal(x.shape), where)
        grads = jax.grad(value, argnums=(0, 1))(*where)
        slopes = jax.tree.map(lambda g, d: float(jnp.sum(g * d)), grads, toward)
        step = 1e-6
        ahead, behind = (
            jax.tree.map(lambda x, d, s=s: x + s * d, where, toward) for s in (step, -step)
        )
        measured = float(value(*ahead) - value(*behind)) / (2 * step)
        assert measured == pytest.approx(sum(jax.tree.leaves(slopes)), rel=1e-6)


def test_a_chunk_as_long_as_the_row_and_rates_of_zero_read_the_initial_weights():
    initial, read = jax.tree.map(jnp.float32, inputs())
    plain = ops.apply(initial, read[0])
    of = functools.partial(ops.fast_weights, initial, segments_BT=None, muon=False)
    assert_close(of(ops.Read(*read), every=T), plain)
    still = ops.Read(*read)._replace(rates_BGTY=jnp.zeros((B, G, T, 3)))
    assert_close(of(still, every=4), plain)
    moved = of(ops.Read(*read), every=4)
    assert_close(moved[:, :, :4], plain[:, :, :4])
    assert float(jnp.min(jnp.max(jnp.abs(moved - plain)[:, :, 4:], axis=-1))) > 1e-4


def test_a_key_is_read_by_later_chunks_alone():
    """The fast branch by itself: the window, which fills the chunk, would hide it."""
    initial, read = jax.tree.map(jnp.float32, inputs())

    def total(k_BGTN):
        changed = ops.Read(*read)._replace(k_BGTN=k_BGTN)
        return jnp.sum(ops.fast_weights(initial, changed, None, every=4, muon=False), (0, 1, 3))

    felt_TT = jnp.max(jnp.abs(jax.jacrev(total)(read[1])), axis=(1, 2, 4))
    chunk_T = np.arange(T) // 4
    assert np.array_equal(np.asarray(felt_TT > 0), chunk_T[:, None] > chunk_T[None])


def test_an_orthogonalised_step_has_singular_values_near_one_and_keeps_its_directions():
    x = np.random.default_rng(0).standard_normal((8, 5)) @ np.diag([5.0, 3, 2, 1, 0.5])
    y = orthogonalised(jnp.asarray(x, jnp.float32))
    u, s, vt = np.linalg.svd(y)
    assert np.all((s > 0.7) & (s < 1.3))
    u0, _, vt0 = np.linalg.svd(x, full_matrices=False)
    assert_close(u0.T @ np.asarray(y) @ vt0.T, np.diag(np.diag(u0.T @ np.asarray(y) @ vt0.T)))


def test_counted_flops_of_the_fast_branch_are_the_compilers():
    sizes, T = {"H": 0, "K": 0, "G": 2, "N": 128, "F": 96}, 512
    for muon in (False, True):
        spec = Spec(update_every=128, muon=muon)

        def run(initial, read, muon=muon):
            read = ops.Read(*read)
            return ops.fast_weights(initial, read, None, every=128, muon=muon, unroll=True)

        shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
        initial = tuple(shape((2, *s)) for s in ((128, 96), (96, 128), (128, 96)))
        read = tuple(shape((1, 2, T, n)) for n in (128, 128, 128, 3, 1))
        analysis = jax.jit(run).lower(initial, read).cost_analysis()
        assert analysis is not None
        counted = T * extra_flops(spec, sizes, seq_len=T, causal=True)
        assert analysis["flops"] == pytest.approx(counted, rel=0.03)  # silu, norms of weights


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="d_fast 12 does not divide d_model 32; write a divisor"):
        Spec(d_head=8, d_fast=12).sizes({"D": 32})
    with pytest.raises(ValueError, match="d_head 12 does not divide d_model 32; write a divisor"):
        Spec(d_head=12, d_fast=8).sizes({"D": 32})
