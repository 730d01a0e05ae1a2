"""Two fits compared: multiplier, crossing, verdict."""

import json

import numpy as np
import pytest

from analysis.compare import compare
from analysis.compare_figure import comparison
from analysis.crossing import crossing
from analysis.multiplier import Curve, reach
from analysis.predict import half_interval, log_spread
from analysis.svg import svg
from tests.analysis.recipes import (
    BASE,
    FLOORED,
    HIGH,
    LATER,
    LOW,
    TWICE,
    compute_for,
    crossing_of,
    fitted,
    frontier,
    rows,
    target,
)
from tests.analysis.synthetic import Truth


@pytest.fixture(scope="module")
def base():
    return fitted(BASE, seed=1)


@pytest.fixture(scope="module")
def floored():
    return fitted(FLOORED, seed=2)


@pytest.fixture(scope="module")
def twice():
    return fitted(TWICE, seed=3)


@pytest.fixture(scope="module")
def crossed(base, floored):
    return compare(base, floored, flops=1e17, names=("dense", "floored"))


# -- the multiplier -------------------------------------------------------------------------------


def test_multiplier_and_losses_are_those_of_the_fitted_laws(base, floored, crossed):
    one, other = Truth(**base.params), Truth(**floored.params)
    for row in [*crossed.rows, target(crossed)]:
        C = row["at"]
        assert row["loss"]["dense"] == pytest.approx(frontier(one, C), rel=1e-6)
        assert row["loss"]["floored"] == pytest.approx(frontier(other, C), rel=1e-6)
        exact = compute_for(one, frontier(other, C)) / C
        assert row["multiplier"]["value"] == pytest.approx(exact, rel=1e-4)
        assert row["difference"]["value"] == pytest.approx(
            frontier(one, C) - frontier(other, C), abs=1e-6
        )


def test_gap_at_equal_loss_is_that_of_the_fitted_laws(base, twice):
    one, other = Truth(**base.params), Truth(**twice.params)
    found = compare(base, twice)
    assert len(found.gap) == 5
    for point in found.gap:
        C_a, C_b = (compute_for(t, point["loss"]) for t in (one, other))
        assert point["a"] == pytest.approx(C_a, rel=1e-4)
        assert point["b"] == pytest.approx(C_b, rel=1e-4)
        assert point["value"] == pytest.approx(C_a / C_b, rel=2e-4)
        assert point["lo"] < point["value"] < point["hi"]


def test_recipe_that_needs_twice_the_compute_has_a_steady_multiplier_of_two(base, twice):
    C = np.geomspace(LOW, 1e17, 4)
    assert frontier(TWICE, 2 * C) == pytest.approx(frontier(BASE, C), rel=1e-12)
    found = compare(twice, base, flops=3e15)
    for row in found.rows:
        assert row["multiplier"]["lo"] < 2 < row["multiplier"]["hi"] < 2.4
    assert found.trend["lo"] < 0 < found.trend["hi"] and "no trend" in found.trend["is"]
    assert found.verdict["better"] == "B" and found.decided
    assert found.verdict["from"] == pytest.approx(LOW) and found.verdict["to"] == pytest.approx(
        HIGH
    )


@pytest.mark.slow
def test_advantage_of_a_better_start_shrinks_and_then_changes_sides(base, floored):
    assert compare(base, floored, flops=1e17).trend["is"] == "the advantage changes sides"
    assert compare(floored, base).trend["is"] == "shrinks towards 1"
    small = compare(base, floored, flops=3e14)
    assert small.rows[0]["multiplier"]["lo"] > 1  # the floored recipe starts ahead
    assert small.trend["is"] == "shrinks towards 1"


