"""From size and data to a score: two steps with one interval, choices, shapes, families."""

from types import SimpleNamespace

import numpy as np
import pytest

from analysis.arrays import rows
from analysis.chain import chain
from analysis.choices import Items, fit_choices
from analysis.downstream import METHODS, compare_methods
from analysis.laws.chinchilla import LAWS as LOSS_LAWS
from analysis.laws.downstream import ACCURACY_OF_LOSS
from analysis.observational import capabilities, fit_observational
from analysis.shape import isotonic, refuse_contradicted, shape
from parallelism.errors import InputError

CHINCHILLA = next(law for law in LOSS_LAWS if law.name == "chinchilla")


def task_loss(N, D):
    return 0.45 + 90 / N**0.28 + 260 / D**0.28


def accuracy(loss):
    return 0.25 + 0.7 / (1 + np.exp(5 * (loss - 0.95)))


def ladder(seed, *, loss_noise=0.01, score_noise=0.002):
    """A ladder of 4 sizes x 4 lengths; three checkpoints a run for the second step."""
    rng = np.random.default_rng(seed)
    N, D = (a.ravel() for a in np.meshgrid([2e8, 4e8, 8e8, 1.3e9], [20.0, 40.0, 100.0, 200.0]))
    D = D * N
    run = [f"run {i}" for i in range(16)]
    seeds = loss_noise * rng.standard_normal(16)
    loss = task_loss(N, D) * np.exp(seeds)
    early = np.stack([task_loss(N, D * f) * np.exp(seeds) for f in (0.3, 0.6, 1.0)])
    score = accuracy(early) + score_noise * rng.standard_normal(early.shape)
    return SimpleNamespace(
        first=rows(CHINCHILLA, {"N": N, "D": D}, loss, run=run),
        second=rows(ACCURACY_OF_LOSS, {"loss": early.ravel()}, score.ravel(), run=run * 3),
    )


TARGET = {"N": 7e9, "D": 4e12}


@pytest.mark.slow
def test_the_chained_interval_covers_where_that_of_the_second_step_alone_does_not():
    truth = accuracy(task_loss(**TARGET))
    chained, alone = 0, 0
    for seed in range(24):
        made = ladder(seed)
        found = chain(
            made.first, made.second, bootstrap=64, starts=16, form=0.0, second_form=0.0, seed=seed
        )
        score = found.predict(TARGET)
        chained += score.lo <= truth <= score.hi
        half = 2.01 * np.hypot(score.sd["second"], found.second.noise)
        alone += abs(score.mean - truth) <= half
    assert chained >= 21  # of 24 at 95 %
    assert alone <= 16  # an interval of 95 % has fewer than 20 once in 200


def test_noise_free_runs_give_the_score_itself():
    made = ladder(0, loss_noise=0.0, score_noise=0.0)
    score = chain(
        made.first, made.second, bootstrap=64, starts=16, form=0.0, second_form=0.0
    ).predict(TARGET)
    np.testing.assert_allclose(score.mean, accuracy(task_loss(**TARGET)), rtol=1e-4)
    assert score.hi - score.lo < 1e-3


def test_steps_that_do_not_join_are_refused():
    made = ladder(0)
    with pytest.raises(InputError, match="choose a second step that takes loss"):
        chain(made.first, made.first)
    other = rows(
        ACCURACY_OF_LOSS, {"loss": np.linspace(1, 2, 9)}, np.linspace(0.8, 0.3, 9), run=range(9)
    )
    with pytest.raises(InputError, match="label rows of one run alike"):
        chain(made.first, other)
    with pytest.raises(InputError, match="distinct points for 4 parameters"):
        rows(ACCURACY_OF_LOSS, {"loss": [1.0, 1.0, 2.0, 2.0]}, [0.5, 0.5, 0.3, 0.3], run=range(4))


# -- shapes ----------------------------------------------------------------------------------------

SCALE = np.geomspace(1e18, 1e24, 13)


def u_shaped(C):
    """A skill learned at 3e22 with a distractor learned at 1e20."""
    t = np.log(C)
    skill, trap = (1 / (1 + np.exp(-1.2 * (t - np.log(c)))) for c in (3e22, 1e20))
    return 0.6 * skill + 0.4 * (1 - trap)


def saturating(C):
    return 0.9 - 0.6 * (C / 1e18) ** -0.25


