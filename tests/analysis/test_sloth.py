"""Skills that families share: recovered from scores that follow them, and honest where they do
not."""

import dataclasses

import numpy as np
import pytest

from analysis.sloth import design, fit_sloth, held_out_largest
from parallelism.errors import InputError

FAMILIES = ("a", "b", "c", "d", "e", "f")
CHANCE = np.array([0.25, 0.25, 0.5, 0.0, 0.0, 0.2, 0.25, 0.1])
CENTRE = (np.log(3e9), np.log(1e12))


def truth(skills=2):
    """Base (8,), A (9, 2) and loadings (8, 2): logits from -3 to 3."""
    rng = np.random.default_rng(3)
    A = np.concatenate([rng.normal(0, 0.7, (6, skills)), rng.uniform(0.1, 0.6, (3, skills))])
    A[-1] = [0.05, -0.04][:skills]
    return rng.normal(0, 0.5, 8), A, rng.uniform(0.2, 1.2, (8, skills))


def models():
    """Four models a family; tokens differ within half of the families."""
    family = np.repeat(FAMILIES, 4)
    N = np.tile([5e8, 2e9, 8e9, 3e10], 6) * np.repeat([1, 1.3, 0.8, 1, 1.1, 0.9], 4)
    D = np.repeat([1e12, 2e12, 5e11, 1.5e12, 3e11, 3e12], 4)
    D[::3] *= 1.7
    return family, N, D


def scores(family, N, D, *, noise=0.0, seed=0):
    base, A, loadings = truth()
    logit = base + design(family, N, D, FAMILIES, CENTRE) @ A @ loadings.T
    clean = CHANCE + (1 - CHANCE) / (1 + np.exp(-logit))
    return clean + noise * np.random.default_rng(seed).standard_normal(clean.shape)


@pytest.fixture(scope="module")
def exact():
    family, N, D = models()
    given = {"N": N, "D": D, "family": family, "chance": CHANCE, "skills": 2}
    return fit_sloth(scores(family, N, D), bootstrap=2, **given)


def test_scores_that_follow_two_skills_are_predicted_exactly_beyond_them(exact):
    for family, N, D in (("a", 3e11, 8e12), ("e", 1e9, 1e11)):
        said = exact.predict(family, N=N, D=D)
        expected = scores([family], [N], [D])[0]
        assert np.array(list(said.mean.values())) == pytest.approx(expected, abs=1e-6)


def test_slopes_of_every_benchmark_are_recovered(exact):
    """Skills are open to rotation; what they do to a benchmark is not."""
    base, A, loadings = truth()
    shift = np.array(CENTRE) - exact.centre
    u, v, uv = (A[-3:] @ loadings.T).copy()
    # u v about another centre: (u - a)(v - b) = u v - b u - a v + a b
    at_centre = np.stack([u - uv * shift[1], v - uv * shift[0], uv])
    assert exact.slopes.T @ exact.loadings.T == pytest.approx(at_centre, rel=1e-5)


def test_skills_have_unit_spread_and_are_apart(exact):
    theta = exact.rows_MZ @ exact.A
    assert theta.mean(0) == pytest.approx([0, 0], abs=1e-9)
    assert theta.T @ theta / len(theta) == pytest.approx(np.eye(2), abs=1e-9)
    assert (exact.loadings.sum(0) > 0).all()


def test_gaps_in_the_table_do_not_matter_where_skills_are_known(exact):
    family, N, D = models()
    table = scores(family, N, D)
    table[::5, 2] = table[1::7, 6] = table[3, 4] = np.nan
    gaps = fit_sloth(table, N=N, D=D, family=family, chance=CHANCE, skills=2, bootstrap=0)
    one, other = (f.predict("b", N=1e11, D=4e12).mean for f in (gaps, exact))
    assert list(one.values()) == pytest.approx(list(other.values()), abs=1e-6)


def test_the_largest_models_are_inside_their_intervals_and_two_skills_beat_one():
    family, N, D = models()
    table = scores(family, N, D, noise=0.015)
    found = held_out_largest(
        table, N=N, D=D, family=family, chance=CHANCE, counts=(1, 2), bootstrap=30
    )
    assert found.best == 2 and found.error[2] < 0.6 * found.error[1]
    assert found.models == 6 and found.asked == 48
    assert 0.85 <= found.covered / found.asked <= 1.0


def test_intervals_are_stretched_by_what_held_out_models_missed():
    """Scores that bend as no skill does: a law of this form is wrong, and its intervals know."""
    family, N, D = models()
    bent = scores(family, N, D, noise=0.005)
    bent[:, :4] -= 0.04 * np.clip(np.log(N / 4e9), 0, None)[:, None]
    given = {"N": N, "D": D, "family": family, "chance": CHANCE, "bootstrap": 30}
    found = held_out_largest(bent, counts=(2,), **given)
    assert found.stretch > 1.5 and found.covered < 0.9 * found.asked
    plain, wide = (
        fit_sloth(bent, skills=2, stretch=s, **given).predict("a", N=4e9, D=1e12)
        for s in (1.0, found.stretch)
    )
    half = plain.hi["benchmark 3"] - plain.mean["benchmark 3"]
    assert wide.hi["benchmark 3"] - wide.mean["benchmark 3"] == pytest.approx(found.stretch * half)


def test_a_point_that_no_family_speaks_of_is_refused():
    """Every family has its own tokens: the slope of ln D is the families' intercepts."""
    family, N, _ = models()
    D = np.repeat([1e12, 2e12, 5e11, 1.5e12, 3e11, 3e12], 4)
    made = fit_sloth(
        scores(family, N, D), N=N, D=D, family=family, chance=CHANCE, skills=1, bootstrap=0
    )
    assert made.predict("a", N=1e11, D=1e12).mean
    with pytest.raises(InputError) as error:
        made.predict("a", N=1e11, D=4e12)
    assert error.value.field == "N, D"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"skills": 0}, "skills"),
        ({"skills": 9}, "skills"),
        ({"chance": 1.0}, "chance"),
        ({"N": [1e9]}, "table"),
        ({"D": np.zeros(24)}, "N, D"),
        ({"benchmarks": ["x"]}, "benchmarks"),
    ],
)
def test_tables_that_say_nothing_are_refused(change, field):
    family, N, D = models()
    given = {"N": N, "D": D, "family": family, "chance": CHANCE, "skills": 2, **change}
    with pytest.raises(InputError) as error:
        fit_sloth(scores(family, N, D), **given)
    assert error.value.field == field


def test_a_family_that_was_not_seen_is_refused(exact):
    with pytest.raises(InputError):
        exact.predict("g", N=1e9, D=1e11)
    assert not dataclasses.asdict(exact.predict("a", N=1e13, D=1e14))["in_domain"]
