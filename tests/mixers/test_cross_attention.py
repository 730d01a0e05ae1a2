"""Does attention to a source equal a slow numpy reference, and see no other source?"""

import jax
import jax.numpy as jnp
import numpy as np

from model.mixers.cross_attention import Spec
from tests import properties as p

VARIANTS = [
    {"d_head": 8},
    {"d_head": 8, "queries_per_kv": 2, "qk_norm": True},
]


def reference(params, x_TD, source_SD, seen_TS, *, spec: Spec) -> np.ndarray:
    """One query at a time, float64."""
    q, k, v, out = (np.asarray(params[n], np.float64) for n in ("q", "k", "v", "out"))
    H, K = q.shape[1:]
    y_TD = np.zeros(x_TD.shape)

    def normed(x_K, gain_K):
        if not spec.qk_norm:
            return x_K
        return x_K / np.sqrt(np.mean(x_K**2) + 1e-6) * np.asarray(params[gain_K], np.float64)

    for t in range(len(x_TD)):
        for h in range(H):
            j = h // spec.queries_per_kv
            query_K = normed(x_TD[t] @ q[:, h], "q_gain")
            scores = {
                s: K**-0.5 * query_K @ normed(source_SD[s] @ k[:, j], "k_gain")
                for s in np.flatnonzero(seen_TS[t])
            }
            total = sum(np.exp(score) for score in scores.values())
            for s, score in scores.items():
                y_TD[t] += np.exp(score) / total * (source_SD[s] @ v[:, j]) @ out[h]
    return y_TD


def test_values_equal_a_slow_numpy_reference():
    segments_1T = np.asarray([[0, 0, 0, 1, 1, 2, 7]])  # no source has segment 7
    x_1TD = p.stream(1, 7, p.D_MODEL)
    source_SD = np.asarray(p.stream(1, 5, p.D_MODEL, seed=2)[0], np.float64)
    seen_TS = segments_1T[0][:, None] == np.asarray(p.SOURCE_SEGMENTS)[None]
    for knobs in VARIANTS:
        spec = Spec(**knobs)
        layer = p.alone(spec, room="mixers")
        found = layer.apply(layer.params, x_1TD, jnp.asarray(segments_1T))[0]
        wanted = reference(
            layer.params, np.asarray(x_1TD[0], np.float64), source_SD, seen_TS, spec=spec
        )
        p.assert_close(found, wanted)
        assert np.all(np.asarray(found[6]) == 0), "a query of no source says nothing"


def test_each_document_sees_its_own_source_and_no_other():
    layer = p.alone(Spec(**VARIANTS[0]), room="mixers")
    segments_1T = jnp.asarray([[0, 0, 1, 2, 2]])
    x_1TD = p.stream(1, 5, p.D_MODEL)

    def said(source_1SD):
        return jnp.sum(layer.apply(layer.params, x_1TD, segments_1T, source_1SD)[0], axis=-1)

    jacobian_T1SD = jax.jacrev(said)(p.stream(1, 5, p.D_MODEL, seed=2))
    seen_TS = np.asarray(jnp.max(jnp.abs(jacobian_T1SD[:, 0]), axis=-1)) > 0
    same_TS = np.asarray(segments_1T[0])[:, None] == np.asarray(p.SOURCE_SEGMENTS)[None]
    assert np.array_equal(seen_TS, same_TS)
