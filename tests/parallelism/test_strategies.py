"""Does a compiled program send what its strategy says, and is the state where the rules put it?"""

import jax
import numpy as np
import pytest

from model import archs
from model.decoder import build
from parallelism.axes import MeshSpec
from parallelism.errors import InputError
from parallelism.mesh import make_mesh
from parallelism.place import batch_sharding, partition, report
from parallelism.rules import PARAMETERS
from parallelism.wire import Collective, collectives
from train.paths import put
from train.programs import abstract_batch, state_shardings, traced
from train.spec import RunSpec
from train.step import abstract_state

WIDTH, ROWS, T = 32, 16, 16
RUN = put(
    RunSpec(model=archs.build("dense", WIDTH)),
    {
        "data.seq_len": T,
        "budget.batch_tokens": ROWS * T,
        "budget.tokens": ROWS * T,
        "model.repeat.0.mixer.d_head": 8,
    },
)


def sent(axis: str, **execution: object) -> list[Collective]:
    """The collectives along an axis of the compiled evaluation."""
    run = put(RUN, {f"execution.{k.replace('mesh_', 'mesh.')}": v for k, v in execution.items()})
    model, mesh = build(run.model), make_mesh(run.execution.mesh)
    state = abstract_state(model)
    shardings = state_shardings(model, state, mesh)
    evaluate = traced(run, model, mesh)[1]
    compiled = jax.jit(evaluate, in_shardings=(shardings["params"], batch_sharding(mesh)))
    text = compiled.lower(state["params"], abstract_batch(run)).compile().as_text()
    found = collectives(text or "", n_devices=mesh.size)
    return [one for one in found if one.axes(mesh.shape) == (axis,)]


def test_a_shared_stream_is_gathered_where_layers_begin_and_summed_where_they_end():
    """XLA's CPU pipeline has no pass that makes one reduce-scatter of a sum and the slice of it, as
    those of other platforms do: here the sum is there, and what is kept of it is the slice.
    """
    stream = ROWS // 2 * T * WIDTH * 4
    n_layers = RUN.model.n_layers
    kinds = {}
    for residuals in ("whole", "sharded"):
        found = sent("tensor", mesh_tensor=2, mesh_data=2, residuals=residuals)
        of_stream = [one.kind for one in found if one.result_bytes == stream]
        kinds[residuals] = (of_stream.count("all-reduce"), of_stream.count("all-gather"))
    # an attention and a feed-forward layer each, and the table that was looked up; gathered once
    # more for the readout
    assert kinds["whole"] == (2 * n_layers + 1, 0)
    assert kinds["sharded"] == (2 * n_layers + 1, 2 * n_layers + 1)


def test_every_sharded_parameter_is_gathered_once():
    declared = build(RUN.model).declarations.values()
    mesh = MeshSpec(fsdp=4).sizes
    whole = 0
    for d in declared:
        spec = partition(d.dims, d.shape, rules=PARAMETERS, mesh=mesh, what=d.path)
        whole += 4 * d.size if "fsdp" in spec else 0
    found = [one for one in sent("fsdp", mesh_fsdp=4) if one.kind == "all-gather"]
    assert sum(one.wire_bytes for one in found) == whole * 3 / 4


def test_moments_lie_where_their_parameters_do():
    model, mesh = build(RUN.model), make_mesh(MeshSpec(fsdp=4, tensor=2))
    state = abstract_state(model)
    shardings = state_shardings(model, state, mesh)
    for path, sharding in shardings["params"].items():
        assert shardings["opt"][1].mu[path] == shardings["opt"][1].nu[path] == sharding
    placed = jax.device_put(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), state), shardings)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed))
    assert held < 1.05 * sum(leaf.nbytes for leaf in jax.tree.leaves(placed)) / 8


# Products without a width of the stream among their dims: what fsdp does not shard, and the report
# names
APART = {
    "blockdense": "ffn",
    "blockshuffle": "ffn",
    "lowrank": "ffn",
    "lact": "mixer.w",
    "monarch": "mixer",
    "parscale": "prefix",
    "rwkv7": "_up",
}


@pytest.mark.parametrize("name", archs.names())
def test_large_tensors_are_sharded_over_fsdp_or_named(name: str):
    model = build(archs.build(name, 64))
    declared = {p: (d.dims, d.shape) for p, d in model.declarations.items()}
    placed = report(declared, MeshSpec(fsdp=8).sizes)
    whole = placed.to_json()["whole"]["fsdp"]
    for path, row in placed.rows.items():
        assert (row["copies"] > 1) == (path in whole)
    depth = max(1, model.spec.n_repeats)
    large = [p for p in whole if placed.rows[p]["size"] >= depth * 64 * 64 / 4]
    assert all(name in APART and APART[name] in path for path in large)
    for path in whole:
        assert path in placed.text()


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"model.repeat.0.ffn.experts": 6, "execution.mesh.expert": 4, "data.seq_len": 12},
            "execution.mesh.expert: 4; does not divide experts .E = 6. of repeat.0.ffn",
        ),
        (
            {"model.repeat.0.ffn.capacity": 1.25, "execution.mesh.pipeline": 2, "data.seq_len": 15},
            "shares slots among all rows of a batch, and a pipeline runs parts of them; write its",
        ),
        (
            {"data.seq_len": 15, "execution.mesh.tensor": 2, "execution.residuals": "sharded"},
            "execution.mesh.tensor: 2; does not divide time .T = 15.",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(changes: dict, said: str):
    fixed = {"data.seq_len": T, "budget.batch_tokens": 240, "budget.tokens": 240}
    with pytest.raises(InputError, match=said):
        run = put(RunSpec(model=archs.build("moe", WIDTH)), fixed | changes)
        model, mesh = build(run.model), make_mesh(run.execution.mesh)
        state = abstract_state(model)
        state_shardings(model, state, mesh)
        jax.eval_shape(traced(run, model, mesh)[1], state["params"], abstract_batch(run))
