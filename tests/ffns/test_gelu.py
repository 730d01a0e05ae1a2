"""Is the GELU layer GPT-2's? A float64 reference."""

import numpy as np
import pytest

from model.ffns.gelu import Spec
from tests.properties import alone, assert_close, stream

VARIANTS = [{}, {"bias": True, "ratio": 2.0}]
ONE_FORM = "a few products and an activation: the fast form is the plain one"


def reference(params: dict[str, np.ndarray], x_BTD: np.ndarray) -> np.ndarray:
    """GPT-2's tanh form: 0.5 h (1 + tanh(sqrt(2/pi) (h + 0.044715 h^3)))."""
    params = {k: np.asarray(v, np.float64) for k, v in params.items()}
    h_BTF = x_BTD @ params["up"] + params.get("up_bias", 0.0)
    h_BTF = 0.5 * h_BTF * (1 + np.tanh(np.sqrt(2 / np.pi) * (h_BTF + 0.044715 * h_BTF**3)))
    return h_BTF @ params["out"] + params.get("out_bias", 0.0)


@pytest.mark.parametrize("knobs", VARIANTS, ids=str)
def test_values_equal_the_reference(knobs: dict):
    layer, x_BTD = alone(Spec(**knobs), room="ffns"), stream(2, 9, 32)
    params = {k: np.asarray(v) for k, v in layer.params.items()}
    assert ("up_bias" in params) == bool(knobs.get("bias"))
    assert_close(layer.apply(layer.params, x_BTD), reference(params, np.asarray(x_BTD)))


def test_hidden_width_is_the_rounded_ratio():
    assert Spec().sizes({"D": 24}) == {"F": 96}
    assert Spec(ratio=2.5).sizes({"D": 5}) == {"F": 12}
