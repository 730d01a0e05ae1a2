"""What would a reviewer ask of this sweep? One self-contained page: law, checks, runs, costs,
provenance.

Nothing is fetched when it is opened; every exclusion is listed with its reason, and every number
comes from the values given here.
"""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis import figures
from analysis.artefact import Fit
from analysis.html import (
    Markup,
    cards,
    number,
    page,
    pairs,
    paragraph,
    picture,
    table,
    verdict,
    warnings,
)
from analysis.isoflop import IsoFlop
from analysis.observations import Observations
from analysis.planner import Sizing
from analysis.predict import HeldOut
from analysis.svg import svg
from parallelism.errors import InputError

ROWS = 400  # of the table of runs; the rest is counted


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
        ("held-out", "Held-out check", _held(fit, held)),
        ("valleys", "IsoFLOP valleys", _valleys(isoflop, fit, held)),
        ("frontier", "Frontier", _frontier(observations, fit, held)),
        ("law", "The law", _law(fit)),
        ("residuals", "Residuals", _residuals(observations, fit)),
        ("production", "Sized production run", _production(sizing, production)),
        ("runs", "Runs", _runs(observations, held)),
        ("costs", "Costs", _costs(observations, sweep)),
        ("provenance", "Provenance", _provenance(fit, observations, sweep)),
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
            off = f"{h.measured / p.mean - 1:+.2%}, {'inside' if h.inside else 'outside'} its interval"
            out.append((f"measured afterwards: {off}", f"{h.measured:.4f}"))
    out.append(("noise between runs, of the loss", f"{fit.noise['sd']:.2%}"))
    if sizing is not None:
        shown = f"{figures.count(sizing.N['value'])} on {figures.count(sizing.D['value'])}"
        out.append((f"parameters and tokens for {figures.flops(sizing.flops)} FLOPs", shown))
    return out


def _held(fit: Fit, held: list[HeldOut]) -> str:
    parts = []
    if held:
        rows = [
            (
                Markup(f"<code>{h.run_id}</code>"),
                h.flops and figures.flops(h.flops),
                _times(h.prediction.extrapolation),
                h.prediction.mean,
                f"{h.prediction.lo:.4f} to {h.prediction.hi:.4f}",
                h.measured,
                None if h.measured is None else f"{h.measured / h.prediction.mean - 1:+.2%}",
                verdict(h.inside),
            )
            for h in held
        ]
        head = (
            "run",
            "FLOPs",
            "beyond",
            "predicted",
            f"{held[0].prediction.level:.0%} interval",
            "measured",
            "off",
            "",
        )
        parts.append(table(head, rows, numbers=range(1, 7)))
        sd = held[0].prediction.sd
        shares = ", ".join(f"{k} {v / held[0].prediction.mean:.2%}" for k, v in sd.items())
        parts.append(
            paragraph(
                f"Standard deviation of the prediction by source, of the loss: {shares}.",
                kind="note",
            )
        )
    folds = fit.backtest.get("lines", [])
    drawn = figures.checks(fit, held)
    if drawn is not None:
        parts.append(
            picture(
                svg(drawn, name="held-out checks"),
                "Dots: each budget predicted from those below it. Star: the run that was predicted before it was"
                f" trained. Bars: {fit.level:.0%} intervals for one run.",
            )
        )
    if folds:
        parts.append("<ul>" + "".join(f"<li>{line}</li>" for line in folds) + "</ul>")
    if drawn is None:
        parts.append(
            paragraph("No run was held out: a third budget would make a back-test possible.")
        )
    return "\n".join(parts)


def _valleys(found: IsoFlop, fit: Fit, held: list[HeldOut]) -> str:
    drawn = svg(figures.valleys(found, fit, held), name="isoFLOP valleys")
    rows = []
    for v in found.valleys:
        o = v.optimum
        if o is None:
            rows.append((figures.flops(v.flops), len(v.N), None, None, None, v.reason))
        else:
            interval = f"{figures.count(o['N_lo'])} to {figures.count(o['N_hi'])}"
            rows.append(
                (
                    figures.flops(v.flops),
                    len(v.N),
                    figures.count(o["N"]),
                    figures.count(o["D"]),
                    o["loss"],
                    interval,
                )
            )
    parts = [
        picture(
            drawn,
            "Each colour is one compute budget. The joint law decides; the parabolas check it.",
        ),
        table(
            ("FLOPs", "runs", "N*", "D*", "loss", "interval of N*, or why there is none"),
            rows,
            numbers=range(5),
        ),
    ]
    if found.exponents is None:
        parts.append(paragraph(f"No exponents: {found.exponents_reason}."))
    else:
        said = "; ".join(
            f"{k}* grows as C^{e['value']:.3f} [{e['lo']:.3f}, {e['hi']:.3f}]"
            for k, e in found.exponents.items()
        )
        parts.append(paragraph(f"From the minima: {said}."))
    return "\n".join(parts) + warnings(found.warnings)


