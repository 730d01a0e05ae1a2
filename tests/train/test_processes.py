"""Do two real processes train one run? Through jax.distributed, gloo and one --root."""

import json
import socket
from pathlib import Path

import pytest

from tests.train.tiny import ledger, python, tiny
from train.loop import train
from train.record import RunDir
from train.spec import to_json

# Two replicas sum their halves of a batch in another order; twelve Adam steps (float32).
TWO_REPLICAS = 2e-4

PROCESS = """
import json, os, signal, sys
from pathlib import Path
from parallelism.mesh import start_processes
start_processes()
import jax
from tests.train.tiny import at_step
from train.loop import train
from train.spec import from_dict
spec, root = from_dict(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2])
# only one of the two is told to stop
tell = lambda: os.kill(os.getpid(), signal.SIGTERM) if jax.process_index() == 1 else None
statuses = [train(spec, root=root, progress=at_step(3, tell)).status]
statuses += [train(spec, root=root).status, train(spec, root=root).status]
print(json.dumps({"processes": jax.process_count(), "statuses": statuses}))
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_two_processes_stop_together_resume_and_match_one_process(root: Path, corpus):
    changes = {"execution.mesh.data": 2, "execution.checkpoint_every": 1000}
    spec = tiny(corpus, changes)
    path, port = root / "spec.json", free_port()
    path.write_text(to_json(spec))
    both = [
        python(
            PROCESS,
            str(path),
            str(root),
            XLA_FLAGS="--xla_force_host_platform_device_count=1",
            JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]
    try:
        ends = [p.communicate(timeout=240) for p in both]
    finally:
        for p in both:
            p.kill()  # SIGTERM is caught once jax.distributed runs
    for out, err in ends:
        assert out, err[-3000:]
        assert json.loads(out.splitlines()[-1]) == {
            "processes": 2,
            "statuses": ["interrupted", "done", "done"],
        }
    env = RunDir(root / spec.run_id).read().env
    assert env["processes"] == 2 and env["devices"]["count"] == 2

    alone = root.parent / "alone"
    alone.mkdir()
    (alone / ".cache").symlink_to(root / ".cache")
    assert train(tiny(corpus), root=alone).status == "done"
    rows, expected = ledger(root, spec), ledger(alone, spec)
    assert [r["step"] for r in rows] == [r["step"] for r in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=TWO_REPLICAS)
