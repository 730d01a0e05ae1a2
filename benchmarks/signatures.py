"""Do the signatures of the papers show at this size? Streams, structured layers, experts, growth.

    python -m benchmarks.signatures [--tiny] [--studies streams,structured,experts,growth]

Writes docs/signatures.md, docs/signatures.json and docs/figures/signatures.svg (with --tiny,
signatures_tiny.*). Runs lie under --root and are trained once: the same command goes on where a
killed one was.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import signatures_page
from benchmarks.signatures_plan import (
    EXPERTS,
    STRUCTURED,
    TINY,
    Sizes,
    experts,
    growth,
    streams,
    structured,
)
from benchmarks.zoo_results import interval
from model.count import count
from parallelism.errors import InputError
from sweeps.launch.local import sweep
from sweeps.plan import Plan, PlannedRun
from train.environment import environment
from train.record import DONE, RunDir, write_json

Rows = list[dict[str, Any]]


class Interrupted(Exception):
    """Final. A sweep was interrupted; the same command goes on."""


def read(run: PlannedRun, root: Path) -> dict[str, Any]:
    """One run: what it was, what it cost with the run it began from, and what it ended with."""
    spec = run.spec
    found = RunDir(root / run.run_id).read()
    metrics = (found.result or {}).get("metrics", {})
    started = (found.env or {}).get("start") or {}
    counts = count(spec.model, seq_len=spec.data.seq_len)
    done = found.status == DONE
    return {
        "run_id": run.run_id,
        "status": found.status,
        "commit": found.env.get("commit"),
        "modified": bool(found.env.get("diff")),
        "form": run.labels.get("form"),
        "d_model": spec.model.d_model,
        "streams": spec.model.n_streams,
        "seed": spec.seed,
        "tokens": spec.tokens,
        "flops": run.labels["achieved_flops"] + float(started.get("flops") or 0.0),
        "params": counts.params,
        "loss": metrics.get("loss/val") if done else None,
        "expert_load": metrics.get("stat/expert_load"),
    }


def cells(rows: Rows, key: Callable[[dict[str, Any]], Any]) -> dict[Any, dict[str, Any]]:
    """Loss over the seeds of each cell, its runs' common counts, and how runs ended."""
    out: dict[Any, Rows] = {}
    for row in rows:
        out.setdefault(key(row), []).append(row)
    made = {}
    for name, own in out.items():
        losses = {r["seed"]: r["loss"] for r in own if r["loss"] is not None}
        loads = [r["expert_load"] for r in own if r["expert_load"] is not None]
        made[name] = {
            **interval(list(losses.values())),
            "by_seed": losses,
            "not_done": sum(r["loss"] is None for r in own),
            "params": own[0]["params"],
            "flops": own[0]["flops"],
            "expert_load": interval(loads) if loads else None,
        }
    return made


