"""Does a menu of laws choose the one that extrapolates? Truth is a Farseer surface, which
Chinchilla fits badly and extrapolates worse."""

import dataclasses

import numpy as np
import pytest

from analysis import laws
from analysis.coordinates import Coordinates, evaluate
from analysis.menu import choose
from analysis.planner import size
from analysis.predict import predict
from parallelism.errors import InputError
from tests.analysis.synthetic import Truth, grid, observations

LAW = laws.resolve("farseer")
FAR = ({"N": 1.4e10, "D": 1.2e12}, {"N": 2.5e10, "D": 4e12})


def truth(N, D):
    where = Coordinates(LAW, np.zeros(2), 1.0)
    theta = where.coordinates(next(iter(LAW.published.values())))
    return evaluate(where, theta, {"N": np.atleast_1d(N), "D": np.atleast_1d(D)})[0]


@pytest.fixture(scope="module")
def rows():
    """51 runs of at most 1e21 FLOPs with 0.1 % of noise. Of seeds 0 to 11 the true law's interval
    holds both far points in 11 (not in 0)."""
    N, D = (a.ravel() for a in np.meshgrid(np.geomspace(2e8, 6.4e9, 9), np.geomspace(2e9, 3e11, 7)))
    near = 6 * N * D <= 1e21
    N, D = N[near], D[near]
    assert len(N) == 51
    return observations(
        N, D, truth(N, D) * np.exp(1e-3 * np.random.default_rng(1).standard_normal(51))
    )


@pytest.fixture(scope="module")
def menu(rows):
    return choose(rows, laws=("chinchilla", "chinchilla_gamma", "farseer"), bootstrap=60)


@pytest.mark.slow
def test_hold_outs_choose_the_true_form_and_it_extrapolates_within_1_percent(menu):
    assert menu.fit.law == "farseer" and menu.ranked[0].score < menu.ranked[1].score
    for at in FAR:
        p, there = predict(menu.fit, at), float(truth(at["N"], at["D"])[0])
        assert abs(p.mean / there - 1) < 0.01
        assert p.lo <= there <= p.hi


@pytest.mark.slow
def test_the_form_that_the_data_reject_is_named_and_no_plan_rests_on_it(rows):
    alone = choose(rows, laws=("chinchilla",), bootstrap=60).fit
    assert alone.lack_of_fit["verdict"] == "FORM_REJECTED"
    assert any("form is rejected" in w for w in alone.warnings)
    for at in FAR:
        p, there = predict(alone, at), float(truth(at["N"], at["D"])[0])
        assert abs(p.mean / there - 1) > 0.08  # and statistics alone would have been sure of it
        assert abs(p.mean - there) > 5 * p.sd["statistical"]
        assert p.lo <= there <= p.hi
    with pytest.raises(InputError, match="form is rejected.*--anyway"):
        size(alone, 1e22)
    assert any("form is rejected" in w for w in size(alone, 1e22, anyway=True).warnings)


@pytest.mark.slow
def test_rivals_that_the_data_do_not_reject_widen_the_doubt_about_form():
    N, D = grid(Truth(), budgets=4, sizes=6)
    loss = Truth().loss(N, D) * np.exp(0.003 * np.random.default_rng(1).standard_normal(len(N)))
    menu = choose(observations(N, D, loss), laws=("chinchilla", "chinchilla_tied"), bootstrap=60)
    assert [r["law"] for r in menu.fit.rivals]
    at = {"N": float(N.max() * 30), "D": float(D.max() * 30)}
    alone = predict(dataclasses.replace(menu.fit, rivals=[]), at)
    assert predict(menu.fit, at).sd["form"] > alone.sd["form"]
    inside = {"N": float(N[7]), "D": float(D[7])}
    assert predict(menu.fit, inside).sd["form"] == 0


def test_a_law_that_cannot_be_fitted_is_listed_with_the_reason_and_none_is_one_line():
    N, D = grid(Truth(), budgets=2, sizes=4)
    rows = observations(N, D, Truth().loss(N, D))
    menu = choose(rows, laws=("chinchilla", "farseer"), bootstrap=0)
    assert menu.fit.law == "chinchilla"
    assert "8 usable points" in str(next(s.why for s in menu.ranked if s.law == "farseer"))
    with pytest.raises(InputError, match="none could be fitted"):
        choose(observations(N[:4], D[:4], Truth().loss(N, D)[:4]), laws=("chinchilla", "farseer"))
