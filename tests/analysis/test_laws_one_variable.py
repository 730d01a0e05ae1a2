"""Laws of one variable and the scalar root they rest on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from analysis import laws, varpro
from analysis.coordinates import Coordinates, centred, evaluate, features, output_of
from analysis.laws.broken import ln_breaks
from analysis.root import root
from analysis.solve import solve

FAMILIES = ("hestness", "henighan_", "superposition", "m1", "m2", "m3", "m4", "bnsl_")
MINE = [n for n in laws.names() if n.startswith(FAMILIES)]
M4 = {"e_inf": 0.9, "rise": 3.1, "a": 1.7, "x_0": 2e7, "c": 0.25}


def beta(params):
    """The amplitude of M4 as its authors write it."""
    return params["x_0"] ** params["c"] * params["rise"] ** (1 - params["a"])


ROWS = 60


def value(name, params, x):
    """Losses of named parameters at points, through the coordinates that a fit uses."""
    law = laws.resolve(name)
    where = Coordinates(law, np.zeros(len(law.inputs)), 1.0)
    return evaluate(where, where.coordinates(params), x)[0]


def in_float64(f, *args):
    with jax.enable_x64(True):
        return np.asarray(f(*args))


# -- the root --------------------------------------------------------------------------------------


def cube_root(a):
    return root(lambda y, a: y**3 + y - a, a, low=jnp.zeros_like(a), high=1 + jnp.abs(a))


def test_a_root_solves_its_equation_to_rounding():
    a = np.geomspace(1e-3, 1e6, 50)
    y = in_float64(cube_root, a)
    np.testing.assert_allclose(y**3 + y, a, rtol=1e-14)


@pytest.mark.slow
def test_forward_and_reverse_derivatives_of_a_root_are_those_of_the_implicit_function():
    a = np.geomspace(1e-2, 1e3, 7)
    y = in_float64(cube_root, a)
    expected = np.diag(1 / (3 * y**2 + 1))
    for derivative in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(in_float64(derivative(cube_root), a), expected, rtol=1e-11)


def test_a_root_under_vmap_is_the_root_of_each():
    a = np.geomspace(1e-2, 1e3, 7)
    alone = [float(in_float64(cube_root, np.array(v))) for v in a]
    np.testing.assert_array_equal(in_float64(jax.vmap(cube_root), a), alone)


# -- each law against its formula in numpy ---------------------------------------------------------

FORMULAS = {
    "hestness": (
        {"gamma": 1.2, "alpha": 80.0, "beta": 0.3},
        lambda p, x: p["gamma"] + p["alpha"] * x ** -p["beta"],
    ),
    "hestness_size": ({"sigma": 3.0, "beta": 0.7}, lambda p, x: p["sigma"] * x ** p["beta"]),
    "henighan_c": (
        {"L_inf": 0.5, "x0": 1e12, "alpha": 0.2},
        lambda p, x: p["L_inf"] + (p["x0"] / x) ** p["alpha"],
    ),
    "henighan_optimum": ({"C0": 1e5, "b": 0.7}, lambda p, x: (x / p["C0"]) ** p["b"]),
    "superposition": (
        {"L0": 1.5, "a": 200.0, "alpha_m": 0.91},
        lambda p, x: p["L0"] + p["a"] / x ** p["alpha_m"],
    ),
    "m1": ({"b": 12.0, "c": 0.1}, lambda p, x: p["b"] * x ** -p["c"]),
    "m2": (
        {"e_inf": 0.5, "b": 12.0, "c": 0.1},
        lambda p, x: p["e_inf"] + p["b"] * x ** -p["c"],
    ),
    "m3": (
        {"e_inf": 0.5, "b": 12.0, "c": 0.1, "x_max": 1e9},
        lambda p, x: p["e_inf"] + p["b"] * (1 / x + 1 / p["x_max"]) ** p["c"],
    ),
    "bnsl_1": (
        {"a": 0.4, "b": 9.0, "c_0": 0.1, "d_1": 1e8, "c_1": 0.3, "s_1": 2.5},
        lambda p, x: (
            p["a"]
            + p["b"] * x ** -p["c_0"] * (1 + (x / p["d_1"]) ** p["s_1"]) ** (-p["c_1"] / p["s_1"])
        ),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_law_is_its_published_formula(name):
    params, formula = FORMULAS[name]
    law = laws.resolve(name)
    x = np.geomspace(1e4, 1e13, 23)
    np.testing.assert_allclose(
        value(name, params, {law.input_names[0]: x}), formula(params, x), rtol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MINE)
def test_a_law_and_its_derivatives_do_not_overflow_from_1e3_to_1e14(name):
    law = laws.resolve(name)
    x = {n: np.array([1e3, 1e14]) for n in law.input_names}
    where = Coordinates(law, np.full(len(law.inputs), np.log(1e9)), 2.0)
    seen = dict(features(law, x))
    for theta in (*where.start, sum(where.start) / 2):
        for f in (output_of, jax.jacfwd(output_of, argnums=1)):
            out = in_float64(lambda t, f=f: f(law, t, seen, where.centre), theta)
            assert np.isfinite(out).all()


# -- M4 --------------------------------------------------------------------------------------------


def test_m4_solves_its_equation_between_the_floor_and_guessing():
    x = np.geomspace(1e1, 1e16, 40)
    y = value("m4", M4, {"x": x})
    guessing = M4["e_inf"] + M4["rise"]
    assert (y > M4["e_inf"]).all() and (y < guessing).all()
    np.testing.assert_allclose(
        (y - M4["e_inf"]) / (guessing - y) ** M4["a"], beta(M4) * x ** -M4["c"], rtol=1e-9
    )


@pytest.mark.parametrize("a", [0.05, 1.0, 8.0])
def test_m4_falls_with_x(a):
    y = value("m4", {**M4, "a": a}, {"x": np.geomspace(1e2, 1e16, 400)})
    # with a small a the level of guessing is reached to rounding
    apart = y[1:] < M4["e_inf"] + M4["rise"] - 1e-10
    assert (np.diff(y) <= 0).all() and (np.diff(y)[apart] < 0).all() and apart.sum() > 200


def test_m4_with_a_of_1_has_its_closed_form():
    x = np.geomspace(1e2, 1e14, 40)
    r = (M4["x_0"] / x) ** M4["c"]
    closed = (M4["e_inf"] + (M4["e_inf"] + M4["rise"]) * r) / (1 + r)
    np.testing.assert_allclose(value("m4", {**M4, "a": 1.0}, {"x": x}), closed, rtol=1e-13)


def test_m4_with_a_of_0_is_m2_below_guessing():
    x = np.geomspace(1e8, 1e14, 20)
    straight = {**M4, "a": 1e-9}
    power = {"e_inf": M4["e_inf"], "b": beta(straight), "c": M4["c"]}
    m2 = value("m2", power, {"x": x})
    assert (m2 < M4["e_inf"] + M4["rise"]).all()
    m4 = value("m4", straight, {"x": x})
    np.testing.assert_allclose(m4, m2, rtol=1e-7)
    assert np.abs(value("m4", M4, {"x": x}) - m2).max() > 0.1


@pytest.mark.slow
def test_the_gradient_of_m4_is_that_of_finite_differences():
    law = laws.resolve("m4")
    seen = dict(features(law, {"x": np.geomspace(1e3, 1e12, 9)}))
    centre = np.array([np.log(1e7)])
    theta = Coordinates(law, centre, 1.0).coordinates(M4)

    def f(t):
        return output_of(law, t, seen, centre)

    J = in_float64(jax.jacfwd(f), theta)
    step = 1e-5
    slow = [
        (in_float64(f, theta + e) - in_float64(f, theta - e)) / 2 / step for e in step * np.eye(5)
    ]
    np.testing.assert_allclose(J, np.transpose(slow), rtol=1e-6, atol=1e-9)


# -- breaks ----------------------------------------------------------------------------------------

TWO = {"a": 0.5, "b": 40.0, "c_0": 0.25, "d_1": 1e6, "c_1": -0.5, "s_1": 2.0}
TWO |= {"c_2": 0.7, "s_2": 3.0, "gap_2": 6.0}


def test_a_broken_law_without_a_break_is_a_power_law_plus_constant():
    x = {"x": np.geomspace(1e3, 1e14, 30)}
    broken = {"a": 0.5, "b": 40.0, "c_0": 0.25, "d_1": 1e6, "c_1": 0.0, "s_1": 2.0}
    straight = value("m2", {"e_inf": 0.5, "b": 40.0, "c": 0.25}, x)
    np.testing.assert_allclose(value("bnsl_1", broken, x), straight, rtol=1e-13)
    assert np.abs(value("bnsl_1", {**broken, "c_1": 0.1}, x) / straight - 1).max() > 0.05


def test_two_breaks_of_which_one_does_nothing_are_one_break():
    x = {"x": np.geomspace(1e3, 1e14, 30)}
    one = {k: TWO[k] for k in laws.resolve("bnsl_1").names}
    np.testing.assert_allclose(
        value("bnsl_2", {**TWO, "c_2": 0.0}, x), value("bnsl_1", one, x), rtol=1e-13
    )


def test_the_slope_of_a_broken_law_adds_an_exponent_at_each_break():
    params = {**TWO, "a": 1e-12}
    for at, slope in ((1e1, 0.25), (10 ** (6 + 1.3), -0.25), (1e14, 0.45)):
        low, high = value("bnsl_2", params, {"x": at * np.array([0.999, 1.001])})
        # both breaks of the middle stretch are still felt there
        tolerance = 0.02 if at == 10**7.3 else 1e-4
        assert -np.log(high / low) / np.log(1.001 / 0.999) == pytest.approx(slope, abs=tolerance)


def test_breaks_are_in_order_wherever_the_search_goes():
    law = laws.resolve("bnsl_2")
    where = Coordinates(law, np.array([np.log(1e8)]), 1.0)
    for theta in np.random.default_rng(0).normal(0, 2, (50, len(law.params))):
        first, second = in_float64(
            lambda p: jnp.stack(ln_breaks(p, breaks=2)), where.natural(theta)
        )
        assert np.isfinite(first) and first < second


def test_a_double_descent_is_recovered_from_its_points():
    law = laws.resolve("bnsl_2")
    x = {"x": np.exp(np.random.default_rng(0).uniform(np.log(1e4), np.log(1e12), ROWS))}
    loss = value("bnsl_2", TWO, x)
    where, ones = centred(law, x, loss), np.ones(ROWS)
    starts = varpro.seed(where, x, np.log(loss), starts_Pp=where.starts(64, seed=0), weights=ones)
    found = solve(where, x, y=np.log(loss), weights=ones, starts_Pp=starts, delta=0.01)
    got = where.natural(found.theta_Pp[found.objective_P.argmin()])
    rising = np.diff(loss[np.argsort(x["x"])]) > 0
    assert rising.any() and not rising.all()
    assert {k: float(v) for k, v in got.items()} == pytest.approx(TWO, rel=1e-6)
