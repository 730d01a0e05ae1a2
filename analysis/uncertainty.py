"""How sure is a prediction? Four sources, estimated apart and added in quadrature of log loss.

statistical  other seeds would have given other points: bootstrap of the fit (rows of one cluster
together)
basin        other optima fit as well: spread between their predictions
form         the law is not the truth: grows in proportion to ln(C / largest fitted C), from
rolling back-tests
noise        the run that is predicted has a seed of its own

Intervals use Student's t with M - p degrees of freedom, because the noise is estimated from M - p
of them.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# E[min(|z|, k)^2] of a normal z at k = 1.345, the constant of 95 % efficiency (Huber 1981,
# "proposal 2")
HUBER_K, HUBER_VARIANCE = 1.345, 0.7101645
# Error of form per e-fold of compute before any back-test has spoken. Guess: a controlled family
# errs 0.3 to 1 % at 100x, 4.6 e-folds.
FORM_PRIOR = 1e-3
MIN_NOISE = 1e-12  # noise-free points: keeps ratios finite


@dataclass(frozen=True)
class Noise:
    """Standard deviation of log loss between runs that differ in nothing but the seed."""

    sd: float
    dof: int
    origin: str  # replicates, or residuals of the fit


@dataclass(frozen=True)
class Resamples:
    """Bootstrap problems: weights and log losses (S, M); `kind` pairs, residuals or wild."""

    kind: str
    weights_SM: np.ndarray
    y_SM: np.ndarray
    singular: int  # resamples redrawn because they had too few distinct points


def noise_of(residual_M: np.ndarray, *, parameters: int) -> Noise:
    """Robust scale of the residuals of a fit: Huber's proposal 2 with M - p degrees of freedom."""
    dof = max(1, len(residual_M) - parameters)
    size = np.abs(residual_M - np.median(residual_M))
    sd = max(1.4826 * float(np.median(size)), MIN_NOISE)
    for _ in range(60):
        clipped = np.minimum(np.abs(residual_M), HUBER_K * sd)
        sd = max(float(np.sqrt((clipped**2).sum() / (dof * HUBER_VARIANCE))), MIN_NOISE)
    return Noise(sd, dof, "residuals")


def noise_of_replicates(y_M: np.ndarray, points: np.ndarray) -> Noise | None:
    """Pooled spread of rows at the same point (M, I); None when no point has two rows."""
    _, which = np.unique(points, axis=0, return_inverse=True)
    which = which.ravel()
    squares, dof = 0.0, 0
    for k in range(which.max() + 1):
        y = y_M[which == k]
        if len(y) > 1:
            squares += float(((y - y.mean()) ** 2).sum())
            dof += len(y) - 1
    return Noise(max(float(np.sqrt(squares / dof)), MIN_NOISE), dof, "replicates") if dof else None


def resample(
    count: int,
    *,
    y: np.ndarray,
    fitted: np.ndarray,
    cluster: np.ndarray,
    stratum: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
    parameters: int,
    seed: int,
) -> Resamples:
    """Draw `count` bootstrap problems of M rows, `weights` (M,) 0 or 1 saying which rows take part.

    From three rows a parameter on, clusters are drawn with replacement within each stratum
    (budget). Below that, such draws are often singular, and residuals are drawn instead (signs
    flipped by cluster where clusters have several rows). Residuals are inflated by sqrt(M / (M -
    p)).
    """
    rng = np.random.default_rng(seed)
    live = np.flatnonzero(weights > 0)
    M = len(live)
    names, which = np.unique(cluster[live], return_inverse=True)
    if M < 3 * parameters:
        residual = (y - fitted)[live]
        scale = np.sqrt(M / max(1, M - parameters))
        y_SM = np.broadcast_to(y, (count, len(y))).copy()
        if len(names) == M:
            drawn = rng.choice(residual - residual.mean(), size=(count, M))
        else:
            drawn = residual * rng.choice([-1.0, 1.0], size=(count, len(names)))[:, which]
        y_SM[:, live] = fitted[live] + scale * drawn
        kind = "residuals" if len(names) == M else "wild"
        return Resamples(kind, np.broadcast_to(weights, y_SM.shape), y_SM, 0)

    _, first = np.unique(which, return_index=True)
    strata = _merged(stratum[live][first])
    _, point = np.unique(points[live], axis=0, return_inverse=True)
    times_SK = np.zeros((count, len(names)), np.int64)
    redraw = np.arange(count)
    singular = 0
    for _ in range(100):
        for k in np.unique(strata):
            members = np.flatnonzero(strata == k)
            even = np.full(len(members), 1 / len(members))
            times_SK[np.ix_(redraw, members)] = rng.multinomial(len(members), even, len(redraw))
        seen = np.zeros((len(redraw), int(point.max()) + 1), bool)
        s, row = np.nonzero(times_SK[redraw][:, which])
        seen[s, point.ravel()[row]] = True
        redraw = redraw[seen.sum(1) < parameters]
        singular += len(redraw)
        if not len(redraw):
            break
    weights_SM = np.zeros((count, len(y)), np.float32)
    weights_SM[:, live] = times_SK[:, which]
    return Resamples("pairs", weights_SM, np.broadcast_to(y, weights_SM.shape), singular)


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


def form_sd(errors: list[tuple[float, float, float]]) -> float:
    """Error of form per e-fold of compute, from back-test folds of (mean log error, its variance,
    e-folds beyond).

    The mean squared error of the folds in excess of what statistics and noise explain, on top of
    the prior: one bad fold is believed, and one good fold does not buy confidence.
    """
    excess = [max(0.0, e * e - variance) / h**2 for e, variance, h in errors if h > 0]
    return float(np.sqrt(FORM_PRIOR**2 + (sum(excess) / len(excess) if excess else 0.0)))


def statistical_sd(log_samples_SQ: np.ndarray) -> np.ndarray:
    """(Q,) spread of bootstrap predictions: half the central 68 %, which a few runaway resamples
    do not move."""
    low, high = np.nanquantile(log_samples_SQ, [0.15866, 0.84134], axis=0)
    return (high - low) / 2


@lru_cache
def student_t(level: float, dof: int) -> float:
    """Two-sided quantile of Student's t: bisection on Simpson's rule over its density."""
    scale = math.exp(math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2)) / math.sqrt(dof * math.pi)

    def inside(t: float) -> float:
        # u = arctan(x) keeps the heavy tails of few degrees of freedom within the rule's reach
        u = np.linspace(0, math.atan(t), 4001)
        density = scale * (1 + np.tan(u) ** 2 / dof) ** (-(dof + 1) / 2) / np.cos(u) ** 2
        weights = np.where(np.arange(4001) % 2, 4.0, 2.0)
        weights[[0, -1]] = 1.0
        return 2 * float((weights * density).sum()) * (u[1] - u[0]) / 3

    low, high = 0.0, 1e4
    for _ in range(80):
        t = (low + high) / 2
        low, high = (t, high) if inside(t) < level else (low, t)
    return (low + high) / 2
