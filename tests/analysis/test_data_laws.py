"""Laws of filtering, pruning, batch and reward, and what is decided from them."""

import importlib

import numpy as np
import pytest

from analysis.coordinates import centred, check, evaluate
from analysis.filtering import Pool, keep, keep_against, keep_rate, ln_gain, loss_after
from analysis.laws.filtering import EPOCHS, epoch_steps, pools_law
from analysis.pruning import best_fraction, curvature, envelope
from analysis.solve import solve
from parallelism.errors import InputError

FAMILIES = (
    "filtering",
    "mixtures",
    "pruning",
    "data_extras",
    "batch",
    "step_law",
    "reward",
    "extras",
)
LAWS = {
    law.name: law
    for family in FAMILIES
    for law in importlib.import_module(f"analysis.laws.{family}").LAWS
}


def at(law, params, x):
    x = {k: np.atleast_1d(np.asarray(v, float)) for k, v in x.items()}
    where = centred(law, x, np.ones(1))
    return evaluate(where, where.coordinates(params), x)[0]


# -- quality against repetition --------------------------------------------------------------------


def qqt(seen, pool, *, b, tau, B, d):
    """The recursion, epoch by epoch: y_k = y_{k-1} (n_k / n_{k-1})^(-b 2^(-k/tau)), plus d."""
    n, k = min(seen, pool), 0
    y = B * n**-b
    while n < seen:
        k += 1
        new = min(pool * (k + 1), seen)
        y *= (new / n) ** (-b * 0.5 ** (k / tau))
        n = new
    return y + d


def test_the_quality_law_is_the_recursion_epoch_by_epoch():
    p = {"b": 0.21, "tau": 2.3, "B": 40.0, "d": 0.4}
    seen, pool = np.array([5e7, 1e8, 1.7e8, 9.99e8, 5.21e9]), np.full(5, 1e8)
    want = [qqt(s, u, **p) for s, u in zip(seen, pool, strict=True)]
    got = at(LAWS["quality_repetition"], p, {"D": seen, "U": pool})
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_an_infinite_half_life_is_a_plain_power_law():
    seen, pool = np.geomspace(1e7, 1e12, 30), np.full(30, 1e8)
    p = {"b": 0.21, "tau": 1e12, "B": 40.0, "d": 0.4}
    got = at(LAWS["quality_repetition"], p, {"D": seen, "U": pool})
    # to 10,000 epochs: far beyond those that are resolved one by one
    assert (seen / pool).max() > 100 * EPOCHS
    np.testing.assert_allclose(got, 40.0 * seen**-0.21 + 0.4, rtol=1e-9)


def test_the_floor_does_not_decay_with_the_epochs():
    x = {"D": np.array([1e12]), "U": np.array([1e8])}
    for d in (0.1, 0.7):
        p = {"b": 0.9, "tau": 1e6, "B": 1e6, "d": d}
        assert at(LAWS["quality_repetition"], p, x)[0] == pytest.approx(d, rel=1e-3)


def test_steps_of_all_epochs_make_up_all_the_samples():
    x = {"D": np.geomspace(1e6, 1e13, 50), "U": np.full(50, 1e8)}
    np.testing.assert_allclose(epoch_steps(x)["ln_step"].sum(1), np.log(x["D"]), rtol=1e-12)


