"""Does a run divided by data, fsdp, tensor and sequence, all four at once, train as on one device?
That takes sixteen devices, twice as many as the other tests have, so a process of its own.
"""

import os
import pickle

import numpy as np
import pytest

from tests.parallelism.test_meshes import CLOSE, assert_same, of_arch, on, trained
from tests.train.tiny import python
from train.scheme import scheme_name
from train.spec import to_json

ALL_FOUR = {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 2, "residuals": "sharded"}
# Blocks on the loss of every step, as `trained` does: collectives of several steps at once deadlock
PROCESS = """
import json, pickle, sys
from pathlib import Path
import jax
from tests.parallelism.test_meshes import trained
from train.spec import from_dict
spec, folder = from_dict(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2])
found = jax.device_get(trained(spec, folder)) | {"devices": jax.device_count()}
Path(sys.argv[3]).write_bytes(pickle.dumps(found))
"""


@pytest.mark.slow
def test_data_fsdp_tensor_and_sequence_at_once_train_as_one_device(corpus, tmp_path):
    run = of_arch("dense", corpus)
    spread = on(run, ALL_FOUR)
    assert spread.run_id == run.run_id and scheme_name(spread) == "zigzag"
    (tmp_path / "spec.json").write_text(to_json(spread))
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=16")
    files = [str(tmp_path / name) for name in ("spec.json", "cache", "found.pickle")]
    process = python(PROCESS, *files, XLA_FLAGS=flags)
    try:
        _, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, err[-3000:]
    found, single = pickle.loads((tmp_path / "found.pickle").read_bytes()), trained(run, tmp_path)
    assert found.pop("devices") == 16
    assert_same(found, single)
    differ = False  # in the order of sums
    for part in ("params", "mu"):  # of an array's largest entry, however small that is
        for name, value in single[part].items():
            a, b = np.asarray(found[part][name]), np.asarray(value)
            off, size = np.max(np.abs(a - b)), np.max(np.abs(b))
            differ |= off > 0
            assert off <= CLOSE * size, f"{part} {name} differs by {off:.3g} of {size:.3g}"
    assert differ, "one program"
