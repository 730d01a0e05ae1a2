"""What is wrong with a sweep, and where does every run stand? Found and named, never dropped.

Reads the plan and the run directories only. A budget is bracketed when its lowest loss lies inside
the grid of sizes; at the edge the valley's minimum is not known, only bounded.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parallelism.errors import InputError
from sweeps import plan as plans
from sweeps.dry_run import status_of
from sweeps.plan import Plan, PlannedRun
from train.record import DIVERGED, DONE, FAILED, RunDir, read_json, read_runs
from train.spec import from_dict

LOSSES = ("loss/val", "loss/train")  # the first that every finished run of a budget has
CURVE = 3  # sizes that a valley needs


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing to know before a fit: what kind, which runs, in words."""

    kind: str  # diverged, failed, unfinished, retried, unbracketed, few_sizes, damaged
    text: str
    run_ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Status:
    """One row a run, and the findings over all of them."""

    rows: list[dict[str, Any]]
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        return {"runs": self.rows, "findings": [dataclasses.asdict(f) for f in self.findings]}

    def text(self) -> str:
        head = ("run", "plan", "size", "budget", "status", "step", "train", "val", "reason")
        table: list[tuple[str, ...]] = [head]
        for row in self.rows:
            table.append(
                (
                    row["run_id"],
                    row["plan"] or "-",
                    str(row["size"]),
                    f"{row['target_flops']:.4g}" if row["target_flops"] else "-",
                    row["status"],
                    f"{row['step']}/{row['steps']}",
                    _number(row["loss/train"]),
                    _number(row["loss/val"]),
                    row["reason"] or "",
                )
            )
        columns = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(v.ljust(w) for v, w in zip(r, columns, strict=True)) for r in table]
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row["status"]] = counts.get(row["status"], 0) + 1
        total = ", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "no runs"
        return "\n".join([*(line.rstrip() for line in lines), total, *self._found()])

    def _found(self) -> list[str]:
        return [f"{f.kind}: {f.text}" for f in self.findings]


def status(root: Path, plan: Plan | None = None) -> Status:
    """Every run of the plan, or of every plan and run directory under the root, with findings."""
    root = Path(root)
    if plan is not None:
        known = [(plan, run) for run in plan.runs]
        return Status([_row(root, p.name, run) for p, run in known], findings(root, [plan]))
    runs = read_runs(root)
    found, damaged = [], []
    for path in sorted(root.glob("plans/*.json")):
        try:
            if _is_plan(path):
                found.append(plans.read(path))
        except InputError as error:
            damaged.append(Finding("damaged", str(error), ()))
    rows, seen = [], set()
    for each in found:
        for run in each.runs:
            if run.run_id not in seen:
                rows.append(_row(root, each.name, run))
                seen.add(run.run_id)
    for run in runs:
        if run.run_id not in seen:
            spec = from_dict(run.spec, source=str(run.path / "spec.json"))
            alone = PlannedRun(spec, {"size": spec.model.d_model, "seed": spec.seed})
            rows.append(_row(root, None, alone, run_id=run.run_id))
    return Status(rows, [*damaged, *findings(root, found)])


def findings(root: Path, found: Iterable[Plan]) -> list[Finding]:
    """What a reader of the plans' results must know, in the plans' order."""
    out: list[Finding] = []
    for plan in found:
        rows = [_row(Path(root), plan.name, run) for run in plan.runs]
        for row in rows:
            where = f"{row['run_id']} (size {row['size']}, {plan.name})"
            if row["status"] in (DIVERGED, FAILED):
                text = f"{where} {row['status']}: {row['reason']}"
                out.append(Finding(row["status"], text, (row["run_id"],)))
            if row["attempts"]:
                text = f"{where} lost {row['attempts']} attempts; last: {row['last_attempt']}"
                out.append(Finding("retried", text, (row["run_id"],)))
        left = [row["run_id"] for row in rows if row["status"] not in (DONE, DIVERGED, FAILED)]
        if left:
            text = f"{len(left)} of {len(rows)} runs of {plan.name} have no result yet"
            out.append(Finding("unfinished", text, tuple(left)))
        for target in sorted({row["target_flops"] for row in rows if row["target_flops"]}):
            budget = [row for row in rows if row["target_flops"] == target]
            out += _bracket(plan.name, target, budget)
    return out


def _bracket(name: str, target: float, rows: list[dict[str, Any]]) -> list[Finding]:
    """Is the lowest loss of a budget inside its sizes? Seeds of a size are averaged."""
    done = [row for row in rows if row["status"] == DONE]
    loss = next((key for key in LOSSES if done and all(r[key] is not None for r in done)), None)
    by_size: dict[int, list[float]] = {}
    if loss is not None:
        for row in done:
            by_size.setdefault(row["size"], []).append(row[loss])
    ids = tuple(row["run_id"] for row in rows)
    where = f"budget {target:.4g} of {name}"
    if len(by_size) < CURVE:
        if any(row["status"] not in (DONE, DIVERGED, FAILED) for row in rows):
            return []  # still to come: said as unfinished
        text = f"{where} has {len(by_size)} finished sizes; a valley needs {CURVE}"
        return [Finding("few_sizes", text, ids)]
    sizes = sorted(by_size)
    mean = {size: sum(values) / len(values) for size, values in by_size.items()}
    best = min(sizes, key=lambda size: mean[size])
    if sizes[0] < best < sizes[-1]:
        return []
    side, more = ("smallest", "smaller") if best == sizes[0] else ("largest", "larger")
    edge = sorted({row["size"] for row in rows})
    lost = "" if best in (edge[0], edge[-1]) else ", as the sizes beyond it have no result"
    text = (
        f"{where}: lowest {loss} {mean[best]:.4f} at the {side} size {best}{lost}; add {more} sizes"
    )
    return [Finding("unbracketed", text, ids)]


def _row(
    root: Path, plan: str | None, run: PlannedRun, *, run_id: str | None = None
) -> dict[str, Any]:
    run_id = run_id or run.run_id
    here = RunDir(root / run_id)
    last, result = {}, {}
    state = status_of(root, run_id)
    if state != "planned" and (here.path / "spec.json").exists():
        result = here.read().result or {}
        last = result.get("metrics") or next(iter(here.metrics()[-1:]), {})
    attempts = here.attempts()
    return {
        "run_id": run_id,
        "plan": plan,
        **{key: run.labels.get(key) for key in ("size", "seed", "target_flops", "convention")},
        "status": state,
        "reason": attempts[-1]["reason"] if attempts and not result else result.get("reason"),
        "step": last.get("step", 0),
        "steps": run.spec.steps,
        "loss/train": last.get("loss/train"),
        "loss/val": last.get("loss/val"),
        "attempts": len(attempts),
        "last_attempt": attempts[-1]["reason"] if attempts else None,
    }


def _is_plan(path: Path) -> bool:
    """Fits, summaries and production specs lie beside the plans."""
    tree = read_json(path)
    return isinstance(tree, dict) and "recipe" in tree


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
