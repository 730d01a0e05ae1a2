"""The response surface over (lr, batch), what it decides, and the transfer check."""

import numpy as np
import pytest

from analysis.hyper import Runs, excess, fit_surface, optimum, rule_of, runs_of
from analysis.hyper_rules import RULES, held_out, published, regret, weight_decay
from analysis.transfer_check import bottom, transfer
from parallelism.errors import InputError
from tests.analysis.synthetic import observations

H = np.array([[0.006, -0.002], [-0.002, 0.005]])
CELLS = [(n, d) for n in (1e8, 3e8, 9e8) for d in (4e9, 2e10, 1e11)]


def best(N, D):
    return np.log([1.8 * N**-0.7 * D**0.3, 0.6 * N**0.05 * D**0.55])


def sweep(*, noise=0.0, seed=0, factor=1.41, steps=4, shift=0.0, cells=CELLS):
    """A grid of (lr, B) around the best of each cell, with a quadratic valley."""
    rng = np.random.default_rng(seed)
    rows = []
    for N, D in cells:
        least = 1.8 + 400 / N**0.34 + 2000 / D**0.36
        for i in range(-steps, steps + 1):
            for j in range(-steps, steps + 1):
                # off the grid's centre, so that no run is exactly at the optimum
                dz = np.log(factor) * np.array([i + 0.3, j - 0.2]) + shift
                z = best(N, D) + dz
                loss = least * np.exp(dz @ H @ dz + noise * rng.standard_normal())
                rows.append((N, D, np.exp(z[0]), np.exp(z[1]), loss))
    return Runs(*np.array(rows).T)


@pytest.fixture(scope="module")
def exact():
    return sweep()


@pytest.fixture(scope="module")
def surface(exact):
    return fit_surface(exact)


# -- the surface -----------------------------------------------------------------------------------


def test_noise_free_runs_give_back_curvature_exponents_and_optimum(surface):
    np.testing.assert_allclose(surface.curvature, H, rtol=1e-8)
    got = surface.exponents
    assert got["lr~N"]["value"] == pytest.approx(-0.7, abs=1e-8)
    assert got["lr~D"]["value"] == pytest.approx(0.3, abs=1e-8)
    assert got["batch_tokens~N"]["value"] == pytest.approx(0.05, abs=1e-8)
    assert got["batch_tokens~D"]["value"] == pytest.approx(0.55, abs=1e-8)
    # far outside the sweep too
    at = optimum(surface, 7e10, 2e12)
    lr, batch = np.exp(best(7e10, 2e12))
    assert at["lr"]["value"] == pytest.approx(lr, rel=1e-7)
    assert at["batch_tokens"]["value"] == pytest.approx(batch, rel=1e-7)


def test_the_plateau_costs_a_thousandth_with_the_other_knob_kept_best(surface):
    N, D = 3e8, 2e10
    edge = optimum(surface, N, D)["lr"]["plateau_hi"]
    assert excess(surface, N=N, D=D, lr=edge)["value"] == pytest.approx(1e-3, rel=1e-6)
    # a scan over the batch finds nothing cheaper than the closed form
    costs = [
        excess(surface, N=N, D=D, lr=edge, batch_tokens=b)["value"]
        for b in np.geomspace(1e4, 1e7, 4001)
    ]
    assert min(costs) == pytest.approx(1e-3, rel=1e-4) and min(costs) >= 1e-3 * (1 - 1e-9)


def test_a_wrong_setting_costs_what_the_runs_there_lost(surface, exact):
    N, D = CELLS[4]
    rows = np.flatnonzero((exact.N == N) & (exact.D == D))
    least = 1.8 + 400 / N**0.34 + 2000 / D**0.36
    for row in rows[::7]:
        cost = excess(surface, N=N, D=D, lr=exact.lr[row], batch_tokens=exact.B[row])
        assert cost["value"] == pytest.approx(exact.loss[row] / least - 1, rel=1e-7, abs=1e-12)


@pytest.mark.slow
def test_intervals_cover_the_true_optimum_at_their_level():
    inside = []
    for seed in range(40):
        fitted = fit_surface(sweep(noise=0.001, seed=seed), bootstrap=100, seed=seed)
        at = optimum(fitted, 3e9, 3e11)
        lr, batch = np.exp(best(3e9, 3e11))
        inside.append(at["lr"]["lo"] <= lr <= at["lr"]["hi"])
        inside.append(at["batch_tokens"]["lo"] <= batch <= at["batch_tokens"]["hi"])
    # 80 draws at 95 %: two standard errors below is 90 %
    assert np.mean(inside) >= 0.90


def test_diverged_runs_do_not_move_the_surface(exact, surface):
    worst, cells = exact.loss.copy(), exact.cells[1]
    least = np.array([worst[cells == k].min() for k in range(len(CELLS))])
    # outside the window of their cell, and the half of it with the higher rates
    diverged = (worst > 1.02 * least[cells]) & (exact.lr > np.median(exact.lr))
    assert diverged.sum() > 10
    worst[diverged] = 7.0
    moved = fit_surface(Runs(exact.N, exact.D, exact.lr, exact.B, worst))
    np.testing.assert_allclose(moved.line, surface.line, rtol=1e-9)


def test_a_surface_has_no_regret_on_cells_it_never_saw_and_a_wrong_rule_has(exact, surface):
    assert max(v.max() for v in held_out(exact).values()) == 0
    assert regret(rule_of(surface), exact).max() == 0
    wrong = regret(lambda N, D: tuple(3 * np.exp(best(N, D))), exact)
    assert wrong.min() > 5e-3


