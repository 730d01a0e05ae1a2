"""What was run, what did it cost, where is it from, what comes next? The sections that list."""

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.artefact import Fit
from analysis.html import Markup, number, pairs, paragraph, table, times, warnings
from analysis.observations import Observations
from analysis.planner import Sizing
from analysis.predict import HeldOut
from analysis.scales import count, flops

ROWS = 400  # of the table of runs; the rest is counted


def production(sizing: Sizing | None, production: Mapping[str, Any] | None) -> str:
    parts = []
    if sizing is not None:
        quantities = (("parameters N", sizing.N), ("tokens D", sizing.D), ("loss", sizing.loss))
        parts.append(
            paragraph(
                f"For {flops(sizing.flops)} FLOPs ({sizing.convention or 'C'}, by"
                f" {sizing.flops_per_token_origin}),"
                f" {times(sizing.extrapolation)} the largest fitted budget."
            )
        )
        styles = (count, count, "{:.4f}".format)
        rows = [
            (name, style(q["value"]), f"{style(q['lo'])} to {style(q['hi'])}")
            for (name, q), style in zip(quantities, styles, strict=True)
        ]
        parts.append(table(("", "optimum", f"{sizing.level:.0%} interval"), rows, numbers=(1, 2)))
        flat = f"{count(sizing.flat['N_lo'])} to {count(sizing.flat['N_hi'])}"
        facts: dict[str, Any] = {
            "sizes that cost at most 0.1 % of loss": flat,
            "size of least expected regret": f"{count(sizing.regret['N'])}"
            f" ({sizing.regret['expected']:.3%} of loss)",
            "tokens per parameter": sizing.tokens_per_parameter,
        }
        if sizing.inference is not None:
            i = sizing.inference
            facts["with inference"] = (
                f"{count(i['tokens'])} tokens served: N {count(i['N'])},"
                f" D {count(i['D'])},"
                f" {i['saving']:.1%} less compute in all"
            )
        if sizing.devices is not None:
            d = sizing.devices
            facts["device hours"] = (
                f"{number(d['device_hours'])} on {d['count']} x {d['kind']} at MFU"
                f" {d['mfu']} ({d['mfu_origin']})"
            )
        parts.append(pairs(facts) + warnings(sizing.warnings))
    if production:
        parts.append(pairs(_flat(production)))
    return "\n".join(parts)


def runs(observations: Observations, held: list[HeldOut]) -> str:
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
        styles = (count, count, flops, "{:.4f}".format)
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


def costs(observations: Observations, sweep: Mapping[str, Any] | None) -> str:
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


def provenance(fit: Fit, observations: Observations, sweep: Mapping[str, Any] | None) -> str:
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
            "seconds of the fit": (
                f"{fit.seconds['solve']:.2f} solving, {fit.seconds['bootstrap']:.2f} resampling"
            ),
            "written on": (
                f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
            ),
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
