"""Which runs, and why those? A `Plan` is a name, a reason and runs, kept as plan.json."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from parallelism.errors import InputError
from train.record import read_json, write_json
from train.spec import RunSpec, from_dict, to_dict

FORMAT = 1  # of plan.json


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
        """`<root>/plans/<name>.json`, atomically."""
        path = plan_path(root, self.name)
        write_json(path, self.to_dict())
        return path


def plan_path(root: Path, name: str) -> Path:
    return Path(root) / "plans" / f"{name}.json"


def read(path: Path) -> Plan:
    """A plan.json; raises InputError when it is none, is newer, or ids do not match their runs."""
    tree = read_json(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("runs"), list) or "name" not in tree:
        raise InputError(
            str(path), "not a plan", "give a sweep.toml, a Python file with a plan, or a plan.json"
        )
    if tree.get("format", FORMAT) > FORMAT:
        raise InputError(
            str(path), f"format {tree['format']}", f"upgrade ladder; this one reads up to {FORMAT}"
        )
    runs = []
    for i, row in enumerate(tree["runs"]):
        spec = from_dict(row["spec"], source=f"{path}: runs.{i}")
        if spec.run_id != row.get("run_id"):
            raise InputError(
                f"{path}: runs.{i}",
                f"its run_id {row.get('run_id')} is not that of its spec, {spec.run_id}",
                "the plan was edited; make it again from its sweep.toml",
            )
        runs.append(PlannedRun(spec, row.get("labels", {})))
    return Plan(
        tree["name"],
        tree.get("why", ""),
        tuple(runs),
        tree.get("recipe", {}),
        tuple(tree.get("notes", ())),
    )