def test_a_law_of_one_pool_is_the_single_law_and_the_decision_uses_the_same_recursion():
    b, tau, n0, Y, d = 0.3, 3.0, 1e6, 2.0, 0.5
    one = pools_law(1)
    x = {"D": np.array([3e7, 4.4e8, 2.2e9]), "U": np.full(3, 1e8)}
    p = {"d": d, "Y": Y, "n0": n0, "b_1": b, "tau_1": tau}
    got = at(one, p, {**x, "r_1": np.ones(3)})
    single = at(LAWS["quality_repetition"], {"d": d, "B": Y * n0**b, "b": b, "tau": tau}, x)
    np.testing.assert_allclose(got, single, rtol=1e-12)
    pool = [Pool(b, tau, 1e8)]
    want = [loss_after(pool, s, begin=n0, scale=Y, floor=d) for s in x["D"]]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_equal_pools_share_utility_and_live_longer_as_in_the_paper():
    """p equal pools: utility the mean of b_i 2^(-k / (p tau_i)) in epoch k of the mixture."""
    pools = [Pool(0.3, 2.0, 1e8), Pool(0.2, 4.0, 1e8)]
    n0, seen = 1e6, 7.3e8
    ends = np.array([2e8, 4e8, 6e8, 7.3e8])
    starts = np.array([n0, 2e8, 4e8, 6e8])
    k = np.arange(4)
    mean = (0.3 * 0.5 ** (k / 4.0) + 0.2 * 0.5 ** (k / 8.0)) / 2
    assert ln_gain(pools, seen, begin=n0) == pytest.approx(mean @ np.log(ends / starts))
    p = {"d": 0.1, "Y": 1.0, "n0": n0, "b_1": 0.3, "b_2": 0.2, "tau_1": 2.0, "tau_2": 4.0}
    x = {"D": [seen], "U": [2e8], "r_1": [0.5], "r_2": [0.5]}
    want = loss_after(pools, seen, begin=n0, floor=0.1)
    assert at(LAWS["quality_pools_2"], p, x)[0] == pytest.approx(want, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("quality_repetition", {"d": 1.6, "B": 60.0, "b": 0.2, "tau": 4.0}),
        (
            "quality_pools_2",
            {"d": 1.6, "Y": 3.0, "n0": 1e6, "b_1": 0.3, "b_2": 0.15, "tau_1": 3.0, "tau_2": 9.0},
        ),
    ],
)
def test_noise_free_runs_over_pools_give_back_utilities_and_half_lives(name, params):
    rng = np.random.default_rng(0)
    law, rows = LAWS[name], 40
    share = rng.choice([0.0, 0.3, 0.5, 1.0], rows)
    x = {"U": np.exp(rng.uniform(np.log(1e8), np.log(1e10), rows)), "r_1": share, "r_2": 1 - share}
    x = {"D": x["U"] * np.exp(rng.uniform(np.log(0.1), np.log(40.0), rows)), **x}
    y = at(law, params, {k: x[k] for k in law.input_names})
    where = centred(law, x, y)
    found = solve(
        where,
        x,
        y=np.log(y),
        weights=np.ones(rows),
        starts_Pp=where.starts(32, seed=0),
        delta=0.01,
    )
    got = where.natural(found.theta_Pp[found.objective_P.argmin()])
    for key, value in params.items():
        assert got[key] == pytest.approx(value, rel=1e-6), key


def test_longer_training_keeps_more_buckets():
    pools = [Pool(b, 2.0, 12.8e6) for b in (0.30, 0.29, 0.28, 0.27)]
    kept = keep_against(pools, [1e7, 1e8, 1e9, 1e10], begin=1e5)
    counts = [k.count for k in kept]
    assert counts[0] == 1 and counts[-1] == 4 and counts == sorted(counts)
    for k in kept:
        assert k.losses[k.count - 1] == min(k.losses) and k.probability[k.count - 1] == 1


def test_pools_that_never_tire_are_filtered_to_the_best_at_every_budget():
    pools = [Pool(b, np.inf, 1e7) for b in (0.2, 0.3, 0.25)]
    kept = keep_against(pools, [1e7, 1e9, 1e11], begin=1e5)
    assert [k.count for k in kept] == [1, 1, 1]
    # the best first, whatever the order they are given in
    assert kept[0].losses[0] == pytest.approx(loss_after([pools[1]], 1e7, begin=1e5))


def test_draws_of_the_pools_give_the_probability_of_each_count():
    pools = [Pool(0.3, 2.0, 1e7), Pool(0.25, 2.0, 1e7)]
    other = [Pool(0.3, 50.0, 1e7), Pool(0.25, 50.0, 1e7)]
    got = keep(pools, 1e8, begin=1e5, draws=[pools, pools, pools, other])
    assert got.count == 2 and got.probability == (0.25, 0.75)


def test_keep_rates_give_back_their_power_of_compute():
    C = np.geomspace(1e19, 1e22, 6)
    got = keep_rate(C=C, rate=3e4 * C**-0.25)
    assert got["g"] == pytest.approx(-0.25) and got["k"] == pytest.approx(3e4)
    with pytest.raises(InputError, match="three or more"):
        keep_rate(C=C[:2], rate=C[:2] ** -0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Pool(-0.1, 1.0, 1e6),
        lambda: ln_gain([], 1e6, begin=1e5),
        lambda: ln_gain([Pool(0.1, 1.0, 1e6)], -1.0, begin=1e5),
        lambda: keep([Pool(0.1, 1.0, 1e6)], 1e6, begin=1e5, draws=[[]]),
        lambda: pools_law(0),
    ],
)
def test_senseless_pools_are_refused(call):
    with pytest.raises(InputError):
        call()


