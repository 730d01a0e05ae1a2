"""How sure is a prediction? Four sources, estimated apart and added in quadrature of log loss.

statistical  other seeds would have given other points: bootstrap of the fit
basin        other optima fit as well: spread between their predictions
form         the law is not the truth: in proportion to ln(C / largest fitted C), from back-tests
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
# Error of form per e-fold of compute, the even chance before any back-test has spoken. Guess: of
# the 0.3 to 1 % that a controlled family errs at 100x (4.6 e-folds), about half is not statistics.
FORM_PRIOR = 5e-4
FORM_GRID = np.geomspace(1e-6, 3.0, 1500)
LEAST_DELTA = 1e-4  # noise-free points would make the Huber loss an absolute value
MIN_NOISE = 1e-12  # noise-free points: keeps ratios finite


@dataclass(frozen=True)
class Noise:
    """Standard deviation of log loss between runs that differ in nothing but the seed."""

    sd: float
    dof: int
    origin: str  # replicates, or residuals of the fit


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


def form_sd(errors: list[tuple[float, float, float]], *, prior: float = FORM_PRIOR) -> float:
    """Error of form per e-fold of compute, from back-test folds of (mean log error, its variance,
    e-folds beyond).

    A fold errs by N(0, variance + (form x e-folds)^2). The median of the form given all folds,
    under a half-Cauchy prior whose median is `prior` (Gelman 2006): heavy tails, so a bad fold
    is believed; one good fold buys little confidence.
    """
    log_posterior = -np.log1p((FORM_GRID / prior) ** 2) + np.log(FORM_GRID)
    for error, variance, beyond in errors:
        if beyond > 0:
            total = variance + (FORM_GRID * beyond) ** 2
            log_posterior -= 0.5 * (np.log(total) + error**2 / total)
    mass = np.exp(log_posterior - log_posterior.max())
    return float(np.interp(0.5, np.cumsum(mass) / mass.sum(), FORM_GRID))


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
