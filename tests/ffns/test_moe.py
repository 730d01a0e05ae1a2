"""Is a mixture of experts what its papers say? A float64 reference; losses, bias and limits."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from model import archs
from model.context import unplaced
from model.count import count
from model.decoder import build
from model.ffns.moe import Spec
from model.spec import BlockSpec, ModelSpec
from parallelism.errors import InputError
from parallelism.mesh import make_mesh
from parallelism.place import batch_sharding, constrainer, replicated
from tests import properties as p
from tests.properties import alone, assert_close, stream
from tests.train.tiny import tiny
from train.checkpoint import read_params
from train.loop import train
from train.paths import put
from train.programs import shape_key, state_shardings
from train.record import RunDir
from train.schedule import hyper
from train.spec import RunSpec
from train.step import abstract_state, forward, initial_state, train_step

# the first has blocks of one slot, so that the compiler counts no padding; the others pad
VARIANTS = [
    {"experts": 4, "chosen": 2, "shared": 1, "ratio": 0.5, "bias_rate": 0.01, "block": 1},
    {"experts": 8, "chosen": 3, "scores": "sigmoid", "renormalise": True, "block": 4},
]
REFERENCE = [
    *VARIANTS,
    {"experts": 6, "chosen": 1, "shared": 2, "shared_gate": True, "routed_scale": 2.5},
]


def swiglu(x_D, gate, up, out) -> np.ndarray:
    gate_F = x_D @ gate
    return (gate_F / (1 + np.exp(-gate_F)) * (x_D @ up)) @ out


def mixed(spec: Any, params: dict[str, np.ndarray], x_D: np.ndarray, router: str) -> np.ndarray:
    """One token through its experts and the shared ones; alone() has m = 2 in the router."""
    logits_E = x_D @ params[f"{router}.weight"] / 2
    scores_E = 1 / (1 + np.exp(-logits_E))
    if spec.scores == "softmax":
        scores_E = np.exp(logits_E) / np.sum(np.exp(logits_E))
    bias_E = params.get(f"{router}.bias", 0.0)
    chosen_K = np.argsort(-(scores_E + bias_E), kind="stable")[: spec.chosen]
    weights_K = scores_E[chosen_K] / (np.sum(scores_E[chosen_K]) if spec.renormalise else 1)
    y_D = np.zeros_like(x_D)
    for weight, e in zip(weights_K, chosen_K, strict=True):
        own = (params[f"experts.{name}"][e] for name in ("gate", "up", "out"))
        y_D += spec.routed_scale * weight * swiglu(x_D, *own)
    opened = 1 / (1 + np.exp(-x_D @ params["shared.open"] / 2)) if spec.shared_gate else 1.0
    for g in range(spec.shared):
        gate, up = params["shared.gate"][:, g], params["shared.up"][:, g]
        y_D += opened * swiglu(x_D, gate, up, params["shared.out"][g])
    return y_D


def wide(params: Any) -> dict[str, np.ndarray]:
    return {k: np.asarray(v, np.float64) for k, v in params.items()}


@pytest.mark.parametrize("knobs", REFERENCE, ids=str)
def test_values_equal_the_reference(knobs: dict[str, Any]):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="ffns"), stream(2, 9, 32)
    params, flat = wide(layer.params), np.asarray(x_BTD, np.float64).reshape(-1, 32)
    expected = np.stack([mixed(spec, params, x_D, "router") for x_D in flat])
    assert_close(layer.apply(layer.params, x_BTD), expected.reshape(2, 9, 32))
    assert_close(layer.naive(layer.params, x_BTD), expected.reshape(2, 9, 32))


@pytest.mark.parametrize(
    "knobs", [*VARIANTS, {"product": "ragged"}, {"capacity": 1.25}, {"capacity": 0.3}], ids=str
)
def test_the_fast_form_equals_every_expert_on_every_token_in_all_gradients(knobs: dict[str, Any]):
    layer, x_BTD = alone(Spec(**knobs), room="ffns"), stream(2, 19, 32)
    project_BTD = stream(2, 19, 32, seed=1)

    def gradients(form):
        made = jax.jit(
            jax.grad(lambda w, x: jnp.mean(form(w, x) * project_BTD), argnums=(0, 1))
        ).trace(layer.params, x_BTD)
        return made.lower().compile()(layer.params, x_BTD), str(made.jaxpr)

    (fast, program), (naive, other) = gradients(layer.apply), gradients(layer.naive)
    assert program != other, "the two forms are one program"
    assert_close(fast, naive)
    assert np.any(fast[0]["router.weight"]), "the router learns from the loss"


# -- a capacity: not in VARIANTS, because tokens compete for slots and more tokens have more slots,
# -- so that neither a prefix nor another order of rows is treated as in the whole


def test_a_capacity_at_its_bound_drops_nothing_and_is_dropless():
    bound = Spec(experts=4, chosen=2, capacity=2.0)  # E / K
    layer, x_BTD = alone(bound, room="ffns"), stream(2, 9, 32)
    dropless = alone(replace(bound, capacity=None), room="ffns")
    assert_close(layer.apply(layer.params, x_BTD), dropless.apply(dropless.params, x_BTD))
    tight = alone(replace(bound, capacity=0.5), room="ffns")
    off = np.asarray(tight.apply(tight.params, x_BTD) - layer.apply(layer.params, x_BTD))
    assert np.any(np.abs(off) > 0.01) and np.any(np.all(off == 0, axis=-1))


def test_no_later_position_of_any_row_takes_a_slot_from_an_earlier_one():
    """Rows compete at one position: the first row is served first."""
    layer = alone(Spec(experts=2, chosen=1, capacity=0.5), room="ffns")
    x_BTD = stream(2, 8, 32).at[:].set(stream(1, 1, 32))  # all tokens want one expert
    served_BT = np.any(np.asarray(layer.apply(layer.params, x_BTD)) != 0, axis=-1)
    assert np.array_equal(served_BT, [[True] * 2 + [False] * 6] * 2)  # 4 slots of 16
    changed_BTD = stream(2, 8, 32).at[:, :1].set(x_BTD[:, :1])
    before = layer.apply(layer.params, x_BTD)[:, :1]
    assert np.array_equal(layer.apply(layer.params, changed_BTD)[:, :1], before)


# -- in a model ------------------------------------------------------------------------------------

KNOBS = {"experts": 4, "chosen": 2, "ratio": 0.5, "bias_rate": 0.25, "block": 4}


def model(**knobs: Any) -> ModelSpec:
    block = BlockSpec(mixer=p.PARTNER["mixers"], ffn={"kind": "moe", **KNOBS, **knobs})
    return ModelSpec(d_model=32, n_layers=2, vocab=64, repeat=(block,))


RUN = put(
    RunSpec(model=model()),
    {"data.seq_len": 16, "budget.batch_tokens": 128, "optim.eps": 1e-3, "optim.lr": 0.05},
)
BIAS = "repeat.0.ffn.router.bias"


def two_steps(mesh: dict[str, int] | None = None) -> dict[str, Any]:
    run = put(RUN, {f"execution.mesh.{k}": v for k, v in (mesh or {}).items()})
    devices, built = make_mesh(run.execution.mesh), build(run.model)
    loss = partial(
        forward,
        built,
        constrain=constrainer(devices) if mesh else unplaced,
        layers="scan",
        remat="none",
        dtype=jnp.float32,
        isolate=True,
    )
    shardings = state_shardings(built, abstract_state(built), devices)
    rows = batch_sharding(devices)
    step = jax.jit(
        train_step(built, loss, accumulate=1),
        in_shardings=(shardings, None, rows),
        out_shardings=(shardings, None),
    )
    state, data = jax.device_put(initial_state(built, 0), shardings), p.batch(8, 16)
    for _ in range(2):
        state, _ = step(state, hyper(run), jax.device_put(data, rows))
        jax.block_until_ready(state)
    return {"params": state["params"], "window": state["window"], "bad": state["bad"]}


@pytest.fixture(scope="module")
def unsharded() -> dict[str, Any]:
    return two_steps()


@pytest.mark.slow
def test_the_bias_follows_the_counts_of_the_whole_batch(unsharded: dict[str, Any]):
    """Counted by hand from the choices of the first step; a half of the batch counts otherwise."""
    built, data = build(RUN.model), p.batch(8, 16)
    params = jax.tree.map(jnp.asarray, built.initialise(0))

    def counts_ZE(rows: slice) -> np.ndarray:
        part = {k: v[rows] for k, v in data.items()}
        ctx = {"constrain": unplaced, "layers": "unroll", "remat": "none", "isolate": True}
        *_, aux = forward(built, params, part, dtype=jnp.float32, **ctx)
        return np.asarray(aux[f"buffer/{BIAS}"])

    whole_ZE = counts_ZE(slice(None))
    assert np.all(np.sum(whole_ZE, axis=1) == 8 * 16 * KNOBS["chosen"])
    assert np.array_equal(whole_ZE, counts_ZE(slice(0, 8, 2)) + counts_ZE(slice(1, 8, 2)))
    signs = [np.sign(c.mean(axis=1, keepdims=True) - c) for c in (whole_ZE, counts_ZE(slice(0, 1)))]
    assert np.any(signs[0] != signs[1]), "one row would move the bias as the batch does"
    steps_ZE = np.asarray(unsharded["params"][BIAS]) / KNOBS["bias_rate"]
    assert np.all(np.abs(steps_ZE) <= 2) and np.array_equal(steps_ZE, np.round(steps_ZE))
    assert np.all(np.abs(steps_ZE - signs[0]) <= 1), "the second step moved it by one more"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_every_mesh_counts_the_whole_batch(mesh: dict[str, int], unsharded: dict[str, Any]):
    found = two_steps(mesh)
    assert np.array_equal(found["params"][BIAS], unsharded["params"][BIAS])
    assert_close(found, unsharded, what=str(mesh))


def micro_batches_change_nothing(spec: ModelSpec, **how: Any) -> None:
    """One step in float64."""
    run, built = replace(RUN, model=spec), build(spec)
    how = {"layers": "scan", "remat": "none", "isolate": True, "dtype": jnp.float64, **how}
    loss, numbers = partial(forward, built, constrain=unplaced, **how), hyper(run)
    params: Any = p.trained_params(built)

    def stepped(accumulate: int, batches: list[p.Batch]) -> tuple[list[dict], str]:
        traced = jax.jit(train_step(built, loss, accumulate=accumulate)).trace(
            state, numbers, batches[0]
        )
        step = traced.lower().compile()
        return [step(state, numbers, batch)[0] for batch in batches], str(traced.jaxpr)

    with jax.enable_x64(True):
        state = jax.tree.map(
            lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
            initial_state(built, 0, params=params),
        )
        data = dict(p.batch(8, 16))
        # unequal weights: losses of tokens are divided by the tokens of all micro-batches
        data["weights_BT"] = data["weights_BT"].at[::4, 3:].set(0.0)
        (whole,), program = stepped(1, [data])
        (parts,), other = stepped(4, [data])
        assert program != other, "the programs do not differ"
        quarters, _ = stepped(1, [{k: v[i::4] for k, v in data.items()} for i in range(4)])
    for name in ("loss", "loss/balance", "stat/expert_load"):
        mean = np.mean([float(one["window"][name]) for one in quarters])
        assert abs(mean / float(whole["window"][name]) - 1) > 1e-4, (
            f"{name} is a mean over micro-batches"
        )
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        # of an array's largest entry
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * max(np.max(np.abs(b)), 1e-30))


LOUD = {"balance_weight": 0.5, "z_weight": 0.5}  # so that a wrong gradient is seen


def test_micro_batches_have_the_losses_and_the_bias_of_the_whole_batch(no_float32: None):
    micro_batches_change_nothing(model(**LOUD))


@pytest.mark.slow
def test_micro_batches_of_a_chain_in_parallel_streams_have_them_too(no_float32: None):
    chain = {"kind": "chain_of_experts", **KNOBS, **LOUD}
    block = BlockSpec(mixer=p.PARTNER["mixers"], ffn=chain)
    streams = {"count": 2, "prefix": 2}
    stacks = {"first": (block,), "repeat": (block,), "streams": streams}
    spec = ModelSpec(d_model=32, n_layers=3, vocab=64, **stacks)
    micro_batches_change_nothing(spec, layers="unroll")


def test_micro_batches_are_refused_where_rows_share_the_slots_of_a_capacity():
    with pytest.raises(InputError, match="write its capacity null, or execution.accumulate=1"):
        put(replace(RUN, model=model(capacity=1.0, block=None)), {"execution.accumulate": 2})


def test_a_run_logs_load_and_losses_and_keeps_the_bias_in_its_checkpoint(root, corpus):
    spec = replace(tiny(corpus), model=replace(model(capacity=1.0, block=None), vocab=256))
    assert train(spec, root=root).status == "done"
    run = RunDir(root / spec.run_id)
    first, *_, last = run.metrics()
    assert 1 <= last["stat/expert_load"] <= 2 and 0 <= last["stat/dropped"] < 1
    assert last["stat/balance"] == pytest.approx(2, rel=0.3), "two layers, each near 1"
    assert 0 < last["stat/router_z"] < first["stat/router_z"]
    built, one = build(spec.model), make_mesh(spec.execution.mesh)
    whole = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(one)),
        abstract_state(built)["params"],
    )
    _, held = read_params(run.checkpoints, whole, say=print)
    assert np.any(held[BIAS]) and np.all(held[BIAS] % KNOBS["bias_rate"] == 0)


def test_weights_of_the_losses_are_data_and_change_the_gradient():
    runs = [replace(RUN, model=model(balance_weight=w)) for w in (0.0, 1.0)]
    assert shape_key(runs[0]) == shape_key(runs[1])
    assert [float(hyper(r)["penalty/balance"]) for r in runs] == [0.0, 1.0]


def test_the_router_is_scaled_like_a_readout_once():
    """muP: 1/m in the forward pass and the learning rate as it is, not 1/m in both."""
    for width, m in ((64, 1.0), (256, 4.0)):
        rows = build(archs.build("moe", width)).declarations
        router = rows["repeat.0.ffn.router.weight"]
        assert (router.scaling.forward, router.scaling.lr) == (1 / m, 1.0)
        assert router.scaling.std == 64**-0.5 and router.scaling.covered
        experts = rows["repeat.0.ffn.experts.gate"]
        assert (experts.scaling.forward, experts.scaling.lr) == (1.0, 1 / m)
        assert experts.scaling.std == width**-0.5, "an expert's own fan-in"


def test_parameters_are_counted_in_all_and_as_a_token_meets_them():
    d, f, layers = 64, 40, 2
    found = count(archs.build("moe", d), seq_len=64)
    dense = count(archs.build("dense", d), seq_len=64)
    ffn = 3 * d * round(8 / 3 * d / 8) * 8
    rest = dense.params["total"] - layers * ffn
    assert found.per_expert is not None and found.per_expert.params == layers * 3 * d * f
    assert found.params["total"] == rest + layers * (17 * 3 * d * f + 16 * d)
    assert found.params["active"] == rest + layers * (4 * 3 * d * f + 16 * d)
    change = layers * (2 * 16 * d + 6 * d * f * 4 - 2 * ffn)
    both = [c.flops_per_token["full_attn"] for c in (found, dense)]
    assert both[0] - both[1] == 3 * change
    assert dense.per_expert is None


@pytest.mark.parametrize(
    "knobs, said",
    [
        ({"experts": 4, "chosen": 5}, "chosen 5 is more than the 4 experts; write at most 4"),
        ({"chosen": 1, "renormalise": True}, "write renormalise false"),
        ({"shared_gate": True}, "write shared 1 or more"),
        ({"capacity": 1.0, "block": 4}, "leave block and product out"),
        ({"capacity": 1.0, "product": "ragged"}, "or write capacity null"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_with_what_to_write(knobs: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        Spec(**knobs).sizes({"D": 32})


def test_unknown_scores_are_refused():
    with pytest.raises(ValidationError, match="scores"):
        TypeAdapter(Spec).validate_python({"kind": "moe", "scores": "tanh"})
