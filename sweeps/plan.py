"""Which runs, and why those? A `Plan` is a name, a reason and runs, kept as plan.json."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from parallelism.errors import InputError
from train.record import read_json, write_json
from train.spec import RunSpec, from_dict, to_dict

FORMAT = 1  # of plan.json
NUMBER = int | float
LABELS = {  # that are computed with; a grid has no target
    "budget": NUMBER,
    "size": int,
    "seed": int,
    "target_flops": NUMBER | None,
    "achieved_flops": NUMBER,
    "cell": dict,
}


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run and its labels: budget, size, seed, convention, target_flops, achieved_flops, cell."""

    spec: RunSpec
    labels: dict[str, Any]

    @property
    def run_id(self) -> str:
        return self.spec.run_id


@dataclasses.dataclass(frozen=True)
class Plan:
    """Name, reason, runs; `recipe` made them, and `notes` had to be said on the way."""

    name: str
    why: str
    runs: tuple[PlannedRun, ...]
    recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if not isinstance(self.name, str) or not re.fullmatch(
            r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name
        ):
            raise InputError(
                "name", self.name, "write letters, digits, '.', '_' and '-': it names a file"
            )
        if not self.runs:
            raise InputError("plan", f"{self.name} has no runs", "give at least one cell")

    def to_dict(self) -> dict[str, Any]:
        runs = [
            {"run_id": r.run_id, "labels": r.labels, "spec": to_dict(r.spec)} for r in self.runs
        ]
        return {
            "format": FORMAT,
            "name": self.name,
            "why": self.why,
            "recipe": self.recipe,
            "notes": list(self.notes),
            "runs": runs,
        }

    def write(self, root: Path) -> Path:
        """`<root>/plans/<name>.json`, atomically; another plan's runs are not orphaned."""
        path = plan_path(root, self.name)
        tree = self.to_dict()
        if path.is_file():
            self._check_kept(path, Path(root), json.loads(json.dumps(tree["recipe"])))
        write_json(path, tree)
        return path

    def _check_kept(self, path: Path, root: Path, recipe: dict[str, Any]) -> None:
        """The plan under this name may grow or change its execution, not lose what was begun."""
        kept = read_json(path)
        if isinstance(kept, dict) and kept.get("recipe") == recipe:
            return
        ours = {run.run_id for run in self.runs}
        begun = [r for r in read(path).runs if (root / r.run_id / "spec.json").exists()]
        lost = [run.run_id for run in begun if run.run_id not in ours]
        if lost:
            raise InputError(
                "name",
                f"{self.name} is the name of another plan, {len(lost)} of whose runs have begun",
                f"write another name, or remove {path}",
            )


def plan_path(root: Path, name: str) -> Path:
    return Path(root) / "plans" / f"{name}.json"


def read(path: Path) -> Plan:
    """A plan.json; raises InputError when it is none, is newer, or ids do not match their runs."""
    tree = read_json(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("runs"), list) or "name" not in tree:
        raise InputError(
            str(path), "not a plan", "give a sweep.toml, a Python file with a plan, or a plan.json"
        )
    _typed(path, "", tree, {"format": int, "why": str, "recipe": dict, "notes": list})
    if tree.get("format", FORMAT) > FORMAT:
        raise InputError(
            str(path), f"format {tree['format']}", f"upgrade ladder; this one reads up to {FORMAT}"
        )
    runs = []
    for i, row in enumerate(tree["runs"]):
        where = f"runs.{i}"
        _typed(path, "", {where: row}, {where: dict})
        _typed(path, f"{where}.", {"spec": None, **row}, {"spec": dict, "labels": dict})
        labels = row.get("labels", {})
        _typed(path, f"{where}.labels.", labels, LABELS)
        spec = from_dict(row["spec"], source=f"{path}: {where}")
        if spec.run_id != row.get("run_id"):
            raise InputError(
                f"{path}: {where}",
                f"its run_id {row.get('run_id')} is not that of its spec, {spec.run_id}",
                "the plan was edited; make it again from its sweep.toml",
            )
        runs.append(PlannedRun(spec, labels))
    notes = tuple(tree.get("notes", ()))
    try:
        return Plan(tree["name"], tree.get("why", ""), tuple(runs), tree.get("recipe", {}), notes)
    except InputError as error:
        raise InputError(f"{path}: {error.field}", error.given, error.instead) from None


def _typed(path: Path, prefix: str, tree: dict[str, Any], kinds: dict[str, Any]) -> None:
    """Keys that are there have these types, where true is no number."""
    for key, kind in kinds.items():
        if key in tree and (isinstance(tree[key], bool) or not isinstance(tree[key], kind)):
            raise InputError(
                f"{path}: {prefix}{key}",
                tree[key],
                "the plan is damaged; make it again from its sweep.toml, or remove it",
            )
