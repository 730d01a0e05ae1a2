"""What would other seeds have given? Resampled rows, and the fit of each resample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.problem import Problem
from analysis.solve import solve

# distinct points a parameter: draws of fewer than p of them have no chance worth looking for
MANY = 10


@dataclass(frozen=True)
class Resamples:
    """Bootstrap problems: weights, outputs on their scale (S, M); `kind` pairs, residuals, wild."""

    kind: str
    weights_SM: np.ndarray
    y_SM: np.ndarray
    singular: int  # resamples redrawn because they had too few distinct points


@dataclass(frozen=True)
class Bootstrap:
    """Fits of resamples, in fit coordinates (S, p); draws without an optimum are counted and left
    out."""

    samples_Sp: np.ndarray
    kind: str
    singular: int
    failed: int
    clusters: int


def bootstrap(
    problem: Problem,
    *,
    thetas: Sequence[np.ndarray],
    delta: float,
    count: int,
    seed: int,
    weights: np.ndarray | None = None,
) -> Bootstrap:
    """Refit `count` resamples of the rows whose weight is not 0 (default all), from each of
    `thetas`, the first the fit."""
    live = problem.weight if weights is None else weights
    draws = resample(
        problem, fitted=problem.fitted(thetas[0]), weights=live, count=count, seed=seed
    )
    runs = [
        solve(
            problem.where,
            problem.x,
            y=draws.y_SM,
            weights=draws.weights_SM,
            delta=delta,
            starts_Pp=np.broadcast_to(theta, (count, problem.parameters)),
        )
        for theta in thetas
    ]
    objective_KS = np.stack([r.objective_P for r in runs])
    theta_KSp = np.stack([r.theta_Pp for r in runs])
    ok = np.isfinite(objective_KS.min(0))
    samples_Sp = theta_KSp[objective_KS.argmin(0), np.arange(count)][ok]
    clusters = len(np.unique(problem.cluster[live > 0]))
    return Bootstrap(samples_Sp, draws.kind, draws.singular, int((~ok).sum()), clusters)


def summary(problem: Problem, made: Bootstrap, *, level: float) -> dict[str, Any]:
    """The `bootstrap` part of fit.json: standard error and interval of every named parameter."""
    tails = [(1 - level) / 2, (1 + level) / 2]
    params = {}
    for name, values in problem.where.natural(made.samples_Sp).items():
        low, high = np.quantile(values, tails)
        params[name] = {"se": float(np.std(values, ddof=1)), "lo": float(low), "hi": float(high)}
    return {
        "n": len(made.samples_Sp),
        "kind": made.kind,
        "clusters": made.clusters,
        "singular": made.singular,
        "failed": made.failed,
        "params": params,
    }


def holding(
    intervals: Mapping[str, dict[str, float]], estimate: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """The intervals, each as far as its estimate. An estimate at its bound may lie outside what a
    prior or refits allow (the prior of a positive parameter has nothing at 0): then the data do
    not exclude the bound, and an interval that did would claim what nobody measured.
    """
    return {
        name: {
            **ends,
            "lo": min(ends["lo"], float(estimate[name])),
            "hi": max(ends["hi"], float(estimate[name])),
        }
        for name, ends in intervals.items()
    }


def resample(
    problem: Problem, *, fitted: np.ndarray, weights: np.ndarray, count: int, seed: int
) -> Resamples:
    """Draw `count` bootstrap problems of the rows whose weight is not 0.

    From three rows a parameter on, clusters are drawn with replacement within each stratum
    (budget). Below that, such draws are often singular, and residuals are drawn instead (signs
    flipped by cluster where clusters have several rows). Residuals are inflated by sqrt(M / (M -
    p)).
    """
    rng = np.random.default_rng(seed)
    live = np.flatnonzero(weights > 0)
    M, p = len(live), problem.parameters
    names, which = np.unique(problem.cluster[live], return_inverse=True)
    if M < 3 * p:
        spread = np.sqrt(weights[live])
        residual = (problem.y - fitted)[live] * spread
        scale = np.sqrt(M / max(1, M - p))
        y_SM = np.broadcast_to(problem.y, (count, problem.rows)).copy()
        if len(names) == M:
            drawn = rng.choice(residual - residual.mean(), size=(count, M))
        else:
            drawn = residual * rng.choice([-1.0, 1.0], size=(count, len(names)))[:, which]
        y_SM[:, live] = fitted[live] + scale * drawn / spread
        kind = "residuals" if len(names) == M else "wild"
        return Resamples(kind, np.broadcast_to(weights, y_SM.shape), y_SM, 0)

    _, first = np.unique(which, return_index=True)
    strata = _merged(problem.stratum[live][first])
    _, point = np.unique(problem.points[live], axis=0, return_inverse=True)
    times_SK = np.zeros((count, len(names)), np.int16)
    redraw = np.arange(count)
    singular = 0
    for _ in range(100):
        for k in np.unique(strata):
            members = np.flatnonzero(strata == k)
            even = np.full(len(members), 1 / len(members))
            drawn = rng.multinomial(len(members), even, len(redraw))
            times_SK[np.ix_(redraw, members)] = drawn
        if point.max() >= MANY * p:
            break
        seen = np.zeros((len(redraw), int(point.max()) + 1), bool)
        s, row = np.nonzero(times_SK[redraw][:, which])
        seen[s, point.ravel()[row]] = True
        redraw = redraw[seen.sum(1) < p]
        singular += len(redraw)
        if not len(redraw):
            break
    weights_SM = np.zeros((count, problem.rows), np.float32)
    weights_SM[:, live] = times_SK[:, which] * weights[live]
    return Resamples("pairs", weights_SM, np.broadcast_to(problem.y, weights_SM.shape), singular)


def _merged(stratum: np.ndarray, least: int = 3) -> np.ndarray:
    """Strata of fewer than `least` clusters join the one below: alone they would hardly vary."""
    out = np.empty(len(stratum), int)
    current, inside = 0, 0
    for k in np.unique(stratum):
        if inside >= least and (stratum >= k).sum() >= least:
            current, inside = current + 1, 0
        out[stratum == k] = current
        inside += int((stratum == k).sum())
    return out
