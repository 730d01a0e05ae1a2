"""Valleys with a known minimum, valleys without one, and the method's known bias."""

import numpy as np
import pytest

from analysis.fit import fit
from analysis.isoflop import isoflop
from tests.analysis.synthetic import Truth, grid, observations


def parabolas(*, exponent=0.5, sizes=6, span=3.0):
    """Exact parabolas of ln loss in ln N with minima on N* = 0.1 C^exponent."""
    N, D, loss = [], [], []
    for C in (1e14, 3e14, 9e14):
        best = 0.1 * C**exponent
        n = best * 1.1 * np.geomspace(1 / span, span, sizes)
        N += list(n)
        D += list(C / 6 / n)
        loss += list(np.exp(np.log(3 - 0.1 * np.log(C / 1e14)) + 0.05 * np.log(n / best) ** 2))
    return np.array(N), np.array(D), np.array(loss)


def test_minima_and_exponents_of_exact_valleys_are_exact():
    found = isoflop(observations(*parabolas()))
    for valley in found.valleys:
        assert valley.optimum is not None
        best = 0.1 * valley.flops**0.5
        assert valley.optimum["N"] == pytest.approx(best, rel=1e-9)
        assert valley.optimum["D"] == pytest.approx(valley.flops / 6 / best, rel=1e-9)
    assert found.exponents is not None
    assert found.exponents["N"]["value"] == pytest.approx(0.5, abs=1e-9)
    assert found.exponents["D"]["value"] == pytest.approx(0.5, abs=1e-9)


def test_exponents_cover_the_truth_under_noise():
    inside = 0
    for seed in range(100):
        N, D, loss = parabolas(sizes=5)
        rng = np.random.default_rng(seed)
        found = isoflop(observations(N, D, loss * np.exp(0.003 * rng.standard_normal(len(N)))))
        assert found.exponents is not None
        e = found.exponents["N"]
        inside += e["lo"] <= 0.5 <= e["hi"]
    assert inside >= 88


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda N, D, y: (N[2:], D[2:], y[2:]), "4 sizes|3 sizes"),
        (
            lambda N, D, y: (N, D, np.r_[np.exp(-((np.log(N[:5]) - 14) ** 2) * 0.01), y[5:]]),
            "bends downward",
        ),
        (
            lambda N, D, y: (N, D, np.r_[3 * N[:5] ** -0.02, y[5:]]),
            "edge of the sizes; add larger|bends downward",
        ),
    ],
)
def test_a_budget_without_a_minimum_says_why(change, reason):
    import re

    N, D, loss = parabolas(sizes=5)
    found = isoflop(observations(*change(N, D, loss)))
    first = found.valleys[0]
    assert first.optimum is None
    assert first.reason is not None and re.search(reason, first.reason)
    assert found.valleys[1].optimum is not None


def test_compute_without_gaps_has_no_valleys():
    N = np.geomspace(1e5, 1e7, 40)
    found = isoflop(observations(N, N * 50, 3 * N**-0.05))
    assert found.exponents is None
    assert all(v.reason and "spread evenly" in v.reason for v in found.valleys)


def test_bias_on_skew_valleys_is_warned_of_against_an_exact_joint_fit():
    """alpha / beta = 3 on +-16x: the parabola errs without any noise, the joint fit does not."""
    truth = Truth(E=1.3, A=0.7 * 2e5**0.6, B=0.7 * 4e7**0.2, alpha=0.6, beta=0.2)
    N, D = grid(truth, budgets=4, sizes=7, span=16)
    points = observations(N, D, truth.loss(N, D))
    joint = fit(points, bootstrap=0)
    assert joint.params["alpha"] == pytest.approx(0.6, rel=1e-6)
    found = isoflop(points, fit=joint)
    top = found.valleys[-1]
    assert top.optimum is not None
    assert abs(top.optimum["N"] / truth.optimum(top.flops)[0] - 1) > 0.03
    assert len(found.warnings) == 1 and "of the joint fit" in found.warnings[0]
