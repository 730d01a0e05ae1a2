"""Items that run alike, their laws, and what the rest of a benchmark does."""

import numpy as np
import pytest

from analysis.difficulty import fit_difficulty, fit_map, mapped, mean_shift
from parallelism.errors import InputError

C = np.geomspace(1e19, 1e21, 8)
TARGET = 1e23
KINDS = [(3.0, 0.3, 0.02, 120), (8.0, 0.3, 0.05, 120), (20.0, 0.35, 0.02, 80)]


def benchmark(seed, *, flat=40, never=0):
    """Pass rates (M + 1, I) of three kinds of items, then items that stay where they are at .3,
    then items that no model passes; the target last. And the rates without noise."""
    rng = np.random.default_rng(seed)
    compute = np.append(C, TARGET)
    blocks = []
    for a, b, c, count in KINDS:
        spread = a * np.exp(0.1 * rng.standard_normal(count))
        blocks.append(np.exp(-spread * (compute[:, None] / 1e18) ** -b - c))
    blocks += [np.full((len(compute), flat), 0.3), np.zeros((len(compute), never))]
    p = np.concatenate(blocks, axis=1)
    return rng.binomial(100, p) / 100, p  # pass rates of 100 samples an item


def test_items_that_run_alike_are_one_cluster_and_strays_are_none():
    rng = np.random.default_rng(0)
    kinds = np.array([[0.1, 0.2, 0.3], [0.5, 0.6, 0.9], [0.9, 0.9, 0.9]])
    x = np.repeat(kinds, 40, axis=0) + 0.02 * rng.standard_normal((120, 3))
    stray = np.array([[0.9, 0.1, 0.5], [0.0, 0.9, 0.1]])
    label = mean_shift(np.concatenate([x, stray]), radius=0.2, least=10)
    assert (label[-2:] == -1).all()
    groups = [set(label[40 * k : 40 * k + 40]) for k in range(3)]
    assert all(len(g) == 1 for g in groups) and len(set.union(*groups)) == 3


@pytest.mark.slow
def test_the_score_is_predicted_at_100_times_the_compute():
    errors, inside = [], 0
    for seed in range(10):
        seen, truth = benchmark(seed)
        made = fit_difficulty(C, seen[:-1], bootstrap=64, seed=seed)
        score = made.predict(TARGET)
        errors.append(score.mean - truth[-1].mean())
        inside += score.lo <= truth[-1].mean() <= score.hi
    assert np.sqrt(np.mean(np.square(errors))) < 0.02  # the paper: 1.4 to 1.6 %
    assert inside >= 8


def test_items_that_cannot_be_extrapolated_are_set_aside_with_the_reason():
    seen, _ = benchmark(0, never=30)
    made = fit_difficulty(C, seen[:-1], bootstrap=64)
    reasons = {i: c.reason for c in made.clusters for i in c.items}
    flat = [reasons.get(i) or "" for i in range(320, 360)]
    never = [reasons.get(i) or "" for i in range(360, 390)]
    assert np.mean(["flat" in r for r in flat]) > 0.9
    assert np.mean(["not emerged" in r for r in never]) > 0.9
    assert 0.7 < made.predictable < 0.9
    assert "set aside" in made.text()


def test_the_map_rises_through_both_ends_and_passes_the_models():
    s = np.linspace(0.1, 0.7, 9)
    true = np.array([-0.5, 0.3])
    bend, off = fit_map(s, mapped(s, true))
    grid = np.linspace(0, 1, 100)
    curve = mapped(grid, bend)
    assert curve[0] == 0 and curve[-1] == 1 and (np.diff(curve) >= 0).all()
    np.testing.assert_allclose(mapped(s, bend), mapped(s, true), atol=5e-3)
    # a steep fall cannot be followed by a rising map
    bend, _ = fit_map(s, np.linspace(0.9, 0.1, 9))
    assert (np.diff(mapped(grid, bend)) >= -1e-12).all() and off < 5e-3


def test_what_cannot_be_clustered_is_refused():
    seen, _ = benchmark(0)
    with pytest.raises(InputError, match="at least 4 models"):
        fit_difficulty(C[:3], seen[:3])
    with pytest.raises(InputError, match="pass rates"):
        fit_difficulty(C, seen[:-1] + 1)
    with pytest.raises(InputError, match="nothing is predictable"):
        fit_difficulty(C, np.full((8, 50), 0.02), chance=0.02)
