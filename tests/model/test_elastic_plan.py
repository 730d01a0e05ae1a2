"""Do importances say what removing an entry does, and are plans the best there are?"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import archs
from model.decoder import build
from model.elastic_plan import (
    Plan,
    Profile,
    attention_importance,
    candidates,
    chosen,
    density,
    importance,
    layout,
    lost,
    planned,
    plans,
    pooled,
    profile,
)
from model.mixers.elastic_span import Rule


def test_importance_is_what_removing_an_entry_changes_in_float64():
    """Small steps toward the removed and normalised row: a finite difference of any loss."""
    rng = np.random.default_rng(0)
    T = 6
    score = np.where(np.tril(np.ones((T, T), bool)), rng.standard_normal((T, T)), -np.inf)
    weight_TS = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
    a, b = rng.standard_normal((2, T, T))

    def loss(weight_TS):
        return jnp.sum(jnp.sin(a * weight_TS) + b * weight_TS**2)

    with jax.enable_x64(True):
        gradient_TS = jax.grad(loss)(jnp.asarray(weight_TS))
        found_TS = np.asarray(importance(jnp.asarray(weight_TS), gradient_TS))
        for t, s in itertools.combinations_with_replacement(range(T), 2):
            t, s = s, t
            removed = weight_TS.copy()
            removed[t, s] = 0
            if t > 0:  # the first position sees one key: nothing is left to normalise
                removed[t] /= removed[t].sum()
            toward, step = removed - weight_TS, 1e-6
            ahead, behind = (loss(weight_TS + sign * step * toward) for sign in (1, -1))
            measured = float(ahead - behind) / (2 * step)
            assert found_TS[t, s] == pytest.approx(measured, rel=1e-5, abs=1e-8), (t, s)


def test_importance_of_attention_is_that_of_its_weights_with_the_larger_of_shared_heads():
    rng = np.random.default_rng(0)
    B, T, H, J, K = 2, 8, 4, 2, 4
    q, k, v, dy = (rng.standard_normal((B, T, n, K)).astype(np.float32) for n in (H, J, J, H))
    found = attention_importance(*map(jnp.asarray, (q, k, v, dy)), scale=0.5)
    k, v = np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2)
    score = 0.5 * jnp.einsum("bthk,bshk->bhts", q, k)
    weight = jax.nn.softmax(jnp.where(np.tril(np.ones((T, T), bool)), score, -1e30))

    def loss(weight):
        return jnp.sum(jnp.einsum("bhts,bshk->bthk", weight, v) * dy)

    each = np.asarray(importance(weight, jax.grad(loss)(weight))).reshape(B, J, 2, T, T)
    np.testing.assert_allclose(np.abs(found), np.abs(each).max(axis=2), rtol=1e-3, atol=1e-5)


def test_a_dense_rule_hides_nothing_and_layouts_are_causal():
    rng = np.random.default_rng(0)
    blocks = pooled(np.tril(rng.standard_normal((3, 2, 32, 32))), block=4)
    assert blocks.shape == (2, 8, 8) and blocks.sum() > 0
    assert np.array_equal(lost(blocks, Rule(beta=1.0), block=4), [0, 0])
    assert density(Rule(beta=1.0), length=32, block=4) == 1
    narrow = layout(Rule(alpha=-100.0), length=32, block=4)
    assert np.array_equal(narrow, np.tril((np.eye(8) + (np.arange(8) == 0)) > 0))
    assert density(Rule(alpha=-100.0), length=32, block=4) == 2 / 8
    assert np.all(lost(blocks, Rule(alpha=-100.0), block=4) > 0)
    expected = np.abs(blocks)[:, ~narrow & np.tril(np.ones((8, 8), bool))].sum(-1)
    np.testing.assert_allclose(lost(blocks, Rule(alpha=-100.0), block=4), expected)


def test_the_grid_keeps_spans_between_nothing_and_everything():
    rules = candidates((2048, 4096), step=1024)
    assert Rule(beta=1.0) in rules and Rule(alpha=1024.0) in rules and len(set(rules)) == len(rules)
    assert all(0 < r.alpha + r.beta * n <= n for r in rules for n in (2048, 4096))
    assert any(r.alpha < 0 for r in rules) and Rule(alpha=4096.0) not in rules


LENGTHS = (64, 128)


def small_profile(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> Profile:
    rng = np.random.default_rng(seed)
    reach = rng.uniform(0.5, 8, (2, 3, 1, 1))  # heads differ in how far they look

    def blocks(n: int) -> list[np.ndarray]:
        i, j = np.indices((n, n))
        far = np.exp(-(i - j) / reach) * rng.uniform(0.5, 1.5, (2, 3, n, n))
        return list(np.tril(far))

    rules = [Rule(alpha=16.0), Rule(beta=0.25), Rule(alpha=16.0, beta=0.25), Rule(beta=1.0)]
    return profile({n: blocks(n // 8) for n in lengths}, rules, block=8)


def every_plan(found: Profile, *, bound: float, slack: float, rules_per_layer: int) -> list[Plan]:
    out = []
    for picks in itertools.product(range(len(found.rules)), repeat=6):
        picked_LH = np.reshape(picks, (2, 3))
        plan = found.plan(picked_LH)
        if max(len(set(layer)) for layer in plan.rules) <= rules_per_layer and all(
            slack * bound - 1e-9 <= d <= bound + 1e-9 for d in plan.density.values()
        ):
            out.append(plan)
    return out


@pytest.mark.parametrize("rules_per_layer", [1, 2])
def test_plans_are_the_best_of_all_choices(rules_per_layer: int):
    found = small_profile()
    limits = {"bound": 0.6, "slack": 0.5, "rules_per_layer": rules_per_layer}
    every, made = every_plan(found, **limits), plans(found, **limits)
    assert 2 < len(every) < 4**6
    for n in LENGTHS:
        least = min(p.loss[n] for p in every)
        assert min(p.loss[n] for p in made) == pytest.approx(least)
        assert least < np.median([p.loss[n] for p in every])
    for p in made:
        assert max(len(set(layer)) for layer in p.rules) <= rules_per_layer
        assert all(0.5 * 0.6 - 1e-9 <= d <= 0.6 + 1e-9 for d in p.density.values())
        assert not any(all(q.loss[n] < p.loss[n] - 1e-9 for n in LENGTHS) for q in made)


def test_the_plan_is_chosen_by_what_it_loses_at_an_unseen_length():
    found, unseen = small_profile(), small_profile(seed=1, lengths=(256,))
    made = plans(found, bound=0.6, slack=0.7)
    picked = chosen(made, unseen)
    index = [[found.rules.index(r) for r in layer] for layer in picked.rules]
    for p in made:
        other = [[found.rules.index(r) for r in layer] for layer in p.rules]
        assert unseen.plan(np.array(index)).loss[256] <= unseen.plan(np.array(other)).loss[256]


def test_a_bound_that_no_rule_meets_is_refused():
    with pytest.raises(ValueError, match="no choice of 4 rules has a density between .* larger"):
        plans(small_profile(), bound=0.05)


def test_a_plan_goes_into_a_model_of_the_same_parameters():
    dense = archs.build("dense", 64)
    heads = 64 // dense.repeat[0].mixer.d_head
    rules = (Rule(beta=0.5), *[Rule(alpha=64.0)] * (heads - 1))
    plan = Plan(rules=((Rule(beta=1.0),) * heads, rules), loss={}, density={})
    spec = planned(dense, plan, context=256, block=32)
    assert [b.mixer.rules for b in spec.blocks] == list(plan.rules)
    sizes = [sum(d.size for d in build(s).declarations.values()) for s in (dense, spec)]
    assert sizes[0] == sizes[1]
    with pytest.raises(ValueError, match="a plan of 2 layers for 4"):
        planned(archs.build("dense", 256), plan, context=256, block=32)
    with pytest.raises(ValueError, match="attention without biases"):
        planned(archs.build("gpt2", 64), plan, context=256, block=32)
