"""What does a design look like? Where its runs stand beside those that exist, and how each narrows
the interval at the target."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from analysis.artefact import Fit
from analysis.design import rows_of
from analysis.observations import Observations
from analysis.proposal import Design
from analysis.scales import count, flops, log_x
from analysis.svg import ACCENT, INK, MEASURED, MUTED, PAPER, STYLE, figure


def design_figure(
    found: Design, observations: Observations | None = None, *, fit: Fit | None = None
) -> Figure:
    """Sizes against compute with what is measured (by the rows, or by the fit they made), chosen
    and aimed at; and the half width at the target against what has been spent."""
    rows_3M = rows_of(fit, observations)
    with matplotlib.rc_context(STYLE):
        made, (left, right) = figure(width=9.6, height=4.0, columns=2)
        _places(left, found, rows_3M)
        _worth(right, found)
        return made


def _places(axes: Axes, found: Design, rows_3M: np.ndarray | None) -> None:
    if rows_3M is None:
        (N_lo, N_hi), (C_lo, C_hi) = found.measured["N"], found.measured["C"]
        axes.fill_between(
            [C_lo, C_hi], N_lo, N_hi, color=MUTED, alpha=0.15, lw=0, label="measured range"
        )
    else:
        axes.plot(
            rows_3M[2], rows_3M[0], "o", color=MUTED, ms=4.5, mec=PAPER, mew=0.6,
            label="measured",
        )  # fmt: skip
    C, N = np.array([c.C for c in found.cells]), np.array([c.N for c in found.cells])
    again = np.array([c.replicate > 0 for c in found.cells], bool)
    axes.plot(C[~again], N[~again], "o", color=ACCENT, ms=7, mec=PAPER, mew=0.7, label="to train")
    if again.any():
        axes.plot(C[again], N[again], "o", color="none", mec=ACCENT, ms=11, label="again")
    if found.validation is not None:
        v = found.validation
        axes.plot(v["C"], v["N"], "D", color=PAPER, mec=INK, mew=1.4, ms=7, label="validation")
    t = found.target
    axes.plot(t["flops"], t["N"], "*", color=MEASURED, ms=13, mec=PAPER, mew=0.6, label="target")
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.set_xlabel("training compute C, FLOPs")
    axes.set_ylabel("parameters N")
    log_x(axes, flops)
    # log_x leaves the other axis linear
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(count))
    axes.legend(loc="upper left", fontsize=9)


def _worth(axes: Axes, found: Design) -> None:
    spent = np.concatenate([[0.0], np.cumsum([c.cost for c in found.cells])])
    scale, unit = (100, "%") if not found.loss_unit else (1, found.loss_unit)
    half = scale * np.array([found.before.half, *(c.after.half for c in found.cells)])
    axes.step(spent, half, where="post", color=ACCENT, lw=1.8, label="this design")
    axes.plot(spent[1:], half[1:], "o", color=ACCENT, ms=4, mec=PAPER, mew=0.5)
    if found.isoflop is not None:
        i = found.isoflop
        axes.plot(
            i["cost"], scale * i["after"]["half"], "s", color=PAPER, mec=MEASURED, mew=1.5, ms=7,
            label=f"one isoFLOP of {len(i['N'])} sizes",
        )  # fmt: skip
    if found.tolerance is not None:
        axes.axhline(scale * found.tolerance, color=MUTED, lw=0.9, ls=":", label="tolerance")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"spent, {found.unit}")
    axes.set_ylabel(
        f"half width of the {found.level:.0%} interval\nof the loss at the target, {unit}"
    )
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(flops if found.unit == "FLOPs" else count))
    axes.legend(loc="lower left", fontsize=9)
