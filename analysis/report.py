"""What would a reviewer ask of this sweep? One self-contained page: law, checks, runs, costs,
provenance.

Nothing is fetched when it is opened; every exclusion is listed with its reason, and every number
comes from the values given here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import report_figures, report_tables
from analysis.artefact import Fit
from analysis.html import cards, page, warnings
from analysis.isoflop import IsoFlop
from analysis.observations import Observations
from analysis.planner import Sizing
from analysis.predict import HeldOut
from analysis.scales import count, flops
from parallelism.errors import InputError


def write_report(
    path: Path | str,
    *,
    fit: Fit,
    observations: Observations,
    isoflop: IsoFlop,
    heldout: Sequence[HeldOut] | HeldOut | None = None,
    sizing: Sizing | None = None,
    production: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Any] | None = None,
    title: str = "Scaling sweep",
) -> Path:
    """Write the page and return its path.

    `production`: what the sized run is, name -> value (nested values are flattened); `sweep`: the
    launcher's summary (`name`, `seconds`, `compilations`, `compile_seconds`, ...). Raises
    InputError when the file cannot be written.
    """
    held = [heldout] if isinstance(heldout, HeldOut) else list(heldout or ())
    sections = [
        ("held-out", "Held-out check", report_figures.held_out(fit, held)),
        ("valleys", "IsoFLOP valleys", report_figures.valleys(isoflop, fit, held)),
        ("frontier", "Frontier", report_figures.frontier(observations, fit, held)),
        ("law", "The law", report_figures.law(fit)),
        ("residuals", "Residuals", report_figures.residuals(observations, fit)),
        ("production", "Sized production run", report_tables.production(sizing, production)),
        ("runs", "Runs", report_tables.runs(observations, held)),
        ("costs", "Costs", report_tables.costs(observations, sweep)),
        ("provenance", "Provenance", report_tables.provenance(fit, observations, sweep)),
    ]
    lead = (
        f"{fit.law} fitted to {fit.rows} runs"
        + (f" at {len(fit.budgets)} compute budgets" if fit.budgets else "")
        + f", {len(fit.excluded)} excluded; {fit.status}"
    )
    text = page(
        title, lead, sections, top=cards(_headline(fit, held, sizing)) + warnings(fit.warnings)
    )
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.partial")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            str(path), f"not writable ({error.strerror})", "give another path for the report"
        ) from None
    return path


def _headline(fit: Fit, held: list[HeldOut], sizing: Sizing | None) -> list[tuple[str, str]]:
    out = []
    for h in held[:1]:
        p = h.prediction
        out.append(
            (f"predicted loss of the held-out run [{p.lo:.4f}, {p.hi:.4f}]", f"{p.mean:.4f}")
        )
        if h.measured is not None:
            off = (
                f"{h.measured / p.mean - 1:+.2%}, {'inside' if h.inside else 'outside'}"
                " its interval"
            )
            out.append((f"measured afterwards: {off}", f"{h.measured:.4f}"))
    out.append(("scatter of runs about the law, of the loss", f"{fit.noise['sd']:.2%}"))
    if sizing is not None:
        shown = f"{count(sizing.N['value'])} on {count(sizing.D['value'])}"
        out.append((f"parameters and tokens for {flops(sizing.flops)} FLOPs", shown))
    return out
