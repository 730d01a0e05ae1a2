"""Is the quasi-LSTM Languini's cell? A float64 loop over positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.mixers.quasi_lstm import Spec
from tests.properties import alone, assert_close, stream

VARIANTS = [{"d_head": 8}, {"d_head": 4, "ratio": 0.5, "forget_bias": 0.0}]
DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1]])


def reference(params, x_BTD, segments_BT, spec: Spec):
    params = {k: np.asarray(v, np.float64) for k, v in params.items()}
    y_BTD = np.zeros(x_BTD.shape)
    for b in range(x_BTD.shape[0]):
        c_HK = np.zeros(params["input_bias"].shape)
        for t in range(x_BTD.shape[1]):
            if t > 0 and segments_BT[b, t] != segments_BT[b, t - 1]:
                c_HK = np.zeros_like(c_HK)
            forget, gate, value, output = (
                np.einsum("d,dhk->hk", x_BTD[b, t], params[name]) + params[f"{name}_bias"]
                for name in ("forget", "input", "value", "output")
            )
            c_HK = _sigmoid(forget + spec.forget_bias) * c_HK + _sigmoid(gate) * np.tanh(value)
            h_HK = _sigmoid(output) * np.tanh(c_HK)
            y_BTD[b, t] = np.einsum("hk,hkd->d", h_HK, params["out"]) + params["out_bias"]
    return y_BTD


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("knobs", VARIANTS, ids=str)
def test_values_equal_the_reference(knobs: dict):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    y_BTD = layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS))
    assert_close(y_BTD, reference(layer.params, np.asarray(x_BTD), DOCUMENTS, spec))
    # a float of the spec is not lost on the way: the same weights, another forget bias
    other = alone(Spec(**{**knobs, "forget_bias": 3.0}), room="mixers")
    assert float(jnp.max(jnp.abs(other.apply(layer.params, x_BTD, DOCUMENTS) - y_BTD))) > 1e-2


def test_parameters_are_four_gates_in_and_one_matrix_out():
    """4 D Hd + Hd D and the biases (Languini's block without its MLP)."""
    D, cells = 32, 16
    made = alone(Spec(**VARIANTS[1]), room="mixers").declarations
    matrices = sum(d.size for d in made.values() if d.contract)
    biases = sum(d.size for d in made.values() if not d.contract)
    assert matrices == 4 * D * cells + cells * D
    assert biases == 4 * cells + D


def test_a_closed_forget_gate_forgets_and_an_open_one_counts():
    layer, x_BTD = alone(Spec(d_head=8), room="mixers"), stream(1, 12, 32)

    def reach(bias: float) -> float:
        """How much the first position is felt at the last."""
        params = {**layer.params, "forget_bias": jnp.full((4, 8), bias)}

        def last(x_BTD):
            return jnp.sum(layer.apply(params, x_BTD)[0, -1])

        return float(jnp.max(jnp.abs(jax.grad(last)(x_BTD)[0, 0])))

    assert reach(-20.0) < 1e-6 < 1e-3 < reach(20.0)


def test_cells_that_are_no_whole_groups_are_refused():
    with pytest.raises(ValueError, match="ratio 0.7 x d_model 32 is 22.4 cells.*write a d_head"):
        Spec(ratio=0.7).sizes({"D": 32})
    with pytest.raises(ValueError, match="not whole groups of d_head 12; write a d_head"):
        Spec(d_head=12).sizes({"D": 32})
