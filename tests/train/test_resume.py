"""Does a run that was stopped, killed or moved end as if nothing had happened?"""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from parallelism.errors import InputError
from tests.train.tiny import at_step, ledger, python, tiny
from train.loop import train
from train.record import RunDir, read_runs
from train.spec import RunSpec, SourceSpec, from_dict, to_json

# The same arithmetic in another order of sums, through twelve Adam steps (float32).
OTHER_MESH = 2e-4

KILLED = """
import json, os, signal, sys
from pathlib import Path
from tests.train.tiny import at_step
from train.loop import train
from train.spec import from_dict
spec = from_dict(json.loads(Path(sys.argv[1]).read_text()))
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
train(spec, root=Path(sys.argv[2]), progress=at_step(int(sys.argv[3]), die))
"""


@pytest.fixture(scope="module")
def uninterrupted(corpus: SourceSpec, new_root: Callable[[str], Path]):
    """The ledger and the result of a run that nothing disturbed."""
    root = new_root("whole")
    spec = tiny(corpus)
    outcome = train(spec, root=root)
    assert outcome.status == "done"
    return ledger(root, spec), RunDir(root / spec.run_id).read().result


def stopped(spec: RunSpec, root: Path, *, step: int) -> None:
    """Train to a log point at or after `step`, then Ctrl-C."""
    report = at_step(step, lambda: os.kill(os.getpid(), signal.SIGINT))
    outcome = train(spec, root=root, progress=report)
    assert outcome.status == "interrupted", outcome
    assert "resumes" in (outcome.reason or "")


def test_the_ledger_has_every_log_point_and_evaluation(uninterrupted):
    rows, result = uninterrupted
    assert [r["step"] for r in rows] == [3, 6, 8, 9, 12]
    assert [r["step"] for r in rows if "loss/val" in r] == [8, 12]
    assert all(r["tokens"] == 128 * r["step"] for r in rows)
    assert rows[-1]["loss/train"] < rows[0]["loss/train"]
    assert result["status"] == "done"
    assert result["metrics"]["loss/val"] == rows[-1]["loss/val"]


@pytest.mark.parametrize("step", [6, 9])
def test_a_killed_run_resumes_to_the_same_ledger(root: Path, corpus, uninterrupted, step: int):
    spec = tiny(corpus)
    path = root / "spec.json"
    path.write_text(to_json(spec))
    process = python(KILLED, str(path), str(root), str(step))
    _, err = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL, err
    (run,) = read_runs(root)
    assert run.status == "unfinished"
    assert [r["step"] for r in run.metrics()][-1] >= step
    outcome = train(spec, root=root)
    assert (outcome.status, outcome.skipped) == ("done", False)
    assert ledger(root, spec) == uninterrupted[0]


def test_ctrl_c_checkpoints_and_the_run_resumes_to_the_same_ledger(root, corpus, uninterrupted):
    spec = tiny(corpus, checkpoint_every=1000)
    stopped(spec, root, step=6)
    assert [p.name for p in RunDir(root / spec.run_id).checkpoints.iterdir()] == ["6"]
    assert RunDir(root / spec.run_id).read().result is None
    assert train(spec, root=root).status == "done"
    assert ledger(root, spec) == uninterrupted[0]


def test_a_finished_run_is_returned_as_it_stands(root: Path, corpus: SourceSpec):
    spec = tiny(corpus)
    first = train(spec, root=root)
    files = {p: p.stat().st_mtime_ns for p in (root / spec.run_id).rglob("*")}
    again = train(spec, root=root)
    assert again.skipped and again.status == "done"
    assert again.metrics == {k: v for k, v in first.metrics.items() if v is not None}
    assert files == {p: p.stat().st_mtime_ns for p in (root / spec.run_id).rglob("*")}


