"""Laws of learning curves: what they see of a schedule, and that curves give them back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import curve_features, laws, schedules, varpro
from analysis.best_schedule import best_decay, best_schedule
from analysis.coordinates import Coordinates, centred, evaluate, features
from analysis.curve_features import every_event, seen_by, seen_in, with_histories
from analysis.curves import annealed, predict_curve
from analysis.fit import fit
from analysis.laws.annealing import MEMORY, with_memory
from analysis.schedules import History
from analysis.solve import solve
from parallelism.errors import InputError
from tests.analysis.curve_truth import (
    PEAK,
    TRAINED,
    T,
    losses,
    observed,
    rows,
    slow_annealing_area,
    slow_multi_power,
)

MULTI_POWER = laws.resolve("multi_power")
PUBLISHED = dict(MULTI_POWER.published["25M"])
TRUTHS = {
    "annealing": {"L0": 2.7, "A": 0.5, "alpha": 0.5, "C": 0.4},
    "annealing_size": {"L0": 1.9, "A": 0.5, "alpha": 0.5, "C": 0.4, "B": 300.0, "beta": 0.35},
    "multi_power": PUBLISHED,
    "functional": {"L0": 2.6, "A": 0.5, "s": 0.5, "B": 300.0, "C": 40.0, "rho": 0.4},
    "forward_momentum": {"L0": 1.9, "lS": 0.5, "aS": 0.5, "lN": 300.0, "aN": 0.35, "lM": 0.05},
}
SHAPES = {
    "cosine": TRAINED[0],
    "two_stage": TRAINED[2],
    "linear to zero": schedules.linear(T, peak=PEAK, warmup=200),
    "sqrt": schedules.wsd(T, peak=PEAK, decay_from=3000, warmup=200, fall="sqrt"),
    "restarts": History(np.tile(TRAINED[0].lr[200:1200], 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_events_grouped_by_age_give_the_sum_over_every_step(shape):
    history = SHAPES[shape]
    steps = np.array([210, 400, 1000, 1500, 2500, 3100, 3999])
    where = Coordinates(MULTI_POWER, np.array([8.0, 0, 0]), 3.0)
    seen = seen_by(MULTI_POWER, history, steps)
    assert seen["drop"].shape[1] <= 2 * curve_features.GROUPS
    for p, bound in (
        (PUBLISHED, 1e-4),
        ({**PUBLISHED, "beta": 0.15, "gamma": 0.95}, 5e-4),
        ({**PUBLISHED, "beta": 1.0, "gamma": 0.3}, 5e-4),
    ):
        slow = np.array([slow_multi_power(p, history.lr, s) for s in steps])
        grouped = evaluate(where, where.coordinates(p), seen)[0]
        assert np.abs(grouped - slow).max() < bound
        ungrouped = [
            np.asarray(_value(p, {**curve_features.area(history, [s]), **made}))[0]
            for s in steps
            for made in [every_event(history, [s])]
        ]
        np.testing.assert_allclose(ungrouped, slow, rtol=1e-12)


def _value(p, seen):
    with jax.enable_x64(True):
        return MULTI_POWER.predict(p, seen)


@pytest.mark.parametrize("memory", [0.99, 0.999])
def test_the_annealing_area_is_the_momentum_of_falls_summed(memory):
    for history in SHAPES.values():
        got = curve_features.annealing_area(history, [300, 2100, 3999], memory=memory)["S2"]
        want = [slow_annealing_area(history.lr, s, memory) for s in (300, 2100, 3999)]
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-15)


def test_another_memory_is_another_law_and_the_same_one_is_one_object():
    assert with_memory(0.99) is with_memory(0.99)
    seen = {m: seen_by(with_memory(m), TRAINED[0], [T])["S2"][0] for m in (0.99, MEMORY)}
    assert seen[MEMORY] > 2 * seen[0.99] > 0
    with pytest.raises(InputError, match="memory"):
        with_memory(1.0)


def test_a_long_history_kept_at_every_third_step_has_the_same_sums():
    whole = schedules.cosine(600_000, peak=PEAK, final=PEAK / 10, warmup=6000)
    assert whole.stride == 3
    every = History(np.interp(np.arange(600_001), np.arange(200_001) * 3, whole.lr))
    at = [60_000, 300_000, 600_000]
    np.testing.assert_allclose(whole.sum[whole.index(at)], every.sum[at], rtol=1e-4)
    for memory in (0.99, 0.999):
        got = curve_features.annealing_area(whole, at, memory=memory)["S2"]
        want = curve_features.annealing_area(every, at, memory=memory)["S2"]
        np.testing.assert_allclose(got, want, rtol=1e-3)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_the_history_of_a_spec_is_the_rate_that_the_trainer_uses(kind):
    from train.schedule import KINDS, learning_rate

    spec = {
        "optim": {"lr": 3e-3},
        "schedule": {"kind": kind, "warmup": 0.03, "decay": 0.2, "final": 0.1},
        "budget": {"tokens": 100 * 512, "batch_tokens": 512},
    }
    numbers = {"lr": 3e-3, "steps": 100, "warmup_steps": 3, "decay_steps": 20, "final": 0.1}
    hyper = {k: jnp.float32(v) for k, v in numbers.items()} | {"kind": jnp.int32(KINDS[kind])}
    want = [float(learning_rate(jnp.int32(s), hyper)) for s in range(100)]
    np.testing.assert_allclose(schedules.of_spec(spec).lr[1:], want, rtol=1e-6)
    assert schedules.of_spec(spec).lr[0] == 0


def test_logged_rows_give_back_a_schedule_and_a_jump_comes_between_two_rows():
    step = np.arange(240, T + 1, 40)
    for history in TRAINED[:2]:
        got = schedules.logged(step, history.at(step))
        np.testing.assert_allclose(got.lr[240:], history.lr[240:], atol=1e-4 * PEAK)
    jump = schedules.logged(step, TRAINED[2].at(step))
    changed = np.flatnonzero(np.diff(jump.lr[240:]))
    assert len(changed) == 1 and 1960 <= changed[0] + 240 <= 2000
    twice = schedules.logged(np.tile(step, 2), np.tile(TRAINED[0].at(step), 2))
    np.testing.assert_array_equal(twice.lr, schedules.logged(step, TRAINED[0].at(step)).lr)


def test_true_histories_make_a_row_independent_of_the_other_rows():
    x = rows(TRAINED)
    law = with_histories(MULTI_POWER, dict(enumerate(TRAINED)))
    late = x["step"] > 1000
    whole, part = features(law, x), features(law, {k: v[late] for k, v in x.items()})
    np.testing.assert_array_equal(whole["ln_S1"][late], part["ln_S1"])
    assert (
        np.abs(
            features(MULTI_POWER, x)["ln_S1"][late]
            - features(MULTI_POWER, {k: v[late] for k, v in x.items()})["ln_S1"]
        ).max()
        > 0.1
    )  # without them the rows before are taken for a warm-up
    used = seen_in(MULTI_POWER, x, late)
    np.testing.assert_array_equal(used["ln_S1"], features(MULTI_POWER, x)["ln_S1"][late])


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUTHS)
def test_noise_free_curves_give_back_the_law(name):
    law, params = laws.resolve(name), TRUTHS[name]
    sizes = [3e7, 1e8, 3e8] if "N" in law.input_names else None
    histories = TRAINED
    x = rows(histories, sizes=sizes)
    seen = features(law, x)
    y = np.log(evaluate(centred(law, x, np.ones(1)), _theta(law, params, x), seen)[0])
    where = centred(law, x, np.exp(y))
    ones = np.ones(len(y))
    starts = varpro.seed(where, seen, y, starts_Pp=where.starts(16, seed=0), weights=ones)
    found = solve(where, seen, y=y, weights=ones, starts_Pp=starts, delta=0.01)
    got = where.natural(found.theta_Pp[found.objective_P.argmin()])
    for key, value in params.items():
        assert got[key] == pytest.approx(value, rel=1e-5), key
    assert (found.objective_P < 1e-16 * len(y)).mean() > 0.1


def _theta(law, params, x):
    return centred(law, x, np.ones(1)).coordinates(params)


def test_the_functional_law_is_its_convolution_over_intrinsic_time():
    law, p = laws.resolve("functional"), TRUTHS["functional"]
    history = schedules.two_stage(2000, peak=PEAK, second=PEAK / 5, switch=1500, warmup=100)
    t = history.sum[-1]
    fine = 400  # of each step's rate, midpoint rule
    u = np.append(0.0, history.sum)
    noise = 0.0
    for k, rate in enumerate(history.lr):
        mid = u[k] + (np.arange(fine) + 0.5) / fine * rate
        noise += rate * (1 + p["C"] * (t - mid)) ** -(1 + p["rho"]) @ np.full(fine, rate / fine)
    want = p["L0"] + p["A"] * t ** -p["s"] + p["B"] * p["rho"] * p["C"] * noise
    where = Coordinates(law, np.array([8.0, 0, 0]), 3.0)
    got = evaluate(where, where.coordinates(p), seen_by(law, history, [2000]))[0, 0]
    assert got == pytest.approx(want, abs=2e-4 * p["B"] * PEAK)
    # held for ever, the rate's noise is B times the rate
    held = schedules.constant(200_000, peak=PEAK, warmup=100)
    end = evaluate(where, where.coordinates(p), seen_by(law, held, [200_000]))[0, 0]
    floor = p["L0"] + p["A"] * held.sum[-1] ** -p["s"]
    left = 1 - (1 + p["C"] * held.sum[-1]) ** -p["rho"]
    assert end - floor == pytest.approx(p["B"] * PEAK * left, rel=1e-3)


def test_the_noisy_quadratic_is_its_sum_over_every_direction():
    law = laws.resolve("noisy_quadratic")
    p = law.published["README example"]
    x = {
        "N": np.array([40.0, 3e3, 2e5, 2e5, 2e5]),
        "B": np.array([1e4, 1e4, 1e4, 1e6, 1e4]),
        "S": np.array([50.0, 400.0, 3e4, 3e4, 1.0]),
    }
    where = centred(law, x, np.ones(1))
    got = evaluate(where, where.coordinates(p), x)[0]
    for i in range(5):
        n = np.arange(1, x["N"][i] + 1)
        c = p["Q"] * n ** -p["q"]
        after = (1 - c) ** (2 * x["S"][i])
        excess = p["P"] * n ** -(1 + p["p_excess"]) * after
        noise = p["R"] / x["B"][i] * n ** -p["r"] * c * (1 - after) / (1 - (1 - c) ** 2)
        beyond = np.arange(x["N"][i] + 1, 3e6) ** -(1 + p["p_excess"])
        rest = beyond.sum() + 3e6 ** -p["p_excess"] / p["p_excess"]
        want = p["E"] + 0.5 * (p["P"] * rest + excess.sum() + noise.sum())
        assert got[i] == pytest.approx(want, rel=5e-6)
    assert got[3] < got[2] < got[4]  # larger batches and more steps pay here


@pytest.mark.slow  # 160 points of its spectrum a row
def test_noise_free_points_give_back_the_noisy_quadratic():
    law = laws.resolve("noisy_quadratic")
    p = law.published["README example"]
    rng = np.random.default_rng(0)
    x = {k: a * (b / a) ** rng.random(40) for k, (a, b) in law.typical.items()}
    where = centred(law, x, np.array([2.0]))
    seen = features(law, x)
    y = np.log(evaluate(where, where.coordinates(p), seen)[0])
    ones = np.ones(40)
    starts = varpro.seed(where, seen, y, starts_Pp=where.starts(32, seed=0), weights=ones)
    found = solve(where, seen, y=y, weights=ones, starts_Pp=starts, delta=0.01)
    got = where.natural(found.theta_Pp[found.objective_P.argmin()])
    for key, value in p.items():
        assert got[key] == pytest.approx(value, rel=1e-4), key


@pytest.fixture(scope="module")
def fitted():
    x = rows(TRAINED, each=40)
    loss = losses(MULTI_POWER, PUBLISHED, x, TRAINED, noise=1e-3)
    known = "tests.analysis.curve_truth:KNOWN"
    return fit(observed(x, loss), law=known, bootstrap=20, starts=16)


UNSEEN = {
    "wsd": schedules.wsd(T, peak=PEAK, decay_from=3200, final=PEAK / 10, warmup=200),
    "linear": schedules.linear(T, peak=PEAK, final=PEAK / 10, warmup=200),
    "3x cosine": schedules.cosine(3 * T, peak=PEAK, final=PEAK / 10, warmup=200),
    "3x constant": schedules.constant(3 * T, peak=PEAK, warmup=200),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNSEEN)
def test_three_curves_predict_schedules_and_horizons_that_were_never_run(fitted, name):
    history = UNSEEN[name]
    steps = np.linspace(400, history.steps, 30).astype(int)
    truth = np.array([slow_multi_power(PUBLISHED, history.lr, s) for s in steps[[5, 15, 29]]])
    curve = predict_curve(fitted, history, steps)
    got = np.array(curve.mean)[[5, 15, 29]]
    np.testing.assert_allclose(got, truth, rtol=3e-3)
    assert (np.array(curve.lo)[[5, 15, 29]] < truth).all()
    assert (truth < np.array(curve.hi)[[5, 15, 29]]).all()
    assert not curve.outside


@pytest.mark.slow
def test_a_mid_run_loss_implies_the_annealed_loss(fitted):
    history = TRAINED[1]
    low = PEAK / 1000
    branch = np.append(history.lr[:3001], np.linspace(PEAK, low, 501)[1:])
    before, after = (slow_multi_power(PUBLISHED, branch, s) for s in (3000, 3500))
    got = annealed(fitted, history, step=3000, loss=1.01 * before, decay_steps=500, final=low)
    assert got.loss == pytest.approx(1.01 * after, rel=3e-3) and got.ratio < 1
    assert got.lo < 1.01 * after < got.hi
    with pytest.raises(InputError, match="final"):
        annealed(fitted, history, step=3000, loss=3.4, decay_steps=500, final=1.0)


@pytest.mark.slow
def test_the_best_schedule_never_rises_and_beats_the_plain_shapes(fitted):
    best = best_schedule(fitted, steps=T, peak=PEAK, warmup=200)
    after = best.history.lr[200:]
    assert (np.diff(after) <= 0).all() and after.max() <= PEAK * (1 + 1e-12)
    assert best.loss == pytest.approx(predict_curve(fitted, best.history, [T]).mean[0])
    for history in [*UNSEEN.values()][:2] + [
        schedules.cosine(T, peak=PEAK, warmup=200),
        schedules.wsd(T, peak=PEAK, decay_from=3200, warmup=200),
        schedules.wsd(T, peak=PEAK, decay_from=3200, warmup=200, fall="sqrt"),
    ]:
        assert best.loss < predict_curve(fitted, history, [T]).mean[0]
    assert best.loss < best.constant
    assert best.stable > 0.4  # warm-up, stable, decay
    when = best_decay(fitted, steps=T, peak=PEAK, warmup=200)
    assert when.loss == min(loss for _, loss in when.table) >= best.loss
    assert 200 < when.decay_from < T - 1


def test_a_law_whose_gain_has_no_end_is_refused_a_best_schedule(fitted):
    x = rows(TRAINED)
    loss = losses(laws.resolve("annealing"), TRUTHS["annealing"], x, TRAINED)
    plain = fit(observed(x, loss), law="annealing", bootstrap=0, starts=4)
    with pytest.raises(InputError, match="multi_power"):
        best_schedule(plain, steps=T, peak=PEAK, warmup=200)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("cosin:steps=10,peak=1e-3", "cosine"),
        ("cosine:peak=1e-3", "steps"),
        ("cosine:steps=ten,peak=1e-3", "steps=24000"),
        ("cosine:steps=100,peak=-1", "peak"),
        ("wsd:steps=100,peak=1e-3,decay_from=200", "decay_from"),
        ("wsd:steps=100,peak=1e-3,decay_from=50,fall=cliff", "fall"),
        ("constant:steps=100,peak=1e-3,warmup=200", "steps"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_in_one_line(text, word):
    with pytest.raises(InputError, match=word) as error:
        schedules.parse(text)
    assert "\n" not in str(error.value)


def test_a_schedule_in_words_is_the_schedule():
    got = schedules.parse("wsd:steps=4000,peak=3e-4,decay_from=3200,final=3e-5,warmup=200")
    np.testing.assert_array_equal(got.lr, UNSEEN["wsd"].lr)


@pytest.mark.parametrize("steps", [[0], [T + 1], []])
def test_steps_outside_the_schedule_are_refused(fitted, steps):
    with pytest.raises(InputError, match="steps"):
        predict_curve(fitted, TRAINED[0], steps)


def test_a_law_of_final_losses_has_no_curves():
    with pytest.raises(InputError, match="multi_power"):
        seen_by(laws.resolve("chinchilla"), TRAINED[0], [10], N=1e6, D=1e8)
