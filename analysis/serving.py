"""How much to train and how often to sample? Size, tokens and answers per request under one budget
of training and serving together.

The loss gives the pass rates of a problem's answers (a link fitted elsewhere), those the chance
that one of k answers is right (Beta mixture, `analysis/laws/coverage.py`), and the cost of k
answers takes its FLOPs from training. We know of no published method for this; it composes
Hoffmann et al. 2022, Brown et al. 2024 and Kinetics (Sadhukhan et al. 2025).
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from analysis.artefact import Fit
from analysis.budget_line import BudgetLine, budget_line
from analysis.coordinates import evaluate
from analysis.inference import InferenceCost
from analysis.laws.coverage import beta_failure
from analysis.predict import flops_per_token, level_of
from parallelism.errors import InputError

POINTS = 25  # a side of the grid over ln N and ln k
ZOOMS = 9  # each keeps two cells on each side of the best: 6 times finer
SPAN = float(np.log(1e4))  # sizes on each side of the budget's middle
DRAWS = 100  # resamples searched: enough for an interval of three sizes
Link = Callable[[np.ndarray], np.ndarray]  # losses (...) -> (..., 2) ln alpha, ln beta


@dataclass(frozen=True)
class PassRates:
    """Pass rates of a benchmark's problems as Beta(alpha, beta) given the loss: the logit of their
    mean is intercept + slope loss, and alpha + beta is `size`."""

    intercept: float
    slope: float
    size: float

    def __call__(self, loss: np.ndarray) -> np.ndarray:
        logit = self.intercept + self.slope * np.asarray(loss, float)
        # ln of a logistic without overflow, both ways
        mean, rest = -np.logaddexp(0, -logit), -np.logaddexp(0, logit)
        return np.log(self.size) + np.stack([mean, rest], axis=-1)


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """N, D, k (whole answers), loss and coverage of the best plan, each with value, lo, hi; the
    intervals are those of the draws' own best plans, the link and k's rounding left out."""

    flops: float
    N: dict[str, float]
    D: dict[str, float]
    k: dict[str, float]
    coverage: dict[str, float]
    train_share: float  # of the budget
    loss: float
    at_edge: bool  # the best k is the largest allowed
    level: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def text(self) -> str:
        lines = [f"{self.flops:.4g} FLOPs of training and serving, {self.train_share:.1%} training"]
        for name in ("N", "D", "k", "coverage"):
            q = getattr(self, name)
            lines.append(f"{name:<9}{q['value']:.4g} [{q['lo']:.4g}, {q['hi']:.4g}]")
        if self.at_edge:
            lines.append("more answers than the most allowed would do better")
        return "\n".join(lines)


def serving_plan(
    fit: Fit,
    link: Link,
    cost: InferenceCost,
    *,
    flops: float,
    most: float = 1e5,
    fixed: Mapping[str, float | str] | None = None,
    unique_tokens: float | None = None,
    level: float | None = None,
) -> ServingPlan:
    """The N, D and k of the highest coverage under train(N) D + cost(N, k) <= flops; raises
    InputError where serving alone costs more. `cost.trials` is replaced by k, at most `most`."""
    line = budget_line(fit, flops, fixed=fixed, unique_tokens=unique_tokens)
    if not (np.isfinite(most) and most >= 1):
        raise InputError("most", most, "write the largest number of answers, 1 or more")
    level = level_of(fit, level)
    best = _search(line, link, cost, fit.theta_p, most)
    if not np.isfinite(best[2]):
        raise InputError(
            "--flops", flops, "write more: serving one answer a request takes all of it"
        )
    whole = [_search(line, link, cost, fit.theta_p, k, k) for k in _whole(best[1], most)]
    log_N, log_k, _ = max(whole, key=lambda found: found[2])
    draws = np.array([_search(line, link, cost, t, most) for t in fit.samples_Sp[:DRAWS]])
    N, k = np.exp(log_N), np.exp(log_k)
    D_S = _tokens(line, cost, np.exp(draws[:, 0]), np.exp(draws[:, 1]))
    D = float(_tokens(line, cost, np.array([N]), np.array([k]))[0])
    loss = evaluate(fit.where, fit.theta_p, line.point(N, D))[0]
    tails = [(1 - level) / 2, (1 + level) / 2]

    def interval(value: float, values_S: np.ndarray) -> dict[str, float]:
        lo, hi = np.quantile(values_S, tails)
        return {"value": float(value), "lo": float(lo), "hi": float(hi)}

    return ServingPlan(
        flops=float(flops),
        N=interval(N, np.exp(draws[:, 0])),
        D=interval(D, D_S),
        k=interval(round(k), np.exp(draws[:, 1])),
        coverage=interval(
            -np.expm1(float(_log_fails(link(loss), np.array([log_k]))[0])), -np.expm1(-draws[:, 2])
        ),
        train_share=float(flops_per_token(fit, N) * D / flops),
        loss=float(loss[0]),
        at_edge=bool(best[1] > np.log(most) - 1e-3 and most > 1),
        level=level,
    )


def _whole(log_k: float, most: float) -> list[float]:
    k = float(np.exp(log_k))
    return sorted({max(1.0, np.floor(k)), max(1.0, min(np.ceil(k), np.floor(most)))})


def _tokens(line: BudgetLine, cost: InferenceCost, N: np.ndarray, k: np.ndarray) -> np.ndarray:
    """What serving leaves for training, as tokens; not above 0 where it leaves nothing."""
    serve = dataclasses.replace(cost, trials=k).eflops(N)
    return (line.flops - serve) / flops_per_token(line.fit, N)


def _search(
    line: BudgetLine,
    link: Link,
    cost: InferenceCost,
    theta_p: np.ndarray,
    most: float,
    least: float = 1.0,
) -> tuple[float, float, float]:
    """ln N, ln k and -ln of the chance of failing at the best of ever finer grids, or -inf."""
    low, high = line.fit.ranges["D/N"]
    middle = float(np.log(line.flops / 6 / np.sqrt(low * high)) / 2)
    ends = [(middle - SPAN, middle + SPAN), (float(np.log(least)), float(np.log(most)))]
    outer = list(ends)
    best = (middle, float(np.log(least)), -np.inf)
    for _ in range(ZOOMS):
        u_P, w_P = (np.linspace(a, b, POINTS) for a, b in ends)
        u, w = (a.ravel() for a in np.meshgrid(u_P, w_P, indexing="ij"))
        D = _tokens(line, cost, np.exp(u), np.exp(w))
        can = D > 1.0
        loss = evaluate(line.fit.where, theta_p, line.point(np.exp(u), np.where(can, D, 1.0)))[0]
        fails = _log_fails(link(loss), w)
        score = np.where(can, -fails, -np.inf)
        i = int(score.argmax())
        if score[i] > best[2]:
            best = (float(u[i]), float(w[i]), float(score[i]))
        ends = [
            (max(at - (b - a) / (POINTS - 1) * 2, lo), min(at + (b - a) / (POINTS - 1) * 2, hi))
            for at, (a, b), (lo, hi) in zip(best[:2], ends, outer, strict=True)
        ]
    return best


def _log_fails(theta_Q2: np.ndarray, log_k_Q: np.ndarray) -> np.ndarray:
    """(Q,) ln of the chance that all k answers fail, k a real number."""
    with jax.enable_x64(True):
        alpha, beta = np.exp(theta_Q2).T
        return np.asarray(beta_failure(alpha, beta, np.exp(log_k_Q)))
