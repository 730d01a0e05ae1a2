"""Does a run give the same on one, two and four processes, and outlive one that is killed?"""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parallelism.processes import LOST
from tests.train.test_processes import free_port
from tests.train.tiny import STEPS, ledger, python, tiny
from train.record import RunDir
from train.spec import RunSpec, to_json

pytestmark = pytest.mark.slow

# The same mesh on other processes: sums over four replicas go through gloo or through memory, in
# another order (float32).
SAME = 1e-5
DEVICES = 4

# Trains (to `stop` steps and an interruption, if given), then says what of each batch it holds.
PROCESS = """
import hashlib, json, os, signal, sys
from pathlib import Path
from parallelism.mesh import start_processes
if "JAX_NUM_PROCESSES" in os.environ:
    roll = start_processes({})
import jax, numpy as np
from parallelism.mesh import make_mesh
from tests.train.tiny import at_step
from train.batches import training
from train.loop import open_text, train
from train.spec import from_dict
from train.spread import placer
spec = from_dict(json.loads(Path(sys.argv[1]).read_text()))
root, stop = Path(sys.argv[2]), int(sys.argv[3])
tell = lambda: os.kill(os.getpid(), signal.SIGTERM)
progress = at_step(stop, tell) if stop else None
status = train(spec, root=root, progress=progress).status
place, share = placer(make_mesh(spec.execution.mesh), spec)
data = open_text(spec, cache=root / ".cache")
held = {}
for step in range(4):
    for name, array in place(training(spec, data, step, **share)).items():
        for shard in array.addressable_shards:
            key = f"{step} {name} {[s.indices(n)[:2] for s, n in zip(shard.index, array.shape)]}"
            held[key] = hashlib.sha256(np.asarray(shard.data).tobytes()).hexdigest()
print(json.dumps({"status": status, "held": held}))
if "JAX_NUM_PROCESSES" in os.environ:
    roll.close()
"""


def start(code: str, n: int, *args: str) -> list[subprocess.Popen]:
    """`n` processes of one program, with four devices between them."""
    port = free_port()
    flags = f"--xla_force_host_platform_device_count={DEVICES // n}"
    several = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(n),
    }
    return [
        python(
            code, *args, XLA_FLAGS=flags, **({**several, "JAX_PROCESS_ID": str(i)} if n > 1 else {})
        )
        for i in range(n)
    ]


def run(spec: RunSpec, root: Path, n: int, *, stop: int = 0) -> dict[str, str]:
    """Train on `n` processes; the hash of every part of the first batches, whoever holds it."""
    root.mkdir(exist_ok=True)
    path = root / "spec.json"
    path.write_text(to_json(spec))
    some = start(PROCESS, n, str(path), str(root), str(stop))
    held: dict[str, str] = {}
    try:
        for p in some:
            out, err = p.communicate(timeout=300)
            assert out, err[-3000:]
            said = json.loads(out.splitlines()[-1])
            assert said["status"] == ("interrupted" if stop else "done")
            assert all(held.get(k, v) == v for k, v in said["held"].items())
            held |= said["held"]
    finally:
        for p in some:
            p.kill()
    return held


def same(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [r["step"] for r in rows] == [r["step"] for r in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=SAME)


@pytest.fixture(scope="module")
def alone(corpus, new_root: Callable[[str], Path]) -> tuple[RunSpec, Path, dict[str, str]]:
    """The run on one process of four devices."""
    spec = tiny(corpus, {"execution.mesh.data": 2, "execution.mesh.fsdp": 2})
    root = new_root("one-process")  # several workers may run this file
    held = run(spec, root, 1)
    assert len(held) > 40 and ledger(root, spec)[-1]["step"] == STEPS
    return spec, root, held


@pytest.mark.parametrize("n", [2, 4])
def test_several_processes_read_the_same_batches_and_reach_the_same_losses(root: Path, alone, n):
    spec, one, held = alone
    assert run(spec, root, n) == held
    same(ledger(root, spec), ledger(one, spec))


@pytest.mark.parametrize("before, after", [(4, 1), (1, 2)])
def test_a_checkpoint_written_by_all_is_read_by_another_number(root: Path, alone, before, after):
    spec, one, _ = alone
    run(spec, root, before, stop=3)
    run(spec, root, after)
    same(ledger(root, spec), ledger(one, spec))


LADDER = "import sys; from ladder import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_killed_in_mid_step_ends_the_other_and_the_run_resumes(
    root: Path, corpus, victim
):
    steps = 160
    changes = {
        "execution.mesh.data": 4,
        "budget.tokens": 128 * steps,
        "evaluation.every": None,
        "execution.checkpoint_every": 40,
    }
    spec = tiny(corpus, changes)
    path = root / "spec.json"
    path.write_text(to_json(spec))
    command = ("train", str(path), "--root", str(root), "--quiet")
    both = start(LADDER, 2, *command, "--distributed")
    folder = RunDir(root / spec.run_id).checkpoints
    try:
        deadline = time.monotonic() + 200
        while not any(p.name.isdigit() for p in folder.glob("*")):
            assert time.monotonic() < deadline and all(p.poll() is None for p in both)
            time.sleep(0.05)
        both[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        _, err = both[1 - victim].communicate(timeout=60)
        assert time.monotonic() - killed < 30
        assert both[1 - victim].returncode == LOST
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        assert lines == [
            f"error: process {victim} is gone, so this one ends too; the same command goes on "
            "from the last checkpoint"
        ]
    finally:
        for p in both:
            p.kill()
    (alone,) = start(LADDER, 1, *command)
    out, err = alone.communicate(timeout=300)
    assert alone.returncode == 0, err[-2000:]
    rows = ledger(root, spec)
    assert rows[-1]["step"] == steps and len({r["step"] for r in rows}) == len(rows)
