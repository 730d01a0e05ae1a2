"""Does a short convolution stay in its document, and continue from its state?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from model.ops.short_convolution import (
    empty_taps,
    later,
    naive_short_convolution,
    short_convolution,
)
from parallelism.axes import MeshSpec
from parallelism.mesh import make_mesh
from parallelism.place import told_of
from tests.properties import assert_close, stream

DOCUMENTS = np.array([[0, 0, 0, 1, 1, 2, 3, 3, 3, 3], [4, 4, 4, 4, 4, 4, 4, 4, 4, 5]])


def reference(x_BTC: np.ndarray, weight_WC: np.ndarray, segments_BT: np.ndarray) -> np.ndarray:
    y_BTC = np.zeros_like(x_BTC)
    for b, t, w in np.ndindex(*x_BTC.shape[:2], len(weight_WC)):
        if t >= w and segments_BT[b, t - w] == segments_BT[b, t]:
            y_BTC[b, t] += weight_WC[w] * x_BTC[b, t - w]
    return y_BTC


@pytest.mark.parametrize("channels", [(3,), (2, 3)])
@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("documents", [True, False])
def test_both_forms_equal_the_reference(channels, taps, documents):
    x_BTC, weight_WC = stream(2, 10, *channels), stream(taps, *channels, seed=1)
    segments_BT = DOCUMENTS if documents else np.zeros_like(DOCUMENTS)
    expected = reference(np.asarray(x_BTC), np.asarray(weight_WC), segments_BT)
    given = jnp.asarray(segments_BT) if documents else None
    y_BTC, state_BWC = short_convolution(x_BTC, weight_WC, given)
    assert_close(y_BTC, expected)
    assert_close(naive_short_convolution(x_BTC, weight_WC, given), expected)
    own_BW = (segments_BT == segments_BT[:, -1:])[:, 10 - taps + 1 :]  # of the last document
    kept_BWC = np.asarray(x_BTC)[:, 10 - taps + 1 :] * own_BW.reshape(
        *own_BW.shape, *(1,) * len(channels)
    )
    assert_close(state_BWC, kept_BWC)


@pytest.mark.parametrize("pieces", [(1,) * 10, (2, 1, 7), (9, 1)], ids=str)
def test_pieces_with_state_equal_the_whole(pieces):
    x_BTC, weight_WC = stream(2, 10, 3), stream(4, 3, seed=1)
    state_BWC, out, begin = empty_taps(x_BTC, taps=4), [], 0
    for length in pieces:
        piece = x_BTC[:, begin : begin + length]
        y_BTC, state_BWC = short_convolution(piece, weight_WC, None, state=state_BWC)
        assert state_BWC.shape == (2, 3, 3)
        out.append(y_BTC)
        begin += length
    assert_close(jnp.concatenate(out, axis=1), short_convolution(x_BTC, weight_WC, None)[0])


def test_a_first_piece_shorter_than_the_taps_leaves_a_state_that_continues():
    x_BTC, weight_WC = stream(1, 6, 3), stream(4, 3, seed=1)
    first_BTC, state_BWC = short_convolution(x_BTC[:, :2], weight_WC, None)
    rest_BTC, _ = short_convolution(x_BTC[:, 2:], weight_WC, None, state=state_BWC)
    whole_BTC, _ = short_convolution(x_BTC, weight_WC, None)
    assert_close(jnp.concatenate([first_BTC, rest_BTC], axis=1), whole_BTC)


def test_sums_are_float32_and_the_output_keeps_its_type():
    x_BTC, weight_WC = stream(1, 8, 3), stream(4, 3, seed=1)
    low = x_BTC.astype(jnp.bfloat16)
    y_BTC, state_BWC = short_convolution(low, weight_WC, None)
    assert y_BTC.dtype == state_BWC.dtype == jnp.bfloat16
    exact_BTC, _ = short_convolution(low.astype(jnp.float32), weight_WC, None)
    assert jnp.array_equal(y_BTC, exact_BTC.astype(jnp.bfloat16))


@pytest.mark.parametrize("taps", [4, 12])
def test_what_is_handed_on_where_positions_are_shared_is_the_same(taps):
    x_BTC, weight_WC, probe_BTC = (
        stream(2, 10, 3),
        stream(taps, 3, seed=1),
        stream(2, 10, 3, seed=2),
    )

    def run(x_BTC: jax.Array, weight_WC: jax.Array):
        def outputs(x_BTC: jax.Array, weight_WC: jax.Array) -> jax.Array:
            return short_convolution(x_BTC, weight_WC, jnp.asarray(DOCUMENTS))[0]

        y_BTC, back = jax.vjp(outputs, x_BTC, weight_WC)
        return y_BTC, *back(probe_BTC)

    shared = told_of(make_mesh(MeshSpec(sequence=2)), run)
    alone, program = (str(jax.make_jaxpr(f)(x_BTC, weight_WC)) for f in (run, shared))
    assert alone != program
    for found, wanted in zip(shared(x_BTC, weight_WC), run(x_BTC, weight_WC), strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("given", [(), (None, "sequence")], ids=["held by all", "shared"])
@pytest.mark.parametrize("wanted", [(), (None, "sequence")], ids=["for all", "to share"])
def test_a_shift_is_one_wherever_the_array_lies(given, wanted):
    """Of a pad of negative size XLA drops the shift where all hold it and it is to be shared."""
    mesh, x_BT = make_mesh(MeshSpec(sequence=4)), np.arange(1, 17, dtype=np.float32)[None]
    into, out = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (given, wanted))

    def both(x_BT: jax.Array):
        y_BT, back = jax.vjp(lambda x_BT: later(x_BT, 3), x_BT)
        return y_BT, back(x_BT)[0]

    y_BT, dx_BT = jax.jit(both, in_shardings=into, out_shardings=(out, out))(x_BT)
    np.testing.assert_array_equal(y_BT[0], [0] * 3 + list(range(1, 14)))
    np.testing.assert_array_equal(dx_BT[0], [*range(4, 17), *[0] * 3])
