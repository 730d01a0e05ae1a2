"""How do measurements become a fitted law, with its doubts?

Points are checked (enough, and not all on one line), the noise is estimated, the law is solved
from many starts, the fit is bootstrapped and back-tested, and everything goes into one artefact.
A status is never better than what was found: optima that disagree, parameters at a bound and
directions without information are said.
"""

import time
from importlib import metadata
from typing import Any, Literal

import numpy as np

from analysis import laws
from analysis.artefact import AT_BOUND, CONVERGED, FAILED, ILL_POSED, MULTIMODAL, Fit
from analysis.backtest import rolling
from analysis.budgets import Budgets, budgets
from analysis.law import Coordinates, Law, centred, evaluate
from analysis.observations import Observations
from analysis.solve import Solutions, solve
from analysis.uncertainty import HUBER_K, noise_of, noise_of_replicates, resample
from parallelism.errors import InputError

# before the noise is known: above the noise of any language model's final loss (0.1 to 0.6 %)
PILOT_DELTA = 0.01
LEAST_DELTA = 1e-4  # noise-free points would make the objective an absolute value
AGREE = 1e-6  # relative difference of objectives that is the same optimum
ZERO = 1e-20  # per row: residuals of 1e-10 are those of noise-free points
FLAT = 1.0  # a direction known to no better than a factor of e is not identified
COLLINEAR = 0.05  # inputs vary by less than 5 % off one line: the terms cannot be told apart
MULTIMODAL_GAP = 2.0  # in log likelihood: an optimum this near is not rejected


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
    `reduce` scales the reported objective only: the optimum is the same.
    """
    begun = time.perf_counter()
    family = laws.resolve(law)
    _check_settings(huber=huber, reduce=reduce, bootstrap=bootstrap, level=level, starts=starts)
    x = {name: observations.values(name) for name in family.input_names}
    loss = observations.values("loss")
    points = np.stack([np.log(x[name]) for name in family.input_names], axis=1)
    check_points(family, points, observations)
    where = centred(family, x, loss)
    y, ones = np.log(loss), np.ones(len(loss))
    p = len(family.params)

    found = _descend(where, x, y, where.starts(starts, seed=seed), huber or PILOT_DELTA)
    best = _best(found, law)
    delta, origin = huber, "given"
    if delta is None:
        for _ in range(2):  # delta follows the noise, the noise the fit
            noise = noise_of(y - _log(where, best, x), parameters=p)
            delta = max(HUBER_K * noise.sd, LEAST_DELTA)
            best = _best(solve(where, x, y=y, weights=ones, starts_Pp=best[None], delta=delta), law)
        origin = f"1.345 x noise of {noise.sd:.2e}"
        found = solve(where, x, y=y, weights=ones, starts_Pp=found.theta_Pp, delta=delta)
        best = _best(found, law)
    noise = noise_of(y - _log(where, best, x), parameters=p)
    objective = found.objective_P.min()
    agree = int(
        ((found.objective_P <= objective * (1 + AGREE) + ZERO * len(y)) & found.converged_P).sum()
    )
    solved = time.perf_counter()

    C = observations.values("C") if "C" in observations.columns else None
    levels = budgets(C) if C is not None else Budgets(np.zeros(len(y), int), np.ones(1), True)
    basins = _basins(where, x, found, noise_sd=noise.sd)
    boot = _bootstrap(
        where,
        x,
        y=y,
        best=best,
        basins=basins,
        delta=delta,
        points=points,
        stratum=np.zeros(len(y), int) if levels.are_bands else levels.label_M,
        cluster=_used(observations.cluster, observations.used),
        count=bootstrap,
        seed=seed,
        level=level,
    )
    test = rolling(
        where,
        x,
        y=y,
        levels=levels,
        delta=delta,
        huber=huber,
        best=best,
        points=points,
        ids=observations.ids,
        cluster=_used(observations.cluster, observations.used),
        level=level,
        seed=seed,
    )
    unidentified, condition = _identifiability(
        family, found.gram_Ppp[found.objective_P.argmin()], noise.sd
    )
    replicates = noise_of_replicates(y, points)
    lack: dict[str, Any] = {"verdict": "no replicates to compare with"}
    if replicates is not None:
        ratio = noise.sd / replicates.sd
        verdict = "FORM_REJECTED" if ratio > 2 and replicates.dof >= 2 else "not rejected"
        lack = {
            "verdict": verdict,
            "ratio": ratio,
            "replicate_sd": replicates.sd,
            "dof": replicates.dof,
        }
    status = _status(where, found, best, agree, basins, unidentified)
    warnings = _warnings(observations, status, unidentified, levels, boot, lack, agree)
    natural = where.natural(best)
    ranges = {n: [float(v.min()), float(v.max())] for n, v in x.items()}
    if C is not None:
        ranges["C"] = [float(C.min()), float(C.max())]
    if {"N", "D"} <= set(x):
        ratio_DN = x["D"] / x["N"]
        ranges["D/N"] = [float(ratio_DN.min()), float(ratio_DN.max())]
    ended = time.perf_counter()
    return Fit(
        law=law,
        equation=family.equation,
        params={k: float(v) for k, v in natural.items()},
        objective=float(objective / (len(y) if reduce == "mean" else 1)),
        status=status,
        rows=len(y),
        excluded=observations.excluded,
        conventions=dict(observations.conventions),
        bootstrap=boot["summary"],
        backtest=test.to_json(),
        data_hash=observations.hash,
        version=_version(),
        seconds={"solve": solved - begun, "bootstrap": ended - solved},
        warnings=warnings,
        delta=float(delta),
        delta_origin=origin,
        reduce=reduce,
        level=level,
        seed=seed,
        starts=len(found.objective_P),
        starts_agree=agree,
        basins=basins,
        unidentified=unidentified,
        condition=condition,
        noise={"sd": noise.sd, "dof": noise.dof, "origin": noise.origin},
        lack_of_fit=lack,
        form=test.form,
        theta=[float(v) for v in best],
        samples=[[float(v) for v in row] for row in boot["samples"]],
        centre=[float(v) for v in where.centre],
        scale=where.scale,
        ranges=ranges,
        budgets=[] if levels.are_bands else [float(v) for v in levels.flops],
        flops_per_token=observations.flops_per_token,
        run_ids=list(observations.ids),
        source=observations.source,
    )


def check_points(law: Law, points: np.ndarray, observations: Observations) -> None:
    """Refuse data that cannot fix the law, and say what would."""
    p, source = len(law.params), observations.source
    distinct = len(np.unique(points, axis=0)) if len(points) else 0
    if distinct <= p:
        left = len(observations.id) - len(points)
        raise InputError(
            source,
            f"{distinct} usable points ({left} rows excluded) for {p} parameters of {law.name}",
            f"give at least {p + 1} runs of different sizes or lengths",
        )
    if points.shape[1] < 2:
        return
    C = observations.values("C") if "C" in observations.columns else None
    if C is not None and budgets(C).count == 1:
        raise InputError(
            source,
            f"one compute budget only ({np.exp(np.log(C).mean()):.3g} FLOPs)",
            "add runs of at least one other budget, a factor of 3 away: along one budget N and D move together",
        )
    spread = np.linalg.svd(points - points.mean(0), compute_uv=False) / np.sqrt(len(points))
    if spread[-1] < COLLINEAR:
        names = " and ".join(law.input_names)
        raise InputError(
            source,
            f"{names} lie on one line (they leave it by {spread[-1]:.1%})",
            f"add runs with another ratio of {names}, at least a factor of 2 to each side",
        )


def _check_settings(
    *, huber: float | None, reduce: str, bootstrap: int, level: float, starts: int
) -> None:
    if huber is not None and not (np.isfinite(huber) and huber > 0):
        raise InputError("--huber", huber, "write a positive number such as 1e-3")
    if reduce not in ("sum", "mean"):
        raise InputError("--reduce", reduce, "write sum or mean")
    if bootstrap < 0 or bootstrap == 1:
        raise InputError("--bootstrap", bootstrap, "write 0, or a number of resamples such as 400")
    if not 0 < level < 1:
        raise InputError("--level", level, "write a probability such as 0.95")
    if starts < 1:
        raise InputError("--starts", starts, "write a number of starting points such as 64")


def _descend(
    where: Coordinates, x: dict[str, np.ndarray], y: np.ndarray, starts_Pp: np.ndarray, delta: float
) -> Solutions:
    """Every start down a ladder of deltas: far away, a small delta is an absolute value with
    creases everywhere."""
    step = max(delta, PILOT_DELTA)
    while True:
        found = solve(where, x, y=y, weights=np.ones(len(y)), starts_Pp=starts_Pp, delta=step)
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


def _log(where: Coordinates, theta_p: np.ndarray, x: dict[str, np.ndarray]) -> np.ndarray:
    return np.log(evaluate(where, theta_p, x)[0])


def _used(values: tuple[str, ...], used: np.ndarray) -> np.ndarray:
    return np.array(values)[used]


def _basins(
    where: Coordinates, x: dict[str, np.ndarray], found: Solutions, *, noise_sd: float
) -> list[dict[str, Any]]:
    """Other converged optima that the data do not reject and that predict something else far
    out."""
    order = np.argsort(found.objective_P, kind="stable")
    rows = len(next(iter(x.values())))
    lowest = found.objective_P[order[0]]
    far = {name: np.array([v.max() * 10]) for name, v in x.items()}
    kept = [order[0]]
    predictions = [np.log(evaluate(where, found.theta_Pp[order[0]], far)[0, 0])]
    for i in order[1:]:
        worse = (found.objective_P[i] - lowest) / noise_sd**2
        if not found.converged_P[i] or worse > MULTIMODAL_GAP:
            continue
        prediction = np.log(evaluate(where, found.theta_Pp[i], far)[0, 0])
        if found.objective_P[i] <= lowest * (1 + AGREE) + ZERO * rows:
            continue
        if min(abs(prediction - q) for q in predictions) > noise_sd:
            kept.append(i)
            predictions.append(prediction)
    weight = np.exp(-(found.objective_P[kept] - lowest) / noise_sd**2)
    return [
        {"theta": [float(v) for v in found.theta_Pp[i]], "weight": float(w / weight.sum())}
        for i, w in list(zip(kept, weight, strict=True))[:4]
    ]


def _bootstrap(
    where: Coordinates,
    x: dict[str, np.ndarray],
    *,
    y: np.ndarray,
    best: np.ndarray,
    basins: list[dict[str, Any]],
    delta: float,
    points: np.ndarray,
    stratum: np.ndarray,
    cluster: np.ndarray,
    count: int,
    seed: int,
    level: float,
) -> dict[str, Any]:
    """Refits of resampled data from every basin; draws that found no optimum are counted and left
    out."""
    p = len(best)
    if count == 0:
        return {"samples": [], "summary": {"n": 0, "params": {}}}
    draws = resample(
        count,
        y=y,
        fitted=_log(where, best, x),
        cluster=cluster,
        stratum=stratum,
        points=points,
        weights=np.ones(len(y)),
        parameters=p,
        seed=seed,
    )
    runs = [
        solve(
            where,
            x,
            y=draws.y_SM,
            weights=draws.weights_SM,
            delta=delta,
            starts_Pp=np.broadcast_to(np.array(basin["theta"]), (count, p)),
        )
        for basin in basins
    ]
    objective_KS = np.stack([r.objective_P for r in runs])
    pick = objective_KS.argmin(0)
    theta_KSp = np.stack([r.theta_Pp for r in runs])
    ok = np.isfinite(objective_KS.min(0))
    samples = theta_KSp[pick, np.arange(count)][ok]
    natural = where.natural(samples)
    tails = [(1 - level) / 2, (1 + level) / 2]
    params = {}
    for name, values in natural.items():
        low, high = np.quantile(values, tails)
        params[name] = {"se": float(np.std(values, ddof=1)), "lo": float(low), "hi": float(high)}
    return {
        "samples": samples,
        "summary": {
            "n": len(samples),
            "kind": draws.kind,
            "clusters": len(np.unique(cluster)),
            "singular": draws.singular,
            "failed": int((~ok).sum()),
            "params": params,
        },
    }


def _identifiability(
    law: Law, gram: np.ndarray, noise_sd: float
) -> tuple[list[dict[str, Any]], float]:
    """Directions of the fit coordinates that the data leave open, by the curvature of the
    objective."""
    values, vectors = np.linalg.eigh(gram)
    top = max(float(values[-1]), 1e-300)
    out = []
    for value, vector in zip(values, vectors.T, strict=True):
        sd = noise_sd / np.sqrt(max(float(value), 1e-300))
        if sd > FLAT or value < 1e-14 * top:
            names = [n for n, v in zip(law.names, vector, strict=True) if abs(v) > 0.3]
            out.append(
                {
                    "params": names,
                    "sd": float(min(sd, 1e6)),
                    "direction": [float(v) for v in vector],
                }
            )
    return out, float(top / max(float(values[0]), 1e-300))


def _status(
    where: Coordinates,
    found: Solutions,
    best: np.ndarray,
    agree: int,
    basins: list[dict[str, Any]],
    unidentified: list[dict[str, Any]],
) -> str:
    low, high = where.bound
    if not found.converged_P[found.objective_P.argmin()]:
        return FAILED
    if ((best < low) | (best > high)).any():
        return AT_BOUND
    if unidentified:
        return ILL_POSED
    if len(basins) > 1:
        return MULTIMODAL
    # one start that nobody else confirms is not known to be the optimum
    return CONVERGED if agree >= min(3, len(found.objective_P)) else FAILED


def _warnings(
    observations: Observations,
    status: str,
    unidentified: list[dict[str, Any]],
    levels: Budgets,
    boot: dict[str, Any],
    lack: dict[str, Any],
    agree: int,
) -> list[str]:
    out = []
    if status == FAILED:
        out.append(
            f"the optimum is not confirmed ({agree} starts agree): do not use these parameters"
        )
    if status == AT_BOUND:
        out.append(
            "a parameter lies at its bound: the data want a simpler law or a wider range of runs"
        )
    if status == MULTIMODAL:
        out.append(
            "several optima fit as well and predict different losses: add runs at a larger budget"
        )
    for direction in unidentified:
        out.append("the data do not separate " + ", ".join(direction["params"]))
    if lack["verdict"] == "FORM_REJECTED":
        out.append(
            f"residuals are {lack['ratio']:.1f} times the noise of replicates: the law's form is rejected"
        )
    if boot["summary"].get("singular"):
        out.append(
            f"{boot['summary']['singular']} bootstrap draws had too few distinct points and were redrawn"
        )
    if levels.are_bands:
        out.append("compute is spread evenly: bands of compute stand in for budgets in hold-outs")
    elif levels.count < 3:
        out.append(f"{levels.count} budgets: no back-test; a third one would supply it")
    if "C" in observations.columns:
        C, used = observations.columns["C"], observations.used
        for k, flops in enumerate(levels.flops):
            near = np.abs(np.log(np.where(C > 0, C, np.nan) / flops)) < 0.2
            lost = int((near & ~used).sum())
            if (
                lost > 0.2 * max(1, int(near.sum()))
                and not levels.are_bands
                and (levels.label_M == k).any()
            ):
                out.append(f"{lost} of {int(near.sum())} rows at budget {flops:.3g} are excluded")
    return out


def _version() -> str:
    try:
        return metadata.version("ladder-scaling")
    except metadata.PackageNotFoundError:
        return "source"
