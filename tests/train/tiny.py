"""Runs small enough for a test, and what of a run must be reproducible."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.archs import build
from train.loop import Progress, Report
from train.paths import put
from train.record import RunDir
from train.spec import RunSpec, SourceSpec

STEPS = 12
HERE = Path(__file__).resolve().parents[2]


def tiny(corpus: SourceSpec, changes: Mapping[str, Any] | None = None, **execution: Any) -> RunSpec:
    """A dense run of two layers and twelve steps of eight rows; `execution` by field."""
    fixed = {
        "data.sources.0.kind": corpus.kind,
        "data.sources.0.path": corpus.path,
        "data.seq_len": 16,
        "budget.batch_tokens": 128,
        "budget.tokens": 128 * STEPS,
        "evaluation.tokens": 256,
        "evaluation.every": 8,
        "execution.log_every": 3,
        "execution.checkpoint_every": 4,
    }
    named = {f"execution.{k}": v for k, v in execution.items()}
    return put(RunSpec(model=build("dense", 32)), {**fixed, **named, **(changes or {})})


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A ledger without the fields that tell the time."""
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def ledger(root: Path, spec: RunSpec) -> list[dict[str, Any]]:
    return untimed(RunDir(root / spec.run_id).metrics())


def at_step(step: int, act: Any) -> Report:
    """A progress listener that acts once, when the run has logged `step`."""
    done = []

    def report(p: Progress) -> None:
        if p.phase == "train" and p.step >= step and not done:
            done.append(p.step)
            act()

    return report


def python(code: str, *args: str, **more: str) -> subprocess.Popen:
    """Another Python that runs `code` with the rooms importable."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "PYTHONPATH": path, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