def test_an_optimum_outside_the_values_tried_is_said(surface):
    assert surface.notes == ()
    # lr and batch up to 0.7 e-folds from the best on one side only
    off = fit_surface(sweep(shift=1.7, steps=4), window=0.1)
    assert len(off.notes) == 2 * len(CELLS) and "outside those tried" in off.notes[0]


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        (lambda: sweep(cells=[(1e8, 2e9), (1e9, 2e10), (1e10, 2e11)]), "off it"),
        (lambda: sweep(steps=0), "more (lr, B)"),
        (lambda: Runs(*np.array([[1e8, 1e9, -1e-3, 1e5, 2.0]]).T), "positive number"),
    ],
)
def test_sweeps_that_cannot_fix_the_surface_are_refused_with_what_would(runs, said):
    with pytest.raises(InputError) as refused:
        fit_surface(runs())
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_hill_is_not_a_valley(exact):
    least = np.array([exact.loss[exact.cells[1] == k].min() for k in range(len(CELLS))])
    hill = Runs(exact.N, exact.D, exact.lr, exact.B, least[exact.cells[1]] ** 2 / exact.loss)
    with pytest.raises(InputError, match="no valley"):
        fit_surface(hill, window=1.0)


def test_observations_with_the_columns_are_runs_and_others_are_refused(exact):
    table = observations(exact.N, exact.D, exact.loss)
    with pytest.raises(InputError, match="no column lr"):
        runs_of(table)
    full = type(table)(
        **{**table.__dict__, "columns": {**table.columns, "lr": exact.lr, "B": exact.B}}
    )
    np.testing.assert_array_equal(runs_of(full).lr, exact.lr)


# -- rules -----------------------------------------------------------------------------------------


def test_rules_say_where_they_are_from_and_unknown_ones_are_refused():
    assert all(r.source and r.counts and r.name == k for k, r in RULES.items())
    with pytest.raises(InputError, match="did you mean step_law"):
        published("steplaw")


def test_weight_decay_of_the_time_scale_rule_is_linear_in_the_batch_and_has_that_time_scale():
    args = {"N": 1e9, "D": 2e10, "lr": 1e-3}
    decay = weight_decay(**args, batch_tokens=5e5)
    assert weight_decay(**args, batch_tokens=1e6) == pytest.approx(2 * decay)
    tau = 5e5 / (1e-3 * decay * 2e10)
    assert tau == pytest.approx(1.084 * 20**-0.527)


# -- transfer --------------------------------------------------------------------------------------


VALUES = np.geomspace(2.5e-4, 1.6e-2, 7)


def widths(slope, *, noise=0.0, seeds=1, seed=0, values=VALUES):
    rng = np.random.default_rng(seed)
    rows = []
    for w in (128, 256, 512, 1024):
        at = np.log(2e-3) + slope * np.log(w / 362)
        for v in values:
            for _ in range(seeds):
                loss = (2 + 30 / w) * np.exp(
                    0.004 * (np.log(v) - at) ** 2 + noise * rng.standard_normal()
                )
                rows.append((w, v, loss))
    return dict(zip(("width", "value", "loss"), np.array(rows).T, strict=True))


@pytest.mark.parametrize("slope", [0.0, -0.5, 0.25])
def test_noise_free_sweeps_give_back_the_slope_of_the_best_value(slope):
    got = transfer(**widths(slope))
    assert got.slope == pytest.approx(slope, abs=1e-8)
    assert got.verdict == ("holds" if slope == 0 else "rejected")


def test_slopes_are_covered_by_their_intervals():
    inside = []
    for seed in range(60):
        got = transfer(**widths(-0.2, noise=5e-4, seeds=3, seed=seed))
        inside.append(got.lo <= -0.2 <= got.hi)
    assert np.mean(inside) >= 0.90


def test_a_slope_that_is_hardly_known_supports_no_claim():
    got = transfer(**widths(0.0, noise=0.01, seeds=2, seed=3))
    assert got.se > 0.15 and got.verdict in ("undecided", "rejected")
    assert got.lo <= 0 <= got.hi and got.verdict == "undecided"


def test_a_width_whose_best_value_is_at_the_edge_is_left_out_and_said():
    # at width 1024 the best value is 6e-4, below the least that was tried
    got = transfer(**widths(-1.0, values=np.geomspace(9e-4, 1.6e-2, 9)))
    dropped = [b for b in got.bottoms if b.reason]
    assert [b.width for b in dropped] == [1024] and "edge" in str(dropped[0].reason)
    assert got.slope == pytest.approx(-1, abs=1e-8)
    assert got.to_json()["widths"][-1]["reason"] == dropped[0].reason


def test_fewer_than_three_interior_optima_are_refused():
    with pytest.raises(InputError, match="interior optimum"):
        transfer(**widths(-1.0, values=np.geomspace(3e-3, 1.6e-2, 5)))


def test_the_spectral_rule_of_weight_decay_expects_one_half_and_not_one():
    got = transfer(**widths(0.5), knob="weight_decay", expected=0.5)
    assert got.verdict == "holds"
    assert transfer(**widths(0.5), knob="weight_decay", expected=1.0).verdict == "rejected"


def test_the_bottom_of_one_width_is_numpys_parabola():
    rng = np.random.default_rng(0)
    value = np.geomspace(1e-3, 8e-3, 7)
    loss = 3 * np.exp(0.01 * np.log(value / 3e-3) ** 2 + 1e-4 * rng.standard_normal(7))
    a, b, _ = np.polyfit(np.log(value), np.log(loss), 2)
    assert bottom(64, value, loss).log == pytest.approx(-b / (2 * a), rel=1e-9)
