"""What do the measurements and the law look like? Valleys, frontier, residuals: one function a
figure.

Each takes values that analysis made and returns a matplotlib Figure; `analysis.svg` puts it into
a page.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.artefact import Fit
from analysis.coordinates import evaluate
from analysis.fit_curves import BIG
from analysis.fit_rows import FitRows
from analysis.isoflop import IsoFlop
from analysis.observations import Observations
from analysis.optimum import along_budget
from analysis.planner import optimum
from analysis.predict import HeldOut, family, flops_per_token, half_interval, log_spread
from analysis.scales import axis_label, count, flops, log_x, loss_label, style_of
from analysis.svg import ACCENT, INK, MEASURED, MUTED, PAPER, STYLE, colour, figure

PANELS = 4  # inputs with residuals of their own


def valleys(found: IsoFlop, fit: Fit | None = None, heldout: Sequence[HeldOut] = ()) -> Figure:
    """Loss against size at each budget: points, parabola (dashed), the law along the budget
    (line), vertices."""
    with matplotlib.rc_context(STYLE):
        made, (axes,) = figure(height=4.4)
        shown = [v for v in found.valleys if v.N]
        several = [v for v in shown if len(v.N) > 1]
        for k, valley in enumerate(several):
            tint = colour(k, len(several))
            N, loss = np.array(valley.N), np.array(valley.loss)
            axes.plot(N, loss, "o", color=tint, ms=5.5, mec=PAPER, mew=0.8, zorder=3)
            span = np.geomspace(N.min() / 1.25, N.max() * 1.25, 160)
            label_at = (N[-1], loss[-1])
            if fit is not None and fit.where.law.input_names == ("N", "D"):
                C = np.exp(
                    np.interp(np.log(span), np.log(N), np.log(_compute(valley.N, valley.D, fit)))
                )
                curve = evaluate(
                    fit.where, fit.theta_p, {"N": span, "D": C / flops_per_token(fit, span)}
                )[0]
                axes.plot(span, curve, "-", color=tint, lw=1.6)
            parabola = valley.curve(span)
            if parabola is not None:
                axes.plot(span, parabola, "--", color=tint, lw=1.0, alpha=0.75)
            if valley.optimum is not None:
                o = valley.optimum
                axes.plot(o["N"], o["loss"], "D", color=PAPER, mec=tint, mew=1.4, ms=6, zorder=4)
            axes.annotate(
                flops(valley.flops),
                label_at,
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                color=tint,
                fontsize=9.5,
            )
        for h in heldout:
            _held_point(axes, h.prediction.at["N"], h)
        log_x(axes, count)
        axes.set_xlabel(f"parameters N ({found.conventions.get('N', 'N')})")
        axes.set_ylabel(loss_label(found.conventions))
        handles = [
            axes.plot([], [], "o", color=MUTED, label="run")[0],
            axes.plot([], [], "--", color=MUTED, lw=1, label="parabola")[0],
            axes.plot([], [], "D", color=PAPER, mec=MUTED, label="its minimum")[0],
        ]
        if fit is not None:
            handles.insert(1, axes.plot([], [], "-", color=MUTED, lw=1.6, label="law")[0])
        if heldout:
            handles.append(axes.plot([], [], "*", color=MEASURED, ms=10, label="held out")[0])
        axes.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(0, 1.12),
            ncols=len(handles),
            fontsize=9.5,
        )
        axes.margins(x=0.09)
        return made


def frontier(observations: Observations, fit: Fit, heldout: Sequence[HeldOut] = ()) -> Figure:
    """Loss at the best size against compute: the law with its interval for one run, runs, and
    held-out runs."""
    with matplotlib.rc_context(STYLE):
        made, (axes,) = figure()
        C, loss = observations.values("C"), observations.values("loss")
        last = max([C.max() * 3, *(h.flops * 1.5 for h in heldout if h.flops)])
        span = np.geomspace(C.min() / 1.5, last, 80)
        if fit.where.law.input_names == ("N", "D"):
            N = np.array([optimum(fit, c)["N"] for c in span[:: len(span) // 16]])
            log_N = np.interp(np.log(span), np.log(span[:: len(span) // 16]), np.log(N))
            u, _ = along_budgets(fit, span, log_N)
            at = {"N": np.exp(u), "D": span / flops_per_token(fit, np.exp(u))}
            log_mean, sd = log_spread(fit, at)
            half = half_interval(fit, sd, level=fit.level)
            mean = np.exp(log_mean)
            axes.fill_between(
                span,
                mean * np.exp(-half),
                mean * np.exp(half),
                color=ACCENT,
                alpha=0.18,
                lw=0,
                label=f"{fit.level:.0%} interval for one run",
            )
            axes.plot(span, mean, "-", color=ACCENT, lw=1.8, label="law at the best size")
        axes.axvline(C.max(), color=MUTED, lw=0.9, ls=":")
        axes.annotate(
            "largest fitted ",
            (C.max(), 0.985),
            xycoords=("data", "axes fraction"),
            ha="right",
            va="top",
            color=MUTED,
            fontsize=9,
        )
        axes.plot(
            C,
            loss,
            "o",
            color=MUTED,
            ms=4,
            alpha=0.75,
            mec=PAPER,
            mew=0.5,
            label="fitted run",
            zorder=3,
        )
        for k, h in enumerate(heldout):
            if h.flops:
                _held_point(axes, h.flops, h, label=k == 0)
        log_x(axes, flops)
        axes.set_xlabel(f"training compute C, FLOPs ({fit.conventions.get('C', 'C')})")
        axes.set_ylabel(loss_label(fit.conventions))
        axes.legend(loc="upper right", fontsize=9.5)
        return made


def along_budgets(fit: Fit, budgets: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln N of the fit's optimum at many budgets, each searched near a guess."""
    pairs = [
        along_budget(
            fit.where,
            fit.theta_p[None],
            flops=float(c),
            family=family(fit),
            low_S=np.array([g - 1.0]),
            high_S=np.array([g + 1.0]),
        )
        for c, g in zip(budgets, near, strict=True)
    ]
    u, loss = zip(*pairs, strict=True)
    return np.concatenate(u), np.concatenate(loss)


