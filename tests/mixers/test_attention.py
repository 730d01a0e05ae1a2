"""Is attention what its papers say? A float64 reference with a loop for every index."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.mixers.attention import Spec
from model.ops.attention import attention, naive_attention
from model.ops.rotary import rotary
from tests.properties import Alone, alone, assert_close, stream

VARIANTS = [
    {"d_head": 8, "queries_per_kv": 2, "qk_norm": True},
    {"d_head": 8, "bias": True, "rotary_theta": None, "query_blocks": 1},
]
Arrays = dict[str, np.ndarray]


def reference(params: Arrays, x_BTD: np.ndarray, segments_BT: np.ndarray, spec: Spec, scale: float):
    """Every query, head and key by itself, in float64."""
    params = {k: np.asarray(v, np.float64) for k, v in params.items()}
    B, T, D = x_BTD.shape
    heads = D // spec.d_head
    y_BTD = np.zeros((B, T, D))
    for b in range(B):
        for h in range(heads):
            j = h // spec.queries_per_kv
            q_TK, k_TK, v_TK = (
                np.stack([_project(params, n, i, x_BTD[b, t]) for t in range(T)])
                for n, i in (("q", h), ("k", j), ("v", j))
            )
            if spec.qk_norm:
                q_TK, k_TK = _norm(q_TK, params["q_gain"]), _norm(k_TK, params["k_gain"])
            if spec.rotary_theta is not None:
                q_TK, k_TK = _rotate(q_TK, spec.rotary_theta), _rotate(k_TK, spec.rotary_theta)
            for t in range(T):
                seen = [s for s in range(t + 1) if segments_BT[b, s] == segments_BT[b, t]]
                score = np.array([scale * (q_TK[t] @ k_TK[s]) for s in seen])
                weight = np.exp(score - score.max())
                weight /= weight.sum()
                mixed_K = sum(w * v_TK[s] for w, s in zip(weight, seen, strict=True))
                y_BTD[b, t] += mixed_K @ params["out"][h]
    return y_BTD + params["out_bias"] if spec.bias else y_BTD


def _project(params: Arrays, name: str, head: int, x_D: np.ndarray) -> np.ndarray:
    y_K = x_D @ params[name][:, head]
    bias = params.get(f"{name}_bias")
    return y_K if bias is None else y_K + bias[head]


def _norm(x_TK: np.ndarray, gain_K: np.ndarray) -> np.ndarray:
    return x_TK / np.sqrt(np.mean(x_TK**2, axis=-1, keepdims=True) + 1e-6) * gain_K


def _rotate(x_TK: np.ndarray, theta: float) -> np.ndarray:
    """Pair (k, k + K/2) of position t as a complex number times e^(i t theta^(-2k/K))."""
    T, K = x_TK.shape
    out = np.zeros((T, K))
    for t in range(T):
        for k in range(K // 2):
            turned = complex(x_TK[t, k], x_TK[t, k + K // 2])
            turned *= np.exp(1j * t * theta ** (-2 * k / K))
            out[t, k], out[t, k + K // 2] = turned.real, turned.imag
    return out


DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize("knobs", [*VARIANTS, {"d_head": 16}], ids=str)
def test_values_equal_the_reference(knobs: dict):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    y_BTD = layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS))
    # muP relative to a base of the same head width: K^-1/2, as in standard
    expected = reference(_np(layer), np.asarray(x_BTD), DOCUMENTS, spec, spec.d_head**-0.5)
    assert_close(y_BTD, expected)


def _np(layer: Alone) -> Arrays:
    return {k: np.asarray(v) for k, v in layer.params.items()}


@pytest.mark.parametrize("shape", [(9, 4, 2), (7, 4, 4), (33, 6, 1), (1, 2, 1)])
@pytest.mark.parametrize("documents", [True, False])
def test_fast_form_equals_naive_form_in_values_and_gradients(shape, documents):
    T, H, J = shape
    q, k, v = (stream(2, T, n, 8, seed=i) for i, n in enumerate((H, J, J)))
    cut = np.sort(np.random.default_rng(1).integers(0, T + 1, (2, 3)), axis=1)
    segments = jnp.asarray((np.arange(T)[None, :, None] >= cut[:, None, :]).sum(-1))
    project = stream(2, T, H, 8, seed=9)

    def both(form, **more):
        @jax.jit
        @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
        def value(q, k, v):
            y = form(q, k, v, segments if documents else None, scale=0.4, **more)
            return jnp.sum(y * project), y

        (_, y), grads = value(q, k, v)
        return y, grads

    expected, programs = both(naive_attention), set()
    for blocks in (1, 2, min(T, 5)):
        fast = jax.make_jaxpr(lambda b=blocks: attention(q, k, v, None, scale=0.4, blocks=b))()
        programs.add(str(fast))
        assert_close(both(attention, blocks=blocks), expected, what=f"{blocks} blocks")
    naive = str(jax.make_jaxpr(lambda: naive_attention(q, k, v, None, scale=0.4))())
    assert naive not in programs
    assert len(programs) == len({1, min(T, 2), min(T, 5)}), "blocks made the same program"


def test_a_prefix_sees_itself_whole_and_the_rest_stays_causal():
    T, shape = 8, (1, 8, 2, 4)
    q, k, v = (stream(*shape, seed=i) for i in range(3))
    segments = jnp.asarray([[0, 0, 0, 0, 0, 1, 1, 1]])
    prefix = jnp.asarray([[True, True, True, False, False, True, True, False]])

    def seen(form, **more) -> tuple[np.ndarray, jax.Array]:
        run = jax.jit(lambda v: form(q, k, v, segments, scale=0.4, prefix_BT=prefix, **more))
        jacobian = jax.jit(jax.jacrev(lambda v: jnp.sum(run(v)[0], axis=(1, 2))))(v)
        return np.asarray(jnp.max(jnp.abs(jacobian[:, 0]), axis=(2, 3))) > 0, run(v)

    pairs = np.asarray(prefix[0])[:, None] & np.asarray(prefix[0])[None]
    same = np.asarray(segments[0])[:, None] == np.asarray(segments[0])[None]
    expected = (np.tril(np.ones((T, T), bool)) | pairs) & same
    assert expected[0, 2] and not expected[3, 4] and not expected[1, 3] and not expected[0, 5]
    naive_TT, naive = seen(naive_attention)
    np.testing.assert_array_equal(naive_TT, expected)
    for blocks in (1, 2, 3):
        fast_TT, fast = seen(attention, blocks=blocks)
        np.testing.assert_array_equal(fast_TT, expected)
        assert_close(fast, naive)


def test_a_prefix_of_everything_is_attention_in_both_directions():
    q, k, v = (stream(2, 7, 2, 4, seed=i) for i in range(3))
    whole = jnp.ones((2, 7), bool)
    score = 0.4 * jnp.einsum("bthk,bshk->bhts", q, k)
    expected = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(score, axis=-1), v)
    found = attention(q, k, v, None, scale=0.4, blocks=2, prefix_BT=whole)
    assert_close(found, expected)
    assert float(jnp.max(jnp.abs(found - attention(q, k, v, None, scale=0.4, blocks=2)))) > 0.1

    def value(form, **more):
        def loss(q, k, v):
            return jnp.sum(form(q, k, v, None, scale=0.4, prefix_BT=whole, **more) ** 2)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    assert_close(value(attention, blocks=2), value(naive_attention))


def test_rotary_products_depend_on_distance_alone():
    q_BTHK, k_BTHK = stream(1, 6, 1, 16), stream(1, 6, 1, 16, seed=1)
    first_BT = jnp.asarray([[0, 1, 5, 9, 20, 31]])

    @jax.jit
    def product(first: int) -> jax.Array:
        turned = (rotary(x, first_BT + first, theta=1e4) for x in (q_BTHK, k_BTHK))
        return jnp.einsum("bthk,bshk->ts", *turned)

    products = [product(n) for n in (0, 300)]
    assert_close(products[0], products[1])
    at_zero = jnp.einsum("bthk,bshk->ts", q_BTHK, k_BTHK)
    assert float(jnp.max(jnp.abs(products[0] - at_zero))) > 0.1, "positions changed nothing"


def test_rotary_keeps_lengths_and_leaves_position_zero_alone():
    x_BTHK = stream(2, 5, 3, 8)
    turned_BTHK = rotary(x_BTHK, jnp.broadcast_to(jnp.arange(5)[None], (2, 5)), theta=1e4)
    assert_close(jnp.sum(turned_BTHK**2, -1), jnp.sum(x_BTHK**2, -1))
    assert_close(turned_BTHK[:, 0], x_BTHK[:, 0])


def test_grouped_queries_equal_repeated_key_value_heads():
    grouped = Spec(d_head=8, queries_per_kv=2, qk_norm=True)
    few = alone(grouped, room="mixers")
    many = alone(Spec(d_head=8, queries_per_kv=1, qk_norm=True), room="mixers")
    repeated = {**few.params, **{n: jnp.repeat(few.params[n], 2, axis=1) for n in ("k", "v")}}
    assert {k: v.shape for k, v in repeated.items()} == {k: v.shape for k, v in many.params.items()}
    x_BTD = stream(2, 9, 32)
    assert_close(few.apply(few.params, x_BTD), many.apply(repeated, x_BTD))


def test_qk_norm_makes_the_scores_blind_to_the_size_of_queries_and_keys():
    x_BTD = stream(2, 9, 32)

    def change(qk_norm: bool) -> float:
        layer = alone(Spec(d_head=8, qk_norm=qk_norm), room="mixers")
        larger = {**layer.params, **{n: 100 * layer.params[n] for n in ("q", "k")}}
        y_BTD = layer.apply(layer.params, x_BTD)
        return float(jnp.max(jnp.abs(layer.apply(larger, x_BTD) - y_BTD)))

    assert change(True) < 1e-4 < 0.1 < change(False)


def test_sizes_that_do_not_divide_are_refused_with_a_divisor_to_write():
    with pytest.raises(ValueError, match="d_head 12 does not divide d_model 32; write a divisor"):
        Spec(d_head=12).sizes({"D": 32})
    with pytest.raises(ValueError, match="queries_per_kv 3 does not divide the 4 heads"):
        Spec(d_head=8, queries_per_kv=3).sizes({"D": 32})
