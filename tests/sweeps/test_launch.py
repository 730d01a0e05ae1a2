"""The launcher on real training: every cell once, whatever dies on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parallelism.errors import InputError
from sweeps import doctor
from sweeps.grid import axis
from sweeps.launch.local import sweep
from sweeps.make import grid
from sweeps.plan import Plan, plan_path
from train.record import RunDir

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = {
    "data.seq_len": 32,
    "budget.batch_tokens": 128,
    "evaluation.tokens": 2048,
    "execution.log_every": 10,
    "execution.checkpoint_every": 100,
}
SHORT = 128 * 60  # tokens: 60 steps
LONG = 128 * 1500  # seconds of training: time to be killed in
SWEEP = """
import sys
from pathlib import Path
from typing import Any
from sweeps.launch.local import sweep
from sweeps.plan import read

summary = sweep(read(Path(sys.argv[1])), Path(sys.argv[2]), workers=int(sys.argv[3]))
print(summary.text())
sys.exit(summary.exit_status)
"""


STARTED: "list[subprocess.Popen[str]]" = []


@pytest.fixture(autouse=True)
def nothing_outlives_a_failed_test():
    """A killed parent's workers checkpoint and end by themselves."""
    yield
    while STARTED:
        STARTED.pop().kill()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def root(tmp_path, cache) -> Path:
    """A root of its own over a corpus and compiled programs that the module shares."""
    root = tmp_path / "runs"
    root.mkdir()
    (root / ".cache").symlink_to(cache)
    return root


def plan(name: str, *, lrs=(1e-3, 2e-3), tokens: int = SHORT, **more) -> Plan:
    settings = {**SETTINGS, "budget.tokens": tokens, **more}
    return grid(name=name, arch="dense", width=16, cells=axis("optim.lr", lrs), set=settings)


def started(root: Path, plan: Plan, *, workers: int = 1) -> "subprocess.Popen[str]":
    """The sweep as a process of its own."""
    path = plan.write(root)
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP, str(path), str(root), str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=REPOSITORY,
    )
    STARTED.append(process)
    return process


def wait_for(what: Callable[[], Any], process: "subprocess.Popen[str]", seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"did not happen in {seconds} s: {process.communicate()[0]}")


def training(root: Path, plan: Plan) -> Callable[[], dict | None]:
    """The owner of a run of the plan that has logged since, or None."""

    def look() -> dict | None:
        for one in plan.runs:
            run = RunDir(root / one.run_id)
            if len(run.metrics()) >= 15 and (owner := run.owner()):
                return owner
        return None

    return look


def curve(root: Path, run_id: str) -> list[tuple[int, float]]:
    rows = RunDir(root / run_id).metrics()
    return [(row["step"], row["loss/train"]) for row in rows]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, cache) -> list[tuple[int, float]]:
    """The curve of the LONG run that nothing disturbed."""
    root = tmp_path_factory.mktemp("unbroken")
    (root / ".cache").symlink_to(cache)
    made = plan("unbroken", lrs=(1e-3,), tokens=LONG)
    sweep(made, root, workers=1, show=False)
    rows = curve(root, made.runs[0].run_id)
    assert [step for step, _ in rows] == list(range(10, 1501, 10))
    return rows


def test_a_sweep_trains_every_cell_and_a_second_one_does_nothing(root):
    made = plan("small", lrs=(1e-3, 2e-3, 4e-3))
    summary = sweep(made, root, workers=2, show=False)
    assert summary.exit_status == 0
    assert {cell["status"] for cell in summary.cells.values()} == {"done"}
    assert summary.compilations == 1, "three cells of one shape"
    assert summary.programs["train_step"]["compiled"] == 1
    ledgers = {run.run_id: curve(root, run.run_id) for run in made.runs}
    for run_id, rows in ledgers.items():
        assert [step for step, _ in rows] == [10, 20, 30, 40, 50, 60]
        assert RunDir(root / run_id).attempts() == []
    assert len({rows[-1][1] for rows in ledgers.values()}) == 3, "the learning rates differ"
    flops = sum(RunDir(root / r).read().result["metrics"]["flops"] for r in ledgers)  # type: ignore[index]
    assert summary.useful_flops == flops
    assert 0 < summary.goodput < 1  # type: ignore[operator]

    times = {r: os.stat(root / r / "result.json").st_mtime_ns for r in ledgers}
    again = sweep(made, root, workers=2, show=False)
    assert again.skipped == 3 and again.exit_status == 0
    assert {r: os.stat(root / r / "result.json").st_mtime_ns for r in ledgers} == times
    assert again.compilations == 1 and len(again.sessions) == 1, "totals stand"
    kept = json.loads((root / "plans" / "small.summary.json").read_text())
    assert kept["done"] == 3 and kept["compilations"] == 1
    assert plan_path(root, "small").exists()