def test_a_turn_is_found_and_saturation_is_not_taken_for_one():
    found = {"u_shaped": 0, "rising": 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noise = 0.02 * rng.standard_normal(len(SCALE))
        found["u_shaped"] += shape(SCALE, u_shaped(SCALE) + noise, bootstrap=100).turning
        found["rising"] += shape(SCALE, saturating(SCALE) + noise, bootstrap=100).turning
    assert found["u_shaped"] >= 18
    assert found["rising"] <= 2


@pytest.mark.slow
def test_the_interval_of_the_turn_covers_the_turn():
    # a parabola in ln C, so that the polynomial is the truth
    y = 0.3 + 0.004 * (np.log(SCALE) - np.log(1e21)) ** 2
    inside = 0
    for seed in range(60):
        noise = 0.01 * np.random.default_rng(seed).standard_normal(len(SCALE))
        found = shape(SCALE, y + noise, bootstrap=100)
        assert found.verdict == "u_shaped" and found.share_turning > 0.99
        inside += (found.turn_lo or np.inf) < 1e21 < (found.turn_hi or 0)
    assert 51 <= inside  # of 60 at 95 %


def test_a_monotone_fit_that_the_last_two_sizes_contradict_is_not_extrapolated():
    early = SCALE[:7]  # up to 1e21: down, then up at the end
    y = np.array([0.40, 0.38, 0.33, 0.24, 0.17, 0.15, 0.22])
    falling = -isotonic(-y, np.log(early)) - 1e-3 * np.arange(7)
    with pytest.raises(InputError, match="fit a law that turns"):
        refuse_contradicted(early, y, falling, sd=0.01)
    refuse_contradicted(early, y, falling, sd=0.1)  # within the noise it is no contradiction
    refuse_contradicted(early, falling, falling, sd=0.01)


def test_isotonic_regression_is_the_least_squares_of_all_rising_sequences():
    y = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    grid = np.linspace(1, 5, 9)
    mesh = np.array(np.meshgrid(*[grid] * 5)).reshape(5, -1).T
    rising = mesh[(np.diff(mesh, axis=1) >= 0).all(1)]
    best = rising[((rising - y) ** 2).sum(1).argmin()]
    np.testing.assert_allclose(isotonic(y, np.arange(5.0)), best)  # 2 2 2 4.5 4.5 is on the grid
    np.testing.assert_allclose(isotonic([1.0, 3.0, 0.0], [0.0, 1.0, 1.0]), [1.0, 1.5, 1.5])


# -- choices ---------------------------------------------------------------------------------------

COMPUTE = np.append(np.geomspace(1e18, 1e21, 8), 1e23)


def questions(seed, *, items=200, choices=4, noise=0.15, common=0.05):
    """Items under eight models and a target of 100 times the compute: each choice has a bending
    law of its own, noise within its item, and a whole model's right answers move together."""
    rng = np.random.default_rng(seed)
    right = rng.integers(0, choices, items)
    is_right = np.arange(choices) == right[:, None]
    shape_IJ = (items, choices)
    level = np.where(is_right, rng.normal(0, 1, shape_IJ), rng.normal(0.3, 0.8, shape_IJ))
    level += rng.normal(8, 1, (items, 1))
    slope = np.where(is_right, rng.normal(-0.12, 0.06, shape_IJ), rng.normal(0, 0.05, shape_IJ))
    slope -= 0.25
    t = np.log(COMPUTE / 1e21)
    nll = level + slope * ((1 - np.exp(-0.05 * t)) / 0.05)[:, None, None]
    nll += noise * rng.standard_normal(nll.shape)
    nll += common * rng.standard_normal((len(t), 1, 1)) * is_right
    return Items(COMPUTE, nll, right)


def test_likelihoods_of_all_choices_give_back_the_accuracy_at_100_times_the_compute():
    errors, inside = [], 0
    for seed in range(20):
        truth = questions(seed)
        score = fit_choices(truth.models(slice(0, 8))).predict(1e23, draws=128, seed=seed)
        accuracy = truth.correct_MI[-1].mean()
        errors.append(score.mean - accuracy)
        inside += score.lo <= accuracy <= score.hi
    assert abs(np.mean(errors)) < 0.015 and np.std(errors) < 0.05
    assert inside >= 17  # of 20 at 95 %


def test_noise_free_choices_give_the_accuracy_and_probability_exactly():
    truth = questions(0, noise=0.0, common=0.0)
    # a straight line in ln C is one of the exponents tried: then the laws are exact
    t = np.log(COMPUTE / 1e21)
    line = truth.nll_MIJ[7] + (truth.nll_MIJ[7] - truth.nll_MIJ[6]) * t[:, None, None]
    truth = Items(COMPUTE, line, truth.right_I)
    score = fit_choices(truth.models(slice(0, 8))).predict(1e23, draws=32)
    np.testing.assert_allclose(score.mean, truth.correct_MI[-1].mean(), atol=1e-12)
    np.testing.assert_allclose(score.p_right, truth.p_right_MI[-1].mean(), atol=1e-6)
    p = np.exp(-line[-1]) / np.exp(-line[-1]).sum(-1, keepdims=True)
    brier = ((p - (np.arange(4) == truth.right_I[:, None])) ** 2).sum(-1).mean()
    np.testing.assert_allclose(score.brier, brier, atol=1e-6)


def test_items_with_fewer_choices_keep_theirs_and_damaged_ones_are_refused():
    truth = questions(1, items=60)
    nll = truth.nll_MIJ.copy()
    last = truth.right_I != 3
    nll[:, last, 3] = np.nan
    fewer = Items(COMPUTE, nll, truth.right_I)
    assert set(np.round(fewer.chance_I, 3)) == {0.25, 0.333}
    score = fit_choices(fewer.models(slice(0, 8))).predict(1e23, draws=32)
    assert np.isfinite(score.brier) and score.mean > truth.models([0]).correct_MI.mean()
    nll[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="every"):
        Items(COMPUTE, nll, truth.right_I)
    with pytest.raises(InputError, match="at least 4 models"):
        fit_choices(truth.models(slice(0, 3)))


# -- methods side by side --------------------------------------------------------------------------


@pytest.mark.slow
def test_methods_are_judged_on_models_they_have_not_seen():
    truth = questions(1)
    found = compare_methods(truth.models(slice(0, 8)), at=1e23, bootstrap=64)
    assert {r["method"] for r in found.ranking} == set(METHODS)
    errors = [r["error"] for r in found.ranking]
    assert errors == sorted(errors) and found.best == found.ranking[0]["method"]
    # the two largest models, each from the smaller ones alone
    assert sorted({g.C for g in found.held_out}) == pytest.approx(list(COMPUTE[6:8]))
    for guess in found.held_out:
        below = truth.models(COMPUTE < guess.C * 0.999)
        mean, lo, hi = METHODS[guess.method](below, guess.C, bootstrap=64, level=0.95, seed=0)
        assert (guess.mean, guess.lo, guess.hi) == (mean, lo, hi)
    means = [g.mean for g in found.target if g.mean is not None]
    assert found.spread == max(means) - min(means)
    assert {g.C for g in found.target} == {1e23}


@pytest.mark.slow
def test_a_method_that_cannot_be_used_is_told_and_the_others_go_on():
    # five items: too few to cluster
    truth = questions(2, items=5)
    found = compare_methods(truth.models(slice(0, 8)), bootstrap=64)
    refused = next(r for r in found.ranking if r["method"] == "difficulty")
    assert refused["error"] is None and "give 10 to" in refused["refused"]
    assert found.best in ("choices", "two_steps")
    with pytest.raises(InputError, match="the largest are held out"):
        compare_methods(truth.models(slice(0, 5)))


# -- families of others ----------------------------------------------------------------------------


def leaderboard(seed, *, noise=0.01):
    """Three families of six models; two capabilities that compute buys at a rate of the family;
    eight benchmarks that are linear in them, and a target that is a sigmoid of them."""
    rng = np.random.default_rng(seed)
    family = np.repeat(["a", "b", "c"], 6)
    compute = np.tile(np.geomspace(1e20, 1e23, 6), 3)
    rate = {"a": (0.05, 0.02), "b": (0.07, 0.00), "c": (0.04, 0.05)}
    t = np.log(compute / 1e21)
    skill = np.array([[r * u for r in rate[f]] for f, u in zip(family, t, strict=True)])
    loadings = np.random.default_rng(99).uniform(0.2, 1.0, (2, 8))
    table = 0.4 + skill @ loadings + noise * rng.standard_normal((18, 8))

    def target(skill):
        return 0.25 + 0.75 / (1 + np.exp(-(6 * skill[..., 0] + 3 * skill[..., 1] - 1)))

    truth = target(np.array(rate["c"]) * np.log(1e24 / 1e21))
    return table, compute, family, target(skill), truth


def test_a_family_is_predicted_from_what_all_families_share():
    errors, inside = [], 0
    for seed in range(40):
        table, compute, family, target, truth = leaderboard(seed)
        # the target was not run on the two largest models of the family asked for
        seen = np.where((family == "c") & (compute > 1e22), np.nan, target)
        made = fit_observational(table, C=compute, family=family, target=seen, count=2, low=0.25)
        score = made.predict("c", 1e24)
        errors.append(score.mean - truth)
        inside += score.lo <= truth <= score.hi
    assert np.sqrt(np.mean(np.square(errors))) < 0.05
    assert inside >= 36  # of 40 at 95 %


def test_components_are_found_through_gaps_of_the_table():
    table = leaderboard(0, noise=0.0)[0]
    whole = capabilities(table, count=2)
    assert whole.share.sum() > 1 - 1e-12
    gaps = table.copy()
    gaps[[0, 5, 9, 14], [1, 3, 0, 7]] = np.nan
    filled = capabilities(gaps, count=2)
    rebuilt = filled.mean + filled.scores @ filled.loadings
    np.testing.assert_allclose(rebuilt, table, atol=1e-4)
    with pytest.raises(InputError, match="leave it out"):
        capabilities(np.where(np.arange(8) == 2, np.nan, table), count=2)
