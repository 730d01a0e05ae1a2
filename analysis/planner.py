"""Which size and how many tokens for a budget? The optimum, its interval, the flat region, and
the least regret.

Works for any law with N and D among its inputs: along a budget the loss is a function of ln N
alone; its minimum is found for the fit and for every bootstrap draw at once. The size to train is
that of least expected regret over the draws, not the optimum of the fit. With inference demand the
same is done along a line of equal loss.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.artefact import ILL_POSED, Fit
from analysis.budget_line import GRID, BudgetLine, budget_line
from analysis.devices import Devices
from analysis.inference import InferenceCost, served
from analysis.lack_of_fit import REJECTED
from analysis.optimum import Demand, along_loss
from analysis.predict import (
    extrapolation,
    family,
    flops_per_token,
    flops_per_token_origin,
    half_interval,
    level_of,
    log_spread,
)
from analysis.repetition import unique_needed
from analysis.sizing import KNOWN, Sizing
from parallelism.errors import InputError

FLAT = 1e-3  # relative loss above the optimum's that nobody would notice
FINE = 101  # sizes searched about the best of the grid


def size(
    fit: Fit,
    flops: float,
    *,
    inference_tokens: float | None = None,
    inference: InferenceCost | Demand | None = None,
    devices: Devices | None = None,
    unique_tokens: float | None = None,
    fixed: Mapping[str, float | str] | None = None,
    decided: tuple[float, str] | None = None,
    level: float | None = None,
    anyway: bool = False,
) -> Sizing:
    """The run that a budget should buy, from the fit alone; raises InputError for a fit that
    cannot tell, or whose form its own data reject unless `anyway`.

    `inference_tokens`: served over the model's life at 2 N FLOPs each; `inference`: a cost of
    serving instead. `unique_tokens`: all the data there are. `fixed`: values of the law's inputs
    besides N and D. `decided`: the N to train where something else has chosen it, and what.
    `level` of all intervals; default the fit's.
    """
    line = budget_line(fit, flops, fixed=fixed, unique_tokens=unique_tokens)
    demand = _demand(inference_tokens, inference)
    if decided is not None and demand is not None:
        raise InputError("--inference-tokens", inference_tokens, f"leave it out: {decided[1]}")
    rejected = fit.lack_of_fit["verdict"] == REJECTED
    if rejected and not anyway:
        raise InputError(
            "fit.json",
            "the law's form is rejected by its data",
            "fit another law (ladder fit DATA --law auto), or write --anyway",
        )
    level = level_of(fit, level)
    N_S, L_S = line.optima(line.thetas)
    D_S = line.tokens(N_S)
    N, D, loss = float(N_S[0]), float(D_S[0]), float(L_S[0])
    known = bool(_ends(N_S[1:], level)[1] / _ends(N_S[1:], level)[0] <= KNOWN)

    loss_SG = line.losses(line.thetas, line.grid)
    flat = line.grid[loss_SG[0] <= loss * (1 + FLAT)]
    flat = flat if len(flat) else np.array([N])
    regret = _regret(line, N, L_S, loss_SG, level)
    serving = None if demand is None else _serving(line, N_S, L_S, demand, level)
    if decided is not None:
        chosen = {"N": decided[0], "D": float(line.tokens(decided[0])), "rule": decided[1]}
    elif serving is None:
        chosen = {"N": regret["N"], "D": regret["D"], "rule": "least expected regret"}
    else:
        chosen = {"N": serving["N"], "D": serving["D"], "rule": "least training and inference"}
    chosen["loss"] = _loss(line, chosen["N"], chosen["D"], level)
    between = None if serving is None else (serving["train_flops_lo"], serving["train_flops_hi"])
    spent = float(flops) if serving is None else serving["train_flops"]
    beyond = extrapolation(fit, line.point(N))
    data = None if unique_tokens is None else _data(line, chosen, unique_tokens, level)
    return Sizing(
        flops=float(flops),
        N=_interval(N_S, level),
        D=_interval(D_S, level),
        loss=_loss(line, N, D, level),
        ratio=_interval(D_S / N_S, level),
        known=known,
        chosen=chosen,
        flat={"N_lo": float(flat.min()), "N_hi": float(flat.max()), "relative_loss": FLAT},
        regret=regret,
        inference=serving,
        data=data,
        devices=None if devices is None else devices.hours(spent, between=between),
        fixed=dict(line.fixed),
        tokens_per_parameter=D / N,
        level=level,
        extrapolation=float(beyond[0]) if beyond is not None else 1.0,
        convention=str(fit.conventions.get("C", "")),
        flops_per_token_origin=flops_per_token_origin(fit, N),
        warnings=_warnings(line, rejected, N_S, chosen, data, level),
    )


def optimum(
    fit: Fit, flops: float, *, fixed: Mapping[str, float | str] | None = None
) -> dict[str, float]:
    """N, D and loss of the fit's own optimum, without its doubts."""
    line = budget_line(fit, flops, fixed=fixed)
    N, L = line.optima(fit.theta_p[None])
    return {"N": float(N[0]), "D": float(line.tokens(N[0])), "loss": float(L[0])}


