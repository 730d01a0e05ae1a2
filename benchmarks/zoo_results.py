"""What did the zoo's runs find? Losses with intervals over seeds, laws, crossings, accuracies.

Read from the run directories alone. A diverged or failed run is counted and named; where a cell
has too few finished seeds its number is missing, not made up.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from analysis.compare import compare
from analysis.fit import fit
from analysis.observations import Observations, observe
from benchmarks.zoo_plan import CONVENTION, Zoo, by_arch
from parallelism.errors import InputError
from sweeps.plan import Plan, PlannedRun
from train.counted import counted
from train.record import DIVERGED, RunDir

BASELINE = "dense"
LEVEL = 0.95


def gather(
    zoo: Zoo, text: Plan | None, tasks: Plan | None, *, root: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Everything the page says, as JSON, by architecture."""
    out: dict[str, Any] = {arch: {"text": {}, "tasks": {}} for arch in zoo.archs}
    fits: dict[str, Any] = {}
    for arch, runs in by_arch(text).items() if text else ():
        rows = [_read(run, root) for run in runs]
        out[arch]["text"] = {f"{b:g}": _at_budget(rows, b) for b in zoo.budgets}
        out[arch]["runs"] = rows
        fits[arch] = _law(_best_rows(rows, out[arch]["text"]), root)
        said = fits[arch] if isinstance(fits[arch], str) else fits[arch][0].status
        say(f"law of {arch}: {said}")
    for arch, found in fits.items():
        out[arch]["law"] = _law_json(found)
        if arch != BASELINE and BASELINE in fits:
            out[arch]["against"] = _against(arch, found, fits[BASELINE], max(zoo.budgets))
    for arch, runs in by_arch(tasks).items() if tasks else ():
        rows = [_read(run, root) for run in runs]
        out[arch]["tasks"] = {
            name: _task([r for r in rows if r["task"] == name]) for name in zoo.tasks
        }
        out[arch]["runs"] = [*out[arch].get("runs", []), *rows]
    return out


def _read(run: PlannedRun, root: Path) -> dict[str, Any]:
    """One run as the JSON keeps it."""
    labels = run.labels
    out = {
        "run_id": run.run_id,
        "task": labels["task"],
        "d_model": labels["size"],
        "seed": labels["seed"],
        "lr": run.spec.optim.lr,
        "budget": labels.get("budget"),
        "flops": labels["achieved_flops"],
        "tokens": run.spec.tokens,
        "active": counted(run.spec).params["active"],
    }
    folder = root / run.run_id
    if not (folder / "spec.json").exists():
        return {**out, "status": "not run", "reason": None}
    read = RunDir(folder).read()
    result = read.result or {}
    metrics = result.get("metrics", {})
    return {
        **out,
        "status": read.status,
        # of a crash the reason may name files of this machine; it stays in the run's own record
        "reason": result.get("reason") if read.status == DIVERGED else None,
        "commit": read.env.get("commit"),
        "modified": bool(read.env.get("diff")),
        "loss": metrics.get("loss/val"),
        "accuracy": metrics.get("accuracy/val"),
    }


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and its Student interval over seeds; no interval from one."""
    n = len(values)
    if not n:
        return {"n": 0, "mean": None, "lo": None, "hi": None}
    mean = statistics.fmean(values)
    if n == 1:
        return {"n": 1, "mean": mean, "lo": None, "hi": None}
    half = float(student.ppf(0.5 + LEVEL / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return {"n": n, "mean": mean, "lo": mean - half, "hi": mean + half}


def _finished(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [r[key] for r in rows if r["status"] == "done" and r.get(key) is not None]


def _ends(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How runs ended that did not end well."""
    ends: dict[str, int] = defaultdict(int)
    for row in rows:
        if row["status"] != "done":
            ends[row["status"]] += 1
    return dict(ends)


def _best(cells: dict[Any, list[dict[str, Any]]], key: str, *, sign: int) -> tuple[Any, dict]:
    """The cell with the best mean among those with the most finished seeds."""
    scored = {k: interval(_finished(rows, key)) for k, rows in cells.items()}
    most = max(s["n"] for s in scored.values())
    if not most:
        return None, interval([])
    whole = {k: s for k, s in scored.items() if s["n"] == most}
    best = min(whole, key=lambda k: sign * whole[k]["mean"])
    return best, whole[best]


