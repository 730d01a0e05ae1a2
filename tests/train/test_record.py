"""Is what a run wrote whole, its own, and readable after anything that happened to the writer?"""

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from parallelism.errors import InputError
from tests.train.tiny import python
from train.environment import environment
from train.record import FORMAT, RunDir, read_runs, write_json

HOLD = """
import sys, time
from pathlib import Path
from train.record import RunDir
with RunDir(Path(sys.argv[1])).claim() as held:
    print("held" if held else "refused", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "0123456789ab")
    made.start(spec={"seed": 1}, env={"host": "here"}, counts={"params": {"total": 3}})
    return made


def rows(*steps: int) -> list[dict]:
    return [{"step": s, "loss/train": 1.0 / s} for s in steps]


def write(run: RunDir, *steps: int, resume: int = 0) -> None:
    ledger = run.ledger(resume_step=resume)
    for row in rows(*steps):
        ledger.append(row)
    ledger.close()


# -- whole files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["replace", "fsync", "chmod"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch, broken: str):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(InputError, match="the disk is full"):
        write_json(path, {"a": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays behind"


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_what_was_started_and_finished_reads_back(run: RunDir):
    assert run.read().status == "unfinished"
    run.finish(status="done", metrics={"loss/val": 2.5, "loss/train": float("inf")}, seconds=1.0)
    read = run.read()
    assert (read.run_id, read.status) == ("0123456789ab", "done")
    assert read.spec == {"seed": 1} and read.counts == {"params": {"total": 3}}
    assert read.result is not None
    assert read.result["metrics"] == {"loss/val": 2.5}, "a missing number is missing"
    assert read_runs(run.path.parent) == [read]


# -- the ledger ------------------------------------------------------------------------------------


def test_a_half_written_ledger_line_is_ignored(run: RunDir):
    write(run, 1, 2)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "loss/tr')
    assert run.metrics() == rows(1, 2)
    write(run, 3, resume=2)
    assert run.metrics() == rows(1, 2, 3)


def test_the_ledger_is_cut_to_the_checkpoint_at_resume(run: RunDir):
    write(run, 1, 2, 3, 4)
    write(run, 3, 5, resume=2)
    assert run.metrics() == rows(1, 2, 3, 5)


def test_a_row_that_is_there_already_stands(run: RunDir):
    write(run, 1, 2)
    ledger = run.ledger(resume_step=2)
    assert ledger.append({"step": 2, "loss/val": 9.0}) == rows(2)[0]
    ledger.close()
    assert run.metrics() == rows(1, 2)


def test_numbers_that_are_not_finite_never_enter_the_ledger(run: RunDir):
    ledger = run.ledger(resume_step=0)
    ledger.append({"step": 1, "loss/train": float("nan"), "stat/grad_norm": 2.0})
    ledger.close()
    assert run.metrics() == [{"step": 1, "stat/grad_norm": 2.0}]


def test_a_full_disk_while_cutting_keeps_the_old_ledger(run: RunDir, monkeypatch):
    write(run, 1, 2, 3)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(InputError, match="the disk is full"):
        run.ledger(resume_step=1)
    assert run.metrics() == rows(1, 2, 3)


# -- claims ----------------------------------------------------------------------------------------


def test_a_claim_is_exclusive_between_processes(run: RunDir):
    with run.claim() as held:
        assert held is not None and held["pid"] == os.getpid()
        other = python(HOLD, str(run.path), "0")
        out, err = other.communicate(timeout=60)
        assert out.strip() == "refused", err
        assert run.read().status == "running"
    other = python(HOLD, str(run.path), "0")
    assert other.communicate(timeout=60)[0].strip() == "held"


def test_a_killed_owners_claim_is_taken_over_and_named(run: RunDir):
    other = python(HOLD, str(run.path), "60")
    assert other.stdout is not None and other.stdout.readline().strip() == "held"
    owner = run.owner()
    assert owner is not None and owner["pid"] == other.pid
    with run.claim() as held:
        assert held is None
    other.send_signal(signal.SIGKILL)
    other.communicate(timeout=60)
    assert run.owner() is None and run.read().status == "unfinished"
    with run.claim() as held:
        assert held is not None and held["taken_over"]["pid"] == other.pid
    with run.claim() as held:
        assert held is not None and held["taken_over"] is None, "the last owner let go"


def test_a_lock_file_with_half_an_owner_is_claimed(run: RunDir):
    (run.path / "lock").write_text('{"pid": 12')
    assert run.owner() is None
    with run.claim() as held:
        assert held is not None and held["taken_over"] is None


def test_asking_who_owns_a_dead_claim_never_turns_a_claimant_away(run: RunDir):
    """The reader's question is a lock too, for an instant."""
    import fcntl
    import threading
    import time

    with open(run.path / "lock", "a+") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        timer = threading.Timer(0.03, lambda: fcntl.flock(reader, fcntl.LOCK_UN))
        timer.start()
        begun = time.perf_counter()
        with run.claim() as held:
            assert held is not None
            assert time.perf_counter() - begun > 0.01
        timer.join()


# -- what is refused -------------------------------------------------------------------------------


def test_a_run_directory_of_a_newer_format_is_refused_and_untouched(run: RunDir):
    env = {"format": FORMAT + 1}
    write_json(run.path / "env.json", env)
    for act in (run.read, run.check_format, lambda: run.start(spec={}, env={}, counts={})):
        with pytest.raises(InputError, match=f"newer ladder .format {FORMAT + 1}.; upgrade ladder"):
            act()
    assert json.loads((run.path / "env.json").read_text()) == env
    assert json.loads((run.path / "spec.json").read_text()) == {"seed": 1}


@pytest.mark.parametrize("name", ["spec.json", "env.json", "counts.json", "result.json"])
def test_a_broken_file_is_named(run: RunDir, name: str):
    run.finish(status="done", metrics={})
    (run.path / name).write_text('{"half')
    with pytest.raises(InputError, match=name):
        run.read()


def test_a_root_that_is_no_folder_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="--root: .*nothing; no such folder"):
        read_runs(tmp_path / "nothing")


def test_a_status_is_one_of_the_contracts_words(run: RunDir):
    with pytest.raises(ValueError, match="not one of"):
        run.finish(status="ok", metrics={})


def test_reading_runs_needs_no_jax():
    code = "import sys, train.record; print(sorted(m for m in sys.modules if m[:3] == 'jax'))"
    out, err = python(code).communicate(timeout=60)
    assert out.strip() == "[]", err


def test_the_environment_names_commit_versions_and_host():
    env = environment()
    assert {"commit", "diff", "python", "versions", "host", "cpus"} <= set(env)
    assert env["versions"]["jax"] and env["python"].startswith("3.")
