"""Accelerator hours and growth: lines, crossings and multipliers against simulation."""

import numpy as np
import pytest

from analysis import growth, hours
from analysis.coordinates import centred, evaluate
from analysis.laws import growth as growth_laws
from analysis.laws.accelerator import THROUGHPUT
from parallelism.errors import InputError

# -- hours -----------------------------------------------------------------------------------------


def family(intercept, slope, *, noise, seed, classes=(6, 12, 24, 48, 96), runs=2):
    at = np.repeat(np.array(classes, float), runs)
    rng = np.random.default_rng(seed)
    return at, np.exp(intercept - slope * np.log(at) + noise * rng.standard_normal(len(at)))


def test_a_line_is_the_least_squares_line_of_logs():
    at, ppl = family(1.2, 0.05, noise=0.004, seed=1)
    found = hours.line(at, ppl)
    slope, intercept = np.polyfit(np.log(at), np.log(ppl), 1)
    assert found.slope == pytest.approx(-slope, rel=1e-12)
    off = np.log(ppl) - intercept - slope * np.log(at)
    assert found.sd == pytest.approx(np.sqrt((off**2).sum() / 8), rel=1e-9)
    np.testing.assert_allclose(found.ppl(200.0), np.exp(intercept) * 200.0**slope, rtol=1e-12)


def test_the_crossing_interval_covers_as_often_as_it_says_far_beyond_the_runs():
    """Truth crosses at e^10 = 22,000 hours, runs end at 96. Measured: .95 of 400."""
    inside, flips = 0, []
    for seed in range(200):
        a = hours.line(*family(1.20, 0.050, noise=0.003, seed=2 * seed))
        b = hours.line(*family(1.45, 0.075, noise=0.003, seed=2 * seed + 1))
        found = hours.crossing(a, b, until=1e5, names=("gpt", "lstm"))
        assert found.beyond and found.lo is not None and found.hi is not None
        inside += found.lo <= np.exp(10) <= found.hi
        flips.append(found.flips)
        assert "lstm in the end" in found.order
    assert 0.91 <= inside / 200 <= 0.985
    assert np.mean(flips) > 0.9


def test_nearly_parallel_lines_get_a_probability_and_no_finite_interval():
    a = hours.line(*family(1.20, 0.050, noise=0.01, seed=3))
    b = hours.line(*family(1.21, 0.0501, noise=0.01, seed=11))
    found = hours.crossing(a, b, until=1e4)
    assert found.lo is None and found.hi is None
    assert 0.02 < found.flips < 0.98
    assert "no end" in found.text()


def test_the_probability_of_a_flip_is_that_of_a_plain_simulation():
    a = hours.line(*family(1.20, 0.05, noise=0.02, seed=5))
    b = hours.line(*family(1.26, 0.06, noise=0.02, seed=6))
    found = hours.crossing(a, b, until=2000)
    rng = np.random.default_rng(9)
    sd = np.sqrt((a.sd**2 + b.sd**2) / 2)
    flips = 0
    for _ in range(4000):
        scale = sd * np.sqrt(16 / rng.chisquare(16))
        ends = []
        draws = [
            (
                one.intercept + scale * np.sqrt(one.variances[0]) * rng.standard_normal(),
                one.slope + scale * np.sqrt(one.variances[1]) * rng.standard_normal(),
                one.centre,
            )
            for one in (a, b)
        ]
        for at in (6, 2000):
            first_, second = (i - s * (np.log(at) - c) for i, s, c in draws)
            ends.append(first_ < second)
        flips += ends[0] != ends[1]
    assert found.flips == pytest.approx(flips / 4000, abs=0.03)


def test_the_size_for_given_hours_sees_the_tokens_asked_for_in_them():
    params = {"overhead": 2e-7, "flops": 1e14, "attention": 2.0}
    N, D = hours.size_for(params, hours=96, context=4096, tokens_per_parameter=20)
    assert D / N == pytest.approx(20, rel=1e-9)
    seconds = 2e-7 + (6 * N + 2.0 * 4096 * N ** (2 / 3)) / 1e14
    assert D * seconds == pytest.approx(96 * 3600, rel=1e-9)
    x = {"N": np.array([N]), "context": np.array([4096.0])}
    where = centred(THROUGHPUT, x, np.ones(1))
    speed = evaluate(where, where.coordinates(params), x)[0]
    np.testing.assert_allclose(speed * 96 * 3600, D, rtol=1e-9)


# -- growth ----------------------------------------------------------------------------------------


def test_a_growth_plan_spends_the_budget_at_the_papers_timing():
    found = growth_laws.plan(N=3e9, flops=1e21)
    assert found.small_D == pytest.approx(
        10 ** (0.88 * np.log10(3e9) + 163.27 / 21 - 5.74), rel=1e-9
    )
    spent = 6 * (found.small_N * found.small_D + found.N * found.D)
    assert spent == pytest.approx(1e21, rel=1e-12)
    assert found.small_share == pytest.approx(6 * found.small_N * found.small_D / 1e21, rel=1e-12)
    assert found.outside == () and found.N == 4 * found.small_N
    assert "flops" in growth_laws.plan(N=3e9, flops=1e23).outside[0]


