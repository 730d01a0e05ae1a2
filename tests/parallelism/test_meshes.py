"""Does a run give the same numbers on every mesh? Loss, parameters and statistics of ten steps,
beside those of one device.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from model import archs
from model.decoder import build
from parallelism.errors import InputError
from parallelism.mesh import make_mesh
from parallelism.place import batch_sharding
from parallelism.sequence import NONE
from train.batches import training
from train.loop import open_text
from train.paths import put
from train.programs import state_shardings, traced
from train.schedule import hyper
from train.scheme import scheme_name
from train.spec import RunSpec, SourceSpec
from train.spread import placer
from train.step import initial_state

STEPS = 10
CLOSE = 1e-5  # of an array's largest entry, and of ROUNDING where all are smaller
ROUNDING = 5e-2
WIDTH = 32
MESHES = {
    "fsdp x tensor x sequence": {"fsdp": 2, "tensor": 2, "sequence": 2, "residuals": "sharded"},
    "data x expert x sequence": {"data": 2, "expert": 2, "sequence": 2},
    "expert x tensor": {"fsdp": 2, "expert": 2, "tensor": 2, "residuals": "sharded"},
    "pipeline x tensor": {"pipeline": 2, "data": 2, "tensor": 2},
    "fsdp": {"fsdp": 4, "data": 2},
    "sequence x data": {"sequence": 4, "data": 2},
    "pipeline x fsdp": {"pipeline": 2, "fsdp": 4},
    "rounds": {"pipeline": 2, "fsdp": 2, "rounds": 2, "microbatches": 4, "remat": "full"},
}
# (architecture, mesh): what it says, where it does not train there
REFUSED = {
    ("encoder_decoder", "pipeline x tensor"): "has an encoder beside it; write 1",
}
ALL = ("expert x tensor", "pipeline x tensor")
NO_SCHEME = "sequence x data"  # of every architecture whose sequences the compiler shares
ONE_GROUP = ("hybrid", "ssd")  # heads share one key: not for tensor to divide
# what a repeated unit of an architecture needs to be cut in two
DEEPER = {"hybrid": 8, "blockdense": 3, "blockshuffle": 3, "lowrank": 3, "rwkv7": 3}


# time_moe's farthest head looks 64 ahead
LENGTH = {"time_moe": 128}


def of_arch(name: str, corpus: SourceSpec, **more: Any) -> RunSpec:
    """Sixteen rows of sixteen positions; eps above the rounding of gradients, which Adam would turn
    into steps of size lr; and an lr at which ten steps do not amplify rounding: at 8e-3 one device
    by itself, scanned or unrolled, ends 1.3e-3 of monarch's readout apart (at 5e-4: 2e-7), and at
    1e-3 lightning's heads, normed where they say little, made 3e-4 of the order of sums.
    """
    length = LENGTH.get(name, 16)
    run = RunSpec(model=archs.build(name, WIDTH))
    text = {"data.sources.0.kind": corpus.kind, "data.sources.0.path": corpus.path}
    fixed = {
        "data.seq_len": length,
        "budget.batch_tokens": 16 * length,
        "budget.tokens": 16 * length * STEPS,
        "optim.eps": 1e-3,
        "optim.lr": 5e-4,
        "schedule.warmup": 0.0,
        "model.n_layers": DEEPER.get(name, run.model.n_layers),
    }
    return put(run, fixed | (text if isinstance(run.data.sources[0], SourceSpec) else {}) | more)


def on(run: RunSpec, mesh: dict[str, Any]) -> RunSpec:
    axes = run.execution.mesh.sizes
    return put(
        run,
        {f"execution.{'mesh.' if k in axes else ''}{k}": v for k, v in mesh.items()},
    )


def trained(run: RunSpec, folder: Path, *, dtype: Any = np.float32) -> dict[str, Any]:
    """Losses, parameters, moments of gradients and sums of statistics after ten steps, compiled as
    a run's are; what is float32 in a run is kept in `dtype`.
    """
    model, mesh = build(run.model), make_mesh(run.execution.mesh)
    state, numbers = jax.tree.map(
        lambda x: x.astype(dtype) if x.dtype == np.float32 else x,
        (initial_state(model, run.seed), hyper(run)),
    )
    shardings, rows = state_shardings(model, state, mesh), batch_sharding(mesh)
    step = jax.jit(
        traced(run, model, mesh)[0],
        in_shardings=(shardings, None, rows),
        out_shardings=(shardings, None),
    )
    data, (place, _) = open_text(run, cache=folder), placer(mesh, run)
    state, losses = jax.device_put(state, shardings), []
    for i in range(STEPS):
        state, loss = step(state, numbers, place(training(run, data, i)))
        losses.append(float(loss))
    moments = {"mu": state["opt"][1].mu, "nu": state["opt"][1].nu}
    return {"losses": losses, "params": state["params"], "window": state["window"], **moments}


def assert_same(found: dict[str, Any], single: dict[str, Any]) -> None:
    for part in ("params", "window"):
        assert found[part].keys() == single[part].keys()
        for name, value in single[part].items():
            a, b = np.asarray(found[part][name]), np.asarray(value)
            size = max(float(np.max(np.abs(b))), ROUNDING)
            off = float(np.max(np.abs(a - b)))
            assert off <= CLOSE * size, f"{name} differs by {off:.3g} of {size:.3g}"
    np.testing.assert_allclose(found["losses"], single["losses"], rtol=CLOSE)
    assert single["losses"][-1] < 0.98 * single["losses"][0], "nothing was learned"


BIAS = {"model.repeat.0.ffn.bias_rate": 1e-2}
CAPACITY = {"model.repeat.0.ffn.capacity": 1.25}
FEW = [
    pytest.param("dense", ["fsdp x tensor x sequence", "pipeline x tensor"], {}, id="dense"),
    pytest.param("moe", ["data x expert x sequence"], BIAS, id="moe"),
]
MORE = [
    pytest.param("moe", ["expert x tensor", "pipeline x tensor"], BIAS, id="moe"),
    pytest.param("moe", ["expert x tensor"], CAPACITY, id="capacity"),
    pytest.param("dense", ["rounds"], {"model.n_layers": 4}, id="rounds"),
    pytest.param("parscale", ["rounds"], {"model.n_layers": 4}, id="parscale"),
]


@pytest.mark.parametrize("name, meshes, more", FEW)
def test_training_on_a_mesh_equals_one_device(corpus, tmp_path, name, meshes, more):
    run = of_arch(name, corpus, **more)
    single = trained(run, tmp_path)
    for mesh in meshes:
        spread = on(run, MESHES[mesh])
        assert spread.run_id == run.run_id
        assert_same(trained(spread, tmp_path), single)


@pytest.mark.slow
@pytest.mark.parametrize("name, meshes, more", MORE)
def test_training_on_more_meshes_equals_one_device(corpus, tmp_path, name, meshes, more):
    test_training_on_a_mesh_equals_one_device(corpus, tmp_path, name, meshes, more)


@pytest.mark.slow
@pytest.mark.parametrize("name", archs.names())
def test_every_architecture_trains_the_same_on_meshes(corpus, tmp_path, name: str):
    run, single = of_arch(name, corpus), None
    meshes = ("fsdp", "pipeline x fsdp") if name in ONE_GROUP else ALL
    if scheme_name(on(run, MESHES[NO_SCHEME])) == NONE:
        meshes = (*meshes, NO_SCHEME)
    for mesh in meshes:
        if said := REFUSED.get((name, mesh)):
            with pytest.raises((InputError, ValueError), match=said):
                on(run, MESHES[mesh])
            continue
        single = trained(run, tmp_path) if single is None else single
        assert_same(trained(on(run, MESHES[mesh]), tmp_path), single)