@pytest.mark.parametrize("lost", ["newest", "all"])
def test_a_broken_checkpoint_falls_back_to_the_one_before_and_says_so(
    root, corpus, uninterrupted, capsys, lost: str
):
    spec = tiny(corpus)
    stopped(spec, root, step=9)
    folder = RunDir(root / spec.run_id).checkpoints
    steps = sorted(int(p.name) for p in folder.iterdir())
    assert steps == [8, 9]
    for step in steps if lost == "all" else steps[-1:]:
        for file in (folder / str(step) / "state").rglob("*"):
            if file.is_file() and file.stat().st_size > 2000:
                os.truncate(file, file.stat().st_size // 2)
    assert train(spec, root=root).status == "done"
    said = capsys.readouterr().err
    assert "checkpoint 9 cannot be read" in said
    assert ("checkpoint 8 cannot be read" in said) == (lost == "all")
    assert (folder / "unreadable-9").is_dir(), "nothing that was written is removed"
    assert ledger(root, spec) == uninterrupted[0]


def test_killed_between_the_last_checkpoint_and_the_result_ends_the_same(
    root, corpus, uninterrupted
):
    spec = tiny(corpus)
    train(spec, root=root)
    run = RunDir(root / spec.run_id)
    run.clear_result()
    assert train(spec, root=root).status == "done"
    assert ledger(root, spec) == uninterrupted[0]
    result = run.read().result
    assert result is not None
    assert result["metrics"]["loss/val"] == uninterrupted[1]["metrics"]["loss/val"]
    assert result["metrics"]["loss/train"] == uninterrupted[1]["metrics"]["loss/train"]


def test_a_lost_last_line_of_the_ledger_is_never_filled_with_zero(root, corpus, uninterrupted):
    spec = tiny(corpus)
    train(spec, root=root)
    run = RunDir(root / spec.run_id)
    run.clear_result()
    path = run.path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert train(spec, root=root).status == "done"
    last, expected = ledger(root, spec)[-1], uninterrupted[0][-1]
    assert last["loss/val"] == expected["loss/val"]
    assert last.get("loss/train") in (None, expected["loss/train"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        {"fsdp": 8},
        {"fsdp": 4, "tensor": 2},
        pytest.param({"pipeline": 2, "tensor": 2, "data": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_run_resumes_on_another_mesh(root, corpus, uninterrupted, mesh: dict):
    spec = tiny(corpus)
    stopped(spec, root, step=6)
    moved = tiny(corpus, {f"execution.mesh.{k}": v for k, v in mesh.items()})
    assert moved.run_id == spec.run_id
    assert train(moved, root=root).status == "done"
    rows = ledger(root, spec)
    assert rows[:2] == uninterrupted[0][:2]
    for row, expected in zip(rows[2:], uninterrupted[0][2:], strict=True):
        assert row == pytest.approx(expected, rel=OTHER_MESH)


@pytest.mark.parametrize("first, then", [("scan", "unroll"), ("unroll", "scan")])
def test_a_checkpoint_does_not_depend_on_how_layers_are_run(
    root, corpus, uninterrupted, first: str, then: str
):
    spec = tiny(corpus, layers=first)
    stopped(spec, root, step=6)
    assert train(tiny(corpus, layers=then), root=root).status == "done"
    for row, expected in zip(ledger(root, spec), uninterrupted[0], strict=True):
        assert row == pytest.approx(expected, rel=OTHER_MESH)


def test_a_corpus_that_changed_since_the_checkpoint_is_refused(root, corpus, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(corpus.path, copy)
    spec = tiny(SourceSpec(kind="text", path=str(copy)))
    stopped(spec, root, step=6)
    before = ledger(root, spec)
    with open(next(copy.rglob("*.txt")), "a") as file:
        file.write("more")
    with pytest.raises(InputError, match="data.sources: the corpus changed since the checkpoint"):
        train(spec, root=root)
    assert ledger(root, spec) == before


def test_a_spec_read_from_its_run_directory_trains_on(root: Path, corpus, uninterrupted):
    spec = tiny(corpus)
    stopped(spec, root, step=6)
    (run,) = read_runs(root)
    read = from_dict(run.spec)
    assert read == spec
    assert train(read, root=root).status == "done"
    assert ledger(root, spec) == uninterrupted[0]
