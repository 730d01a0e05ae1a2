"""What every law must satisfy; a new law of a file in analysis/laws is found by itself."""

import numpy as np
import pytest

from analysis import laws, varpro
from analysis.coordinates import centred, check, evaluate, features, rows_of
from analysis.law import residuals_on
from analysis.solve import solve

ROWS = 60
# a history of rows is an input of theirs: test_schedule_laws.py recovers them from curves
OF_HISTORIES = {name for name, law in laws.catalogue().items() if law.prepare is not None}


def columns(law, *, rows=ROWS, beyond=1.0):
    """Rows spread over the law's usual ranges; log inputs times `beyond`."""
    rng = np.random.default_rng(0)
    out = {}
    for i in law.inputs:
        low, high = law.typical.get(i.name, (1e6, 1e10))
        if i.scale == "log":
            out[i.name] = np.exp(rng.uniform(np.log(low), np.log(high), rows)) * beyond
        elif i.scale == "linear":
            out[i.name] = rng.uniform(low, high, rows)
        else:
            out[i.name] = np.arange(rows) % 3 + 0.0
    return out


def truth(law, x):
    """A published set of coefficients, or the middle of the law's first guesses; with its
    coordinates."""
    where = centred(law, x, np.array([2.0]))
    if law.published:
        theta = where.coordinates(next(iter(law.published.values())))
    else:
        low, high = where.start
        theta = (low + high) / 2
    params = {name: float(value) for name, value in where.natural(theta).items()}
    return centred(law, x, evaluate(where, theta, x)[0]), params


@pytest.fixture(params=laws.names())
def law(request):
    return laws.catalogue()[request.param]


def test_a_law_says_what_it_is_and_where_it_is_from(law):
    assert law.equation and law.source and law.domain and law.section
    assert all(i.unit for i in law.inputs)
    assert set(law.typical) <= set(law.input_names)
    assert set(law.falls_in) <= set(law.input_names) and set(law.linear) <= set(law.names)
    for origin, params in law.published.items():
        assert origin and set(params) == set(law.names)
    assert laws.resolve(law.name) is law


def test_a_law_is_finite_far_beyond_its_data(law):
    check(law, field=law.name)
    if law.name in OF_HISTORIES:
        return
    x = columns(law)
    where, params = truth(law, x)
    theta = where.coordinates(params)
    for beyond in (1e-2, 1e3):
        out = evaluate(where, theta, columns(law, beyond=beyond))
        assert np.isfinite(out).all()
        assert law.output.scale != "log" or (out > 0).all()


def test_more_of_what_lowers_the_output_never_raises_it(law):
    if law.name in OF_HISTORIES or not law.falls_in:
        return
    x = columns(law)
    where, params = truth(law, x)
    theta = where.coordinates(params)
    base = evaluate(where, theta, x)[0]
    for name in law.falls_in:
        for factor in (1.01, 10.0):
            more = evaluate(where, theta, {**x, name: x[name] * factor})[0]
            assert (more <= base * (1 + 1e-12)).all(), name
        assert (more < base).any(), name


def test_predict_is_linear_in_what_it_calls_linear(law):
    if not law.linear or law.name in OF_HISTORIES:
        return
    x = columns(law)
    where, params = truth(law, x)
    seen = features(law, x)
    base = np.asarray(law.predict(params, seen))
    for name in law.linear:
        once, twice = (
            np.asarray(law.predict({**params, name: params[name] * k}, seen)) for k in (2.0, 3.0)
        )
        np.testing.assert_allclose(twice - once, once - base, rtol=1e-3, atol=1e-5)
        assert np.abs(once - base).max() > 0


# fitted most often; the others' recovery, a second or two each, runs with the slow tests
DAILY = {
    "chinchilla",
    "kaplan",
    "kaplan_c",
    "henighan_c",
    "overtraining",
    "parscale",
    "repetition",
    "optimal_lr",
    "translation",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in DAILY else pytest.mark.slow)
        for name in sorted(set(laws.names()) - OF_HISTORIES)
    ],
)
def test_noise_free_points_give_back_the_law(name):
    law = laws.catalogue()[name]
    x = columns(law)
    where, params = truth(law, x)
    y = law.output.forward(evaluate(where, where.coordinates(params), x)[0], log=np.log)
    starts, ones = where.starts(64, seed=0), np.ones(ROWS)
    if law.linear:
        starts = varpro.seed(where, x, y, starts_Pp=starts, weights=ones)
    found = solve(where, x, y=y, weights=ones, starts_Pp=starts, delta=0.01)
    best = found.theta_Pp[found.objective_P.argmin()]
    got = where.natural(best)
    for key, value in params.items():
        assert got[key] == pytest.approx(value, rel=1e-6), key
    far = columns(law, beyond=1e3)
    np.testing.assert_allclose(
        evaluate(where, best, far), evaluate(where, where.coordinates(params), far), rtol=1e-8
    )
    same = found.objective_P < 1e-18 * ROWS
    assert same.mean() >= (0.95 if name == "chinchilla" else 0.1), f"{same.mean():.0%} of starts"


def test_a_law_on_another_scale_is_one_object_and_the_same_curve():
    law = laws.resolve("chinchilla")
    linear = residuals_on(law, "linear")
    assert linear is residuals_on(law, "linear") and linear.output.scale == "linear"
    x = columns(law)
    where, params = truth(law, x)
    other, _ = truth(linear, x)
    np.testing.assert_array_equal(
        evaluate(where, where.coordinates(params), x), evaluate(other, where.coordinates(params), x)
    )


def test_features_of_some_rows_are_some_rows_of_the_features():
    law = laws.resolve("chinchilla")
    x = columns(law)
    take = np.arange(0, ROWS, 7)
    some = features(law, {name: value[take] for name, value in x.items()})
    for name, value in rows_of(features(law, x), take).items():
        np.testing.assert_array_equal(value, some[name])
