"""Where is the best size at each budget, by eye? Parabolas through isoFLOP valleys: a plot and a
cross-check.

Approach 2 of Hoffmann et al. 2022: log loss against ln N at one budget is fitted by a parabola
whose vertex is the optimum; the vertices give the exponents of N*(C) and D*(C). Biased even
without noise when alpha and beta differ or grids are off-centre (2.9 % in D* for the Chinchilla
surface at +-8x), so a joint fit decides and this one warns.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.artefact import Fit
from analysis.budgets import budgets
from analysis.observations import Observations
from analysis.planner import optimum
from analysis.uncertainty import student_t
from parallelism.errors import InputError

LEAST = 4  # points of a valley: a parabola has three parameters
DRAWS = 1000
DISAGREE = 0.03  # of N* at the largest valley, against the joint fit


@dataclass(frozen=True, kw_only=True)
class Valley:
    """One budget: its points, parabola c0 + c1 u + c2 u^2 of ln loss in u = ln N, and the vertex
    or why there is none."""

    flops: float
    N: list[float]
    D: list[float]
    loss: list[float]
    ids: list[str]
    parabola: list[float] | None
    optimum: dict[str, float] | None  # N, D, loss, and N_lo, N_hi
    reason: str | None

    def text(self) -> str:
        head = f"{self.flops:.3g} FLOPs, {len(self.N)} runs: "
        if self.optimum is None:
            return head + f"no optimum: {self.reason}"
        o = self.optimum
        return head + (
            f"N* {o['N']:.4g} [{o['N_lo']:.3g}, {o['N_hi']:.3g}], D* {o['D']:.4g}, loss"
            f" {o['loss']:.4f}"
        )


@dataclass(frozen=True, kw_only=True)
class IsoFlop:
    """All valleys, and the exponents of N*(C) and D*(C) with intervals where three valleys have
    an optimum."""

    valleys: list[Valley]
    exponents: (
        dict[str, dict[str, float]] | None
    )  # N and D: value, lo, hi, and the coefficient of C^value
    exponents_reason: str | None
    level: float
    conventions: dict[str, Any]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def text(self) -> str:
        lines = [v.text() for v in self.valleys]
        if self.exponents is None:
            lines.append(f"no exponents: {self.exponents_reason}")
        else:
            lines += [
                f"{name}* ~ C^{e['value']:.3f} [{e['lo']:.3f}, {e['hi']:.3f}]"
                for name, e in self.exponents.items()
            ]
        return "\n".join(lines + [f"warning: {w}" for w in self.warnings])


def isoflop(
    observations: Observations, *, fit: Fit | None = None, level: float = 0.95, seed: int = 0
) -> IsoFlop:
    """Valleys of the used rows. With `fit`, warns where its N* differs by more than 3 % at the
    largest valley."""
    if not 0 < level < 1:
        raise InputError("--level", level, "write a fraction between 0 and 1 such as 0.95")
    for name in ("N", "D", "C"):
        if name not in observations.columns:
            raise InputError(observations.source, f"no column {name}", f"write --map {name}=COLUMN")
    N, D, C, loss = (observations.values(n) for n in ("N", "D", "C", "loss"))
    if not len(N):
        raise InputError(observations.source, "no usable rows", "see the reasons with ladder table")
    ids = np.array(observations.ids)
    levels = budgets(C)
    if levels.are_bands:
        why = "compute is spread evenly: no budget has runs of equal compute"
        valleys = [_without(f, N[m], D[m], loss[m], ids[m], why) for f, m in _groups(levels)]
        return IsoFlop(
            valleys=valleys,
            exponents=None,
            exponents_reason=why,
            level=level,
            conventions=dict(observations.conventions),
            warnings=[],
        )
    groups = _groups(levels)
    sd, dof = _noise(N, loss, groups)
    rng = np.random.default_rng(seed)
    valleys, draws = [], []
    for flops, m in groups:
        valley, vertex_S = _valley(
            flops, N[m], D[m], loss[m], ids[m], sd=sd, t=student_t(level, max(1, dof)), rng=rng
        )
        valleys.append(valley)
        draws.append(vertex_S)
    exponents, reason = _exponents(valleys, draws, level=level, dof=dof)
    warnings = _compare(valleys, fit)
    return IsoFlop(
        valleys=valleys,
        exponents=exponents,
        exponents_reason=reason,
        level=level,
        conventions=dict(observations.conventions),
        warnings=warnings,
    )


def _groups(levels: Any) -> list[tuple[float, np.ndarray]]:
    return [(float(f), levels.label_M == k) for k, f in enumerate(levels.flops)]


def _without(
    flops: float,
    N: np.ndarray,
    D: np.ndarray,
    loss: np.ndarray,
    ids: np.ndarray,
    why: str,
    parabola: list[float] | None = None,
) -> Valley:
    order = np.argsort(N)
    return Valley(
        flops=flops,
        N=N[order].tolist(),
        D=D[order].tolist(),
        loss=loss[order].tolist(),
        ids=ids[order].tolist(),
        parabola=parabola,
        optimum=None,
        reason=why,
    )


def _noise(
    N: np.ndarray, loss: np.ndarray, groups: list[tuple[float, np.ndarray]]
) -> tuple[float, int]:
    """Pooled residual sd of ln loss about the parabolas, and its degrees of freedom."""
    squares, dof = 0.0, 0
    for _, m in groups:
        if len(np.unique(N[m])) >= LEAST:
            u, y = np.log(N[m]), np.log(loss[m])
            u = u - u.mean()
            squares += float(((y - np.polyval(np.polyfit(u, y, 2), u)) ** 2).sum())
            dof += int(m.sum()) - 3
    return (np.sqrt(squares / dof) if dof else 0.0), dof


def _valley(
    flops: float,
    N: np.ndarray,
    D: np.ndarray,
    loss: np.ndarray,
    ids: np.ndarray,
    *,
    sd: float,
    t: float,
    rng: np.random.Generator,
) -> tuple[Valley, np.ndarray | None]:
    sizes = len(np.unique(N))
    if sizes < LEAST:
        return _without(flops, N, D, loss, ids, f"{sizes} sizes; a valley needs {LEAST}"), None
    middle = np.log(N).mean()
    u, y = np.log(N) - middle, np.log(loss)
    c2, c1, c0 = np.polyfit(u, y, 2)
    natural = [float(c0 - c1 * middle + c2 * middle**2), float(c1 - 2 * c2 * middle), float(c2)]
    if c2 <= 0:
        return _without(
            flops, N, D, loss, ids, "loss bends downward in ln N: no minimum", natural
        ), None
    vertex = -c1 / (2 * c2)
    if not u.min() < vertex < u.max():
        side = "smaller" if vertex <= u.min() else "larger"
        why = f"the minimum is at the edge of the sizes; add {side} ones"
        return _without(flops, N, D, loss, ids, why, natural), None
    # parametric bootstrap of the vertex, in ln N
    pinv = np.linalg.pinv(np.vander(u, 3))
    c_S3 = np.array([c2, c1, c0]) + (sd * rng.standard_normal((DRAWS, len(u)))) @ pinv.T
    vertex_S = np.where(c_S3[:, 0] > 0, -c_S3[:, 1] / (2 * c_S3[:, 0]), np.nan)
    # a draw may have its vertex anywhere; beyond the sizes all that is known is that it is outside
    vertex_S = np.clip(vertex_S, u.min(), u.max())
    half = t * float(np.nanstd(vertex_S))
    # along a budget ln D is a smooth function of ln N, whatever the FLOP convention
    log_D = np.polyval(np.polyfit(u, np.log(D), 2), vertex)
    order = np.argsort(N)
    best = {
        "N": float(np.exp(vertex + middle)),
        "D": float(np.exp(log_D)),
        "loss": float(np.exp(c0 - c1**2 / (4 * c2))),
        "N_lo": float(np.exp(vertex + middle - half)),
        "N_hi": float(np.exp(vertex + middle + half)),
    }
    valley = Valley(
        flops=flops,
        N=N[order].tolist(),
        D=D[order].tolist(),
        loss=loss[order].tolist(),
        ids=ids[order].tolist(),
        parabola=natural,
        optimum=best,
        reason=None,
    )
    return valley, vertex_S + middle


def _exponents(
    valleys: list[Valley], draws: list[np.ndarray | None], *, level: float, dof: int
) -> tuple[dict[str, dict[str, float]] | None, str | None]:
    """Slopes of ln N* and ln D* against ln C; their spread is that of the vertices, or of the
    line if larger."""
    found = [
        (v, d)
        for v, d in zip(valleys, draws, strict=True)
        if v.optimum is not None and d is not None
    ]
    if len(found) < 2:
        return None, f"{len(found)} of {len(valleys)} budgets have an optimum; two give a slope"
    c = np.log([v.flops for v, _ in found])
    out = {}
    vertex_KS = np.stack([d for _, d in found])
    slope_S = _slope(c, np.nan_to_num(vertex_KS, nan=float(np.nanmean(vertex_KS))))
    for name in ("N", "D"):
        y = np.log([v.optimum[name] for v, _ in found if v.optimum])
        slope = float(_slope(c, y[:, None])[0])
        sd, freedom = float(slope_S.std()), max(1, dof)
        half = student_t(level, freedom) * sd
        if len(c) > 2:
            off = y - y.mean() - slope * (c - c.mean())
            line_sd = np.sqrt((off**2).sum() / (len(c) - 2) / ((c - c.mean()) ** 2).sum())
            half = max(
                half, min(student_t(level, len(c) - 2) * line_sd, 3 * half) if half else line_sd
            )
        out[name] = {
            "value": slope,
            "lo": slope - half,
            "hi": slope + half,
            "coefficient": float(np.exp(y.mean() - slope * c.mean())),
        }
    return out, None


def _slope(c: np.ndarray, y_KS: np.ndarray) -> np.ndarray:
    d = c - c.mean()
    return d @ y_KS / (d @ d)


def _compare(valleys: list[Valley], fit: Fit | None) -> list[str]:
    found = [v for v in valleys if v.optimum is not None]
    if fit is None or not found or fit.where.law.input_names != ("N", "D"):
        return []
    top = found[-1]
    if top.optimum is None:
        return []
    joint = optimum(fit, top.flops)["N"]
    gap = top.optimum["N"] / joint - 1
    if abs(gap) <= DISAGREE:
        return []
    inside = top.optimum["N_lo"] <= joint <= top.optimum["N_hi"]
    why = (
        "within the valley's own interval" if inside else "beyond its interval: trust the joint fit"
    )
    return [
        f"at {top.flops:.3g} FLOPs the valley's N* is {gap:+.0%} of the joint fit's"
        f" {joint:.3g}, {why}"
    ]