def _at_budget(rows: list[dict[str, Any]], budget: float) -> dict[str, Any]:
    """The best width at a budget: chosen by the mean of the same seeds that are reported."""
    ours = [r for r in rows if r["budget"] == budget]
    cells: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in ours:
        cells[row["d_model"]].append(row)
    width, found = _best(cells, "loss", sign=1)
    values = _finished(cells[width], "loss") if width is not None else []
    return {"d_model": width, **found, "losses": values, "ended": _ends(ours)}


def near_active(found: Mapping[str, Any], budget: float) -> dict[str, dict[str, Any]]:
    """By architecture, loss at the width whose active parameters come nearest to those of the
    baseline at its best width of this budget.
    """
    out: dict[str, dict[str, Any]] = {arch: interval([]) for arch in found}
    cells: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for arch, one in found.items():
        ours = cells.setdefault(arch, defaultdict(list))
        for row in one.get("runs", []):
            if row["task"] == "text" and row["budget"] == budget:
                ours[row["d_model"]].append(row)
    best = found.get(BASELINE, {}).get("text", {}).get(f"{budget:g}", {}).get("d_model")
    if best is None:
        return out
    wanted = cells[BASELINE][best][0]["active"]
    for arch, ours in cells.items():
        if ours:
            rows = min(ours.values(), key=lambda rows: abs(math.log(rows[0]["active"] / wanted)))
            same = {k: rows[0][k] for k in ("d_model", "active", "tokens", "flops")}
            out[arch] = {**same, **interval(_finished(rows, "loss"))}
    return out


def _task(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The best learning rate of a task: chosen by the mean of the same seeds that are reported."""
    cells: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        cells[row["lr"]].append(row)
    lr, found = _best(cells, "accuracy", sign=-1)
    values = _finished(cells[lr], "accuracy") if lr is not None else []
    return {"lr": lr, **found, "accuracies": values, "ended": _ends(rows)}


# -- laws ------------------------------------------------------------------------------------------


LAW = "kaplan_c"  # two parameters: as much as two or three budgets within a decade or so can bear


def _best_rows(rows: Sequence[dict[str, Any]], text: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runs at the best width of their budget."""
    return [r for r in rows if r["d_model"] == text[f"{r['budget']:g}"]["d_model"]]


def _law(rows: Sequence[dict[str, Any]], root: Path) -> Any:
    """(power law of compute, its rows), or why there is none."""
    ids = [r["run_id"] for r in rows]
    if sum(r["status"] == "done" for r in rows) < 6:
        return f"{sum(r['status'] == 'done' for r in rows)} finished runs"
    try:
        observed = observe(root, inputs=("C",), run_ids=ids, convention=CONVENTION)
        return fit(observed, law=LAW), observed
    except InputError as error:
        return _told(error)


def _law_json(found: Any) -> dict[str, Any]:
    if isinstance(found, str):
        return {"status": "none", "reason": found}
    law: Any = found[0]
    return {
        "status": law.status,
        "law": law.law,
        "params": law.params,
        "rows": law.rows,
        "excluded": dict(Counter(row["reason"] for row in law.excluded)),
        "warnings": law.warnings,
    }


def _against(arch: str, ours: Any, base: Any, flops: float) -> dict[str, Any]:
    """Compute multiplier at the largest budget and where the fitted curves cross."""
    if isinstance(ours, str) or isinstance(base, str):
        return {"reason": f"no law of {arch if isinstance(ours, str) else BASELINE}"}
    rows: tuple[Observations, Observations] = (ours[1], base[1])
    try:
        found = compare(
            ours[0], base[0], flops=flops, names=(arch, BASELINE), observations=rows, level=LEVEL
        )
    except InputError as error:
        return {"reason": _told(error)}
    return {
        "multiplier": found.at_target["multiplier"] if found.at_target else None,
        "difference": found.at_target["difference"] if found.at_target else None,
        "crossing": found.crossing,
        "verdict": found.verdict,
        "warnings": found.warnings,
    }


def _told(error: InputError) -> str:
    """What was wrong without the field, which is a folder of this machine."""
    return "; ".join(str(part) for part in (error.given, error.instead) if part is not None)