@pytest.mark.parametrize(
    "N, D, small_D",
    [(8e9, 15e12, 6.58), (7e9, 2e12, 11.11), (13e9, 2e12, 15.84), (70e9, 2e12, 42.48)],
)
def test_the_timing_of_the_papers_examples_comes_back(N: float, D: float, small_D: float):
    """README of tongxuluo/prts: Llama models of these sizes, in billions of tokens."""
    found = growth_laws.plan(N=N, flops=6 * N * D)
    assert found.small_D / 1e9 == pytest.approx(small_D, abs=0.006)
    assert found.token_share == pytest.approx(found.small_D / D) and found.token_share < 0.022
    assert found.warning is None


def test_a_small_model_is_warned_that_the_timing_is_too_late_and_takes_a_fraction():
    found = growth_laws.plan(N=1e9, flops=6 * 1e9 * 20e9)
    assert found.token_share == pytest.approx(1.02, abs=0.01)
    assert found.warning is not None and "102% of what these FLOPs give" in found.warning
    own = growth_laws.plan(N=1e9, flops=6 * 1e9 * 20e9, fraction=0.05)
    assert own.small_D == pytest.approx(1e9) and own.warning is None and own.outside == ()
    spent = 6 * (own.small_N * own.small_D + own.N * own.D)
    assert spent == pytest.approx(6 * 1e9 * 20e9)


def test_speed_up_is_the_papers():
    """54.6 % of 7B: 194B tokens where from scratch it takes 300B."""
    assert growth_laws.speed_up(300e9, 194e9) == pytest.approx(0.546, abs=0.001)


def grown_runs(*, m, slope, noise, seed):
    """Runs from scratch and grown ones that need 1/m of their compute, m falling or not."""
    rng = np.random.default_rng(seed)

    def loss(C):
        return 1.7 + (3e18 / C) ** 0.16

    C, C_g = np.geomspace(1e20, 1e22, 12), np.geomspace(1e20, 6e21, 8)
    saved = m * (C_g / np.exp(np.log(C_g).mean())) ** slope
    return (
        (C, loss(C) * np.exp(noise * rng.standard_normal(12))),
        (C_g, loss(C_g * saved) * np.exp(noise * rng.standard_normal(8))),
    )


def test_the_multiplier_of_noise_free_runs_is_exact():
    found = growth.multiplier(*grown_runs(m=1.6, slope=-0.1, noise=0.0, seed=0), draws=50)
    assert found.at(found.centre)[0] == pytest.approx(1.6, rel=1e-6)
    assert found.slope == pytest.approx(-0.1, rel=1e-5)
    assert found.trend == "decays"
    assert found.gone == pytest.approx(found.centre * 1.6**10, rel=1e-3)


@pytest.mark.parametrize(("slope", "trend"), [(-0.15, "decays"), (0.15, "grows")])
def test_a_multiplier_that_decays_is_told_from_one_that_grows(slope, trend):
    found = [
        growth.multiplier(*grown_runs(m=1.6, slope=slope, noise=0.003, seed=s), draws=100)
        for s in range(10)
    ]
    assert sum(f.trend == trend for f in found) >= 8
    assert all((f.gone is not None) == (f.trend == "decays") for f in found)


@pytest.mark.slow
def test_intervals_of_a_constant_multiplier_cover_it():
    """Measured with 200 seeds: .95 of the slope's intervals hold 0."""
    level, slope = 0, 0
    for seed in range(40):
        found = growth.multiplier(*grown_runs(m=1.6, slope=0.0, noise=0.003, seed=seed), draws=100)
        _, lo, hi = found.at(found.centre)
        level += lo <= 1.6 <= hi
        slope += found.slope_interval[0] <= 0 <= found.slope_interval[1]
        assert found.at(1e24)[2] / found.at(1e24)[1] > hi / lo  # further is less sure
    assert level >= 34 and slope >= 34


def test_grown_runs_that_scratch_never_reaches_are_counted_and_left_out():
    scratch, (C, loss) = grown_runs(m=1.6, slope=0.0, noise=0.001, seed=1)
    loss = loss.copy()
    loss[-1] = 1.2
    found = growth.multiplier(scratch, (C, loss), draws=50)
    assert found.below_floor == 1 and len(found.m) == 7
    assert "left out" in found.text()


# -- refusals --------------------------------------------------------------------------------------

REFUSED = {
    "two classes": lambda: hours.line([6, 12, 6], [3.0, 2.9, 3.0]),
    "NaN perplexity": lambda: hours.line([6, 12, 24], [3.0, np.nan, 2.0]),
    "unequal": lambda: hours.line([6, 12, 24], [3.0, 2.0]),
    "no hours": lambda: hours.size_for(
        {"overhead": 1.0, "flops": 1e14, "attention": 1.0},
        hours=1e-9,
        context=128,
        tokens_per_parameter=20,
    ),
    "small phase too dear": lambda: growth_laws.plan(N=3e12, flops=1e18),
    "shrinks": lambda: growth_laws.plan(N=3e9, flops=1e21, factor=0.5),
    "no share": lambda: growth_laws.plan(N=3e9, flops=1e21, fraction=0.0),
    "four runs": lambda: growth.multiplier(
        ([1e20, 2e20, 3e20, 4e20], [3, 2.9, 2.8, 2.7]), ([1e20, 2e20, 3e20], [2.9, 2.8, 2.7])
    ),
    "negative loss": lambda: growth.multiplier(
        (np.geomspace(1e20, 1e21, 6), [3, 2.9, 2.8, -2.7, 2.6, 2.5]), ([1e20], [2.9])
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_line_that_says_what_to_write(case):
    with pytest.raises(InputError) as error:
        REFUSED[case]()
    assert len(str(error.value).splitlines()) == 1
    assert any(word in str(error.value) for word in ("write", "give", "add", "needs", "ask"))
