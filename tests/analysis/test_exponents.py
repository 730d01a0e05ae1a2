"""Are exponents measured with their doubt, and put in the regime that theory knows?"""

import numpy as np
import pytest

from analysis.exponents import RESOLUTION, UNRESOLVED, VARIANCE, exponent, exponents, regime
from parallelism.errors import InputError


@pytest.mark.parametrize(("a", "name"), [(1.0, VARIANCE), (0.4, RESOLUTION), (0.8, RESOLUTION)])
def test_noisy_power_laws_are_put_in_their_regime(a, name):
    rng = np.random.default_rng(0)
    v = np.geomspace(1e3, 1e6, 8)
    found = [
        exponent(v, (1.7 + 30 * (v / 1e2) ** -a) * np.exp(0.002 * rng.standard_normal(8)))
        for _ in range(100)
    ]
    inside = [abs(e.exponent - a) <= 2 * e.se for e in found]
    assert 0.9 <= np.mean(inside) <= 0.99
    assert np.mean([e.regime == name for e in found]) >= 0.9
    assert np.mean([abs(e.limit - 1.7) <= 2 * e.limit_se for e in found]) >= 0.9


def test_noise_free_points_give_their_exponent_and_limit():
    v = np.geomspace(1e3, 1e6, 8)
    for limit in (0.0, 1.7):
        e = exponent(v, limit + 30 * v**-0.4)
        assert e.exponent == pytest.approx(0.4, rel=1e-6)
        assert e.limit == pytest.approx(limit, abs=1e-6)


def test_an_exponent_that_the_noise_hides_is_not_named():
    assert regime(1.0, 0.5) == regime(0.4, np.nan) == UNRESOLVED
    rng = np.random.default_rng(0)
    v = np.geomspace(1e3, 3e3, 5)
    y = (1.7 + 3 * v**-0.4) * np.exp(0.01 * rng.standard_normal(5))
    assert exponent(v, y).regime == UNRESOLVED


def regression_loss(*, features, samples, spectrum, rng):
    """Population loss of least squares on random features of a Gaussian input: of least norm
    where there are fewer samples than features; None is without end."""
    d = len(spectrum)
    teacher = rng.standard_normal(d)
    F = np.eye(d) if features is None else rng.standard_normal((features, d))
    if samples is None:
        w = np.linalg.solve((F * spectrum) @ F.T, (F * spectrum) @ teacher)
    else:
        X = rng.standard_normal((samples, d)) * np.sqrt(spectrum)
        Z = X @ F.T
        if samples < len(F):
            w = Z.T @ np.linalg.solve(Z @ Z.T, X @ teacher)
        else:
            w = np.linalg.solve(Z.T @ Z, Z.T @ (X @ teacher))
    off = teacher - F.T @ w
    return float(spectrum @ off**2)


@pytest.mark.slow
@pytest.mark.parametrize("varied", ["features", "samples"])
def test_random_feature_regression_is_resolution_limited_when_the_other_size_has_no_end(varied):
    decay, sizes = 0.6, np.array([6, 9, 14, 21, 32, 48])
    spectrum = np.arange(1, 301) ** -(1 + decay)
    rng = np.random.default_rng(0)
    other = "samples" if varied == "features" else "features"
    loss = [
        np.mean(
            [
                regression_loss(**{varied: n, other: None}, spectrum=spectrum, rng=rng)
                for _ in range(40)
            ]
        )
        for n in sizes
    ]
    found = exponent(sizes.astype(float), np.array(loss), limit=0.0)
    # what is not resolved is the tail of the spectrum, sum over i > n of i^-(1 + decay)
    assert found.regime == RESOLUTION and abs(found.exponent - decay) < 0.15