def _frontier(observations: Observations, fit: Fit, held: list[HeldOut]) -> str:
    if "C" not in observations.columns:
        return ""
    return picture(
        svg(figures.frontier(observations, fit, held), name="frontier"),
        "The law at the best size for each compute, with the interval in which one new run is expected to land.",
    )


def _law(fit: Fit) -> str:
    boot = fit.bootstrap["params"]
    rows = [
        (name, value, boot.get(name, {}).get("se"), _range(boot.get(name)))
        for name, value in fit.params.items()
    ]
    facts = {
        "status": f"{fit.status}: {fit.starts_agree} of {fit.starts} starts agree",
        "objective": f"{fit.objective:.9g}, {fit.reduce} of Huber terms of log loss",
        "Huber delta": f"{fit.delta:.3g} ({fit.delta_origin})",
        "noise": f"{fit.noise['sd']:.3%} of the loss, {fit.noise['dof']} degrees of freedom, from {fit.noise['origin']}",
        "lack of fit": fit.lack_of_fit.get("verdict"),
        "error of form": f"{fit.form:.2%} of the loss for each e-fold of compute beyond the data",
        "not identified": "; ".join(", ".join(u["params"]) for u in fit.unidentified) or "nothing",
        "bootstrap": _bootstrap(fit),
    }
    return (
        paragraph(f"{fit.equation}")
        + table(
            ("", "value", "standard error", f"{fit.level:.0%} interval"), rows, numbers=(1, 2, 3)
        )
        + pairs(facts)
    )


def _bootstrap(fit: Fit) -> str:
    b = fit.bootstrap
    if not b["n"]:
        return "none"
    redrawn = f", {b['singular']} singular draws redrawn" if b.get("singular") else ""
    return f"{b['n']} draws of {b['kind']} over {b['clusters']} clusters{redrawn}, seed {fit.seed}"


def _residuals(observations: Observations, fit: Fit) -> str:
    return picture(
        svg(figures.residuals(observations, fit), name="residuals"),
        "Colours are budgets, small to large; the band is two standard deviations of the noise. A trend would be an"
        " error of the law's form.",
    )


def _production(sizing: Sizing | None, production: Mapping[str, Any] | None) -> str:
    parts = []
    if sizing is not None:
        quantities = (("parameters N", sizing.N), ("tokens D", sizing.D), ("loss", sizing.loss))
        parts.append(
            paragraph(
                f"For {figures.flops(sizing.flops)} FLOPs ({sizing.convention or 'C'}, by {sizing.flops_per_token_origin}), {_times(sizing.extrapolation)} the largest fitted budget."
            )
        )
        styles = (figures.count, figures.count, "{:.4f}".format)
        rows = [
            (name, style(q["value"]), f"{style(q['lo'])} to {style(q['hi'])}")
            for (name, q), style in zip(quantities, styles, strict=True)
        ]
        parts.append(table(("", "optimum", f"{sizing.level:.0%} interval"), rows, numbers=(1, 2)))
        flat = f"{figures.count(sizing.flat['N_lo'])} to {figures.count(sizing.flat['N_hi'])}"
        facts: dict[str, Any] = {
            "sizes that cost at most 0.1 % of loss": flat,
            "size of least expected regret": f"{figures.count(sizing.regret['N'])}"
            f" ({sizing.regret['expected']:.3%} of loss)",
            "tokens per parameter": sizing.tokens_per_parameter,
        }
        if sizing.inference is not None:
            i = sizing.inference
            facts["with inference"] = (
                f"{figures.count(i['tokens'])} tokens served: N {figures.count(i['N'])}, D {figures.count(i['D'])},"
                f" {i['saving']:.1%} less compute in all"
            )
        if sizing.devices is not None:
            d = sizing.devices
            facts["device hours"] = (
                f"{number(d['device_hours'])} on {d['count']} x {d['kind']} at MFU {d['mfu']} ({d['mfu_origin']})"
            )
        parts.append(pairs(facts) + warnings(sizing.warnings))
    if production:
        parts.append(pairs(_flat(production)))
    return "\n".join(parts)