def test_interval_of_the_log_ratio_is_that_of_both_predictions_in_quadrature(base, twice):
    """Far from the data, where form and statistics both count; normal theory is the reference."""
    found = compare(base, twice, flops=1e17)
    half = []
    for one in (base, twice):
        n, d = Truth(**one.params).optimum(np.array([1e17]))
        _, sd = log_spread(one, {"N": n, "D": d})
        half.append(half_interval(one, {k: v for k, v in sd.items() if k != "noise"}, level=0.95))
    ratio = target(found)["log_ratio"]
    assert (ratio["hi"] - ratio["lo"]) / 2 == pytest.approx(float(np.hypot(*half)[0]), rel=0.15)
    run = target(found)["run_difference"]
    assert (
        run["hi"] - run["lo"]
        > target(found)["difference"]["hi"] - (target(found)["difference"]["lo"])
    )


@pytest.mark.slow
def test_wider_levels_give_wider_intervals(base, twice):
    half, most = (compare(base, twice, flops=1e16, level=v) for v in (0.5, 0.99))
    for key in ("multiplier", "difference", "log_ratio", "run_difference"):
        inner, outer = target(half)[key], target(most)[key]
        assert outer["lo"] < inner["lo"] < inner["hi"] < outer["hi"]


@pytest.mark.slow
def test_order_of_the_two_only_changes_the_sign(base, floored):
    one, other = compare(base, floored, flops=1e17), compare(floored, base, flops=1e17)
    for left, right in zip(one.rows, other.rows, strict=True):
        assert left["difference"]["value"] == pytest.approx(
            -right["difference"]["value"], abs=1e-12
        )
        assert left["p_a_better"] == pytest.approx(1 - right["p_a_better"], abs=0.05)
    for left, right in zip(one.gap, other.gap, strict=True):
        assert left["value"] == pytest.approx(1 / right["value"], rel=1e-9)
    assert one.crossing["at"] == pytest.approx(other.crossing["at"], rel=1e-9)
    assert {one.verdict["better"], other.verdict["better"]} in ({"A", "B"}, {None})


def test_a_loss_out_of_reach_is_unbounded_and_never_a_number(base):
    worse = fitted(Truth(E=2.4, A=20.0, B=200.0), seed=4)
    found = compare(worse, base, flops=1e19)
    times = target(found)["multiplier"]
    assert times["value"] is None and times["hi"] is None
    assert "out of reach" in found.text() and found.trend["value"] is None
    json.dumps(found.to_json(), allow_nan=False)


def test_reach_is_the_first_point_at_or_below_the_target():
    log_x = np.linspace(0, 3, 4)
    least = np.array([[4.0, 3.0, 3.0, 1.0]] * 5)
    found = reach(log_x, least, np.array([3.5, 3.0, 2.0, 4.5, 0.5]))
    assert found.tolist() == [0.5, 1.0, 2.5, -np.inf, np.inf]


# -- crossings (T12c) -----------------------------------------------------------------------------


def test_crossing_before_the_target_is_all_but_certain_and_its_interval_holds_the_truth(crossed):
    truth = crossing_of(BASE, FLOORED)
    assert HIGH < truth < 1e17
    found = crossed.crossing
    assert found["probability"] > 0.9 and found["is"] == "before the target"
    assert found["lo"] < truth < found["hi"] and found["lo"] < found["at"] < found["hi"]


def test_crossing_beyond_the_target_is_improbable(base):
    assert crossing_of(BASE, LATER) > 1e17
    found = compare(base, fitted(LATER, seed=6), flops=1e15).crossing
    assert found["probability"] < 0.1
    assert found["is"].startswith("beyond the target") and found["at"] > 1e16


@pytest.mark.slow
def test_parallel_laws_have_a_probability_and_no_finite_interval(base, twice):
    """Twice the compute at every loss: the curves never cross."""
    found = compare(base, twice, flops=1e16).crossing
    assert found["probability"] is not None and found["probability"] < 0.1
    assert found["lo"] is None and found["hi"] is None
    near = compare(base, fitted(BASE, seed=9), flops=1e16).crossing
    assert near["probability"] is not None and 0.1 < near["probability"] < 1
    assert near["lo"] is None and near["hi"] is None