@pytest.mark.parametrize("varied", ["features", "samples"])
def test_random_feature_regression_is_variance_limited_when_the_other_size_is_small(varied):
    few, sizes = 3, np.array([48, 80, 128, 208, 336])
    spectrum = np.arange(1, 101) ** -1.6
    other = "samples" if varied == "features" else "features"
    runs = 300
    loss = np.zeros(len(sizes))
    limit = 0.0
    for seed in range(runs):
        # the same teacher and the same small side throughout: their spread cancels in the excess
        sides = {varied: 0, other: few}
        losses = [
            one_small_side(**{**sides, varied: n}, small=other, spectrum=spectrum, seed=seed)
            for n in sizes
        ]
        loss += np.array([a for a, _ in losses]) / runs
        limit += losses[0][1] / runs
    found = exponent(sizes.astype(float), loss, limit=limit)
    assert found.regime == VARIANCE and abs(found.exponent - 1) < 0.25


def one_small_side(*, features, samples, small, spectrum, seed):
    """Loss, and its limit as the large side grows; the seed fixes teacher and small side."""
    fixed, free = np.random.default_rng(seed), np.random.default_rng([seed, features, samples])
    d = len(spectrum)
    teacher = fixed.standard_normal(d)
    if small == "features":
        F = fixed.standard_normal((features, d))
        X = free.standard_normal((samples, d)) * np.sqrt(spectrum)
        Z = X @ F.T
        w = np.linalg.solve(Z.T @ Z, Z.T @ (X @ teacher))
        best = np.linalg.solve((F * spectrum) @ F.T, (F * spectrum) @ teacher)
        return spectrum @ (teacher - F.T @ w) ** 2, spectrum @ (teacher - F.T @ best) ** 2
    X = fixed.standard_normal((samples, d)) * np.sqrt(spectrum)
    F = free.standard_normal((features, d))
    Z = X @ F.T
    w = Z.T @ np.linalg.solve(Z @ Z.T, X @ teacher)
    kernel = np.linalg.solve(X @ X.T, X @ teacher)
    return spectrum @ (teacher - F.T @ w) ** 2, spectrum @ (teacher - X.T @ kernel) ** 2


def test_each_curve_of_a_grid_gets_an_exponent_of_its_own():
    N, D = (a.ravel() for a in np.meshgrid(np.geomspace(1e6, 1e8, 5), np.geomspace(1e8, 1e10, 6)))
    loss = 1.5 + 400 * N**-0.35 + 900 * D**-0.4
    found = exponents({"N": N, "D": D}, loss)
    assert [e.variable for e in found] == ["N"] * 6 + ["D"] * 5
    for e in found:
        assert e.exponent == pytest.approx(0.35 if e.variable == "N" else 0.4, rel=1e-5)
        other, size = next(iter(e.fixed.items()))
        rest = 900 * size**-0.4 if other == "D" else 400 * size**-0.35
        assert e.limit == pytest.approx(1.5 + rest, rel=1e-5)
    assert "exponent 0.350" in found[0].text() and found[0].to_json()["points"] == 5


def test_windows_follow_an_exponent_that_changes():
    v = np.geomspace(1e2, 1e10, 33)
    # 1/x far out, v^-0.4 before: the exponent of a sum is that of its larger term
    loss = 1 + 1 / (v**0.4 / 50 + v / 1e5)
    found = exponents({"D": v}, loss, limit=1.0, window=5)
    assert len(found) == 29
    assert found[0].exponent == pytest.approx(0.4, abs=0.01)
    assert found[-1].exponent == pytest.approx(1.0, abs=0.01)
    assert (np.diff([e.exponent for e in found]) > 0).all()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"limit": 5.0}, "limit"),
        ({"window": 2}, "window"),
        ({"loss": np.array([1.0, np.nan, 2.0, 3.0])}, "loss"),
        ({"x": {"N": np.array([1.0, 2.0])}}, "N"),
        ({"x": {"N": np.array([1.0, 1.0, 2.0, 2.0])}}, "N"),
        ({"x": {}}, "x"),
    ],
)
def test_a_mistake_in_what_exponents_are_asked_of_is_one_line(change, field):
    given = {"x": {"N": np.geomspace(1, 8, 4)}, "loss": np.array([4.0, 3.0, 2.5, 2.2]), **change}
    with pytest.raises(InputError) as raised:
        exponents(given.pop("x"), given.pop("loss"), **given)
    assert raised.value.field == field and "\n" not in str(raised.value)
