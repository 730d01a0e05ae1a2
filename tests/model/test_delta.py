"""Do the chunks of the delta rule and of RWKV-7's recurrence give what the loops give? In float64,
against loops in numpy.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops import delta
from model.ops import dplr as diagonal
from model.ops.delta import inverse_flops, unit_triangular_inverse
from model.ops.dplr import FASTEST

delta_rule = jax.jit(delta.delta_rule, static_argnames="chunk")
naive_delta_rule = jax.jit(delta.naive_delta_rule)
dplr = jax.jit(diagonal.dplr, static_argnames="chunk")
naive_dplr = jax.jit(diagonal.naive_dplr)

B, T, H, K, M = 2, 21, 2, 4, 3
CHUNKS = (1, 4, 8, T)  # 4 and 8 do not divide the length
DOCUMENTS = np.array([[0] * 5 + [1] * 2 + [2] * 14, [0] * 20 + [1]])
NEAR = {"rtol": 0, "atol": 1e-12}  # float64, numbers around 1


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def delta_inputs(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "q_BTHK": unit(rng.standard_normal((B, T, H, K))),
        "k_BTHK": unit(rng.standard_normal((B, T, H, K))),
        "v_BTHM": rng.standard_normal((B, T, H, M)),
        "beta_BTH": 2 * rng.uniform(size=(B, T, H)),
        "gate_BTH": -rng.exponential(size=(B, T, H)),
    }


def dplr_inputs(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    removed = unit(rng.standard_normal((B, T, H, K)))
    return {
        "r_BTHK": rng.standard_normal((B, T, H, K)),
        "decay_BTHK": -FASTEST * rng.uniform(size=(B, T, H, K)),
        "k_BTHK": rng.standard_normal((B, T, H, K)),
        "v_BTHM": rng.standard_normal((B, T, H, M)),
        "a_BTHK": -removed,
        "b_BTHK": removed * rng.uniform(size=(B, T, H, K)),
    }


def start() -> np.ndarray:
    return np.random.default_rng(9).standard_normal((B, H, K, M))


def loop(update, documents_BT, first_BHKM, reader: str, inputs: dict) -> tuple:
    y_BTHM, last_BHKM = np.zeros((B, T, H, M)), np.zeros((B, H, K, M))
    for b in range(B):
        for h in range(H):
            S_KM = first_BHKM[b, h]
            for t in range(T):
                if t and documents_BT[b, t] != documents_BT[b, t - 1]:
                    S_KM = np.zeros((K, M))
                at = {name: x[b, t, h] for name, x in inputs.items()}
                S_KM = update(S_KM, at)
                y_BTHM[b, t, h] = S_KM.T @ at[reader]
            last_BHKM[b, h] = S_KM
    return y_BTHM, last_BHKM


def delta_update(S_KM, at):
    k, beta = at["k_BTHK"], at["beta_BTH"]
    S_KM = np.exp(at["gate_BTH"]) * S_KM
    return S_KM + beta * np.outer(k, at["v_BTHM"] - S_KM.T @ k)


def dplr_update(S_KM, at):
    kept = np.diag(np.exp(at["decay_BTHK"])) + np.outer(at["b_BTHK"], at["a_BTHK"])
    return kept @ S_KM + np.outer(at["k_BTHK"], at["v_BTHM"])


CASES = {
    "delta": (delta_rule, naive_delta_rule, delta_inputs, delta_update, "q_BTHK"),
    "dplr": (dplr, naive_dplr, dplr_inputs, dplr_update, "r_BTHK"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "several"])
def test_chunks_and_recurrence_equal_the_loop(name: str, documents: np.ndarray | None):
    fast, naive, inputs, update, reader = CASES[name]
    told = np.zeros((B, T)) if documents is None else documents
    expected = loop(update, told, start(), reader, inputs())
    with jax.enable_x64(True):
        more = {"segments_BT": documents, "state_BHKM": jnp.asarray(start())}
        arrays = {k: jnp.asarray(x) for k, x in inputs().items()}
        forms = [naive, *(partial(fast, chunk=chunk) for chunk in CHUNKS)]
        results = [form(**arrays, **more) for form in forms]
    for y_BTHM, S_BHKM in results:
        assert y_BTHM.dtype == S_BHKM.dtype == np.float64
        np.testing.assert_allclose(y_BTHM, expected[0], **NEAR)
        np.testing.assert_allclose(S_BHKM, expected[1], **NEAR)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_chunks_are_those_of_the_recurrence(name: str):
    fast, naive, inputs, _, _ = CASES[name]
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((B, T, H, M)), rng.standard_normal((B, H, K, M))
    with jax.enable_x64(True):
        arrays = {**inputs(), "state_BHKM": start()}
        arrays = {k: jnp.asarray(x) for k, x in arrays.items()}

        def grads(form):
            def value(arrays):
                y, S = form(**arrays, segments_BT=jnp.asarray(DOCUMENTS))
                return jnp.sum(y * weights[0]) + jnp.sum(S * weights[1])

            return jax.jit(jax.grad(value))(arrays)

        expected = grads(naive)
        for chunk in (4, T):
            for key, value in grads(partial(fast, chunk=chunk)).items():
                np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-10, err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_positions_in_two_calls_with_the_memory_between_equal_one_call(name: str):
    fast, _, inputs, _, _ = CASES[name]
    with jax.enable_x64(True):
        arrays = {k: jnp.asarray(x) for k, x in inputs().items()}
        whole, last = fast(**arrays, segments_BT=None, chunk=4)
        S_BHKM, pieces = None, []
        for low, high in ((0, 9), (9, 10), (10, T)):
            part = {k: x[:, low:high] for k, x in arrays.items()}
            y, S_BHKM = fast(**part, segments_BT=None, chunk=4, state_BHKM=S_BHKM)
            pieces.append(y)
        np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, **NEAR)
        np.testing.assert_allclose(S_BHKM, last, **NEAR)


@pytest.mark.parametrize("name, rate", [("delta", "gate_BTH"), ("dplr", "decay_BTHK")])
def test_no_decay_of_another_document_is_felt_to_the_last_bit(name: str, rate: str):
    """float32 on purpose: what a running sum leaves of terms that cancel is rounding."""
    fast, _, inputs, _, _ = CASES[name]
    arrays = {k: jnp.asarray(x, jnp.float32) for k, x in inputs().items()}

    def late(decays):
        y, _ = fast(**{**arrays, rate: decays}, segments_BT=jnp.asarray(DOCUMENTS), chunk=16)
        return jnp.sum(y[0, 12])

    felt_T = (
        np.abs(np.asarray(jax.jit(jax.grad(late))(arrays[rate])[0])).reshape(T, -1).max(axis=-1)
    )
    assert np.all(felt_T[:7] == 0) and np.all(felt_T[8:13] > 0) and np.all(felt_T[13:] == 0)
    # its document begins at 7: there is no memory yet that the decay of 7 could touch
    assert felt_T[7] < 1e-5 * felt_T.max()


# -- limits ----------------------------------------------------------------------------------------


def test_orthonormal_keys_written_at_full_strength_return_their_values():
    n = 8
    rng = np.random.default_rng(2)
    k = np.linalg.qr(rng.standard_normal((n, n)))[0][None, :, None]
    v = rng.standard_normal((1, n, 1, M))
    with jax.enable_x64(True):
        k, v, beta = jnp.asarray(k), jnp.asarray(v), jnp.ones((1, n, 1))
        y, S = delta_rule(k, k, v, beta, None, None, chunk=4)
        np.testing.assert_allclose(y, v, **NEAR)
        np.testing.assert_allclose(jnp.einsum("bthk,bhkm->bthm", k, S), v, **NEAR)
        # a value written again on the same key replaces the first
        again, _ = delta_rule(k, k, 2 * v, beta, None, None, chunk=4, state_BHKM=S)
        np.testing.assert_allclose(again, 2 * v, **NEAR)


def test_a_gate_of_zero_is_no_gate_and_one_below_changes_the_values():
    with jax.enable_x64(True):
        arrays: dict[str, Any] = {k: jnp.asarray(x) for k, x in delta_inputs().items()}

        def values(gate):
            return delta_rule(**{**arrays, "gate_BTH": gate}, segments_BT=None, chunk=8)[0]

        none = values(None)
        np.testing.assert_allclose(values(0 * arrays["gate_BTH"]), none, **NEAR)
        assert float(jnp.max(jnp.abs(values(arrays["gate_BTH"]) - none))) > 0.1


def test_a_key_that_writes_nothing_leaves_the_memory_as_it_was():
    with jax.enable_x64(True):
        arrays: dict[str, Any] = {k: jnp.asarray(x) for k, x in delta_inputs().items()}
        arrays |= {"beta_BTH": jnp.zeros((B, T, H)), "gate_BTH": None}
        y, S = delta_rule(**arrays, segments_BT=None, chunk=8, state_BHKM=jnp.asarray(start()))
        np.testing.assert_array_equal(S, start())
        expected = np.einsum("bthk,bhkm->bthm", delta_inputs()["q_BTHK"], start())
        np.testing.assert_allclose(y, expected, **NEAR)


def test_the_gated_delta_rule_is_a_diagonal_plus_rank_one():
    """With k twice: once as what is removed, once as what is written."""
    inputs = delta_inputs()
    gate = -FASTEST * np.random.default_rng(3).uniform(size=(B, T, H))
    q, k, v, beta = (inputs[n] for n in ("q_BTHK", "k_BTHK", "v_BTHM", "beta_BTH"))
    with jax.enable_x64(True):
        q, k, v, beta, gate = (jnp.asarray(x) for x in (q, k, v, beta, gate))
        expected = delta_rule(q, k, v, beta, gate, None, chunk=8)
        strong = beta[..., None] * k
        decay = jnp.broadcast_to(gate[..., None], k.shape)
        got = dplr(q, decay, strong, v, k, -strong * jnp.exp(decay), None, chunk=8)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, **NEAR)


def test_reflections_follow_a_permutation_as_state_tracking_asks():
    """Strength 2 on the key (e_i - e_j) / sqrt 2 exchanges rows i and j of the memory."""
    n, steps = 5, 40
    rng = np.random.default_rng(4)
    order, keys = list(range(n)), np.zeros((1, steps, 1, n))
    for t in range(steps):
        i, j = rng.choice(n, 2, replace=False)
        keys[0, t, 0, i], keys[0, t, 0, j] = 0.5**0.5, -(0.5**0.5)
        order[i], order[j] = order[j], order[i]
    with jax.enable_x64(True):
        k, v = jnp.asarray(keys), jnp.zeros((1, steps, 1, n))
        for strength in (2.0, 1.0):  # at most 1 forgets what it would exchange
            beta = jnp.full((1, steps, 1), strength)
            _, S = delta_rule(
                k, k, v, beta, None, None, chunk=16, state_BHKM=jnp.eye(n)[None, None]
            )
            off = float(np.max(np.abs(np.asarray(S[0, 0]) - np.eye(n)[order])))
            assert (off < 1e-12) == (strength == 2.0)
    assert order != list(range(n))


# -- numbers that are hard -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 37])
def test_the_inverse_by_halves_and_its_gradient_are_the_inverse_and_its(size: int):
    rng = np.random.default_rng(5)
    a = np.tril(0.3 * rng.standard_normal((2, size, size)), -1)
    weight = rng.standard_normal((size, size))
    with jax.enable_x64(True):

        def value(form, a):
            return jnp.sum(form(a) * weight)

        expected = np.linalg.inv(np.eye(size) + a)
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(
            jax.jit(unit_triangular_inverse)(a), expected, atol=1e-13 * scale, rtol=0
        )
        got = jax.jit(jax.grad(partial(value, unit_triangular_inverse)))(jnp.asarray(a))
        # d sum(w inverse) = -inverse^T w inverse^T, of the entries that vary
        wanted = np.tril(-expected.mT @ weight @ expected.mT, -1)
        np.testing.assert_allclose(got, wanted, atol=1e-12 * np.max(np.abs(wanted)) + 1e-15, rtol=0)


def test_equal_keys_lose_no_digits_in_float32():
    """The system's worst case: (I - a)(I + a^2)(I + a^4).. holds numbers of 1e17 on the way."""
    a = jnp.tril(jnp.ones((64, 64), jnp.float32), -1)
    inverse = np.asarray(unit_triangular_inverse(a))
    np.testing.assert_array_equal(inverse, np.eye(64) - np.eye(64, k=-1))


