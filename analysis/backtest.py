"""Would this have predicted what came next? Fit below each budget, predict that budget, compare.

The rolling hold-out is the only evidence about the law's form that the data hold; its errors,
beyond what noise explains, set how fast the interval grows with extrapolation.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.budgets import Budgets
from analysis.law import Coordinates, evaluate
from analysis.solve import solve
from analysis.uncertainty import (
    HUBER_K,
    form_sd,
    noise_of,
    resample,
    statistical_sd,
    student_t,
)

DRAWS = 100  # bootstraps of a fold: its spread to 7 %
STARTS = 16


@dataclass(frozen=True)
class Backtest:
    """Every budget that could be predicted from those below it."""

    folds: list[
        dict[str, Any]
    ]  # flops, rows, error and interval of each held-out budget, or why it was skipped
    are: float | None  # mean |predicted / measured - 1|
    bias: float | None  # mean of predicted / measured - 1
    coverage: float | None  # share of measured losses inside their interval
    form: float  # relative error of form per e-fold of compute

    @property
    def lines(self) -> list[str]:
        out = []
        for f in self.folds:
            if "skipped" in f:
                out.append(f"{f['flops']:.3g} FLOPs: {f['skipped']}")
            else:
                out.append(
                    f"{f['flops']:.3g} FLOPs from {f['fitted']} runs below: off by {f['bias']:+.2%}"
                    f" (mean size {f['are']:.2%}), {f['inside']} of {f['held_out']} inside"
                )
        return out

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "lines": self.lines}

    def text(self) -> str:
        if self.are is None:
            return "\n".join([*self.lines, "no budget could be held out: add a third budget"])
        total = f"mean error {self.are:.2%}, bias {self.bias:+.2%}, {self.coverage:.0%} inside their interval"
        return "\n".join([*self.lines, total])


def rolling(
    where: Coordinates,
    x: dict[str, np.ndarray],
    *,
    y: np.ndarray,
    levels: Budgets,
    delta: float,
    huber: float | None,
    best: np.ndarray,
    points: np.ndarray,
    ids: tuple[str, ...],
    cluster: np.ndarray,
    level: float,
    seed: int,
) -> Backtest:
    """Hold out each budget from the second upward; a hold-out is a weight of zero, so nothing
    recompiles."""
    p = len(best)
    folds: list[dict[str, Any]] = []
    errors: list[tuple[float, float, float]] = []
    label = levels.label_M
    starts = np.concatenate([best[None], where.starts(STARTS, seed=seed)])
    for k in range(1, levels.count):
        below = label < k
        fold: dict[str, Any] = {"flops": float(levels.flops[k]), "fitted": int(below.sum())}
        why = _unfit(points[below], p)
        if why:
            folds.append({**fold, "skipped": why})
            continue
        weights = below.astype(float)
        solved = solve(where, x, y=y, weights=weights, starts_Pp=starts, delta=delta)
        theta = solved.theta_Pp[solved.objective_P.argmin()]
        fitted = np.log(evaluate(where, theta, x)[0])
        noise = noise_of((y - fitted)[below], parameters=p)
        if huber is None:
            # the noise of the fold is all that was known then
            delta_k = max(HUBER_K * noise.sd, 1e-4)
            solved = solve(where, x, y=y, weights=weights, starts_Pp=theta[None], delta=delta_k)
            theta = solved.theta_Pp[0]
            fitted = np.log(evaluate(where, theta, x)[0])
            noise = noise_of((y - fitted)[below], parameters=p)
        else:
            delta_k = delta
        draws = resample(
            DRAWS,
            y=y,
            fitted=fitted,
            cluster=cluster,
            stratum=label,
            points=points,
            weights=weights,
            parameters=p,
            seed=seed + k,
        )
        boot = solve(
            where,
            x,
            y=draws.y_SM,
            weights=draws.weights_SM,
            delta=delta_k,
            starts_Pp=np.broadcast_to(theta, (DRAWS, p)),
        )
        ok = np.isfinite(boot.objective_P)
        test = label == k
        held = {name: v[test] for name, v in x.items()}
        log_SQ = np.log(evaluate(where, boot.theta_Pp[ok], held))
        statistical = statistical_sd(log_SQ)
        common = statistical_sd(log_SQ.mean(1, keepdims=True))[0]
        beyond = float(np.log(levels.flops[k] / levels.flops[k - 1]))
        error = fitted[test] - y[test]
        form = form_sd([]) * beyond
        half = student_t(level, noise.dof) * np.sqrt(statistical**2 + noise.sd**2 + form**2)
        inside = np.abs(error) <= half
        errors.append((float(error.mean()), float(common**2 + noise.sd**2 / test.sum()), beyond))
        predicted = np.exp(fitted[test])
        relative = np.expm1(error)
        folds.append(
            {
                **fold,
                "held_out": int(test.sum()),
                "are": float(np.abs(relative).mean()),
                "bias": float(relative.mean()),
                "inside": int(inside.sum()),
                "points": [
                    {
                        "id": i,
                        "predicted": float(m),
                        "lo": float(m * np.exp(-h)),
                        "hi": float(m * np.exp(h)),
                        "measured": float(v),
                        "inside": bool(ok_i),
                    }
                    for i, m, h, v, ok_i in zip(
                        np.array(ids)[test], predicted, half, np.exp(y[test]), inside, strict=True
                    )
                ],
            }
        )
    done = [f for f in folds if "skipped" not in f]
    total = sum(f["held_out"] for f in done)
    if not done:
        return Backtest(folds, None, None, None, form_sd([]))
    return Backtest(
        folds,
        sum(f["are"] * f["held_out"] for f in done) / total,
        sum(f["bias"] * f["held_out"] for f in done) / total,
        sum(f["inside"] for f in done) / total,
        form_sd(errors),
    )


def _unfit(points: np.ndarray, parameters: int) -> str | None:
    """Why these points cannot be fitted, or None."""
    if len(np.unique(points, axis=0)) <= parameters:
        return f"{len(points)} points below it for {parameters} parameters"
    spread = np.linalg.svd(points - points.mean(0), compute_uv=False) / np.sqrt(len(points))
    return "the points below it lie on one line" if spread[-1] < 0.05 else None
