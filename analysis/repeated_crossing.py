"""Where do repeated tokens stop paying, and where does a family that bears repetition overtake one
that does not?

With U unique tokens to be had, a budget beyond U's own is spent on epochs and on parameters. Masked
diffusion loses to autoregression where tokens are new and may win where they are read many times:
the order of two families flips at some compute, which grows with U. From fits of both by laws in
(N, D, U); the doubt is that of their draws, error of form left out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from analysis.coordinates import evaluate
from analysis.crossing import crossing
from analysis.multiplier import Curve
from analysis.repetition import EPOCHS, GRID, Fitted, Range, three_inputs
from parallelism.errors import InputError

SIZES = 241  # searched at each budget
NODES = 161  # budgets
STEP = 1e-4  # of ln D, for slopes
PAIRS = 400  # draws of two fits that are paired


def paying_epochs(
    fit: Fitted, *, N: float, U: float, share: float = 0.5, level: float = 0.95
) -> Range | None:
    """Epochs over U tokens from which one token more lowers the loss by less than `share` of what
    a new one would at the same D; None where they never do, to 10^4 epochs. Raises InputError."""
    three_inputs(fit)
    for name, value in (("N", N), ("U", U), ("share", share)):
        if not (np.isfinite(value) and value > 0):
            raise InputError(name, value, "write a positive number")
    if share >= 1:
        raise InputError("share", share, "write a fraction such as 0.5")
    epochs = np.geomspace(1, EPOCHS, GRID)
    thetas = np.concatenate([fit.theta_p[None], fit.samples_Sp])

    def gain(unique: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """(S, GRID) fall of the loss per e-fold of D."""
        low, high = (
            evaluate(fit.where, thetas, {"N": np.full(GRID, float(N)), "D": D, "U": unique(D)})
            for D in (U * epochs * np.exp(-STEP), U * epochs * np.exp(STEP))
        )
        return (low - high) / (2 * STEP)

    left = gain(lambda D: np.full(GRID, float(U))) / gain(lambda D: D) - share
    ends = np.array([_first_below(np.log(epochs), row) for row in left])
    if not np.isfinite(ends[0]):
        return None
    # a draw in which repetition always pays has its end beyond what was looked at
    ends = np.where(np.isfinite(ends), ends, np.log(EPOCHS))
    lo, hi = np.quantile(ends[1:], [(1 - level) / 2, (1 + level) / 2])
    return Range(*(float(np.exp(v)) for v in (ends[0], lo, hi)))


def repeated_crossing(
    a: Fitted,
    b: Fitted,
    *,
    unique: float,
    flops: tuple[float, float],
    flops_per_token: Callable[[np.ndarray], np.ndarray] = lambda N: 6 * N,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute `at` which the better of two families changes when `unique` tokens are all there are
    and each spends the budget on its own best N, with `lo`, `hi` and the `probability` that it
    changes within `flops` (least, most); `is` in words; epochs that `a` and `b` have read there.
    Raises InputError."""
    low, high = flops
    if not (np.isfinite(unique) and unique > 0):
        raise InputError("unique", unique, "write a number of tokens such as 1e11")
    if not 0 < low < high < np.inf:
        raise InputError("flops", flops, "write the least and the most, as in (1e19, 1e23)")
    budgets = np.geomspace(low, high, NODES)
    rng = np.random.default_rng(seed)
    curves, sizes = [], []
    for fit in (a, b):
        three_inputs(fit)
        log_SK, N_K = _frontier(fit, budgets, unique, flops_per_token)
        draws = log_SK[1:][rng.integers(0, len(log_SK) - 1, PAIRS)]
        nothing, log_C = np.zeros((PAIRS, NODES)), np.log(budgets)
        curves.append(Curve(log_C, log_SK[0], draws, nothing, N_K, log_C))
        sizes.append(N_K)
    out = crossing(curves[0], curves[1], low=low, high=high, level=level)
    if out["at"] is None:
        return out | {"unique": float(unique), "epochs": None}
    read = []
    for N_K in sizes:
        N = np.exp(np.interp(np.log(out["at"]), np.log(budgets), np.log(N_K)))
        read.append(float(out["at"] / flops_per_token(N) / unique))
    return out | {"unique": float(unique), "epochs": read}


def _frontier(
    fit: Fitted, budgets: np.ndarray, unique: float, per_token: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(1 + S, K) log of the least loss at each budget, each draw at its own size, and the fit's
    own sizes (K,)."""
    thetas = np.concatenate([fit.theta_p[None], fit.samples_Sp])
    log_loss, size = [], []
    for C in budgets:
        N = np.sqrt(C / 6) * np.geomspace(1 / np.sqrt(3e5), 1 / np.sqrt(0.03), SIZES)
        D = C / per_token(N)
        loss_SG = evaluate(fit.where, thetas, {"N": N, "D": D, "U": np.full(SIZES, float(unique))})
        log_loss.append(np.log(loss_SG.min(1)))
        size.append(N[loss_SG[0].argmin()])
    return np.stack(log_loss, axis=1), np.array(size)


def _first_below(ln_x: np.ndarray, y: np.ndarray) -> float:
    """ln x where y first falls below 0 for good, by a line between points; inf if never."""
    above = np.flatnonzero(y > 0)
    if not len(above):
        return float(ln_x[0])
    k = int(above[-1])
    if k == len(y) - 1:
        return np.inf
    return float(ln_x[k] + y[k] / (y[k] - y[k + 1]) * (ln_x[k + 1] - ln_x[k]))
