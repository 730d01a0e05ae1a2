"""Which cells should be trained next for a stated cost, and what does each buy?

A greedy, cost-aware design for the decision at the target (its loss and the best size there), on
the fit's own draws and an error of form that runs cannot average away, within tokens a parameter
that laws are tested at. Beside it stands what a plain isoFLOP would buy for the same cost.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from analysis.acquire import BUDGETS, SIZES, SPAN, Basket, Rules, acquire
from analysis.artefact import ILL_POSED, Fit
from analysis.budget_line import budget_line
from analysis.budgets import budgets
from analysis.candidates import BELOW, TRUST, Cells, Costs, cells, levels_of, sizes_of, spread
from analysis.devices import Devices
from analysis.discrepancy import Discrepancy, discrepancy
from analysis.doubts import Doubts, doubts_of, form_of
from analysis.information import Belief, Draws, belief, draws
from analysis.observations import Observations
from analysis.planner import optimum
from analysis.predict import flops_per_token, level_of, predict
from analysis.proposal import Choice, Design
from parallelism.errors import InputError

RESERVE = 0.1  # of the cost, for a run whose prediction is written down before it is trained
SHORT = 10.0  # the validation run stands this far below the target, where that can be paid
VALUE = 0.05  # share of the doubt that a share of the cost must take off: guess
SAME = 0.02  # an old run this near a cell, in ln N and ln D, is a replicate of it
WEIGHTS = {"both": 0.5, "loss": 1.0, "size": 0.0}  # of the loss at the target against ln N*


def next_runs(
    fit: Fit,
    *,
    cost: float,
    target: float,
    observations: Observations | None = None,
    tolerance: float | None = None,
    ratio: tuple[float, float] | None = None,
    replicates: int = 2,
    target_ratio: float | None = None,
    goal: Literal["both", "loss", "size"] = "both",
    devices: Devices | None = None,
    overhead: float = 0.0,
    decay_share: float | None = None,
    sizes: Mapping[float, float] | None = None,
    validation: float = RESERVE,
    value: float = VALUE,
    runs: int = 48,
    level: float | None = None,
    fixed: Mapping[str, float | str] | None = None,
) -> Design:
    """The runs to train next; raises InputError for a fit that cannot tell or a cost too small.

    `cost`: FLOPs, or device hours where `devices` are given, with `overhead` a run. `target`:
    FLOPs of the run to be known, at the optimum or at `target_ratio` tokens a parameter.
    `observations`: the fitted rows, for what they hold already, where the fit does not say (it is
    of an older version, or of thousands of rows); without either its budgets are taken to hold as
    many sizes as rows. `ratio`: tokens a parameter, (3, 400) widened to the
    target's own. `replicates`: runs at one point, old ones too. `sizes`: FLOPs per token of each
    realisable N. `decay_share`: what another length of a run costs where the schedule has a
    constant trunk, about 0.1. `value`: share of the doubt that a run must take off for each share
    of the cost. `fixed`: values of the law's inputs besides N and D.
    """
    _check(
        cost=cost, tolerance=tolerance, ratio=ratio, target_ratio=target_ratio, overhead=overhead,
        decay_share=decay_share, sizes=sizes, validation=validation, value=value, goal=goal,
        counts={"--replicates": replicates, "--runs": runs},
    )  # fmt: skip
    line = budget_line(fit, target, fixed=fixed)
    rows = rows_of(fit, observations)
    costs = Costs(devices, overhead, decay_share)
    notes: list[str] = []
    at = _at(fit, target, target_ratio, fixed)
    trusted = _trusted(ratio, at["D"] / at["N"], notes)
    money, measured, family = cost * (1 - validation), fit.ranges["C"], sizes_of(fit, sizes)
    smallest = measured[0] / BELOW
    if costs.flops(money) < smallest:
        least = float(costs.of(np.array(smallest))) / (1 - validation)
        raise InputError(
            "--cost",
            cost,
            f"write at least {least:.3g} {costs.unit}: a run a tenth of the smallest fitted costs"
            " that",
        )
    levels = levels_of(fit, least=smallest, top=costs.flops(money))
    offered = cells(levels, family, costs=costs, ratio=trusted)
    if not len(offered):
        raise InputError(
            "--ratio",
            f"{trusted[0]:g} to {trusted[1]:g}",
            f"no size of {family[0].min():.3g} to {family[0].max():.3g} parameters has so many"
            f" tokens at {levels[0]:.3g} to {levels[-1]:.3g} FLOPs: widen it",
        )
    known = draws(line, at=at)
    error = discrepancy(fit, form=form_of(known))
    start = belief(known, offered, error=error, shared=decay_share is not None)
    doubts = doubts_of(known, start, level=level_of(fit, level))
    weight = 1.0 if target_ratio is not None and goal == "both" else WEIGHTS[goal]

    def done(now: Belief, bought: int) -> bool:
        return tolerance is not None and doubts.of(now, bought).half <= tolerance

    most = 1 if decay_share is not None else replicates
    rules = Rules(money, most, runs, weight, value, done)
    basket = Basket(offered, costs, rules, start, _already(offered, rows))
    stopped = acquire(
        basket,
        old=_old(fit, rows),
        centre_K=np.array([np.log(optimum(fit, float(c), fixed=fixed)["N"]) for c in levels]),
    )
    if basket.lacking:
        notes.append(
            f"{basket.lacking} of {BUDGETS} budgets of {SIZES} sizes are still missing: raise"
            " the cost, or the number of runs"
        )
    chosen = _choices(basket, doubts)
    spent = sum(c.cost for c in chosen)
    output = fit.where.law.output
    return Design(
        target={"flops": float(target), **at},
        level=doubts.level,
        unit=costs.unit,
        limit=float(cost),
        cost=spent,
        ratio=trusted,
        before=doubts.of(start, 0),
        cells=chosen,
        isoflop=_isoflop(known, doubts, family, costs, trusted, spent, error),
        validation=_validation(known, costs, cost * validation, family, doubts.level, notes),
        stopped=stopped,
        tolerance=tolerance,
        measured={k: [float(v) for v in fit.ranges[k]] for k in ("N", "D", "C")},
        loss_unit="" if output.scale == "log" else output.unit,
        notes=tuple(notes),
    )


def _at(
    fit: Fit, target: float, ratio: float | None, fixed: Mapping[str, float | str] | None
) -> dict[str, float]:
    """N and D of the run to be known."""
    best = optimum(fit, target, fixed=fixed)
    if ratio is None:
        return {"N": best["N"], "D": best["D"]}
    log_N = np.log(best["N"]) + np.linspace(-20, 20, 4001)
    spent = np.log(flops_per_token(fit, np.exp(log_N))) + log_N + np.log(ratio)
    N = float(np.exp(np.interp(np.log(target), spent, log_N)))
    return {"N": N, "D": float(target / flops_per_token(fit, N))}


def _trusted(
    given: tuple[float, float] | None, target: float, notes: list[str]
) -> tuple[float, float]:
    """Tokens a parameter of new runs: as given, or the trust region and twice past the target."""
    if given is not None:
        return (float(given[0]), float(given[1]))
    low, high = TRUST
    if not low <= target <= high:
        low, high = min(low, target / 2), max(high, target * 2)
        notes.append(
            f"the target has {target:.3g} tokens a parameter: runs may have {low:.3g} to {high:.3g}"
        )
    return (low, high)


def rows_of(fit: Fit | None, observations: Observations | None) -> np.ndarray | None:
    """(3, M) N, D and C of the fitted rows, or None."""
    if observations is not None:
        return np.array([observations.values(name) for name in ("N", "D", "C")])
    return np.array(fit.points).T if fit is not None and fit.points else None


def _already(offered: Cells, rows_3M: np.ndarray | None) -> np.ndarray:
    """(Q,) how many old runs stand at each cell."""
    if rows_3M is None:
        return np.zeros(len(offered), int)
    N, D = np.log(rows_3M[:2])
    same = np.abs(np.log(offered.N)[:, None] - N) < SAME
    return (same & (np.abs(np.log(offered.D)[:, None] - D) < SAME)).sum(1)


def _old(fit: Fit, rows_3M: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Budgets that have been measured and how many sizes each has."""
    if rows_3M is None or not fit.budgets:
        flops = np.array(fit.budgets)
        if not len(flops) and fit.status != ILL_POSED:
            # compute spread without budgets, and the law is fixed: bands stand for them
            low, high = fit.ranges["C"]
            flops = np.geomspace(low, high, BUDGETS)
        return flops, np.full(len(flops), fit.rows // max(len(flops), 1))
    found, log_N = budgets(rows_3M[2]), np.log(rows_3M[0])
    sizes = [len(np.unique(np.round(log_N[found.label_M == k] / SAME))) for k in range(found.count)]
    return found.flops, np.array(sizes)


def _choices(basket: Basket, doubts: Doubts) -> tuple[Choice, ...]:
    offered, out = basket.cells, []
    seen = basket.count_Q - np.bincount(
        [b.cell for b in basket.bought], minlength=len(basket.count_Q)
    )
    for k, b in enumerate(basket.bought, start=1):
        out.append(
            Choice(
                N=float(offered.N[b.cell]),
                D=float(offered.D[b.cell]),
                C=float(offered.C[b.cell]),
                cost=b.cost,
                replicate=int(seen[b.cell]),
                why=b.why,
                after=doubts.of(b.belief, k),
            )
        )
        seen[b.cell] += 1
    return tuple(out)


def _isoflop(
    known: Draws,
    doubts: Doubts,
    family: tuple[np.ndarray, np.ndarray],
    costs: Costs,
    ratio: tuple[float, float],
    spent: float,
    error: Discrepancy,
) -> dict[str, Any] | None:
    """What the largest plain budget of five sizes would buy for the same cost."""
    C = costs.flops(spent / SIZES)
    if not spent or C <= 0:
        return None
    centre = optimum(known.line.fit, C, fixed=known.line.fixed)["N"]
    plain = spread(C, family, centre=centre, span=SPAN, count=SIZES, costs=costs, ratio=ratio)
    if not len(plain):
        return None
    now = belief(known, plain, error=error)
    for k in range(len(plain)):
        now = now.after(k)
    return {
        "flops": float(C),
        "N": plain.N.tolist(),
        "D": plain.D.tolist(),
        "cost": float(plain.cost.sum()),
        "after": dataclasses.asdict(doubts.of(now, len(plain))),
    }


def _validation(
    known: Draws,
    costs: Costs,
    reserve: float,
    family: tuple[np.ndarray, np.ndarray],
    level: float,
    notes: list[str],
) -> dict[str, Any] | None:
    """The run that tests the law before it is trusted, and what is predicted of it now."""
    line, fit = known.line, known.line.fit
    low, high = fit.ranges["C"]
    C = min(line.flops / SHORT, costs.flops(reserve))
    if C < low:
        if reserve:
            notes.append(
                "no validation run: its share of the cost pays for none in the fitted range"
            )
        return None
    best = np.log(optimum(fit, C, fixed=line.fixed)["N"])
    k = int(np.abs(np.log(family[0]) - best).argmin())
    N, D = float(family[0][k]), float(C / family[1][k])
    if C <= high:
        notes.append(
            f"the validation run has {C:.3g} FLOPs, no more than was fitted: it tests the"
            " measurements, not the extrapolation"
        )
    made = predict(fit, {"N": N, "D": D, **line.fixed}, level=level)
    cost = float(costs.of(np.array(C)))
    return {"N": N, "D": D, "C": float(C), "cost": cost, "prediction": made.to_json()}


def _check(
    *,
    cost: float,
    tolerance: float | None,
    ratio: tuple[float, float] | None,
    target_ratio: float | None,
    overhead: float,
    decay_share: float | None,
    sizes: Mapping[float, float] | None,
    validation: float,
    value: float,
    goal: str,
    counts: Mapping[str, int],
) -> None:
    def positive(number: float | None) -> bool:
        return number is None or (np.isfinite(number) and number > 0)

    for field, number, such in (
        ("--cost", cost, "6e20"),
        ("--tolerance", tolerance, "0.005"),
        ("--target-ratio", target_ratio, "200"),
    ):
        if not positive(number):
            raise InputError(field, number, f"write a positive number such as {such}")
    if ratio is not None and not (len(ratio) == 2 and positive(ratio[0]) and ratio[0] < ratio[1]):
        raise InputError("--ratio", str(ratio), "write the least and the most, as in 3,400")
    for field, number in (("--overhead", overhead), ("--value", value)):
        if not (np.isfinite(number) and number >= 0):
            raise InputError(field, number, "write 0 or a positive number")
    if decay_share is not None and not 0 < decay_share < 1:
        raise InputError("--decay-share", decay_share, "write a fraction such as 0.1")
    if not 0 <= validation < 1:
        raise InputError("--validation", validation, "write a share of the cost such as 0.1")
    if goal not in WEIGHTS:
        raise InputError("--goal", goal, f"write one of {', '.join(WEIGHTS)}")
    for field, number in counts.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InputError(field, number, "write a whole number of at least 1")
    if sizes is not None and not (
        sizes and all(positive(n) and positive(rate) for n, rate in sizes.items())
    ):
        raise InputError("sizes", str(sizes), "give the FLOPs per token of each size, by its N")
