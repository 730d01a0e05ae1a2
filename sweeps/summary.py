"""What did a sweep do and cost? Totals over every session that worked on the plan.

Kept in `<root>/plans/<name>.summary.json` and rewritten after each cell, so a killed sweep loses
nothing. Goodput is the share of the workers' time that went into attempts whose work was kept,
compilation aside.
"""

import dataclasses
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeps.launch.schedule import Cell
from sweeps.plan import Plan
from train.record import DIVERGED, DONE, FAILED, RunDir, read_json, write_json

STEP = "train_step"  # the program whose compilations are counted as the sweep's


@dataclasses.dataclass(frozen=True)
class Summary:
    """Cells by how they ended, and what all sessions together spent."""

    name: str
    path: Path
    cells: dict[str, dict[str, Any]]  # run id -> status, reason
    skipped: int  # cells of the last session that were finished before it
    sessions: list[dict[str, Any]]
    interrupted: bool
    useful_flops: float  # causal_attn, of all finished runs of the plan

    def total(self, key: str) -> float:
        return sum(session[key] for session in self.sessions)

    def count(self, status: str) -> int:
        return sum(cell["status"] == status for cell in self.cells.values())

    @property
    def compilations(self) -> int:
        """Train-step programs that were compiled (not read from the persistent cache)."""
        return int(self.programs.get(STEP, {}).get("compiled", 0))

    @property
    def programs(self) -> dict[str, dict[str, float]]:
        """Program -> compiled, cached (read from the persistent cache), seconds."""
        out: dict[str, dict[str, float]] = {}
        for session in self.sessions:
            for program, made in session["programs"].items():
                into = out.setdefault(program, {"compiled": 0, "cached": 0, "seconds": 0.0})
                for key, value in made.items():
                    into[key] += value
        return out

    @property
    def goodput(self) -> float | None:
        held = self.total("worker_seconds")
        return self.total("useful_seconds") / held if held else None

    @property
    def exit_status(self) -> int:
        if self.interrupted:
            return 130
        return 1 if self.count(FAILED) else 0

    def to_json(self) -> dict[str, Any]:
        counts = {status: self.count(status) for status in (DONE, DIVERGED, FAILED, "unfinished")}
        return {
            "name": self.name,
            **counts,
            "skipped": self.skipped,
            "interrupted": self.interrupted,
            "seconds": self.total("seconds"),
            "compilations": self.compilations,
            "programs": self.programs,
            "compile_seconds": sum(made["seconds"] for made in self.programs.values()),
            "useful_flops": self.useful_flops,
            "goodput": self.goodput,
            "retries": int(self.total("retries")),
            "cells": self.cells,
            "sessions": self.sessions,
        }

    def text(self) -> str:
        j = self.to_json()
        lines = [
            f"{self.name}: {j['done']} done, {self.skipped} ended before, "
            f"{j['diverged']} diverged, {j['failed']} failed, {j['unfinished']} unfinished",
            f"{j['seconds']:.0f} s in {len(self.sessions)} sessions, {j['retries']} retries, "
            f"{self.compilations} train steps compiled, {j['compile_seconds']:.1f} s for programs",
        ]
        if self.goodput is not None and self.useful_flops:
            lines.append(f"{self.useful_flops:.3g} useful FLOPs, goodput {self.goodput:.0%}")
        for run_id, cell in self.cells.items():
            if cell["status"] in (DIVERGED, FAILED):
                lines.append(f"{run_id} {cell['status']}: {cell['reason']}")
        if self.interrupted:
            lines.append("interrupted; the same command resumes from the last checkpoints")
        return "\n".join(lines)


class Session:
    """One call of the launcher: gathers what happens and keeps the summary file up to date.

    Two sweeps of one plan on one root share the file: each rewrites only its own session.
    """

    def __init__(self, plan: Plan, root: Path):
        self.plan, self.root = plan, root
        self.path = root / "plans" / f"{plan.name}.summary.json"
        self.id = f"{platform.node()}-{os.getpid()}-{time.time_ns()}"
        self.cells: dict[str, dict[str, Any]] = {
            r.run_id: {"status": "unfinished", "reason": None} for r in plan.runs
        }
        self.skipped, self.workers, self.interrupted = 0, 0, False
        self.started, self.clock = time.time(), time.monotonic()
        self.useful_seconds, self.retries = 0.0, 0
        self.trained: list[str] = []
        self.programs: dict[str, dict[str, float]] = {}
        self.flops: dict[str, float] = {}

    def skip(self, one: Cell, status: str) -> None:
        """A run that had ended before this session reached it."""
        self.skipped += 1
        self._set(one, status, self._result(one).get("reason"))

    def end(self, one: Cell, status: str, reason: str | None) -> None:
        self.trained.append(one.run_id)
        self._set(one, status, reason)
        self.summary()

    def retried(self, one: Cell, reason: str) -> None:
        self.retries += 1
        self.cells[one.run_id] = {"status": "unfinished", "reason": reason}

    def worked(self, seconds: float, compilations: list[dict[str, Any]]) -> None:
        """A worker's time on a cell whose work was kept, and the programs it made ready."""
        for made in compilations:
            into = self.programs.setdefault(
                made["program"], {"compiled": 0, "cached": 0, "seconds": 0.0}
            )
            into["cached" if made["cached"] else "compiled"] += 1
            into["seconds"] += made["seconds"]
        self.useful_seconds += max(0.0, seconds - sum(m["seconds"] for m in compilations))

    def summary(self) -> Summary:
        """Everything so far, written to the summary file."""
        with self._alone():
            known = read_json(self.path)["sessions"] if self.path.exists() else []
            sessions = [s for s in known if s["id"] != self.id]
            if self.workers or not sessions:  # looking again at a finished plan is no session
                sessions.append(self._session())
            summary = Summary(
                self.plan.name,
                self.path,
                self.cells,
                self.skipped,
                sessions,
                self.interrupted,
                sum(self.flops.values()),
            )
            write_json(self.path, summary.to_json())
        return summary

    def _session(self) -> dict[str, Any]:
        seconds = time.monotonic() - self.clock
        return {
            "id": self.id,
            "started": self.started,
            "seconds": seconds,
            "workers": self.workers,
            "worker_seconds": seconds * self.workers,
            "useful_seconds": self.useful_seconds,
            "retries": self.retries,
            "trained": self.trained,
            "programs": self.programs,
        }

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.path.with_suffix(".lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _set(self, one: Cell, status: str, reason: str | None) -> None:
        self.cells[one.run_id] = {"status": status, "reason": reason}
        self.flops[one.run_id] = self._result(one).get("metrics", {}).get("flops", 0.0)

    def _result(self, one: Cell) -> dict[str, Any]:
        run = RunDir(self.root / one.run_id)
        return (run.read().result or {}) if (run.path / "spec.json").exists() else {}