def _runs(observations: Observations, held: list[HeldOut]) -> str:
    ids = {h.run_id for h in held}
    rows, faint = [], []
    columns = observations.columns
    order = (
        np.lexsort([columns[n] for n in ("N", "C") if n in columns])
        if "N" in columns
        else range(len(observations.id))
    )
    for k in order[:ROWS]:
        i, reason, row = observations.id[k], observations.reason[k], observations.rows[k]
        said = "held out" if i in ids else (f"excluded: {reason}" if reason else "fitted")
        if reason:
            faint.append(len(rows))
        numbers = [
            float(columns[name][k]) if name in columns and np.isfinite(columns[name][k]) else None
            for name in ("N", "D", "C", "loss")
        ]
        styles = (figures.count, figures.count, figures.flops, "{:.4f}".format)
        shown = [None if v is None else style(v) for v, style in zip(numbers, styles, strict=True)]
        rows.append(
            (Markup(f"<code>{i}</code>"), row.get("status"), *shown, row.get("optim.lr"), said)
        )
    head = (
        "run",
        "status",
        "N",
        "D",
        "C, FLOPs",
        str(observations.conventions.get("loss", "loss")),
        "lr",
        "",
    )
    keep = [c for c in range(len(head)) if c in (0, 7) or any(row[c] is not None for row in rows)]
    more = len(observations.id) - len(rows)
    tail = paragraph(f"and {more} more rows, in {observations.source}", kind="note") if more else ""
    return (
        table(
            [head[c] for c in keep],
            [[row[c] for c in keep] for row in rows],
            numbers=range(2, 6),
            faint=faint,
        )
        + tail
    )


def _costs(observations: Observations, sweep: Mapping[str, Any] | None) -> str:
    def total(name: str) -> float | None:
        values = [row[name] for row in observations.rows if isinstance(row.get(name), int | float)]
        return float(sum(values)) if values else None

    C = observations.columns.get("C")
    known = C[(C > 0)] if C is not None else None
    convention = observations.conventions.get("C", "C")
    facts: dict[str, Any] = {
        "runs": len(observations.id),
        f"training FLOPs ({convention})": float(known.sum())
        if known is not None and len(known)
        else None,
        "tokens": total("tokens"),
        "run seconds": total("seconds"),
    }
    if facts["run seconds"] and facts[f"training FLOPs ({convention})"]:
        facts["FLOP/s while running"] = (
            facts[f"training FLOPs ({convention})"] / facts["run seconds"]
        )
    # a launcher's cells and sessions are in its own file
    given = {k: v for k, v in (sweep or {}).items() if k not in ("cells", "sessions", "programs")}
    facts |= {f"sweep: {k.replace('_', ' ')}": v for k, v in _flat(given).items()}
    return pairs(facts)


def _provenance(fit: Fit, observations: Observations, sweep: Mapping[str, Any] | None) -> str:
    return pairs(
        {
            **{f"code: {k}": v for k, v in _environments(observations).items()},
            "ladder version": fit.version,
            "data hash": Markup(f"<code>{fit.data_hash}</code>"),
            "source": observations.source,
            **{f"convention: {k}": v for k, v in fit.conventions.items()},
            "seeds of the runs": ", ".join(
                sorted({str(s) for s in observations.seed if s is not None})
            )
            or None,
            "seed of the bootstrap": fit.seed,
            "seconds of the fit": f"{fit.seconds['solve']:.2f} solving, {fit.seconds['bootstrap']:.2f} resampling",
            "written on": f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        }
    )


def _environments(observations: Observations) -> dict[str, Any]:
    """Commit, versions and hosts that the runs recorded: one value each, or all there were."""
    fields = (
        "env.commit",
        "env.modified",
        "env.python",
        "env.jax",
        "env.device",
        "env.host",
        "data.fingerprint",
    )
    out = {}
    for field in fields:
        values = sorted(
            {str(row[field]) for row in observations.rows if row.get(field) is not None}
        )
        if values:
            out[field.removeprefix("env.").replace("data.fingerprint", "corpus fingerprint")] = (
                ", ".join(values)
            )
    return out


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out.update(_flat(value, f"{name}."))
        elif isinstance(value, list | tuple):
            out[name] = ", ".join(number(v) for v in value) or None
        else:
            out[name] = value
    return out


def _range(interval: Mapping[str, float] | None) -> str | None:
    return None if interval is None else f"{number(interval['lo'])} to {number(interval['hi'])}"


def _times(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g} x"
