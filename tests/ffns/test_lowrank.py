"""Is LowRank what its paper says? A float64 reference, and the start from one dense draw."""

import numpy as np
import pytest
from pydantic import ValidationError

from model.block import base_sizes
from model.ffns.lowrank import Spec
from model.param import initial
from model.spec import LayerSpec
from tests.properties import Params, alone, assert_close, stream

VARIANTS = [
    {},
    {"activation": "swiglu", "ratio": 8 / 3, "rank": 8},
    {"guided": 0.5, "bias": True},
]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def reference(product, spec, params: Params, x_BTD: np.ndarray) -> np.ndarray:
    """The layer around `product(x, first, second)`, which each structure brings."""
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}

    def apply(name: str, x: np.ndarray) -> np.ndarray:
        return product(x, p[f"{name}.first"], p[f"{name}.second"]) + p.get(f"{name}_bias", 0)

    up_BTF = apply("up", x_BTD)
    gated = spec.activation == "swiglu"
    return apply("out", silu(apply("gate", x_BTD)) * up_BTF if gated else gelu(up_BTF))


def check(product, spec: LayerSpec) -> None:
    layer, x_BTD = alone(spec, room="ffns"), stream(2, 9, 32)
    expected = reference(product, spec, layer.params, np.asarray(x_BTD, np.float64))
    assert_close(layer.apply(layer.params, x_BTD), expected)
    assert_close(layer.naive(layer.params, x_BTD), expected)


@pytest.mark.parametrize("knobs", VARIANTS)
def test_values_equal_the_reference(knobs):
    def product(x, first, second):
        out = np.zeros((*x.shape[:-1], second.shape[1]))
        for r in range(first.shape[1]):
            out += (x @ first[:, r])[..., None] * second[r]
        return out

    check(product, Spec(**knobs))


def parts(name: str, **knobs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """first, second and guide at width 32 as they start."""
    found = alone(Spec(guided=0.5, **knobs), room="ffns", base=32).declarations
    first, second, guide = (
        initial(found[f"{name}.{part}"], 3) for part in ("first", "second", "guide")
    )
    return first, second, guide


@pytest.mark.parametrize("name, spread", [("up", 32**-0.5), ("out", (2 * 128) ** -0.5)])
def test_the_start_is_the_best_approximation_of_one_dense_draw(name: str, spread: float):
    """At full rank the draw itself, below it what an SVD of that leaves."""
    draw = np.linalg.multi_dot(parts(name, rank=32)[:2])
    assert np.std(draw) == pytest.approx(spread, rel=0.05)
    left, values_R, right = np.linalg.svd(draw.astype(np.float64), full_matrices=False)
    first, second, guide = parts(name, rank=12)
    assert_close(first @ second, (left[:, :12] * values_R[:12]) @ right[:12])
    assert_close(guide, first @ second)
    np.testing.assert_allclose(  # singular values are shared evenly
        np.linalg.norm(first, axis=0), np.linalg.norm(second, axis=1), rtol=1e-4
    )


def test_full_rank_of_a_square_product_is_the_draw_of_any_other_rank_too():
    """The small singular values of a square draw are no trouble."""
    first, second, guide = parts("up", ratio=1.0, rank=32)
    whole = first.astype(np.float64) @ second
    assert_close(guide, whole)
    left, values_R, right = np.linalg.svd(whole)
    low_first, low_second, _ = parts("up", ratio=1.0, rank=4)
    assert_close(low_first @ low_second, (left[:, :4] * values_R[:4]) @ right[:4])


def test_products_layers_and_seeds_have_draws_of_their_own():
    found = alone(Spec(), room="ffns").declarations
    up = initial(found["up.first"], 3)
    assert np.any(up != initial(found["up.first"], 4))
    swiglu = alone(Spec(activation="swiglu"), room="ffns").declarations
    assert np.any(initial(swiglu["gate.first"], 3) != initial(swiglu["up.first"], 3))
    assert np.all(initial(swiglu["up.first"], 3) == up)


def test_a_rank_is_finite_or_grows_with_the_width_and_its_learning_rate_follows():
    shared = {"D": 128, "V": 64, "Z": 1}
    fixed, growing = Spec(rank=16), Spec(rank_ratio=0.5)
    assert base_sizes(fixed, shared, width_multiple=4)["R"] == 16
    assert base_sizes(growing, shared, width_multiple=4)["R"] == 16
    assert fixed.sizes(shared)["R"] == 16 and growing.sizes(shared)["R"] == 64
    rates = [
        alone(s, room="ffns", d_model=128, base=32).declarations["up.second"].scaling.lr
        for s in (fixed, growing)
    ]
    assert rates == [1.0, 0.25]


def test_a_rank_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="rank 33 is above 32.*write at most 32"):
        Spec(rank=33).sizes({"D": 32})
    with pytest.raises(ValidationError, match="write one of the two"):
        Spec(rank=8, rank_ratio=0.5)
    with pytest.raises(ValidationError, match="bias goes with gelu"):
        Spec(bias=True, activation="swiglu")