# -- pruning ---------------------------------------------------------------------------------------


def test_the_envelope_holds_the_runs_that_no_cheaper_run_beats():
    n = np.array([1e3, 1e3, 1e4, 1e4, 1e5, 2e5])
    f = np.array([0.5, 1.0, 0.3, 1.0, 0.5, 1.0])
    error = np.array([0.30, 0.25, 0.21, 0.20, 0.22, 0.10])
    got = [(e.n, e.error) for e in envelope(n=n, f=f, error=error)]
    want = [
        (n[i], error[i])
        for i in range(6)
        if not any(n[j] <= n[i] and error[j] < error[i] for j in range(6))
        and not any(n[j] < n[i] and error[j] == error[i] for j in range(6))
    ]
    assert got == want
    assert [b.f for b in best_fraction(n=n, f=f, error=error)] == [1.0, 1.0, 0.5, 1.0]


def test_a_power_law_has_no_bend_an_exponential_one_bends_down_and_a_floor_up():
    n = np.geomspace(1e3, 1e6, 12)
    rng = np.random.default_rng(0)
    noise = np.exp(0.01 * rng.standard_normal(12))
    straight = curvature(n=n, error=n**-0.4 * noise)
    assert straight.verdict == "straight" and straight.lo < 0 < straight.hi
    assert straight.slope == pytest.approx(-0.4, abs=0.02)
    assert curvature(n=n, error=np.exp(-((n / 1e3) ** 0.3)) * noise).verdict == "steeper"
    assert curvature(n=n, error=(n**-0.4 + 0.02) * noise).verdict == "flatter"
    assert curvature(n=n, error=n**-0.4).verdict == "straight"


def test_the_bend_is_found_at_its_level_when_there_is_none():
    n = np.geomspace(1e3, 1e6, 10)
    rng = np.random.default_rng(1)
    wrong = [
        curvature(n=n, error=n**-0.4 * np.exp(0.02 * rng.standard_normal(10))).verdict != "straight"
        for _ in range(400)
    ]
    # 5 % +- 3 standard errors
    assert 0.017 < np.mean(wrong) < 0.083


def test_too_few_sizes_show_no_bend_and_are_refused():
    with pytest.raises(InputError, match="5 or more"):
        curvature(n=np.array([1e3, 1e4, 1e5]), error=np.array([0.3, 0.2, 0.1]))
    with pytest.raises(InputError, match="positive"):
        envelope(n=np.ones(2), f=np.ones(2), error=np.array([0.1, -0.1]))


# -- the other laws, against plain formulas --------------------------------------------------------


def test_every_law_says_what_it_is_where_it_is_from_and_what_it_was_fitted_to():
    for name, law in LAWS.items():
        check(law, field=name)
        assert law.equation and law.source and law.domain and law.section
        assert set(law.typical) == set(law.input_names)
        for values in law.published.values():
            assert set(values) == set(law.names)


