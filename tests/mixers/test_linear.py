"""Is linear attention what its papers say? All pairs of positions, in numpy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import ValidationError

from model.mixers.linear import Spec
from model.ops.feature_map import KINDS, features
from tests.properties import alone, assert_close, stream

VARIANTS = [
    {"d_head": 8},
    {"d_head": 8, "denominator": True, "gate": True, "head_norm": False, "chunk": 16},
    {"d_head": 8, "feature_map": "hedgehog", "unit_features": True, "chunk": 16},
    {"d_head": 8, "feature_map": "hadamard", "chunk": 5},
]
DOCUMENTS = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1, 1]])


def feature(x_K: np.ndarray, maps: list[np.ndarray], kind: str, shifts: int) -> np.ndarray:
    """The features of one head's query or key; `maps` are x through its learned matrices."""
    if kind == "elu1":
        return np.array([x + 1 if x > 0 else np.exp(x) for x in x_K])
    if kind == "relu":
        return np.maximum(x_K, 0)
    if kind == "identity":
        return x_K
    if kind == "t2r":
        return np.maximum(maps[0], 0)
    if kind == "hedgehog":
        e = np.exp(np.concatenate([2 * maps[0], -2 * maps[0]]))
        return e / e.sum()
    if kind == "dpfp":
        r = np.concatenate([np.maximum(x_K, 0), np.maximum(-x_K, 0)])
        n = len(r)
        return np.array([r[i] * r[(i - j) % n] for j in range(1, shifts + 1) for i in range(n)])
    return maps[0] * maps[1]


def reference(params, x_BTD, segments_BT, spec: Spec):
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    x_BTD = np.asarray(x_BTD, np.float64)
    y_BTD = np.zeros_like(x_BTD)
    for b, h in np.ndindex(len(x_BTD), x_BTD.shape[2] // spec.d_head):

        def one(name: str, t: int, b=b, h=h) -> np.ndarray:
            z_K = x_BTD[b, t] @ p[name][:, h]
            learned = [n for n in p if n.startswith(f"{name}_map") and not n.endswith("bias")]
            maps = [z_K @ p[n][h] + (p[f"{n}_bias"][h] if f"{n}_bias" in p else 0) for n in learned]
            f = feature(z_K, maps, spec.feature_map, spec.dpfp_shifts)
            return f / (f.sum() + 1e-4) if spec.unit_features else f

        T = x_BTD.shape[1]
        q, k = ([one(name, t) for t in range(T)] for name in "qk")
        for t in range(T):
            seen = [s for s in range(t + 1) if segments_BT[b, s] == segments_BT[b, t]]
            weight = np.array([q[t] @ k[s] for s in seen]) * spec.d_head**-0.5
            y_M = sum(w * (x_BTD[b, s] @ p["v"][:, h]) for w, s in zip(weight, seen, strict=True))
            if spec.denominator:
                assert weight.sum() > 0
                y_M = y_M / weight.sum()
            if spec.head_norm:
                y_M = y_M / np.sqrt(np.mean(y_M**2) + 1e-6) * p["gain"]
            if spec.gate:
                g_M = x_BTD[b, t] @ p["gate"][:, h]
                y_M = y_M * g_M / (1 + np.exp(-g_M))
            y_BTD[b, t] += y_M @ p["out"][h]
    return y_BTD


@pytest.mark.parametrize(
    "knobs", [*VARIANTS[1:], *({"d_head": 8, "feature_map": kind} for kind in KINDS)], ids=str
)
def test_values_equal_the_reference(knobs: dict):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="mixers"), stream(2, 9, 32)
    expected = reference(layer.params, x_BTD, DOCUMENTS, spec)
    assert_close(layer.apply(layer.params, x_BTD, jnp.asarray(DOCUMENTS)), expected)


def test_the_maps_differ_and_say_rightly_which_are_never_negative():
    x_BTHK = 3 * stream(2, 7, 2, 8)
    mapped = (stream(2, 7, 2, 8, seed=1), stream(2, 7, 2, 8, seed=2))
    made = {
        kind: features(x_BTHK, mapped[: f.matrices], kind=kind, shifts=2)  # pyright: ignore[reportArgumentType]
        for kind, f in KINDS.items()
    }
    for kind, f_BTHX in made.items():
        assert f_BTHX.shape[-1] == 8 * KINDS[kind].widening * (2 if kind == "dpfp" else 1)
        assert bool(jnp.all(f_BTHX >= 0)) == KINDS[kind].positive
    assert len({float(jnp.sum(f)) for f in made.values()}) == len(KINDS)


def test_a_hedgehog_starts_as_the_identity():
    spec = Spec(d_head=8, feature_map="hedgehog")
    for path, d in alone(spec, room="mixers").declarations.items():
        if path.endswith("map_0"):
            assert not isinstance(d.init, str)
            value_HKK = d.init(np.random.default_rng(0), d.shape, None)  # pyright: ignore[reportArgumentType]
            assert np.array_equal(value_HKK, np.stack([np.eye(8)] * 4))


def test_a_denominator_makes_the_output_an_average_of_values():
    """Of values that are all alike it is that value, whatever the queries and keys."""
    spec = Spec(d_head=8, denominator=True, head_norm=False)
    layer, x_BTD = alone(spec, room="mixers"), 100 * stream(2, 9, 32).at[:, :, 0].set(0.01)
    params = dict(layer.params)
    params["v"] = jnp.zeros_like(params["v"]).at[0].set(2.0)  # reads the channel that is constant
    expected_D = 2.0 * jnp.sum(params["out"], axis=(0, 1))
    y_BTD = layer.apply(params, x_BTD)
    assert bool(jnp.all(jnp.isfinite(jax.grad(lambda x: layer.apply(params, x).sum())(x_BTD))))
    assert_close(y_BTD, jnp.broadcast_to(expected_D, y_BTD.shape))


def test_what_cannot_be_is_refused_with_what_to_write():
    with pytest.raises(ValueError, match="d_head 12 does not divide d_model 32; write a divisor"):
        Spec(d_head=12).sizes({"D": 32})
    with pytest.raises(ValidationError, match="may be negative; write denominator=false, or"):
        Spec(feature_map="identity", denominator=True)
    with pytest.raises(ValidationError, match="elu1"):
        Spec(feature_map="elu2")  # pyright: ignore[reportArgumentType]
