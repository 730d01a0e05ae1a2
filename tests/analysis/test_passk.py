"""Coverage of repeated sampling and rates by sampling until success."""

from itertools import combinations
from math import exp, lgamma

import numpy as np
import pytest

from analysis.pass_until import fit_task, predict_instances, rates
from analysis.passk import beta_coverage, ceiling, coverage, fit_beta, pass_at_k, verified
from parallelism.errors import InputError


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_pass():
    n = 7
    for c in range(n + 1):
        outcome = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            subsets = list(combinations(outcome, k))
            share = sum(any(s) for s in subsets) / len(subsets)
            np.testing.assert_allclose(pass_at_k([c], n, k)[0, 0], share, rtol=1e-12, atol=1e-14)


def test_pass_at_k_does_not_overflow_and_refuses_more_than_was_drawn():
    assert 0 < pass_at_k([1], 1_000_000, 1000)[0, 0] < 1
    np.testing.assert_allclose(pass_at_k([1], 1_000_000, 1000)[0, 0], 1e-3, rtol=1e-8)
    with pytest.raises(InputError, match="at most 10"):
        pass_at_k([1, 2], [10, 20], 11)
    with pytest.raises(InputError, match="no more passes than samples"):
        pass_at_k([5], 4, 1)


def test_the_beta_coverage_is_that_of_a_monte_carlo_over_problems():
    rng = np.random.default_rng(0)
    alpha, beta = 0.4, 3.0
    p = rng.beta(alpha, beta, 400_000)
    rest = np.log1p(-p)
    k = np.array([1.0, 10.0, 300.0])
    found = beta_coverage(np.log([alpha, beta]), k)
    for j, kj in enumerate(k):
        each = -np.expm1(kj * rest)
        assert abs(found[j] - each.mean()) < 4 * each.std() / np.sqrt(len(p))


def test_the_beta_binomial_fit_is_the_optimum_of_its_likelihood():
    rng = np.random.default_rng(1)
    n, c = 20, rng.binomial(20, rng.beta(0.5, 2.0, 60))

    def minus_log(a, b):
        def beta(u, v):
            return lgamma(u) + lgamma(v) - lgamma(u + v)

        prior = 0.5 * ((np.log(a) / 3) ** 2 + (np.log(b) / 3) ** 2)
        return -sum(beta(a + ci, b + n - ci) - beta(a, b) for ci in c) + prior

    found = fit_beta(c, n)
    best = minus_log(*np.exp(found))
    for step in ([1e-3, 0], [-1e-3, 0], [0, 1e-3], [0, -1e-3], [1e-3, 1e-3]):
        assert minus_log(*np.exp(found + step)) > best


@pytest.mark.slow
def test_coverage_past_the_samples_drawn_is_covered_by_its_interval():
    log_failed = lgamma(1004.0) + lgamma(4.5) - lgamma(1004.5) - lgamma(4.0)
    truth = 1 - exp(log_failed)
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        c = rng.binomial(50, rng.beta(0.5, 4.0, 150))
        found = coverage(c, 50, [10, 1000], bootstrap=100, seed=seed)
        assert found.extrapolated.tolist() == [False, True]
        inside += found.lo[1] <= truth <= found.hi[1]
    assert inside >= 50  # of 60 at 95 %


def test_values_at_several_k_share_their_problems():
    rng = np.random.default_rng(0)
    c = rng.binomial(100, rng.beta(0.5, 4.0, 100))
    found = coverage(c, 100, [1, 10, 100])
    # the sd over problems, not over samples: an interval from samples alone would be far narrower
    p = pass_at_k(c, 100, [10])[:, 0]
    expected = 2 * 1.96 * p.std() / np.sqrt(100)
    np.testing.assert_allclose(found.hi[1] - found.lo[1], expected, rtol=0.2)


