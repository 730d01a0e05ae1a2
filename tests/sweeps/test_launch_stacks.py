"""Does a sweep in stacks do what a sweep does: every cell once, whatever dies on the way?"""

import json
import os
import signal
from pathlib import Path

import pytest

from sweeps.launch.local import sweep
from tests.sweeps.test_launch import (  # noqa: F401  fixtures
    LONG,
    cache,
    curve,
    nothing_outlives_a_failed_test,
    plan,
    root,
    started,
    training,
    wait_for,
)
from train.record import RunDir

pytestmark = pytest.mark.slow
LRS = (1e-3, 2e-3, 3e-3, 1e30)
STEPS = list(range(10, 61, 10))


def test_stacks_train_every_cell_and_a_second_sweep_does_nothing(root: Path, tmp_path: Path):  # noqa: F811
    made = plan("stacks", lrs=LRS, **{"execution.stack": 3})
    summary = sweep(made, root, workers=1, show=False)
    *good, wild = (run.run_id for run in made.runs)
    assert summary.exit_status == 0 and summary.compilations == 1, "two stacks of two places"
    assert [summary.cells[run_id]["status"] for run_id in (*good, wild)] == [
        *["done"] * 3,
        "diverged",
    ]
    stacks = {tuple(RunDir(root / r).read().env["stack"]["runs"]) for r in (*good, wild)}
    assert sorted(len(ids) for ids in stacks) == [2, 2]
    assert 0 < summary.goodput < 1  # type: ignore[operator]

    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / ".cache").symlink_to(root / ".cache")
    sweep(plan("alone", lrs=LRS), alone, workers=1, show=False)
    assert len({curve(root, run_id)[0][1] for run_id in good}) == 3, "they differ"
    for run_id in good:
        assert [step for step, _ in curve(root, run_id)] == STEPS
        assert "stack" not in RunDir(alone / run_id).read().env
        # ten steps: at these rates rounding grows with every step
        assert curve(root, run_id)[0][1] == pytest.approx(curve(alone, run_id)[0][1], rel=1e-5)

    times = {r: os.stat(root / r / "result.json").st_mtime_ns for r in good}
    again = sweep(made, root, workers=1, show=False)
    assert again.skipped == 4 and again.compilations == 1
    assert {r: os.stat(root / r / "result.json").st_mtime_ns for r in good} == times


def test_cells_of_a_stack_whose_worker_was_killed_go_on_one_by_one(root: Path):  # noqa: F811
    made = plan("stack-killed", lrs=LRS[:2], tokens=LONG, **{"execution.stack": 2})
    process = started(root, made)
    owner = wait_for(training(root, made), process)
    os.kill(owner["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    for one in made.runs:
        run = RunDir(root / one.run_id)
        assert run.read().status == "done"
        assert ["SIGKILL" in row["reason"] for row in run.attempts()] == [True]
        assert [step for step, _ in curve(root, one.run_id)] == list(range(10, 1501, 10))
        again = run.read().env["resumes"]
        assert len(again) == 1 and again[0]["step"] > 0 and "stack" not in again[0]
    summary = json.loads((root / "plans" / "stack-killed.summary.json").read_text())
    assert summary["retries"] == 2 and summary["done"] == 2
