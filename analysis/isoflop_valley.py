"""What is a valley of one budget, and which runs would mend it?

A parabola wants sizes to both sides of the minimum, centred on it and near it (approach 2 of
Hoffmann et al. 2022): runs to add are sizes with their tokens at that budget.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

SPAN = 4.0  # of the sizes to either side of the minimum: wider ones bend away from any parabola
OFF_CENTRE = 1.5  # a minimum farther than this from the middle of its sizes shifts with them
NEW = 1.3  # sizes closer than this to a trained one say little that is new


Scale = Literal["log", "linear"]


@dataclass(frozen=True, kw_only=True)
class Valley:
    """One budget: its points, parabola c0 + c1 u + c2 u^2 of ln loss (or of the loss) in u = ln N,
    the vertex or why there is none, and the runs that would give one, or a centred one."""

    flops: float
    N: list[float]
    D: list[float]
    loss: list[float]
    ids: list[str]
    parabola: list[float] | None
    optimum: dict[str, float] | None  # N, D, loss, and N_lo, N_hi
    reason: str | None
    residual: Scale = "log"
    add: list[dict[str, float]] = field(default_factory=list)  # N, D of each run

    def text(self) -> str:
        head = f"{self.flops:.3g} FLOPs, {len(self.N)} runs: "
        if self.optimum is None:
            return head + f"no optimum: {self.reason}{self.advice()}"
        o = self.optimum
        return head + (
            f"N* {o['N']:.4g} [{o['N_lo']:.3g}, {o['N_hi']:.3g}], D* {o['D']:.4g}, loss"
            f" {o['loss']:.4f}"
        )

    def curve(self, N: np.ndarray) -> np.ndarray | None:
        """The parabola as losses at sizes, or None where there is none."""
        if self.parabola is None:
            return None
        c0, c1, c2 = self.parabola
        u = np.log(N)
        y = c0 + c1 * u + c2 * u**2
        return np.exp(y) if self.residual == "log" else y

    def advice(self) -> str:
        """The runs to add, for people."""
        if not self.add:
            return ""
        runs = ", ".join(f"N={r['N']:.3g} (D={r['D']:.3g})" for r in self.add)
        return f"; at {self.flops:.3g} FLOPs add {runs}"


def runs_to_add(valley: Valley, all_of_them: list[Valley]) -> list[dict[str, float]]:
    """The sizes, and their tokens at this budget, that a parabola lacks."""
    N = np.array(valley.N)
    low, high = float(N.min()), float(N.max())
    centre, known = _expected(valley, all_of_them)
    if valley.optimum is not None:
        best = valley.optimum["N"]
        if max(best / np.sqrt(low * high), np.sqrt(low * high) / best) <= OFF_CENTRE:
            return []
        left, right = best / low, high / best
        wanted = (
            low * (left / right) ** np.array([0.5, 1.0])
            if left < right
            else high * (left / right) ** np.array([0.5, 1.0])
        )
    elif valley.reason and "edge" in valley.reason:
        # on past the edge, no farther than SPAN: where the parabola turns out there is unknown
        beyond = np.array([np.sqrt(SPAN), SPAN])
        wanted = low / beyond if "smaller" in valley.reason else high * beyond
    else:
        if not known:  # the least loss says where to look
            centre = float(N[int(np.argmin(valley.loss))])
        wanted = centre * np.geomspace(1 / SPAN, SPAN, 5)
    apart = np.abs(np.log(wanted[:, None] / N)).min(1) > np.log(NEW)
    if not apart.any():  # all of them are there already: only wider ones can turn the curve upward
        wanted, apart = np.array([low / 2, high * 2]), np.ones(2, bool)
    log_excess = np.log(np.array(valley.D) * N)  # compute per token over N changes slowly with N
    tokens = np.exp(np.interp(np.log(wanted), np.log(N), log_excess)) / wanted
    return [
        {"N": float(n), "D": float(d)} for n, d in zip(wanted[apart], tokens[apart], strict=True)
    ]


def _expected(valley: Valley, all_of_them: list[Valley]) -> tuple[float, bool]:
    """N* of this budget by the valleys that have one, along their slope or the square root of
    compute."""
    found = [(v.flops, v.optimum["N"]) for v in all_of_them if v.optimum is not None]
    if not found:
        return float("nan"), False
    c, n = np.log(np.array(found)).T
    slope = float(slope_of(c, n[:, None])[0]) if len(found) > 1 else 0.5
    return float(np.exp(n.mean() + slope * (np.log(valley.flops) - c.mean()))), True


def off_centre(valleys: list[Valley]) -> list[str]:
    """Warnings of valleys whose sizes lie to one side of their minimum."""
    out = []
    for v in valleys:
        if v.optimum is not None and v.add:
            off = v.optimum["N"] / np.sqrt(v.N[0] * v.N[-1])
            side = f"{off:.2g}x above" if off > 1 else f"{1 / off:.2g}x below"
            out.append(
                f"at {v.flops:.3g} FLOPs the minimum is {side} the middle of the sizes, which"
                f" biases it{v.advice()}"
            )
    return out


def slope_of(c: np.ndarray, y_KS: np.ndarray) -> np.ndarray:
    """(S,) least-squares slopes of S columns against K values."""
    d = c - c.mean()
    return d @ y_KS / (d @ d)
