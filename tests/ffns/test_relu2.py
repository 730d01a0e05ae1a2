"""Is the squared ReLU layer the two products it says? A float64 reference."""

import numpy as np

from model.ffns.relu2 import Spec
from tests.properties import alone, assert_close, stream

VARIANTS = [{}, {"ratio": 3.5}]
ONE_FORM = "a few products and an activation: the fast form is the plain one"


def test_values_equal_the_reference():
    layer, x_BTD = alone(Spec(ratio=2.0), room="ffns"), stream(2, 9, 32)
    up_DF, out_FD = (np.asarray(layer.params[n], np.float64) for n in ("up", "out"))
    assert up_DF.shape == (32, 64)
    h_BTF = np.asarray(x_BTD, np.float64) @ up_DF
    assert 0.2 < np.mean(h_BTF < 0) < 0.8
    expected = np.where(h_BTF > 0, h_BTF**2, 0) @ out_FD
    assert_close(layer.apply(layer.params, x_BTD), expected)


def test_hidden_width_is_the_rounded_ratio():
    assert Spec().sizes({"D": 24}) == {"F": 96}
    assert Spec(ratio=3.5).sizes({"D": 5}) == {"F": 18}
