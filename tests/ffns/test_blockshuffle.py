"""Is BlockShuffle what its paper says? A float64 reference, and orthogonal blocks at the start."""

import numpy as np
import pytest

from model.ffns.blockshuffle import Spec
from model.param import initial
from tests.ffns.test_lowrank import check
from tests.properties import alone

VARIANTS = [
    {},
    {"activation": "swiglu", "ratio": 0.5, "blocks": 4},  # narrower inside than the stream
    {"guided": 0.5},
]


def monarch(x: np.ndarray, first_GKR: np.ndarray, second_GRM: np.ndarray) -> np.ndarray:
    """One number at a time: the output i G + l of block l reads entries j G + l of the middle."""
    (G, K, R), M = first_GKR.shape, second_GRM.shape[2]
    middle, out = np.zeros((*x.shape[:-1], G * R)), np.zeros((*x.shape[:-1], G * M))
    for k in range(G):
        for q in range(R):
            middle[..., k * R + q] = x[..., k * K : (k + 1) * K] @ first_GKR[k, :, q]
    for block in range(G):
        for i in range(M):
            for j in range(R):
                out[..., i * G + block] += middle[..., j * G + block] * second_GRM[block, j, i]
    return out


@pytest.mark.parametrize("knobs", VARIANTS)
def test_values_equal_the_reference(knobs):
    check(monarch, Spec(**knobs))


def test_every_output_sees_every_input_and_would_not_without_the_shuffle():
    found = alone(Spec(), room="ffns").declarations
    first, second = (initial(found[f"up.{p}"], 0) for p in ("first", "second"))
    whole = monarch(np.eye(32), first, second)
    assert np.all(np.abs(whole) > 0)
    plain = np.zeros_like(whole)
    for g in range(2):
        plain[16 * g : 16 * g + 16, 64 * g : 64 * g + 64] = first[g] @ second[g]
    assert np.mean(plain == 0) == 0.5


@pytest.mark.parametrize("name, scale", [("up", 1.0), ("out", 2**-0.25)])
def test_every_block_starts_orthogonal(name: str, scale: float):
    """Times what the one layer of the model takes from a product that writes to the stream."""
    found = alone(Spec(blocks=4), room="ffns").declarations
    for part in ("first", "second"):
        blocks = initial(found[f"{name}.{part}"], 0)
        assert len(blocks) == 4
        np.testing.assert_allclose(np.linalg.svd(blocks, compute_uv=False), scale, rtol=1e-5)
        assert np.any(blocks[0] != blocks[1])


def test_blocks_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="blocks 3 does not divide d_model 32; write a divisor"):
        Spec(blocks=3).sizes({"D": 32})
    with pytest.raises(ValueError, match="blocks 8 does not divide hidden width 36"):
        Spec(blocks=8, ratio=1.125, multiple_of=4).sizes({"D": 32})
