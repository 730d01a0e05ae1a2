"""How do measurements become a fitted law, with its doubts?

The rows are posed as a problem, the noise is estimated, the law is solved from many starts, the
fit is diagnosed, bootstrapped and back-tested, and everything goes into one artefact.
"""

import time
from importlib import metadata
from typing import Literal

import numpy as np

from analysis import laws
from analysis.artefact import Fit
from analysis.backtest import rolling
from analysis.bootstrap import bootstrap as refit
from analysis.bootstrap import summary
from analysis.diagnose import (
    agreeing,
    basins_of,
    lack_of_fit,
    open_directions,
    status_of,
    warnings_of,
)
from analysis.observations import Observations
from analysis.problem import Problem, pose
from analysis.solve import Solutions, solve
from analysis.uncertainty import HUBER_K, LEAST_DELTA, noise_of
from parallelism.errors import InputError

# before the noise is known: above that of any language model's final loss (0.1 to 0.6 %)
PILOT_DELTA = 0.01


def fit(
    observations: Observations,
    *,
    law: str = "chinchilla",
    huber: float | None = None,
    reduce: Literal["sum", "mean"] = "sum",
    bootstrap: int = 400,
    seed: int = 0,
    level: float = 0.95,
    starts: int = 64,
) -> Fit:
    """Fit a law (a name of `analysis.laws` or `module:object`) to the used rows; raises InputError.

    `huber`: delta of the Huber loss on log residuals; default 1.345 times the estimated noise.
    `reduce` scales the reported objective only: the optimum is the same. `bootstrap`: number of
    resamples, 0 for none.
    """
    begun = time.perf_counter()
    _check(huber=huber, reduce=reduce, bootstrap=bootstrap, level=level, starts=starts)
    problem = pose(observations, laws.resolve(law))
    found, delta, origin = _solve(problem, law, huber=huber, starts=starts, seed=seed)
    best = found.theta_Pp[found.objective_P.argmin()]
    noise = noise_of(problem.y - problem.fitted(best), parameters=problem.parameters)
    solved = time.perf_counter()

    basins = basins_of(problem, found, noise=noise)
    thetas = [np.array(b["theta"]) for b in basins]
    made = (
        refit(problem, thetas=thetas, delta=delta, count=bootstrap, seed=seed)
        if bootstrap
        else None
    )
    test = rolling(problem, best=best, delta=delta, adapt=huber is None, level=level, seed=seed)

    gram = found.gram_Ppp[found.objective_P.argmin()]
    open_to, condition = open_directions(problem, gram, noise=noise)
    status = status_of(problem, found, basins=basins, open_to=open_to)
    lack = lack_of_fit(problem, noise=noise)
    boot = summary(problem, made, level=level) if made else {"n": 0, "params": {}}
    warnings = warnings_of(
        problem,
        observations,
        status=status,
        open_to=open_to,
        lack=lack,
        made=made,
        intervals=boot["params"],
        test=test,
        level=level,
    )
    objective = found.objective_P.min() / (problem.rows if reduce == "mean" else 1)
    return Fit(
        law=law,
        equation=problem.where.law.equation,
        params={k: float(v) for k, v in problem.where.natural(best).items()},
        objective=float(objective),
        status=status,
        rows=problem.rows,
        excluded=observations.excluded,
        conventions=dict(observations.conventions),
        bootstrap=boot,
        backtest=test.to_json(),
        data_hash=observations.hash,
        version=_version(),
        seconds={"solve": solved - begun, "bootstrap": time.perf_counter() - solved},
        warnings=warnings,
        delta=float(delta),
        delta_origin=origin,
        reduce=reduce,
        level=level,
        seed=seed,
        starts=starts,
        starts_agree=agreeing(found, problem.rows),
        basins=basins,
        unidentified=open_to,
        condition=condition,
        noise={"sd": noise.sd, "dof": noise.dof, "origin": noise.origin},
        lack_of_fit=lack,
        form=test.form,
        calibration=test.calibration,
        theta=best.tolist(),
        samples=made.samples_Sp.tolist() if made else [],
        centre=problem.where.centre.tolist(),
        scale=problem.where.scale,
        ranges=_ranges(problem),
        budgets=[] if problem.levels.are_bands else problem.levels.flops.tolist(),
        flops_per_token=observations.flops_per_token,
        run_ids=list(observations.ids),
        source=observations.source,
    )


def _solve(
    problem: Problem, law: str, *, huber: float | None, starts: int, seed: int
) -> tuple[Solutions, float, str]:
    """All starts at the given delta, or at one that follows the noise; the delta and where it is
    from."""
    found = _descend(problem, problem.where.starts(starts, seed=seed), huber or PILOT_DELTA)
    best = _best(found, law)
    if huber is not None:
        return found, huber, "given"
    ones = np.ones(problem.rows)
    delta, sd = PILOT_DELTA, 0.0
    for _ in range(2):  # delta follows the noise, the noise the fit
        sd = noise_of(problem.y - problem.fitted(best), parameters=problem.parameters).sd
        delta = max(HUBER_K * sd, LEAST_DELTA)
        again = solve(
            problem.where, problem.x, y=problem.y, weights=ones, starts_Pp=best[None], delta=delta
        )
        best = _best(again, law)
    found = solve(
        problem.where, problem.x, y=problem.y, weights=ones, starts_Pp=found.theta_Pp, delta=delta
    )
    _best(found, law)
    return found, delta, f"1.345 x noise of {sd:.2e}"


def _descend(problem: Problem, starts_Pp: np.ndarray, delta: float) -> Solutions:
    """Every start down a ladder of deltas: far from the optimum a small one is an absolute value,
    full of creases."""
    step = max(delta, PILOT_DELTA)
    while True:
        found = solve(
            problem.where,
            problem.x,
            y=problem.y,
            weights=np.ones(problem.rows),
            starts_Pp=starts_Pp,
            delta=step,
        )
        if step <= delta:
            return found
        starts_Pp, step = found.theta_Pp, max(delta, step / 3)


def _best(found: Solutions, law: str) -> np.ndarray:
    if not np.isfinite(found.objective_P).any():
        raise InputError(
            "--law",
            law,
            "the law gives no finite loss on these data from any start; check its inputs",
        )
    return found.theta_Pp[found.objective_P.argmin()]


def _check(*, huber: float | None, reduce: str, bootstrap: int, level: float, starts: int) -> None:
    if huber is not None and not (np.isfinite(huber) and huber > 0):
        raise InputError("--huber", huber, "write a positive number such as 1e-3")
    if reduce not in ("sum", "mean"):
        raise InputError("--reduce", reduce, "write sum or mean")
    if bootstrap < 0 or bootstrap == 1:
        raise InputError("--bootstrap", bootstrap, "write 0, or a number of resamples such as 400")
    if not 0 < level < 1:
        raise InputError("--level", level, "write a fraction between 0 and 1 such as 0.95")
    if starts < 1:
        raise InputError("--starts", starts, "write a number of starting points such as 64")


def _ranges(problem: Problem) -> dict[str, list[float]]:
    """What the rows span: each input, compute, and tokens per parameter."""
    values = dict(problem.x)
    if problem.C is not None:
        values["C"] = problem.C
    if {"N", "D"} <= set(problem.x):
        values["D/N"] = problem.x["D"] / problem.x["N"]
    return {name: [float(v.min()), float(v.max())] for name, v in values.items()}


def _version() -> str:
    try:
        return metadata.version("ladder-scaling")
    except metadata.PackageNotFoundError:
        return "source"