def residuals(observations: Observations, fit: Fit) -> Figure:
    """Measured against fitted along each input (compute, for the histories of curves): structure
    here is an error of form."""
    rows = FitRows(fit, observations)
    linear = rows.law.output.scale == "linear"
    unit = 1.0 if linear else 100.0
    off = rows.measured - rows.fitted if linear else 100 * (rows.measured / rows.fitted - 1)
    along = [i for i in rows.law.inputs if i.scale != "label"]
    if rows.law.prepare is not None:
        along = [rows.principal]
    with matplotlib.rc_context(STYLE):
        made, axes = figure(height=3.2, columns=min(len(along), PANELS))
        for panel, i in zip(axes, along[:PANELS], strict=True):
            sd = unit * fit.noise["sd"]
            panel.axhspan(-2 * sd, 2 * sd, color=MUTED, alpha=0.12, lw=0)
            panel.axhline(0, color=MUTED, lw=0.9)
            panel.scatter(
                rows.x[i.name], off, c=_shades(rows), s=30, edgecolors=PAPER, linewidths=0.6,
                zorder=3, rasterized=len(off) > BIG,
            )  # fmt: skip
            if i.scale == "log":
                log_x(panel, style_of(i.name), most=8 if len(along) == 1 else 6)
            panel.set_xlabel(axis_label(i, observations.conventions))
        axes[0].set_ylabel("measured - fitted" if linear else "measured / fitted - 1, %")
        return made


def checks(fit: Fit, heldout: Sequence[HeldOut] = ()) -> Figure | None:
    """Measured against predicted for every run that was held out, in per cent; None when none
    was."""
    folds = [f for f in fit.backtest.get("folds", []) if "points" in f]
    rows = [(flops(f["flops"]), p, MUTED) for f in folds for p in f["points"][:40]]
    for h in heldout:
        if h.measured is not None:
            p = h.prediction
            point = {"predicted": p.mean, "lo": p.lo, "hi": p.hi, "measured": h.measured}
            rows.append((flops(h.flops) if h.flops else h.run_id, point, MEASURED))
    if not rows:
        return None
    linear = fit.where.law.output.scale == "linear"

    def size(value: float, predicted: float) -> float:
        return value - predicted if linear else 100 * (value / predicted - 1)

    with matplotlib.rc_context(STYLE):
        made, (axes,) = figure(height=3.2)
        ticks: dict[str, list[int]] = {}
        for k, (name, p, tint) in enumerate(rows):
            low, high = (size(p[end], p["predicted"]) for end in ("lo", "hi"))
            off = size(p["measured"], p["predicted"])
            axes.plot(
                [k, k], [low, high], "-", color=ACCENT, lw=7, alpha=0.28, solid_capstyle="butt"
            )
            axes.plot(
                [k],
                [off],
                "*" if tint == MEASURED else "o",
                color=tint,
                ms=11 if tint == MEASURED else 5.5,
                mec=PAPER,
                mew=0.7,
                zorder=3,
            )
            ticks.setdefault(name, []).append(k)
        axes.axhline(0, color=MUTED, lw=0.9)
        axes.set_xticks([float(np.mean(v)) for v in ticks.values()], list(ticks))
        axes.grid(False, axis="x")
        for v in list(ticks.values())[:-1]:
            axes.axvline(v[-1] + 0.5, color=MUTED, lw=0.6, ls=":")
        axes.set_xlabel("budget held out, FLOPs (each predicted from smaller budgets only)")
        axes.set_ylabel("measured - predicted" if linear else "measured / predicted - 1, %")
        return made


def _compute(N: list[float], D: list[float], fit: Fit) -> np.ndarray:
    """The compute each run of a valley achieved: within a percent of its budget."""
    return flops_per_token(fit, np.array(N)) * np.array(D)


def _shades(rows: FitRows) -> list[str]:
    groups = rows.groups
    if groups is None:
        return [ACCENT] * len(rows.measured)
    return [groups.colour(int(k)) for k in groups.label_M]


def _held_point(axes: Axes, at: float, h: HeldOut, *, label: bool = False) -> None:
    p = h.prediction
    axes.errorbar(
        [at],
        [p.mean],
        yerr=[[p.mean - p.lo], [p.hi - p.mean]],
        fmt="_",
        color=INK,
        ms=13,
        capsize=6,
        lw=1.3,
        zorder=6,
        label="predicted before training" if label else None,
    )
    if h.measured is not None:
        axes.plot(
            [at],
            [h.measured],
            "*",
            color=MEASURED,
            ms=10,
            mec=PAPER,
            mew=0.7,
            zorder=5,
            label="measured" if label else None,
        )
