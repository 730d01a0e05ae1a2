"""How wrong is the form of one step of a chain, beyond its runs? Runs held out from the far end.

As for a law of budgets (`analysis/backtest.py`), but the farthest runs are predicted from ever
fewer of the others, since a target is farther than the next run: `form_sd` says how much error a
unit of distance brings that statistics and noise do not. Distance is in e-folds: of compute for
the first step, of the loss for the second.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.coordinates import evaluate, rows_of
from analysis.prior import belief
from analysis.problem import Problem, too_few
from analysis.solve import Prior, solve
from analysis.uncertainty import Noise, form_sd, statistical_sd

CUTS = (4, 5, 6, 7)  # eighths of the runs that are fitted; the last eighth is predicted
STARTS, DRAWS = 16, 48
LEAST_RUNS = 3  # resampled runs that leave some spread
# Error of form of a score per e-fold of the loss, the even chance before any fold has spoken.
# Guess, by the measure of FORM_PRIOR: a hundredth of what the law itself moves, about 1 an e-fold.
SCORE_PRIOR = 0.01


@dataclass(frozen=True, kw_only=True)
class StepForm:
    """`form`: sd of the output, on its scale, per e-fold beyond the rows; `folds` it is from."""

    form: float
    folds: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def step_form(
    problem: Problem, far_M: np.ndarray, *, theta: np.ndarray, delta: float, noise: Noise,
    prior: float, seed: int = 0,
) -> StepForm:  # fmt: skip
    """The error of form of a step whose rows lie `far_M` e-folds out, noise and Huber's delta
    being those of all its rows; of `prior` alone where no fold can be fitted."""
    runs, which = np.unique(problem.cluster, return_inverse=True)
    last_R = np.full(len(runs), -np.inf)
    np.maximum.at(last_R, which, far_M)
    place_R = np.argsort(np.argsort(last_R, kind="stable"))
    ends_M = far_M == last_R[which]
    folds: list[dict[str, Any]] = []
    errors: list[tuple[float, float, float]] = []
    cuts = sorted({round(len(runs) * k / 8) for k in CUTS})
    held_M = (place_R[which] >= cuts[-1]) & ends_M
    for low in cuts:
        below_M = place_R[which] < low
        enough = not too_few(problem.points[below_M], problem.parameters)
        if not held_M.any() or low < LEAST_RUNS or not enough:
            continue
        beyond = float(np.clip(far_M[held_M] - far_M[below_M].max(), 0, None).mean())
        found = _fold(problem, below_M, which, theta, delta, belief(problem.where, noise=noise),
                      seed + low)  # fmt: skip
        y_SQ = problem.law.output.forward(
            evaluate(problem.where, found, rows_of(problem.x, held_M)), log=np.log
        )
        error = float((y_SQ[0] - problem.y[held_M]).mean())
        common = float(statistical_sd(y_SQ[1:].mean(1, keepdims=True))[0])
        errors.append((error, common**2 + noise.sd**2 / int(held_M.sum()), beyond))
        folds.append(
            {"runs": int(low), "held_out": int(held_M.sum()), "error": error, "beyond": beyond,
             "sd": float(np.sqrt(errors[-1][1]))}
        )  # fmt: skip
    return StepForm(form=form_sd(errors, prior=prior), folds=folds)


def _fold(
    problem: Problem,
    below_M: np.ndarray,
    which: np.ndarray,
    theta: np.ndarray,
    delta: float,
    prior: Prior,
    seed: int,
) -> np.ndarray:
    """(1 + DRAWS, p) the optimum of the runs below, and of resamples of them."""
    solved: Callable[..., Any] = lambda w, starts: solve(  # noqa: E731
        problem.where, problem.x, y=problem.y, weights=w, starts_Pp=starts, delta=delta, prior=prior
    )
    weight = below_M * problem.weight
    starts = np.concatenate([theta[None], problem.where.starts(STARTS - 1, seed=seed)])
    first = solved(weight, starts)
    best = first.theta_Pp[first.objective_P.argmin()]
    kept = np.unique(which[below_M])
    rng = np.random.default_rng(seed)
    times_SR = np.zeros((DRAWS, int(which.max()) + 1))
    times_SR[:, kept] = rng.multinomial(len(kept), np.full(len(kept), 1 / len(kept)), DRAWS)
    again = solved(times_SR[:, which] * weight, np.broadcast_to(best, (DRAWS, len(best))))
    return np.concatenate([best[None], again.theta_Pp])