def paired(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Loss of one less that of the other over their common seeds, which saw the same batches."""
    seeds = sorted(set(one["by_seed"]) & set(other["by_seed"]))
    return interval([one["by_seed"][s] - other["by_seed"][s] for s in seeds])


def run_all(plans: list[Plan], root: Path, workers: int | None) -> list[list[dict[str, Any]]]:
    for plan in plans:
        if sweep(plan, root, workers=workers, retries=0).interrupted:
            raise Interrupted
    return [[read(run, root) for run in plan.runs] for plan in plans]


# -- studies ---------------------------------------------------------------------------------------


def study_streams(sizes: Sizes, root: Path, workers: int | None) -> dict[str, Any]:
    from analysis.fit import fit
    from analysis.observations import observe

    plan = streams(sizes)
    (rows,) = run_all([plan], root, workers)
    found = cells(rows, lambda r: (r["d_model"], r["streams"]))
    table = []
    for (width, count_), cell in found.items():
        base = found[width, sizes.streams[0]]
        more = {} if count_ == sizes.streams[0] else {"against_one": paired(cell, base)}
        table.append({"d_model": width, "streams": count_, **cell, **more})
    try:
        observed = observe(
            root,
            inputs=("N", "P"),
            columns={"N": "params.non_embedding", "P": "model.streams.count"},
            run_ids=[r["run_id"] for r in rows],
        )
        law = fit(observed, law="parscale")
        fitted = {
            "status": law.status,
            "params": law.params,
            "bootstrap": law.bootstrap,
            "warnings": law.warnings,
        }
    except InputError as error:
        fitted = {"status": "none", "reason": f"{error.given}; {error.instead}"}
    return {"cells": table, "law": fitted, "runs": rows}


def _forms(plan: Plan, names: list[str], root: Path, workers: int | None) -> dict[str, Any]:
    (rows,) = run_all([plan], root, workers)
    found = cells(rows, lambda r: r["form"])
    base = found[names[0]]
    table = [
        {"form": name, **found[name], **({"against": paired(found[name], base)} if i else {})}
        for i, name in enumerate(names)
    ]
    return {"cells": table, "runs": rows}


def study_structured(sizes: Sizes, root: Path, workers: int | None) -> dict[str, Any]:
    found = _forms(structured(sizes), list(STRUCTURED), root, workers)
    by = {cell["form"]: cell for cell in found["cells"]}
    recovered = paired(by["lowrank 1/4, guided"], by["lowrank 1/4"])
    return {**found, "guidance": recovered}


def study_experts(sizes: Sizes, root: Path, workers: int | None) -> dict[str, Any]:
    return _forms(experts(sizes), list(EXPERTS), root, workers)


def study_growth(sizes: Sizes, root: Path, workers: int | None) -> dict[str, Any]:
    from analysis.growth import multiplier

    first, second = growth(sizes)
    (rows,) = run_all([first], root, workers)
    (grown,) = run_all([second], root, workers)
    deep = [r for r, run in zip(rows, first.runs, strict=True) if _deep(run, sizes)]
    sides = [
        ([r["flops"] for r in side if r["loss"]], [r["loss"] for r in side if r["loss"]])
        for side in (deep, grown)
    ]
    try:
        found = multiplier(*sides)
        value, low, high = found.at(found.centre)
        m: dict[str, Any] = {
            "m": value,
            "lo": low,
            "hi": high,
            "at": found.centre,
            "trend": found.trend,
            "said": found.text(),
        }
    except InputError as error:
        m = {"m": None, "reason": f"{error.given}; {error.instead}"}
    return {
        "scratch": [{"tokens": t, **c} for t, c in cells(deep, lambda r: r["tokens"]).items()],
        "grown": [{"tokens": t, **c} for t, c in cells(grown, lambda r: r["tokens"]).items()],
        "multiplier": m,
        "runs": [*rows, *grown],
    }


def _deep(run: PlannedRun, sizes: Sizes) -> bool:
    return run.spec.model.n_layers == sizes.growth_layers[1]


STUDIES = {
    "streams": study_streams,
    "structured": study_structured,
    "experts": study_experts,
    "growth": study_growth,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="to see that it works")
    parser.add_argument("--studies", default=",".join(STUDIES), metavar="A,B")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--root", type=Path, default=Path("runs-signatures"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    args = parser.parse_args(argv)
    unknown = [name for name in args.studies.split(",") if name not in STUDIES]
    if unknown:
        print(f"error: --studies: {unknown[0]}; choose of {', '.join(STUDIES)}", file=sys.stderr)
        return 2
    sizes, out = (TINY, "signatures_tiny") if args.tiny else (Sizes(), "signatures")
    try:
        found = {n: STUDIES[n](sizes, args.root, args.workers) for n in args.studies.split(",")}
    except Interrupted:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    about = environment()
    runs = [run for study in found.values() for run in study["runs"]]
    value = {
        "sizes": sizes.__dict__,
        "machine": {k: about[k] for k in ("python", "versions", "cpus")},
        "commits": sorted({run["commit"] for run in runs if run["commit"]}),
        "modified": any(run["modified"] for run in runs),
        "studies": found,
    }
    figure = args.docs / "figures" / f"{out}.svg"
    figure.parent.mkdir(parents=True, exist_ok=True)
    signatures_page.draw(value, figure)
    (args.docs / f"{out}.md").write_text(signatures_page.page(value, figure=figure.name, out=out))
    write_json(args.docs / f"{out}.json", value)
    return 0


if __name__ == "__main__":
    sys.exit(main())
