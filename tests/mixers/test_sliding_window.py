"""Is a sliding window attention under a mask? The plain layer's weights, masked by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from model.mixers.attention import Spec as Plain
from model.mixers.sliding_window import Spec, extra_flops
from tests.mixers.test_attention import reference
from tests.properties import alone, assert_close, stream

VARIANTS = [
    {"d_head": 8, "queries_per_kv": 2, "window": 9, "sinks": 2, "chunk": 4},
    {"d_head": 8, "qk_norm": True, "window": 12, "sinks": 0, "chunk": 16},
]


def test_a_window_longer_than_the_text_is_attention():
    """Against the loop that attention itself is held to, on the same weights."""
    spec = Spec(d_head=8, queries_per_kv=2, qk_norm=True, window=9, sinks=2)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    segments_BT = np.array([[0] * 3 + [1] * 6, [0] * 9])
    plain = Plain(d_head=8, queries_per_kv=2, qk_norm=True)
    weights = {k: np.asarray(v) for k, v in layer.params.items()}
    expected = reference(weights, np.asarray(x_BTD), segments_BT, plain, 8**-0.5)
    assert_close(layer.apply(layer.params, x_BTD, jnp.asarray(segments_BT)), expected)


@pytest.mark.parametrize("sinks", [0, 1])
def test_one_position_of_window_sees_itself_and_the_sinks(sinks: int):
    spec = Spec(d_head=8, window=1, sinks=sinks, rotary_theta=None)
    layer, x_BTD = alone(spec, room="mixers"), stream(1, 12, 32)
    moved_BTD = x_BTD.at[:, 0].add(1.0)
    y_BTD, other_BTD = (layer.apply(layer.params, x) for x in (x_BTD, moved_BTD))
    felt_T = np.any(np.asarray(y_BTD != other_BTD), axis=(0, 2))
    assert list(felt_T) == [True] + [sinks == 1] * 11
    if not sinks:  # softmax over one key: its value, through the output
        value_BTHK = jnp.einsum("btd,dhk->bthk", x_BTD, layer.params["v"])
        assert_close(y_BTD, jnp.einsum("bthk,hkd->btd", value_BTHK, layer.params["out"]))


def test_a_packed_document_is_what_it_is_alone():
    """Sinks are the document's own, and rotary positions count as differences."""
    spec = Spec(**VARIANTS[0])
    layer, x_BTD = alone(spec, room="mixers"), stream(1, 40, 32)
    segments_BT = jnp.asarray(np.repeat([0, 1, 2], [5, 22, 13])[None])
    packed_BTD = layer.apply(layer.params, x_BTD, segments_BT)
    for low, high in ((0, 5), (5, 27), (27, 40)):
        assert_close(packed_BTD[:, low:high], layer.apply(layer.params, x_BTD[:, low:high]))
    whole_BTD = layer.apply(layer.params, x_BTD)
    assert float(jnp.max(jnp.abs(packed_BTD - whole_BTD)[:, 5:])) > 0.1


def test_decoding_past_several_windows_equals_the_whole():
    layer, x_BTD = alone(Spec(**VARIANTS[0]), room="mixers"), stream(2, 41, 32)
    state, out, begin = layer.start(2, length=41, dtype=jnp.float32), [], 0
    assert state["k_BSJK"].shape == (2, 2 + 9 - 1, 2, 8)
    for length in (1, 1, 14, *[1] * 20, 5):
        piece_BTD = x_BTD[:, begin : begin + length]
        y_BTD, state = layer.extend(layer.params, piece_BTD, state, begin)
        out.append(y_BTD)
        begin += length
    assert_close(jnp.concatenate(out, axis=1), layer.apply(layer.params, x_BTD))


def test_flops_are_those_of_attention_where_the_window_covers_the_text():
    from model.mixers import attention

    sizes = {"H": 4, "K": 8}
    for causal in (True, False):
        whole = extra_flops(Spec(window=64), sizes, seq_len=64, causal=causal)
        assert whole == attention.extra_flops(Plain(), sizes, seq_len=64, causal=causal)
        per_token = [
            extra_flops(Spec(window=64), sizes, seq_len=T, causal=causal) for T in (4096, 16384)
        ]
        assert per_token[0] == pytest.approx(per_token[1], rel=0.02)


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ValidationError, match="window\n.*greater than or equal to 1"):
        Spec(window=0)
    with pytest.raises(ValueError, match="d_head 12 does not divide d_model 32; write a divisor"):
        Spec(d_head=12).sizes({"D": 32})
