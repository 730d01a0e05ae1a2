"""Is the engine honest where the answer is known? Calibration, outliers, degenerate data, units.

Truth is Epoch AI's refit of the Chinchilla law over 5 budgets of 1e18 to 1e20 FLOPs, 7 sizes within
a factor of 4 of the optimum, unless a test says otherwise.
"""

import dataclasses

import numpy as np
import pytest

from analysis import laws
from analysis.coordinates import evaluate
from analysis.diagnose import outliers
from analysis.fit import fit
from analysis.planner import size
from analysis.predict import predict
from analysis.problem import pose
from analysis.search import noise_about, search
from parallelism.errors import InputError
from tests.analysis.synthetic import Truth, grid, observations

TRUTH = Truth(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
N, D = grid(TRUTH, budgets=5, sizes=7, first=1e18, factor=10**0.5, span=4)
TARGET = dict(zip("ND", TRUTH.optimum(1e22), strict=True))
AT_TARGET = TRUTH.loss(TARGET["N"], TARGET["D"])


def measured(N, D, *, sd: float, seed: int):
    rng = np.random.default_rng(seed)
    return TRUTH.loss(N, D) * np.exp(sd * rng.standard_normal(len(N)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sd", "error", "width"), [(0.002, 0.0035, 0.018), (0.006, 0.009, 0.055)], ids=["0.2%", "0.6%"]
)
def test_predictions_at_100_times_the_compute_are_as_good_and_as_sure_as_they_can_be(
    sd, error, width
):
    """Medians over 40 replicates. The interval is for one new run, noise and form included;
    `statistical` alone must cover the law's own value 90 to 98 % of the time.

    Measured: errors .24 and .69 %, widths 1.80 and 4.89 %, the statistical part alone 97.5 %.
    """
    off, widths, inside, statistical, new_run, of_size = [], [], [], [], [], []
    for seed in range(40):
        found = fit(observations(N, D, measured(N, D, sd=sd, seed=1000 + seed)), bootstrap=100,
                    seed=seed, starts=8)  # fmt: skip
        p = predict(found, TARGET)
        off.append(abs(p.mean / AT_TARGET - 1))
        widths.append((p.hi - p.lo) / p.mean)
        inside.append(p.lo <= AT_TARGET <= p.hi)
        landed = AT_TARGET * np.exp(sd * np.random.default_rng(9000 + seed).standard_normal())
        new_run.append(p.lo <= landed <= p.hi)
        half = 2.042 * p.sd["statistical"]  # t of 30 degrees of freedom
        statistical.append(abs(p.mean - AT_TARGET) <= half)
        best = size(found, 1e22).N
        of_size.append(best["lo"] <= TARGET["N"] <= best["hi"])
    assert np.median(off) <= error
    assert np.median(widths) <= width
    assert np.mean(statistical) >= 0.90
    assert np.mean(new_run) >= 0.90 and np.mean(inside) >= 0.90
    assert np.mean(of_size) >= 0.87  # .90 less what 40 replicates can err


def test_sum_mean_and_units_change_no_prediction():
    loss = measured(N, D, sd=0.004, seed=1)
    base = fit(observations(N, D, loss), huber=2e-3, bootstrap=0)
    mean = fit(observations(N, D, loss), huber=2e-3, bootstrap=0, reduce="mean")
    np.testing.assert_allclose(mean.theta, base.theta, rtol=1e-6)
    assert mean.objective == pytest.approx(base.objective / len(N), rel=1e-12)
    assert mean.objective != base.objective
    millions = fit(observations(N / 1e6, D / 1e6, loss, C=6 * N * D), huber=2e-3, bootstrap=0)
    assert millions.params["A"] != pytest.approx(base.params["A"], rel=0.5)
    there = predict(millions, {k: v / 1e6 for k, v in TARGET.items()})
    assert there.mean == pytest.approx(predict(base, TARGET).mean, rel=1e-9)


def test_a_bad_start_is_never_called_converged_elsewhere():
    loss = measured(N, D, sd=0.004, seed=2)
    best = fit(observations(N, D, loss), bootstrap=0)
    for seed in range(8):
        one = fit(observations(N, D, loss), bootstrap=0, starts=1, seed=seed)
        same = one.objective == pytest.approx(best.objective, rel=1e-6)
        assert one.status != "CONVERGED" or same


@pytest.mark.slow
def test_one_sided_outliers_of_20_sigma_hardly_move_the_robust_fit():
    """5 % of rows. p95 of the error at 100x over 60 draws; least squares beside it."""
    sd, robust, squares, listed = 0.002, [], [], []

    def off(problem, huber):
        found, *_ = search(problem, "chinchilla", huber=huber, starts=8, seed=0)
        best = found.theta_Pp[found.objective_P.argmin()]
        return best, abs(float(evaluate(problem.where, best, TARGET)[0, 0]) / AT_TARGET - 1)

    for seed in range(60):
        rng = np.random.default_rng(seed)
        loss = measured(N, D, sd=sd, seed=seed)
        bad = rng.choice(len(N), 2, replace=False)
        loss[bad] *= np.exp(20 * sd)
        problem = pose(observations(N, D, loss), laws.resolve("chinchilla"))
        best, error = off(problem, None)
        robust.append(error)
        named = outliers(problem, best, noise=noise_about(problem, best))
        listed.append(set(named) == {str(i) for i in bad})
        squares.append(off(problem, 10.0)[1])
    assert np.quantile(robust, 0.95) <= 0.012
    assert np.quantile(squares, 0.95) > 0.025
    assert np.mean(listed) > 0.9


def rows_of(case: str):
    if case == "fewer points than parameters":
        return N[:4], D[[0, 9, 18, 27]]
    if case == "one size":
        return np.full(12, 1e8), np.geomspace(1e9, 1e11, 12)
    if case == "one budget":
        return N[:7], D[:7]
    if case == "constant tokens per parameter":
        return np.geomspace(1e7, 1e9, 12), 20 * np.geomspace(1e7, 1e9, 12)
    return N, D


DEGENERATE = [
    "fewer points than parameters",
    "one size",
    "one budget",
    "constant tokens per parameter",
    "all losses equal",
]


@pytest.mark.slow
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_rows_leave_directions_open_and_the_prior_speaks_there(case):
    n, d = rows_of(case)
    loss = measured(n, d, sd=0.003, seed=3)
    if case == "all losses equal":
        loss = np.full(len(n), 3.0)
    rows = observations(n, d, loss)
    found = fit(rows, prior=True, bootstrap=100)
    assert found.status == "ILL_POSED" or case == "all losses equal"
    assert found.status != "CONVERGED"
    p = predict(found, TARGET)
    assert np.isfinite([p.mean, p.lo, p.hi]).all() and 0 < p.lo < p.mean < p.hi
    if case != "all losses equal":
        assert found.unidentified and all(u["params"] for u in found.unidentified)
        assert p.lo <= AT_TARGET <= p.hi
        # far wider than what a full grid knows
        full = predict(fit(observations(N, D, measured(N, D, sd=0.003, seed=3)), bootstrap=100),
                       TARGET)  # fmt: skip
        assert p.hi / p.lo > (full.hi / full.lo) ** 3
        with pytest.raises(InputError):
            fit(rows, bootstrap=0)
        assert found.missing[0]["instead"]


@pytest.mark.slow
def test_on_a_ray_of_tokens_per_parameter_only_the_ray_is_known():
    """D = 20 N over 7 sizes, twice each; predictions at 30x the compute on the ray and off it."""
    n = np.repeat(np.geomspace(5e7, 2e9, 7), 2)
    on, off, ratio = [], [], []
    for seed in range(30):
        found = fit(observations(n, 20 * n, measured(n, 20 * n, sd=0.003, seed=seed)), prior=True,
                    bootstrap=100, seed=seed, starts=16)  # fmt: skip
        assert found.status == "ILL_POSED" and found.condition > 1e3
        big = 2e9 * 30**0.5
        ray = predict(found, {"N": big, "D": 20 * big})
        away = predict(found, {"N": big / 10, "D": 2000 * big / 10})
        truth = TRUTH.loss(big, 20 * big)
        on.append(ray.lo <= truth <= ray.hi)
        off.append((np.log(away.hi / away.lo)) / np.log(ray.hi / ray.lo))
        best = size(found, 1e22).N
        ratio.append(best["hi"] / best["lo"])
    assert np.mean(on) >= 0.9
    assert np.median(off) >= 5
    assert np.median(ratio) >= 4


@pytest.mark.slow
def test_a_small_grid_of_3_by_4_covers():
    n, d = grid(TRUTH, budgets=3, sizes=4, first=1e18, factor=10**0.5, span=4)
    inside = []
    for seed in range(40):
        found = fit(observations(n, d, measured(n, d, sd=0.003, seed=seed)), prior=True,
                    bootstrap=60, seed=seed, starts=8)  # fmt: skip
        p = predict(found, TARGET)
        inside.append(p.lo <= AT_TARGET <= p.hi)
    assert np.mean(inside) >= 0.85


def test_what_a_fit_says_is_the_same_bit_for_bit_from_the_same_rows():
    rows = observations(N, D, measured(N, D, sd=0.003, seed=5))
    first, again = (dataclasses.asdict(fit(rows, bootstrap=50, seed=3)) for _ in range(2))
    for tree in (first, again):
        tree.pop("seconds")
    assert first == again
    assert dataclasses.asdict(fit(rows, bootstrap=50, seed=4))["samples"] != first["samples"]
