"""What does a plan look like? Loss along the budget with its interval, and the regret of each size:
how flat the optimum is and why the chosen size is chosen."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.artefact import Fit
from analysis.budget_line import budget_line
from analysis.planner import regrets
from analysis.predict import half_interval, log_spread
from analysis.scales import count, flops, log_x, loss_label
from analysis.sizing import Sizing
from analysis.svg import ACCENT, INK, MEASURED, MUTED, PAPER, STYLE, figure

POINTS = 160
MARGIN = 3.0  # times the flat region and the interval of N
HIGHEST = 2.5  # times the largest regret at the ends of the flat region: the top of its panel


def plan_figure(fit: Fit, sizing: Sizing) -> Figure:
    """Left: loss along the budget, interval for one run, optimum and choice. Right: expected
    regret of each size and its upper quantile, in per cent of the loss. Shaded: the flat region."""
    line = budget_line(fit, sizing.flops, fixed=_named(fit, sizing))
    ends = [sizing.flat["N_lo"], sizing.flat["N_hi"], sizing.regret["N"], sizing.chosen["N"]]
    if sizing.known:
        ends += [sizing.N["lo"], sizing.N["hi"]]
    N = np.geomspace(min(ends) / MARGIN, max(ends) * MARGIN, POINTS)
    log_loss, sd = log_spread(fit, line.point(N))
    half = half_interval(fit, sd, level=sizing.level)
    regret_SG = 100 * regrets(line, N)
    mean, upper = regret_SG.mean(0), np.quantile(regret_SG, sizing.level, axis=0)
    with matplotlib.rc_context(STYLE):
        made, (left, right) = figure(width=9.2, height=3.9, columns=2)
        band = f"{sizing.level:.0%} interval"
        low, high = np.exp(log_loss - half), np.exp(log_loss + half)
        left.fill_between(N, low, high, color=ACCENT, alpha=0.16, lw=0, label=band)
        left.plot(N, np.exp(log_loss), "-", color=ACCENT, lw=1.8, label="law")
        best = (sizing.N["value"], sizing.loss["value"])
        left.plot(*best, "D", color=PAPER, mec=ACCENT, mew=1.5, ms=6.5, label="optimum", zorder=4)
        c = sizing.chosen
        left.plot(
            c["N"], c["loss"]["value"], "*", color=MEASURED, ms=12, mec=PAPER, mew=0.7,
            label="chosen", zorder=5,
        )  # fmt: skip
        right.plot(N, mean, "-", color=INK, lw=1.8, label="expected")
        right.plot(N, upper, "--", color=MUTED, lw=1.3, label=f"{sizing.level:.0%} of draws below")
        right.axvline(sizing.regret["N"], color=MEASURED, lw=1.2, label="least regret")
        top = np.interp(np.log([sizing.flat["N_lo"], sizing.flat["N_hi"]]), np.log(N), upper)
        right.set_ylim(0, HIGHEST * max(float(top.max()), 0.1))
        for axes in (left, right):
            axes.axvspan(sizing.flat["N_lo"], sizing.flat["N_hi"], color=MUTED, alpha=0.13, lw=0)
            log_x(axes, count)
            axes.set_xlim(N[0], N[-1])
            axes.set_xlabel(f"parameters N ({fit.conventions.get('N', 'N')})")
        left.set_ylabel(loss_label(fit.conventions))
        right.set_ylabel("regret, % of loss")
        left.set_title(f"{flops(sizing.flops)} FLOPs; shaded: within 0.1 % of the least")
        right.set_title("loss of each size against the best")
        _below(left, 4)
        _below(right, 3)
        return made


def _below(axes: Axes, columns: int) -> None:
    """A legend where no curve can be."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns, fontsize=8.5,
        columnspacing=1.0, handlelength=1.6,
    )  # fmt: skip


def _named(fit: Fit, sizing: Sizing) -> dict[str, float | str]:
    """The inputs held fixed, labels by their names."""
    scales = {i.name: i.scale for i in fit.where.law.inputs}
    labels = fit.options.get("labels", [])
    return {
        name: str(labels[int(value)]) if scales[name] == "label" else value
        for name, value in sizing.fixed.items()
    }