@pytest.mark.slow
def test_a_killed_workers_cell_resumes_and_equals_an_unbroken_run(root, unbroken):
    made = plan("killed", lrs=(1e-3,), tokens=LONG)
    process = started(root, made)
    owner = wait_for(training(root, made), process)
    os.kill(owner["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    run = RunDir(root / made.runs[0].run_id)
    attempts = run.attempts()
    assert len(attempts) == 1 and "SIGKILL" in attempts[0]["reason"]
    assert run.read().status == "done"
    summary = json.loads((root / "plans" / "killed.summary.json").read_text())
    assert summary["retries"] == 1 and summary["done"] == 1

    assert curve(root, run.run_id) == unbroken


@pytest.mark.slow
def test_interrupting_checkpoints_and_the_same_command_resumes(root, unbroken):
    made = plan("stopped", lrs=(1e-3,), tokens=LONG)
    process = started(root, made)
    wait_for(training(root, made), process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command resumes" in output
    run = RunDir(root / made.runs[0].run_id)
    assert run.read().status == "unfinished" and run.owner() is None
    reached = run.metrics()[-1]["step"]
    assert reached >= 10
    second = started(root, made)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 0, output
    assert curve(root, run.run_id) == unbroken
    assert run.attempts() == [], "Ctrl-C is no crash"
    summary = json.loads((root / "plans" / "stopped.summary.json").read_text())
    assert len(summary["sessions"]) == 2 and summary["done"] == 1


@pytest.mark.slow
def test_a_killed_parent_leaves_no_worker_behind(root):
    made = plan("orphan", lrs=(1e-3,), tokens=LONG)
    process = started(root, made)
    wait_for(training(root, made), process)
    process.kill()
    process.communicate(timeout=30)
    run = RunDir(root / made.runs[0].run_id)
    end = time.monotonic() + 30
    while run.owner() is not None and time.monotonic() < end:
        time.sleep(0.05)
    assert run.owner() is None, "the worker checkpoints and ends"
    assert run.read().status == "unfinished"
    assert list(run.checkpoints.iterdir())


@pytest.mark.slow
def test_two_sweeps_on_one_root_train_each_cell_exactly_once(root):
    made = plan("shared", lrs=tuple(1e-3 * k for k in range(1, 7)), tokens=128 * 400)
    first, second = started(root, made), started(root, made)
    for process in (first, second):
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 0, output
        assert "6 done" in output
    sessions = json.loads((root / "plans" / "shared.summary.json").read_text())["sessions"]
    assert len(sessions) == 2
    a, b = (session["trained"] for session in sessions)
    assert sorted([*a, *b]) == sorted(run.run_id for run in made.runs), "none twice, none lost"
    assert a and b, "both worked"
    for run in made.runs:
        steps = [step for step, _ in curve(root, run.run_id)]
        assert steps == list(range(10, 401, 10))


DEADLY = [
    pytest.param("kill", "SIGKILL"),
    pytest.param("raise", "the layer is broken", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "reason"), DEADLY)
def test_a_cell_that_dies_every_time_fails_and_a_users_mistake_is_not_retried(root, how, reason):
    deadly = {"model.repeat.0.ffn": {"kind": "tests.sweeps.deadly", "how": how}}
    mistaken = {"data.sources": [{"kind": "text", "path": str(root / "no_such_corpus")}]}
    settings = {**SETTINGS, "budget.tokens": SHORT}
    cells = [deadly, mistaken, {"optim.lr": 2e-3}]
    made = grid(name="deadly", arch="dense", width=16, cells=cells, set=settings)
    summary = sweep(made, root, workers=1, retries=1, show=False)
    dead, mistake, good = (run.run_id for run in made.runs)
    assert summary.exit_status == 1
    assert summary.cells[good]["status"] == "done", "the sweep goes on"

    assert summary.cells[dead]["status"] == "failed"
    assert reason in summary.text() and dead in summary.text()
    attempts = RunDir(root / dead).attempts()
    assert len(attempts) == 2 and all(reason in row["reason"] for row in attempts)
    result = RunDir(root / dead).read().result
    assert result is not None and result["status"] == "failed" and reason in result["reason"]
    assert RunDir(root / dead).read().spec["format"] == 1
    assert RunDir(root / dead).read().counts["steps_planned"] == 60
    assert RunDir(root / dead).owner() is None

    assert "no_such_corpus" in summary.cells[mistake]["reason"]
    assert "no_such_corpus" in RunDir(root / mistake).attempts()[0]["reason"]
    assert not (root / mistake / "result.json").exists(), "mended, the same command trains it"


@pytest.mark.slow
def test_a_mistake_that_fails_every_cell_is_the_sweeps_and_status_tells_it(root):
    corpus: Any = [{"kind": "text", "path": str(root / "no_such_corpus")}]
    made = plan("mistaken", **{"data.sources": corpus})
    with pytest.raises(InputError, match="no_such_corpus.*1 more") as error:
        sweep(made, root, workers=1, show=False)
    assert "\n" not in str(error.value)
    status = doctor.status(root, made)
    assert all("no_such_corpus" in row["reason"] for row in status.rows)
    kept = json.loads((root / "plans" / "mistaken.summary.json").read_text())
    assert kept["failed"] == 2


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_an_error_not_a_loop(root, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_platform")
    with pytest.raises(InputError):
        sweep(plan("broken"), root, workers=1, retries=0, show=False)


@pytest.mark.parametrize(
    ("given", "field"),
    [({"workers": 0}, "workers"), ({"workers": True}, "workers"), ({"retries": -1}, "retries")],
)
def test_impossible_worker_counts_are_refused(given, field, tmp_path):
    with pytest.raises(InputError) as error:
        sweep(plan("t"), tmp_path / "runs", show=False, **given)
    assert error.value.field == field