def test_a_fit_against_itself_is_one_and_says_so(base):
    found = compare(base, base, flops=1e17)
    for row in [*found.rows, target(found)]:
        assert row["multiplier"] == pytest.approx({"value": 1.0, "lo": 1.0, "hi": 1.0}, rel=1e-9)
        assert row["difference"] == {"value": 0.0, "lo": 0.0, "hi": 0.0}
        assert row["p_a_better"] == 0.5
    assert found.crossing["probability"] is None and "undefined" in found.crossing["is"]
    assert not found.decided and any("nothing to compare" in w for w in found.warnings)


def test_crossing_matches_a_count_over_draws():
    """Straight lines with random slopes: each draw crosses at -offset / slope."""
    rng = np.random.default_rng(0)
    log_x = np.linspace(-10, 10, 401)
    offset, slope = 1 + 0.1 * rng.standard_normal(500), -0.5 + 0.05 * rng.standard_normal(500)
    zero = np.zeros((500, 401))
    a = Curve(log_x, 1 - 0.5 * log_x, offset[:, None] + slope[:, None] * log_x, zero, None, log_x)
    b = Curve(log_x, zero[0], zero, zero, None, log_x)
    found = crossing(a, b, low=np.exp(0.0), high=np.exp(2.1), level=0.9)
    roots = -offset / slope
    assert found["probability"] == pytest.approx(((roots > 0) & (roots < 2.1)).mean())
    assert np.log(found["at"]) == pytest.approx(2, abs=1e-9)
    assert np.log(found["lo"]) == pytest.approx(np.quantile(roots, 0.05, method="lower"), abs=1e-9)
    assert np.log(found["hi"]) == pytest.approx(np.quantile(roots, 0.95, method="higher"), abs=1e-9)


# -- the verdict ----------------------------------------------------------------------------------


def test_better_where_measured_but_not_at_the_target_is_undecided(crossed, base, floored):
    assert crossed.verdict["better"] is None and not crossed.decided
    assert "floored is better from" in crossed.verdict["reason"]
    assert crossed.verdict["at_target"] == "dense"
    inside = compare(base, floored)
    assert inside.verdict["better"] == "B" and "no target" in inside.verdict["reason"]


def test_two_samples_of_one_recipe_are_undecided(base):
    found = compare(base, fitted(BASE, seed=9), flops=1e16)
    assert not found.decided and "includes 0" in found.verdict["reason"]


@pytest.mark.slow
def test_shared_error_of_the_evaluation_widens_the_gap_by_its_share(base, twice):
    plain = compare(base, twice)
    wide = compare(base, twice, evaluation_sd=(0.05, 0.0))
    for left, right in zip(plain.rows, wide.rows, strict=True):
        a, b = left["log_ratio"], right["log_ratio"]
        extra = 1.96 * 0.05 / left["loss"]["A"]
        assert (b["hi"] - b["lo"]) / 2 == pytest.approx(
            np.hypot((a["hi"] - a["lo"]) / 2, extra), rel=0.1
        )
    assert any("upper bound" in w for w in wide.warnings)


# -- what is left behind --------------------------------------------------------------------------


def test_comparison_is_plain_json_and_the_same_every_time(base, floored, crossed):
    again = compare(base, floored, flops=1e17, names=("dense", "floored"))
    text = json.dumps(crossed.to_json(), allow_nan=False)
    assert text == json.dumps(again.to_json(), allow_nan=False)
    assert set(json.loads(text)) >= {"rows", "at_target", "gap", "crossing", "verdict", "curves"}


def test_figure_names_both_recipes_and_the_probability(crossed):
    drawn = svg(comparison(crossed, (rows(BASE), rows(FLOORED))), name="compare")
    for word in ("dense", "floored", "crossing", "both measured", "P(order flips"):
        assert word in drawn