def test_an_imperfect_verifier_stops_below_one_where_coverage_does_not():
    p = np.array([0.01, 0.2])
    perfect = verified(p, [1e6], accepts_right=1.0, accepts_wrong=0.0)
    np.testing.assert_allclose(perfect[:, 0], [1.0, 1.0], rtol=1e-6)
    top = ceiling(p, accepts_right=0.9, accepts_wrong=0.05)
    by_hand = np.mean(p * 0.9 / (p * 0.9 + (1 - p) * 0.05))
    np.testing.assert_allclose(top, by_hand, rtol=1e-12)
    rng = np.random.default_rng(0)
    k, trials = 5, 200_000
    right = rng.random((trials, k)) < 0.2
    accept = np.where(right, rng.random((trials, k)) < 0.9, rng.random((trials, k)) < 0.05)
    first = accept.argmax(1)
    answered = accept.any(1) & right[np.arange(trials), first]
    found = verified([0.2], k, accepts_right=0.9, accepts_wrong=0.05)[0, 0]
    assert abs(found - answered.mean()) < 4 * np.sqrt(0.25 / trials)


def draw_until(p, *, successes, most, rng):
    """Draw until so many successes, or until `most` draws: successes and draws."""
    K = rng.negative_binomial(successes, max(p, 1e-9)) + successes
    if K <= most:
        return successes, K
    return rng.binomial(most, p), most


def test_sampling_until_success_estimates_a_rate_without_bias():
    rng = np.random.default_rng(0)
    p, r = 0.02, 4
    K = rng.negative_binomial(r, p, 200_000) + r
    found = rates(np.full(K.shape, r), K)
    se = found.unbiased.std() / np.sqrt(len(K))
    assert abs(found.unbiased.mean() - p) < 4 * se
    assert found.mle.mean() - p > 20 * se  # r / K is biased upwards when stopped at r


SIZES = np.array([3e7, 1e8, 3e8, 1e9])


def task(rng, *, bend=0.0):
    """Counts of one task whose F = ln(-ln PU) falls by .25 an e-fold, over four sizes."""
    t = np.log(SIZES / 3e8)
    p = np.exp(-np.exp(1.5 - 0.25 * t + bend * t**2))
    pairs = [draw_until(q, successes=20, most=100_000, rng=rng) for q in p]
    return [np.array(v) for v in zip(*pairs, strict=True)]


def test_the_pass_until_likelihood_recovers_the_law_and_its_interval_covers():
    truth = np.exp(-np.exp(1.5 - 0.25 * np.log(1e10 / 3e8)))
    inside, alphas, false_alarms = 0, [], 0
    for seed in range(300):
        found = fit_task(SIZES, *task(np.random.default_rng(seed)))
        _, lo, hi = found.predict(1e10)
        inside += lo <= truth <= hi
        alphas.append(found.alpha)
        false_alarms += found.shape != "straight"
    assert 0.92 <= inside / 300 <= 0.98
    assert false_alarms / 300 <= 0.09
    np.testing.assert_allclose(np.mean(alphas), 0.25, atol=3 * np.std(alphas) / np.sqrt(300) + 2e-3)


def test_a_bend_of_the_log_log_rate_is_found():
    shapes = [fit_task(SIZES, *task(np.random.default_rng(s), bend=-0.1)).shape for s in range(20)]
    assert shapes.count("accelerated") >= 18


def test_a_model_without_any_success_still_pulls_the_law():
    K = np.array([1e5, 1e4, 1e3, 1e3])
    r = np.array([0.0, 50.0, 50.0, 120.0])
    seen, blind = fit_task(SIZES, r, K), fit_task(SIZES[1:], r[1:], K[1:])
    at = float(SIZES[0])
    assert blind.predict(at)[0] > 2e-4  # 20 passes of the 100,000 draws, of which none was seen
    assert seen.predict(at)[0] < 0.5 * blind.predict(at)[0]
    assert seen.resolution == 1e-5


def test_instances_of_different_difficulty_are_summed_not_pooled():
    rng = np.random.default_rng(3)
    at = 1e10
    level = rng.normal(1.0, 0.8, 60)
    p_MI = np.exp(-np.exp(level - 0.3 * np.log(SIZES / 3e8)[:, None]))
    truth = np.exp(-np.exp(level - 0.3 * np.log(at / 3e8))).mean()
    drawn = [[draw_until(q, successes=8, most=20_000, rng=rng) for q in row] for row in p_MI]
    r, K = np.moveaxis(np.array(drawn), -1, 0)
    summed = predict_instances(SIZES, r, K, at=at).mean()
    pooled = fit_task(SIZES, r.sum(1), K.sum(1)).predict(at)[0]
    assert abs(summed - truth) < 0.03
    assert abs(pooled - truth) > 2 * abs(summed - truth)
