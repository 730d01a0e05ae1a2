"""How do measurements become a fitted law, with its doubts?

The rows are posed as a problem, the noise is estimated, the law is solved from many starts, the
fit is diagnosed, bootstrapped and back-tested, and everything goes into one artefact.
"""

import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Literal

import numpy as np

from analysis import laws
from analysis.artefact import AT_BOUND, POINTS, Fit
from analysis.backtest import rolling
from analysis.bootstrap import Bootstrap, holding, summary
from analysis.bootstrap import bootstrap as refit
from analysis.diagnose import (
    agreeing,
    basins_of,
    open_directions,
    outliers,
    status_of,
    warnings_of,
)
from analysis.lack_of_fit import lack_of_fit
from analysis.observations import Observations
from analysis.prior import posterior
from analysis.problem import Problem, pose
from analysis.search import noise_about, regularised, search
from analysis.uncertainty import Noise
from parallelism.errors import InputError, nearest


def fit(
    observations: Observations,
    *,
    law: str = "chinchilla",
    huber: float | None = None,
    reduce: Literal["sum", "mean"] = "sum",
    residual: Literal["log", "linear"] | None = None,
    by: str | None = None,
    share: Sequence[str] = (),
    multiplier: str | None = None,
    prior: bool = False,
    bootstrap: int = 400,
    seed: int = 0,
    level: float = 0.95,
    starts: int = 64,
) -> Fit:
    """Fit a law (a name of `analysis.laws` or `module:object`) to the used rows; raises InputError.

    `huber`: delta of the Huber loss on residuals; default 1.345 times the estimated noise.
    `residual`: of the output's log or of itself; default the law's own. `reduce` scales the
    reported objective only: the optimum is the same. `by`: a label column of families, which have
    the parameters in `share` in common, or differ by a `multiplier` of one input. `prior`: rows
    that cannot fix the law (one budget, too few points, one line) are fitted all the same,
    ILL_POSED, and where rows say nothing the law's weak prior speaks. `bootstrap`: number of
    resamples, 0 for none.
    """
    begun = time.perf_counter()
    _check(
        huber=huber, reduce=reduce, residual=residual, bootstrap=bootstrap, level=level,
        starts=starts,
    )  # fmt: skip
    options = _options(observations, residual=residual, by=by, share=share, multiplier=multiplier)
    problem = pose(observations, laws.build(law, options), refuse=not prior)
    found, delta, origin = search(problem, law, huber=huber, starts=starts, seed=seed)
    best = found.theta_Pp[found.objective_P.argmin()]
    noise = noise_about(problem, best)
    gram = found.gram_Ppp[found.objective_P.argmin()]
    open_to, condition = open_directions(problem, gram, noise=noise)
    ill = bool(open_to or problem.missing)
    if prior and ill:
        best = regularised(problem, best, delta=delta, noise=noise)
    solved = time.perf_counter()

    basins = basins_of(problem, found, best=best, noise=noise, single=ill)
    made = _draws(problem, basins, delta=delta, noise=noise, count=bootstrap, seed=seed, ill=ill)
    test = rolling(problem, best=best, delta=delta, adapt=huber is None, level=level, seed=seed)

    status = status_of(problem, found, basins=basins, open_to=open_to)
    lack = lack_of_fit(problem, best=best, noise=noise)
    boot = summary(problem, made, level=level) if made else {"n": 0, "params": {}}
    if status == AT_BOUND:
        boot["params"] = holding(boot["params"], problem.where.natural(best))
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
        equation=problem.law.equation,
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
        points=_points(problem),
        run_ids=list(observations.ids),
        source=observations.source,
        options=options,
        outliers=outliers(problem, best, noise=noise),
        missing=[{"given": m.given, "instead": m.instead} for m in problem.missing],
    )


def _options(
    observations: Observations,
    *,
    residual: str | None,
    by: str | None,
    share: Sequence[str],
    multiplier: str | None,
) -> dict[str, Any]:
    """How the law is made from its name, for the fit to remember."""
    out: dict[str, Any] = {} if residual is None else {"residual": residual}
    if by is None:
        if share or multiplier:
            field = "--share" if share else "--multiplier"
            raise InputError(field, share or multiplier, "name the families' column with --by")
        return out
    if by not in observations.labels:
        raise InputError("--by", by, nearest(by, observations.labels))
    out |= {"by": by, "labels": list(observations.labels[by])}
    return out | ({"multiplier": multiplier} if multiplier else {"share": list(share)})


def _draws(
    problem: Problem,
    basins: list[dict[str, Any]],
    *,
    delta: float,
    noise: Noise,
    count: int,
    seed: int,
    ill: bool,
) -> Bootstrap | None:
    if not count:
        return None
    thetas = [np.array(b["theta"]) for b in basins]
    if ill:
        return posterior(problem, theta=thetas[0], delta=delta, noise=noise, count=count, seed=seed)
    return refit(problem, thetas=thetas, delta=delta, count=count, seed=seed)


def _check(
    *,
    huber: float | None,
    reduce: str,
    residual: str | None,
    bootstrap: int,
    level: float,
    starts: int,
) -> None:
    if huber is not None and not (np.isfinite(huber) and huber > 0):
        raise InputError("--huber", huber, "write a positive number such as 1e-3")
    if reduce not in ("sum", "mean"):
        raise InputError("--reduce", reduce, "write sum or mean")
    if residual not in (None, "log", "linear"):
        raise InputError("--residual", residual, "write log or linear")
    if bootstrap < 0 or bootstrap == 1:
        raise InputError("--bootstrap", bootstrap, "write 0, or a number of resamples such as 400")
    if not 0 < level < 1:
        raise InputError("--level", level, "write a fraction between 0 and 1 such as 0.95")
    if starts < 1:
        raise InputError("--starts", starts, "write a number of starting points such as 64")


def _ranges(problem: Problem) -> dict[str, list[float]]:
    """What the rows span: each input, compute, and tokens per parameter."""
    values = {name: problem.x[name] for name in problem.law.input_names}
    if problem.C is not None:
        values["C"] = problem.C
    if {"N", "D"} <= set(problem.x):
        values["D/N"] = problem.x["D"] / problem.x["N"]
    return {name: [float(v.min()), float(v.max())] for name, v in values.items()}


def _points(problem: Problem) -> list[list[float]]:
    """N, D and C of every row, where the law is of runs and they are not a curve's many rows."""
    if problem.C is None or not {"N", "D"} <= set(problem.x) or problem.rows > POINTS:
        return []
    return np.stack([problem.x["N"], problem.x["D"], problem.C], axis=1).tolist()


def _version() -> str:
    try:
        return metadata.version("ladder-scaling")
    except metadata.PackageNotFoundError:
        return "source"