@pytest.mark.parametrize("gate", [-1e-4, -30.0, -1e4])
def test_decays_from_none_to_all_in_a_step_have_finite_right_gradients(gate: float):
    arrays = {k: jnp.asarray(x, jnp.float32) for k, x in delta_inputs().items()}
    arrays["gate_BTH"] = jnp.full((B, T, H), gate)

    def grads(form):
        def value(arrays):
            return jnp.sum(jnp.sin(form(**arrays, segments_BT=None)[0]))

        return jax.jit(jax.grad(value))(arrays)

    expected = grads(naive_delta_rule)
    for key, got in grads(partial(delta_rule, chunk=16)).items():
        np.testing.assert_allclose(got, expected[key], atol=2e-5, rtol=0, err_msg=key)


@pytest.mark.parametrize("chunk", [32, 128])
@pytest.mark.parametrize("decay", [0.0, -FASTEST])
def test_the_factors_of_a_pair_keep_their_digits_at_both_ends_of_the_decay(
    chunk: int, decay: float
):
    long, rng = 150, np.random.default_rng(6)
    r, k, v, removed = (rng.standard_normal((1, long, 1, 8)) for _ in range(4))
    removed = unit(removed)
    names = ("r_BTHK", "decay_BTHK", "k_BTHK", "v_BTHM", "a_BTHK", "b_BTHK")
    parts = (r, np.full(r.shape, decay), k, v, -removed, 0.7 * removed)
    arrays = dict(zip(names, parts, strict=True))
    single = {k: jnp.asarray(x, jnp.float32) for k, x in arrays.items()}
    y, S = dplr(**single, segments_BT=None, chunk=chunk)
    with jax.enable_x64(True):
        double = {k: jnp.asarray(x) for k, x in arrays.items()}
        expected = naive_dplr(**double, segments_BT=None)
    for got, wanted in zip((y, S), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=5e-6 * float(np.max(np.abs(wanted))), rtol=0)


def test_a_chunk_beyond_the_float_range_is_refused():
    arrays = {k: jnp.zeros((1, 300, *x.shape[2:])) for k, x in dplr_inputs().items()}
    with pytest.raises(ValueError, match="chunk 256 overflows; write at most 128"):
        dplr(**arrays, segments_BT=None, chunk=256)


def test_flops_of_the_inverse_are_two_thirds_of_the_square_of_the_chunk():
    """Per token; 16, 32, .. from two products of each pair of halves, less the halves of one."""
    assert inverse_flops(2) == 0 and inverse_flops(4) == 2 * 2 * 2**3 / 4
    assert inverse_flops(256) == pytest.approx(2 / 3 * 256**2, rel=1e-3)
