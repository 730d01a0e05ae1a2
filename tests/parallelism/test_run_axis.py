"""Do runs that devices share out, and each divide among them, train as one does on one device? Of
dense runs over run x data it is in tests/train/test_stack.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parallelism.wire import collectives
from tests.parallelism.test_meshes import of_arch, on
from tests.train.test_stack import assert_close
from tests.train.tiny import ledger
from train.loop import train
from train.paths import put
from train.programs import programs
from train.spec import SourceSpec
from train.stack import train_stack

pytestmark = pytest.mark.slow
CARRY = {"data.order": "contiguous", "data.carry_state": True}
BIAS = {"model.repeat.0.ffn.bias_rate": 1e-2}


@pytest.mark.parametrize(
    ("name", "changes", "mesh"),
    [
        ("quasi_lstm", CARRY, {"data": 2}),
        ("moe", BIAS, {"expert": 2, "tensor": 2, "residuals": "sharded"}),
        ("dense", {}, {"fsdp": 4}),
        ("dense", {}, {"sequence": 2, "data": 2}),
        ("dense", {}, {"pipeline": 2, "tensor": 2}),
    ],
    ids=["carry x data", "expert x tensor", "fsdp", "sequence", "pipeline"],
)
def test_runs_over_devices_are_the_runs_alone(
    root: Path, tmp_path: Path, corpus: SourceSpec, name: str, changes: Any, mesh: Any
):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / ".cache").symlink_to(root / ".cache")
    fixed = {"evaluation.tokens": 1024, "execution.log_every": 5, "model.n_layers": 2}
    base = of_arch(name, corpus, **fixed, **changes)
    specs = [put(base, {"seed": seed, "optim.lr": 5e-4 / (1 + seed)}) for seed in range(2)]
    spread = [on(spec, {**mesh, "stack": 2, "run": 2}) for spec in specs]
    told = train_stack(spread, root=root)
    for spec in specs:
        assert told[spec.run_id].status == train(spec, root=alone).status == "done"  # type: ignore[union-attr]
        assert_close(root, alone, spec)
    ends = [ledger(alone, spec)[-1]["loss/val"] for spec in specs]
    assert np.ptp(ends) > 1e-3 * ends[0], "they differ"
    ready, made = programs(spread[0], cache=root / ".cache", stack=2)
    assert made == []
    sent = collectives(ready.step.as_text(), n_devices=ready.mesh.size)
    sizes = dict(ready.mesh.shape)
    assert any(one.axes(sizes) for one in sent)
    # XLA gathers scores whose best it takes (jaxlib 0.10.2): E numbers a token, of a router
    across = {one.op.rpartition("/")[2] for one in sent if "run" in one.axes(sizes)}
    assert across == ({"top_k"} if name == "moe" else set())
