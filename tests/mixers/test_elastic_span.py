"""Do heads see what their rules say? The published masks, drawn block by block, and the limits."""

import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from model.mixers.attention import Spec as Plain
from model.mixers.elastic_span import Rule, Spec, decode_state, extra_flops
from tests.mixers.test_attention import reference as attention_reference
from tests.properties import alone, assert_close, stream

# every head of the variants sees the nine positions of the common properties, and not 37
VARIANTS = [
    {
        "d_head": 8,
        "rules": (Rule(alpha=12.0), Rule(alpha=-4.0, beta=0.75)),
        "context": 32,
        "block": 4,
        "chunk": 8,
    },
    {
        "d_head": 8,
        "queries_per_kv": 2,
        "qk_norm": True,
        "rules": (Rule(alpha=9.0),),
        "block": 3,
        "global_blocks": 0,
        "chunk": 4,
    },
]
SHORT = (Rule(alpha=8.0), Rule(beta=0.5), Rule(alpha=-100.0), Rule(beta=1.0))


def layout(rule: Rule, blocks: int, *, length: int, block: int) -> np.ndarray:
    """MoA's: a band of 2 n - 1 block diagonals, the first column of blocks, and what is causal."""
    n = max(2 * int(rule.alpha // block + rule.beta * length / block) - 1, 1)
    drawn = np.zeros((blocks, blocks), bool)
    for i in range(blocks):
        for j in range(blocks):
            drawn[i, j] = abs(i - j) <= n // 2 or j == 0
    return drawn & np.tril(np.ones_like(drawn))


def masks(spec: Spec, T: int) -> list[np.ndarray]:
    """(T, T) for each of four query heads, from the published layouts."""
    out = []
    for head in range(4):
        rule = spec.rules[head // spec.queries_per_kv % len(spec.rules)]
        blocks = layout(rule, T // spec.block, length=spec.context, block=spec.block)
        out.append(np.tril(np.kron(blocks, np.ones((spec.block, spec.block), bool))))
    return out


def reference(params, x_BTD: np.ndarray, seen_HTS: list[np.ndarray], *, share: int):
    """Softmax attention under a mask, each query by itself."""
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    T, K = x_BTD.shape[1], p["q"].shape[2]
    q, k, v = (np.einsum("btd,dhk->bthk", x_BTD, p[name]) for name in "qkv")
    turn = np.exp(1j * np.arange(T)[:, None] * 1e4 ** (-2 * np.arange(K // 2) / K))[None, :, None]
    q, k = ((x[..., : K // 2] + 1j * x[..., K // 2 :]) * turn for x in (q, k))
    y_BTD = np.zeros(x_BTD.shape)
    for b, h, t in np.ndindex(x_BTD.shape[0], 4, T):
        seen, j = np.flatnonzero(seen_HTS[h][t]), h // share
        weight = np.exp(K**-0.5 * np.array([np.vdot(k[b, s, j], q[b, t, h]).real for s in seen]))
        y_BTD[b, t] += (weight @ v[b, seen, j] / weight.sum()) @ p["out"][h]
    return y_BTD


@pytest.mark.parametrize("share", [1, 2])
def test_values_equal_softmax_under_the_published_masks(share: int):
    T, rules = 24, SHORT if share == 1 else SHORT[1:3]
    spec = Spec(d_head=8, queries_per_kv=share, rules=rules, context=T, block=4, chunk=8)
    layer, x_BTD = alone(spec, room="mixers", base=32), stream(2, T, 32)
    seen_HTS = masks(spec, T)
    assert len({mask.tobytes() for mask in seen_HTS}) == len({str(rule) for rule in rules})
    expected = reference(layer.params, np.asarray(x_BTD), seen_HTS, share=share)
    assert_close(layer.apply(layer.params, x_BTD), expected)


def test_a_span_of_everything_is_attention_and_spans_are_counted_from_the_documents_start():
    spec = Spec(d_head=8, rules=(Rule(beta=1.0),), context=24, block=4)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 24, 32)
    none_BT = np.zeros((2, 24))
    plain = attention_reference(
        {k: np.asarray(v) for k, v in layer.params.items()},
        np.asarray(x_BTD),
        none_BT,
        Plain(d_head=8),
        8**-0.5,
    )
    assert_close(layer.apply(layer.params, x_BTD), plain)
    short = alone(Spec(d_head=8, rules=SHORT, context=24, block=4, chunk=4), room="mixers", base=32)
    assert float(np.max(np.abs(short.apply(layer.params, x_BTD) - plain))) > 0.05
    segments_BT = jnp.asarray(np.repeat([[0, 1]], [7, 17], axis=1).repeat(2, axis=0))
    packed_BTD = short.apply(short.params, x_BTD, segments_BT)
    assert_close(packed_BTD[:, 7:], short.apply(short.params, x_BTD[:, 7:]))


def test_decoding_past_every_span_equals_the_whole():
    spec = Spec(d_head=8, rules=SHORT[:2], context=24, block=4, chunk=8)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 43, 32)
    state, out, begin = layer.start(2, length=43, dtype=jnp.float32), [], 0
    # the first block, and bands of two and of three blocks but for the query
    assert {x.shape[1] for x in state.values()} == {4 + 7, 4 + 11}
    for length in (1, 1, 17, *[1] * 14, 10):
        piece_BTD = x_BTD[:, begin : begin + length]
        y_BTD, state = layer.extend(layer.params, piece_BTD, state, begin)
        out.append(y_BTD)
        begin += length
    assert_close(jnp.concatenate(out, axis=1), layer.apply(layer.params, x_BTD))


def test_rules_are_floored_as_published_and_keep_the_diagonal():
    assert Rule(alpha=130.0).blocks(4096, block=64) == 2
    assert Rule(alpha=-130.0, beta=0.5).blocks(4096, block=64) == 29  # floor(-2.03) + 32
    assert Rule(alpha=-5000.0, beta=0.5).blocks(4096, block=64) == 1
    assert Rule(beta=1.0).blocks(4096, block=64) == 64


def test_flops_and_state_follow_the_density():
    sizes, T = {"H": 4, "J": 4, "K": 8}, 4096
    narrow, wide = (
        Spec(rules=(Rule(beta=0.125),), context=T),
        Spec(rules=(Rule(beta=1.0),), context=T),
    )
    both = Spec(rules=(Rule(beta=0.125), Rule(beta=1.0)), context=T)
    for causal in (True, False):
        each = [extra_flops(s, sizes, seq_len=T, causal=causal) for s in (narrow, wide, both)]
        assert each[2] == pytest.approx((each[0] + each[1]) / 2)
    mask = np.tril(
        np.kron(layout(narrow.rules[0], 64, length=T, block=64), np.ones((64, 64), bool))
    )
    counted = extra_flops(narrow, sizes, seq_len=T, causal=True)
    assert counted == pytest.approx(4 * 4 * 8 * (mask.sum() / T - 0.5))
    assert extra_flops(wide, sizes, seq_len=T, causal=True) == 4 * 4 * 8 * T / 2
    held = decode_state(both, sizes)["fixed"]
    assert held == 2 * 8 * 2 * ((64 + 8 * 64 - 1) + (64 + 64 * 64 - 1))


def test_rules_that_do_not_divide_the_heads_are_refused():
    with pytest.raises(ValueError, match="3 rules do not divide the 4 key-value heads; write one"):
        Spec(d_head=8, rules=(Rule(),) * 3).sizes({"D": 32})
    with pytest.raises(ValidationError, match="beta"):
        Rule(beta=1.5)