N, D = np.array([1e8, 1e9]), np.array([2e9, 5e10])
CLASSIC = {"E": 1.8, "A": 480.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
BASE = CLASSIC["E"] + CLASSIC["A"] * N**-0.35


@pytest.mark.parametrize(
    ("name", "params", "x", "want"),
    [
        ("optimal_batch", {"c": 0.58, "m": 0.571}, {"D": D}, 0.58 * D**0.571),
        (
            "optimal_lr",
            {"c": 1.79, "m": 0.713, "n": -0.307},
            {"N": N, "D": D},
            1.79 * N**-0.713 * D**0.307,
        ),
        (
            "batch_from_loss",
            {"c": 1.211e9, "m": 6.2393},
            {"loss": [2.5, 3.0]},
            1.211e9 / np.array([2.5, 3.0]) ** 6.2393,
        ),
        ("adamw_timescale", {"c": 1.084, "m": 0.527}, {"N": N, "D": D}, 1.084 * (D / N) ** -0.527),
        (
            "scale_rl",
            {"R0": 0.2, "A": 0.6, "C_mid": 1e21, "b": 1.5},
            {"C": [1e21, 1e30]},
            [0.4, 0.6],
        ),
        ("overoptimisation_best_of_n", {"a": 1.0, "b": 0.25}, {"d": [2.0, 4.0]}, [1.0, 0.0]),
        ("overoptimisation_rl", {"a": 1.0, "b": 0.5}, {"d": [1.0, np.e**2]}, [1.0, 0.0]),
        ("vocabulary", {"c": 2.0, "m": 0.83}, {"N_nv": N}, 2 * N**0.83),
        (
            "fine_tuning",
            {"E": 1.0, "B": 300.0, "D_l": 100.0, "beta": 0.5},
            {"n": [1e-9 + 1, 1e4]},
            [1 + 300 / 101, 2.5],
        ),
        (
            "precision",
            {**CLASSIC, "g": 2.0},
            {"N": N, "D": D, "P": [2.0, 8.0]},
            1.8 + 480 * (N * (1 - np.exp(-np.array([1.0, 4.0])))) ** -0.35 + 2000 * D**-0.37,
        ),
        (
            "synthetic_tokens",
            {**CLASSIC, "kappa": 0.25},
            {"N": N, "D": D, "D_syn": 4 * D},
            BASE + 2000 * (2 * D) ** -0.37,
        ),
        (
            "retrieval_store",
            {**CLASSIC, "g": 0.01},
            {"N": N, "D": D, "R": [1e9, 1e12]},
            BASE + 2000 * D**-0.37 - 0.01 * np.log([1e9, 1e12]),
        ),
        ("recommendation_auc", {"A_inf": 0.9, "k": 2.0, "a": 0.25}, {"n": [1e4, 1e8]}, [0.7, 0.88]),
        (
            "pruning",
            {"E": 0.02, "c": 3.0, "nu": 0.4, "kappa": 0.3, "mu": 0.05},
            {"n": [1e4, 1e5], "f": [0.2, 1.0]},
            0.02
            + 3
            * np.array([0.2, 1.0]) ** 0.3
            * np.array([1e4, 1e5]) ** -(0.4 + 0.05 * np.log([0.2, 1.0])),
        ),
        (
            "mixture_length",
            {"B": 2000.0, "C": 1.9, "alpha": 0.05, "beta": 0.37},
            {"r": [0.1, 1.0], "D": D},
            (2000 * D**-0.37 + 1.9) * np.array([0.1, 1.0]) ** -0.05,
        ),
    ],
)
def test_a_law_is_its_formula(name, params, x, want):
    np.testing.assert_allclose(at(LAWS[name], params, x), want, rtol=1e-10, atol=1e-12)


def test_the_step_law_surface_is_chinchilla_at_the_best_setting_and_a_parabola_around_it():
    valley = {"c_lr": 1.79, "m": 0.713, "n": -0.307, "c_B": 0.58, "k": -0.571}
    p = {**CLASSIC, **valley, "h_lr": 0.006, "h_B": 0.005, "h_x": -0.004}
    lr, batch = 1.79 * N**-0.713 * D**0.307, 0.58 * D**0.571
    least = BASE + 2000 * D**-0.37
    law = LAWS["step_law"]
    np.testing.assert_allclose(
        at(law, p, {"N": N, "D": D, "lr": lr, "B": batch}), least, rtol=1e-12
    )
    off = at(law, p, {"N": N, "D": D, "lr": 2 * lr, "B": batch / 3})
    u, v = np.log(2), -np.log(3)
    want = least * np.exp(0.006 * u * u + 0.005 * v * v - 0.004 * u * v)
    np.testing.assert_allclose(off, want, rtol=1e-12)


def test_distillation_from_a_teacher_is_bounded_by_it_and_a_weak_one_is_no_help():
    p = {"A": 300.0, "B": 900.0, "alpha": 0.35, "beta": 0.35, "gamma": 1.0}
    p |= {"c0": 2.0, "c1": 1.5, "d1": 1.0, "f1": 0.1}
    x = {"N": np.full(3, 1e9), "D": np.full(3, 2e10), "L_S": np.full(3, 2.4)}
    teachers = np.array([1.9, 2.4, 3.0])
    out = at(LAWS["distillation"], p, {**x, "L_T": teachers})
    capacity = 300 * 1e9**-0.35 + 900 * 2e10**-0.35
    gap = (1 + (teachers / 2.4) ** 10) ** -0.15
    np.testing.assert_allclose(out, teachers + teachers**-2.0 * gap * capacity, rtol=1e-12)
    assert (out > teachers).all()