def regrets(line: BudgetLine, N_G: np.ndarray) -> np.ndarray:
    """(S, G) what each size loses against the best one, as a fraction of the loss, if a draw is
    the truth."""
    draws = line.thetas[1:]
    return line.losses(draws, N_G) / line.optima(draws)[1][:, None] - 1


def _demand(tokens: float | None, cost: InferenceCost | Demand | None) -> Demand | None:
    if tokens is not None and cost is not None:
        raise InputError("--inference-tokens", tokens, "give tokens or a cost of serving, not both")
    if tokens is not None:
        cost = served(tokens)
    demand = cost.demand() if isinstance(cost, InferenceCost) else cost
    return None if demand is None or demand == Demand(0.0) else demand


def _ends(values_S: np.ndarray, level: float) -> tuple[float, float]:
    lo, hi = np.quantile(values_S, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def _interval(values_S: np.ndarray, level: float) -> dict[str, float]:
    """The fit's value, first, with the quantiles of the draws'."""
    lo, hi = _ends(values_S[1:], level)
    return {"value": float(values_S[0]), "lo": lo, "hi": hi}


def _loss(line: BudgetLine, N: float, D: float, level: float) -> dict[str, float]:
    """The loss of one new run of N and D, with every source of doubt."""
    log_loss, sd = log_spread(line.fit, line.point(N, D))
    half = float(half_interval(line.fit, sd, level=level)[0])
    value = float(np.exp(log_loss[0]))
    return {"value": value, "lo": value * np.exp(-half), "hi": value * np.exp(half)}


def _regret(
    line: BudgetLine, N: float, L_S: np.ndarray, loss_SG: np.ndarray, level: float
) -> dict[str, float]:
    """The size of least expected regret; the mean and the upper quantile of its regret over the
    draws, and of the optimum's."""
    near = int((loss_SG[1:] / L_S[1:, None] - 1).mean(0).clip(0).argmin())
    low, high = line.grid[max(near - 1, 0)], line.grid[min(near + 1, GRID - 1)]
    fine = np.append(np.geomspace(low, high, FINE), N)
    regret_SG = line.losses(line.thetas[1:], fine) / L_S[1:, None] - 1
    mean_G = regret_SG.mean(0)
    least = int(mean_G.argmin())
    upper_G = np.quantile(regret_SG, level, axis=0)
    return {
        "N": float(fine[least]),
        "D": float(line.tokens(fine[least])),
        "expected": float(mean_G[least]),
        "upper": float(upper_G[least]),
        "of_optimum": float(mean_G[-1]),
        "upper_of_optimum": float(upper_G[-1]),
    }


def _serving(
    line: BudgetLine, N_S: np.ndarray, loss_S: np.ndarray, demand: Demand, level: float
) -> dict[str, float]:
    """The size that reaches the budget's loss for the least training and inference together.

    Sardana et al. 2024 (arXiv 2401.00448), with memory traffic where the demand has it. FLOPs
    are by the fit's convention; inference is in what its cost makes of FLOPs of training.
    """
    fit = line.fit
    u_S, v_S = along_loss(
        fit.where,
        line.thetas,
        log_loss_S=np.log(loss_S),
        start_S=np.log(N_S),
        log_D_S=np.log(line.tokens(N_S)),
        demand=demand,
        family=family(fit),
        fixed=line.fixed,
    )
    best_S, tokens_S = np.exp(u_S), np.exp(v_S)
    train_S = flops_per_token(fit, best_S) * tokens_S
    serve = float(demand.flops(best_S[0], per_token=flops_per_token(fit, best_S[0])))
    plain = float(demand.flops(N_S[0], per_token=flops_per_token(fit, N_S[0])))
    out = {"tokens": demand.tokens}
    for name, values_S in (("N", best_S), ("D", tokens_S), ("train_flops", train_S)):
        lo, hi = _ends(values_S[1:], level)
        out |= {name: float(values_S[0]), f"{name}_lo": lo, f"{name}_hi": hi}
    total = out["train_flops"] + serve
    return out | {
        "loss": float(loss_S[0]),
        "inference_flops": serve,
        "total_flops": total,
        "saving": 1 - total / (line.flops + plain),
    }


def _data(
    line: BudgetLine, chosen: Mapping[str, Any], unique: float, level: float
) -> dict[str, Any]:
    """Epochs over the unique tokens, and how many of them the law says are enough."""
    out: dict[str, Any] = {
        "unique": float(unique),
        "epochs": chosen["D"] / unique,
        "law_knows_repetition": "U" in line.fixed,
    }
    if line.fit.where.law.input_names == ("N", "D", "U"):
        needed = unique_needed(line.fit, N=chosen["N"], D=chosen["D"], within=FLAT, level=level)
        U = needed["U"]
        out["needed"] = {"value": U.value, "lo": U.lo, "hi": U.hi, "relative_loss": FLAT}
    return out


def _warnings(
    line: BudgetLine,
    rejected: bool,
    N_S: np.ndarray,
    chosen: Mapping[str, Any],
    data: Mapping[str, Any] | None,
    level: float,
) -> list[str]:
    fit = line.fit
    out = []
    if fit.status != "CONVERGED":
        out.append(f"the fit is {fit.status}: " + "; ".join(fit.warnings))
    if fit.status == ILL_POSED:
        out += [f"missing: {m['given']}; {m['instead']}" for m in fit.missing]
    if rejected:
        out.append("the form is rejected by the law's own data: beyond them this plan may be off")
    low, high = fit.ranges["D/N"]
    ratio = chosen["D"] / chosen["N"]
    if not low / 2 <= ratio <= high * 2:
        out.append(f"{ratio:.3g} tokens a parameter, fitted on {low:.3g} to {high:.3g}")
    for name, value in line.fixed.items():
        low, high = fit.ranges[name]
        if not low <= value <= high:
            out.append(f"{name} {value:.3g}, fitted on {low:.3g} to {high:.3g}")
    if not fit.samples:
        out.append("no bootstrap was drawn: N and D have no interval (fit with --bootstrap 400)")
    N_lo, N_hi = _ends(N_S[1:], level)
    if N_hi / N_lo > KNOWN:
        out.append(f"the data do not fix N: its interval spans a factor of {N_hi / N_lo:.3g}")
    elif N_hi / N_lo > 4:
        out.append("the optimal size is known to a factor of 4 at best: the data hardly fix it")
    if data is not None and data["epochs"] > 1 and not data["law_knows_repetition"]:
        out.append(
            f"{data['epochs']:.3g} epochs over the unique tokens: law {fit.law} takes each token"
            " as new (fit --law repetition for what repetition costs)"
        )
    return out
