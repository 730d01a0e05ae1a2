"""Is SwiGLU what its paper says? A float64 reference."""

import numpy as np
import pytest

from model.ffns.swiglu import Spec
from tests.properties import alone, assert_close, stream

VARIANTS = [{}, {"ratio": 1.0, "multiple_of": 1}]
ONE_FORM = "a few products and an activation: the fast form is the plain one"


def reference(params: dict[str, np.ndarray], x_BTD: np.ndarray) -> np.ndarray:
    params = {k: np.asarray(v, np.float64) for k, v in params.items()}
    gate_BTF, up_BTF = x_BTD @ params["gate"], x_BTD @ params["up"]
    return (gate_BTF / (1 + np.exp(-gate_BTF)) * up_BTF) @ params["out"]


def test_values_equal_the_reference():
    layer, x_BTD = alone(Spec(), room="ffns"), stream(2, 9, 32)
    params = {k: np.asarray(v) for k, v in layer.params.items()}
    assert_close(layer.apply(layer.params, x_BTD), reference(params, np.asarray(x_BTD)))


@pytest.mark.parametrize(
    "d_model, knobs, hidden",
    [(96, {}, 256), (32, {}, 88), (1, {}, 8), (100, {"ratio": 4.0, "multiple_of": 1}, 400)],
)
def test_hidden_width_is_the_ratio_rounded_to_the_multiple(d_model: int, knobs, hidden: int):
    assert Spec(**knobs).sizes({"D": d_model}) == {"F": hidden}
