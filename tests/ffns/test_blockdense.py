"""Is BlockDense what its paper says? A float64 reference, and orthogonal blocks at the start."""

import numpy as np
import pytest

from model.ffns.blockdense import Spec
from model.param import initial
from tests.ffns.test_lowrank import check
from tests.properties import alone

VARIANTS = [
    {},
    {"activation": "swiglu", "ratio": 8 / 3, "blocks": 4, "rank_ratio": 0.5},
    {"guided": 0.5},
]


@pytest.mark.parametrize("knobs", VARIANTS)
def test_values_equal_the_reference(knobs):
    def product(x, first_GKR, second_GRF):
        G, K, R = first_GKR.shape
        z = np.zeros((*x.shape[:-1], G * R))
        for g in range(G):
            z[..., g * R : (g + 1) * R] = x[..., g * K : (g + 1) * K] @ first_GKR[g]
        return z @ second_GRF.reshape(G * R, -1)

    check(product, Spec(**knobs))


@pytest.mark.parametrize("name, scale", [("up", 1.0), ("out", 2**-0.25)])
def test_every_block_and_the_dense_factor_start_orthogonal(name: str, scale: float):
    """Times what the one layer of the model takes from a product that writes to the stream."""
    found = alone(Spec(), room="ffns").declarations
    first_GKR, second_GRF = (initial(found[f"{name}.{p}"], 0) for p in ("first", "second"))
    values = np.linalg.svd(first_GKR, compute_uv=False)
    np.testing.assert_allclose(values, scale, rtol=1e-5)
    dense = second_GRF.reshape(-1, second_GRF.shape[-1])
    np.testing.assert_allclose(np.linalg.svd(dense, compute_uv=False), scale, rtol=1e-5)
    assert np.any(first_GKR[0] != first_GKR[1])


@pytest.mark.parametrize(
    "knobs, said",
    [
        ({"blocks": 3, "rank": 24}, "blocks 3 does not divide d_model 32; write a divisor of 32"),
        ({"blocks": 4, "rank": 18}, "blocks 4 does not divide rank 18; write a divisor of 18"),
        (
            {"blocks": 8, "rank": 16, "ratio": 1.125, "multiple_of": 4},
            "blocks 8 does not divide hidden width 36",
        ),
        ({"rank": 34}, "rank 34 is above 32"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(knobs, said: str):
    with pytest.raises(ValueError, match=said):
        Spec(**knobs).sizes({"D": 32})
