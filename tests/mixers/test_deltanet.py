"""Is DeltaNet what its paper says? A float64 reference with a loop over positions and heads."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.mixers.deltanet import Spec
from tests.properties import alone, assert_close, stream

VARIANTS = [
    {"d_head": 8, "chunk": 16},
    {"d_head": 8, "chunk": 4, "value_ratio": 2, "gate": True, "negative_eigenvalues": True},
]
Arrays = dict[str, np.ndarray]
DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1]])


def reference(params: Arrays, x_BTD: np.ndarray, documents_BT: np.ndarray, spec: Spec):
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    y_BTD = np.zeros(x_BTD.shape)
    for b in range(len(x_BTD)):
        for h in range(p["out"].shape[0]):
            S_KM, begin = np.zeros(0), 0
            for t in range(x_BTD.shape[1]):
                if t == 0 or documents_BT[b, t] != documents_BT[b, t - 1]:
                    S_KM, begin = np.zeros((p["q"].shape[2], p["v"].shape[2])), t
                q, k, v = (convolved(p, n, h, x_BTD[b, begin : t + 1]) for n in "qkv")
                q, k = (x / np.sqrt(x @ x + 1e-6) for x in (q, k))
                beta = (2 if spec.negative_eigenvalues else 1) * sigmoid(
                    x_BTD[b, t] @ p["beta"][:, h]
                )
                S_KM = S_KM + beta * np.outer(k, v - S_KM.T @ k)
                y_M = S_KM.T @ q / np.sqrt(len(q))
                y_M = y_M / np.sqrt(np.mean(y_M**2) + 1e-5) * p["gain"]
                if spec.gate:
                    y_M = y_M * silu(x_BTD[b, t] @ p["gate"][:, h])
                y_BTD[b, t] += y_M @ p["out"][h]
    return y_BTD


def convolved(p: Arrays, name: str, head: int, x_TD: np.ndarray) -> np.ndarray:
    """The last position's, from the positions of its document up to it."""
    taps_WK = p[f"{name}_taps"][:, head]
    sum_K = np.zeros(taps_WK.shape[1])
    for w in range(min(len(taps_WK), len(x_TD))):
        sum_K += taps_WK[w] * (x_TD[-1 - w] @ p[name][:, head])
    return silu(sum_K)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


@pytest.mark.parametrize("knobs", [*VARIANTS, {"d_head": 16, "taps": 1}], ids=str)
def test_values_equal_the_reference(knobs: dict):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    params = {k: np.asarray(v) for k, v in layer.params.items()}
    assert ("gate" in params) == spec.gate
    y_BTD = layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS))
    expected = reference(params, np.asarray(x_BTD, np.float64), DOCUMENTS, spec)
    assert_close(y_BTD, expected)
    whole = reference(params, np.asarray(x_BTD, np.float64), np.zeros((2, 9)), spec)
    assert np.max(np.abs(whole - expected)) > 0.1, "documents changed nothing"


def test_the_size_of_queries_and_keys_does_not_matter_to_the_memory():
    """Unit length undoes it; the taps scale what the length is taken of."""
    layer, x_BTD = alone(Spec(d_head=8), room="mixers"), stream(2, 9, 32)

    def changed(*names: str, sizes: tuple[float, float]) -> float:
        small, large = (
            layer.apply({**layer.params, **{n: s * layer.params[n] for n in names}}, x_BTD)
            for s in sizes
        )
        return float(jnp.max(jnp.abs(small - large)))

    # both large: SiLU is linear far from zero only
    assert changed("q_taps", "k_taps", sizes=(1e4, 1e5)) < 1e-3
    assert changed("beta", sizes=(0.3, 3)) > 0.1


def test_sizes_that_do_not_divide_are_refused_with_a_divisor_to_write():
    with pytest.raises(ValueError, match="d_head 12 does not divide d_model 32; write a divisor"):
        Spec(d_head=12).sizes({"D": 32})
