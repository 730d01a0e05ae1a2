"""Do tokens reach the experts that were chosen for them, and come back, whatever the way?"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops import experts as ops
from model.ops import router as routing
from tests.properties import assert_close

T, D, F, E, K = 29, 6, 4, 5, 2

FORMS: dict[str, Callable[..., jax.Array]] = {
    "blocks of the default": ops.padded,
    "blocks of 1": partial(ops.padded, block=1),
    "blocks of 3": partial(ops.padded, block=3),
    "blocks longer than all tokens": partial(ops.padded, block=64),
    "ragged": ops.ragged,
    "capacity at its bound": lambda *a: ops.limited(*a, capacity=T)[0],
}
LOADS = {
    "at random": lambda rng: np.stack([rng.permutation(E)[:K] for _ in range(T)]),
    "two take all": lambda rng: np.tile([3, 1], (T, 1)),
    "one has none": lambda rng: np.stack([rng.permutation(E - 1)[:K] for _ in range(T)]),
    "one has one": lambda rng: np.concatenate([[[4, 0]], np.tile([0, 2], (T - 1, 1))]),
}


def case(load: str = "at random") -> tuple[jax.Array, jax.Array, jax.Array, ops.Weights]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    experts = ops.Weights(gate_EDF=draw(E, D, F), up_EDF=draw(E, D, F), out_EFD=draw(E, F, D))
    chosen_TK = jnp.asarray(LOADS[load](rng), jnp.int32)
    return draw(T, D), chosen_TK, jnp.abs(draw(T, K)), experts


def by_loops(x_TD, chosen_TK, weights_TK, experts: ops.Weights, kept_TK=None) -> np.ndarray:
    """Token by token, choice by choice, in float64."""
    x_TD, weights_TK = np.asarray(x_TD, np.float64), np.asarray(weights_TK, np.float64)
    gate_EDF, up_EDF, out_EFD = (
        np.asarray(w, np.float64) for w in (experts.gate_EDF, experts.up_EDF, experts.out_EFD)
    )
    y_TD = np.zeros_like(x_TD)
    for t in range(len(x_TD)):
        for k, e in enumerate(np.asarray(chosen_TK)[t]):
            if kept_TK is None or kept_TK[t, k]:
                gate_F = x_TD[t] @ gate_EDF[e]
                h_F = gate_F / (1 + np.exp(-gate_F)) * (x_TD[t] @ up_EDF[e])
                y_TD[t] += weights_TK[t, k] * (h_F @ out_EFD[e])
    return y_TD


def gradients(form: Callable[..., jax.Array], load: str = "at random"):
    """Values, and gradients in the tokens, their weights and every expert; and the program."""
    x_TD, chosen_TK, weights_TK, experts = case(load)
    project_TD = jnp.asarray(np.random.default_rng(1).standard_normal((T, D)), jnp.float32)

    def value(x_TD, weights_TK, arrays):
        y_TD = form(x_TD, chosen_TK, weights_TK, ops.Weights(*arrays))
        return jnp.sum(y_TD * project_TD), y_TD

    arrays = (experts.gate_EDF, experts.up_EDF, experts.out_EFD)
    made = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True)).trace(x_TD, weights_TK, arrays)
    return made.lower().compile()(x_TD, weights_TK, arrays), str(made.jaxpr)


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS)
def test_every_form_is_the_loop_over_choices(load: str):
    x_TD, chosen_TK, weights_TK, experts = case(load)
    expected_TD = by_loops(x_TD, chosen_TK, weights_TK, experts)
    assert_close(ops.every_expert(x_TD, chosen_TK, weights_TK, experts), expected_TD)
    for name, form in FORMS.items():
        assert_close(form(x_TD, chosen_TK, weights_TK, experts), expected_TD, what=name)


@pytest.mark.parametrize("load", ["at random", "one has none"])
def test_dropless_is_every_expert_on_every_token_in_values_and_all_gradients(load: str):
    expected, program = gradients(ops.every_expert, load)
    programs = {program}
    for name, form in FORMS.items():
        found, program = gradients(form, load)
        assert_close(found, expected, what=name)
        programs.add(program)
    assert len(programs) == 1 + len(FORMS), "two forms are one program"
    if load == "one has none":  # its gradient is zero, and is there
        (_, _, arrays), _ = expected
        assert all(not np.any(g[E - 1]) and np.any(g[0]) for g in arrays)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_sums_what_a_tokens_experts_say_in_float32(form: str):
    x_TD, chosen_TK, weights_TK, experts = case()
    y_TD = FORMS[form](x_TD.astype(jnp.bfloat16), chosen_TK, weights_TK, experts)
    assert y_TD.dtype == jnp.bfloat16
    assert_close(y_TD, by_loops(x_TD, chosen_TK, weights_TK, experts), dtype="bfloat16")


@pytest.mark.parametrize("block", [1, 2, 3, 8, 64])
def test_blocks_hold_each_choice_once_whatever_the_load(block: int):
    for load in LOADS:
        _, chosen_TK, _, _ = case(load)
        layout, expert_G, used = ops.blocks(chosen_TK, n_experts=E, block=block)
        G = ops.n_blocks(chosen_TK.size, n_experts=E, block=block)
        pair_S, slot_P = np.asarray(layout.pair_S), np.asarray(layout.slot_TK).reshape(-1)
        assert pair_S.shape == (G * block,)
        assert np.array_equal(pair_S[slot_P], np.arange(chosen_TK.size))
        assert np.sum(pair_S < chosen_TK.size) == chosen_TK.size
        expert_P = np.asarray(chosen_TK).reshape(-1)
        assert np.array_equal(np.asarray(expert_G)[slot_P // block], expert_P)
        assert sum(-(-n // block) for n in np.bincount(expert_P, minlength=E)) == int(used) <= G


def test_the_number_of_blocks_is_the_most_that_a_load_can_need():
    for n_experts, block, choices in [(3, 4, 10), (4, 3, 12), (5, 2, 3), (2, 8, 9)]:
        loads = [load for load in np.ndindex(*([choices + 1] * n_experts)) if sum(load) == choices]
        most = max(sum(-(-n // block) for n in load) for load in loads)
        assert ops.n_blocks(choices, n_experts=n_experts, block=block) == most


@pytest.mark.parametrize("block", [1, 8, None])
def test_the_compiler_counts_the_products_of_the_slots_and_nothing_else(block: int | None):
    """Wide, so that what is no product is below 2 %; every expert would be E / K times as much."""
    tokens, d, f, n_experts, chosen = 256, 512, 512, 8, 2
    kinds = [(tokens, d), (tokens, chosen), (tokens, chosen)]
    kinds += [(n_experts, d, f), (n_experts, d, f), (n_experts, f, d)]
    dtypes = [jnp.float32, jnp.int32, *[jnp.float32] * 4]
    shapes = [jax.ShapeDtypeStruct(s, t) for s, t in zip(kinds, dtypes, strict=True)]

    def run(x_TD, chosen_TK, weights_TK, *arrays):
        return ops.padded(x_TD, chosen_TK, weights_TK, ops.Weights(*arrays), block=block)

    analysis = jax.jit(run).lower(*shapes).cost_analysis()
    assert analysis is not None
    block = block or ops.default_block(tokens * chosen, n_experts=n_experts)
    slots = block * ops.n_blocks(tokens * chosen, n_experts=n_experts, block=block)
    assert tokens * chosen <= slots < tokens * chosen + n_experts * block
    assert analysis["flops"] == pytest.approx(6 * slots * d * f, rel=0.02)


# -- a capacity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("capacity", [1, 4, 13])
def test_the_first_choices_are_kept_and_the_rest_counted_as_dropped(load: str, capacity: int):
    x_TD, chosen_TK, weights_TK, experts = case(load)
    seen, kept_TK = np.zeros(E, int), np.zeros((T, K), bool)
    for t in range(T):
        for k, e in enumerate(np.asarray(chosen_TK)[t]):
            kept_TK[t, k] = seen[e] < capacity
            seen[e] += 1
    y_TD, dropped = ops.limited(x_TD, chosen_TK, weights_TK, experts, capacity=capacity)
    assert int(dropped) == np.sum(np.maximum(seen - capacity, 0)) == np.sum(~kept_TK) > 0
    assert_close(y_TD, by_loops(x_TD, chosen_TK, weights_TK, experts, kept_TK))
    slow_TK = ops.within_capacity(chosen_TK, n_experts=E, capacity=capacity)
    assert np.array_equal(slow_TK, kept_TK)


def test_gradients_of_dropped_choices_are_zero():
    """Two experts take all 29 tokens and keep four: of the others nothing depends on anything."""
    (found, y_TD), _ = gradients(lambda *a: ops.limited(*a, capacity=4)[0], "two take all")
    dx_TD, dweights_TK, _ = found
    assert np.all(y_TD[4:] == 0) and np.all(dx_TD[4:] == 0) and np.all(dweights_TK[4:] == 0)
    assert np.all(dx_TD[:4] != 0) and np.all(dweights_TK[:4] != 0)
    (expected, _), _ = gradients(_slowly_limited, "two take all")
    assert_close(found, expected)


def _slowly_limited(x_TD, chosen_TK, weights_TK, experts):
    kept_TK = ops.within_capacity(chosen_TK, n_experts=E, capacity=4)
    return ops.every_expert(x_TD, chosen_TK, weights_TK * kept_TK, experts)


def test_slots_are_an_even_share_times_the_factor_rounded_up():
    def slots(factor: float) -> int:
        return ops.slots_per_expert(factor, tokens=100, chosen=2, n_experts=8)

    assert [slots(f) for f in (1.0, 1.1, 0.01)] == [25, 28, 1]
    assert slots(4.0) == slots(9.0) == 100, "a token goes to an expert at most once"
    assert ops.slots_per_expert(0.1, tokens=100, chosen=1, n_experts=2) == 5, "not 5.0000001 up"


# -- the router ------------------------------------------------------------------------------------


def test_of_equal_scores_the_lower_numbers_are_chosen():
    scores_BTE = jnp.asarray([[[0.1, 0.3, 0.3, 0.3], [0.25] * 4]])
    chosen_BTK, weights_BTK = routing.choose(scores_BTE, chosen=2, bias_E=None, renormalise=False)
    assert np.array_equal(chosen_BTK, [[[1, 2], [0, 1]]])
    np.testing.assert_allclose(weights_BTK, [[[0.3, 0.3], [0.25, 0.25]]])


def test_a_bias_decides_who_is_chosen_and_not_what_they_weigh():
    scores_BTE = jnp.asarray([[[0.5, 0.3, 0.15, 0.05]]])
    bias_E = jnp.asarray([-1.0, 0.0, 0.0, 1.0])

    def weights(scores_BTE, bias_E, renormalise=False):
        return routing.choose(scores_BTE, chosen=2, bias_E=bias_E, renormalise=renormalise)

    chosen_BTK, weights_BTK = weights(scores_BTE, bias_E)
    assert np.array_equal(chosen_BTK, [[[3, 1]]])
    np.testing.assert_allclose(weights_BTK, [[[0.05, 0.3]]])
    np.testing.assert_allclose(weights(scores_BTE, bias_E, True)[1], [[[1 / 7, 6 / 7]]], rtol=1e-5)
    gradient_E = jax.grad(lambda b: jnp.sum(weights(scores_BTE, b)[1]))(bias_E)
    assert not np.any(gradient_E)


@pytest.mark.parametrize("over", ["batch", "rows"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_balance_loss_is_one_when_even_and_the_formula_elsewhere(over: str, kind: str):
    """OLMo-core and Megatron: (E / K) sum_e (count_e / T) mean_t p_e."""
    even_BTE = jnp.zeros((2, 10, E))
    chosen_BTK = jnp.asarray([[[(2 * t + k) % E for k in range(K)] for t in range(10)]] * 2)
    counts_BE = routing.counts(chosen_BTK, n_experts=E)
    assert np.all(counts_BE == 10 * K / E)
    scores_BTE = routing.scores(even_BTE, kind=kind)
    found = routing.balance_loss(_mean(scores_BTE), counts_BE, over=over)
    assert float(found) == pytest.approx(1.0, abs=1e-6)

    rng = np.random.default_rng(0)
    logits_BTE = 3 * rng.standard_normal((2, 10, E))
    p_BTE = np.exp(logits_BTE) if kind == "softmax" else 1 / (1 + np.exp(-logits_BTE))
    p_BTE /= np.sum(p_BTE, axis=-1, keepdims=True)
    top_BTK = np.argsort(-logits_BTE, axis=-1, kind="stable")[..., :K]
    rows = []
    for part in [[0, 1]] if over == "batch" else [[0], [1]]:
        count_E = np.bincount(top_BTK[part].reshape(-1), minlength=E)
        tokens = 10 * len(part)
        rows.append(E / K * np.sum(count_E / tokens * np.mean(p_BTE[part], axis=(0, 1))))
    scores_BTE = routing.scores(jnp.asarray(logits_BTE, jnp.float32), kind=kind)
    chosen_BTK, _ = routing.choose(scores_BTE, chosen=K, bias_E=None, renormalise=False)
    found = routing.balance_loss(
        _mean(scores_BTE), routing.counts(chosen_BTK, n_experts=E), over=over
    )
    assert float(found) == pytest.approx(np.mean(rows), rel=1e-5)
    assert abs(np.mean(rows) - 1) > 0.01


def _mean(scores_BTE: jax.Array) -> jax.Array:
    return jnp.mean(routing.shares(scores_BTE), axis=1)


def test_the_balance_loss_of_a_collapse_is_experts_over_chosen():
    logits_BTE = jnp.full((2, 10, E), -50.0).at[..., :K].set(50.0)
    scores_BTE = routing.scores(logits_BTE, kind="softmax")
    chosen_BTK, _ = routing.choose(scores_BTE, chosen=K, bias_E=None, renormalise=False)
    counts_BE = routing.counts(chosen_BTK, n_experts=E)
    found = routing.balance_loss(_mean(scores_BTE), counts_BE, over="batch")
    assert float(found) == pytest.approx(E / K, rel=1e-5)


def test_the_z_loss_is_the_mean_square_of_the_log_of_the_sum():
    logits_BTE = np.random.default_rng(0).standard_normal((2, 3, E))
    expected = np.mean(np.log(np.sum(np.exp(logits_BTE), axis=-1)) ** 2)
    assert float(jnp.mean(routing.z_squares(jnp.asarray(logits_BTE)))) == pytest.approx(
        expected, rel=1e-5
    )


def test_a_bias_moves_by_its_rate_towards_an_even_load_in_every_layer_apart():
    counts_ZE = jnp.asarray([[4.0, 0.0, 2.0], [2.0, 2.0, 2.0]])
    found_ZE = routing.towards_even(0.5)(jnp.ones((2, 3)), counts_ZE)
    assert np.array_equal(found_ZE, [[0.5, 1.5, 1.0], [1.0, 1.0, 1.0]])
