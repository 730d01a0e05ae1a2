"""Does a run whose sequences are shared by devices learn what a run on one device learns?"""

from functools import lru_cache
from typing import Any

import jax
import numpy as np
import pytest

from model import archs
from model.decoder import build
from parallelism.errors import InputError
from parallelism.mesh import make_mesh
from parallelism.place import batch_sharding
from parallelism.wire import by_axis, collectives
from tests.properties import ROUNDING
from train.paths import put
from train.programs import abstract_batch, programs, state_shardings, traced
from train.schedule import hyper
from train.scheme import laid_out_length, scheme_name, traffic
from train.spec import RunSpec, to_json
from train.spread import placer
from train.step import abstract_state, initial_state

STEPS, ROWS = 10, 8
SLOW = pytest.mark.slow
SEQUENCE = {"sequence": 4, "fsdp": 2}
MIXED = {"data": 2, "tensor": 2, "sequence": 2}


def run(arch: str = "dense", *, length: int = 16, **knobs: Any) -> RunSpec:
    """Ten steps of a model of two small layers."""
    spec = RunSpec(model=archs.build(arch, 32))
    fixed = {
        "model.n_layers": 2,
        "data.seq_len": length,
        "budget.batch_tokens": ROWS * length,
        "budget.tokens": ROWS * length * STEPS,
        "optim.eps": 1e-3,  # well above the rounding of gradients, which Adam would make steps of
        "execution.layers": "scan",
    }
    return put(spec, {**fixed, **{k.replace("__", "."): v for k, v in knobs.items()}})


HEADS: dict[str, Any] = {
    "model__repeat__0__mixer__d_head": 4,
    "model__repeat__0__mixer__queries_per_kv": 2,
}
WINDOW = {"model__repeat__0__mixer__window": 5, "length": 32, **HEADS}

CASES: list[Any] = [pytest.param("zigzag", MIXED, "dense", HEADS, id="zigzag-mixed")]
CASES += [
    pytest.param(name, mesh, arch, knobs, id=f"{name}-{what}", marks=SLOW)
    for name, mesh, arch, knobs, what in [
        ("ring", SEQUENCE, "dense", HEADS, "fsdp"),
        ("striped", SEQUENCE, "dense", {**HEADS, "length": 13}, "filled"),
        ("token_ring", MIXED, "dense", HEADS, "mixed"),
        ("ulysses", SEQUENCE, "dense", HEADS, "fsdp"),
        ("all_gather", {"sequence": 8}, "dense", HEADS, "eight"),
        ("ring_self_attention", MIXED, "dense", HEADS, "mixed"),
        ("zigzag", {"sequence": 8}, "gpt2", {"length": 21}, "filled positions"),
        ("ring", SEQUENCE, "sliding_window", WINDOW, "window"),
        ("ulysses", MIXED, "diffusion", {**HEADS, "length": 15}, "both ways, filled"),
        ("zigzag", SEQUENCE, "parscale", HEADS, "streams"),
        ("none", SEQUENCE, "dense", HEADS, "compiler"),
    ]
]


@pytest.mark.parametrize("name, mesh, arch, knobs", CASES)
def test_ten_steps_on_a_shared_sequence_are_those_of_one_device(
    name: str, mesh: dict, arch: str, knobs: dict
):
    alone = run(arch, **knobs)
    spread = put(
        alone, {"execution.sequence": name, **{f"execution.mesh.{k}": v for k, v in mesh.items()}}
    )
    assert scheme_name(spread) == name
    found, sent = trained(spread)
    wanted, nothing = single(to_json(alone), alone)
    assert not nothing and sent.get("sequence", 0) >= float(
        sum(vars(traffic(spread, make_mesh(spread.execution.mesh), item=4)).values())
    )
    # what is left of numbers that cancel (a bias of keys has no gradient) is held to those numbers
    least = {"losses": 0.0, "params": ROUNDING, "mu": max(map(np.max, wanted["mu"].values()))}
    for part, floor in least.items():
        for (path, a), b in zip(
            jax.tree.leaves_with_path(found[part]), jax.tree.leaves(wanted[part]), strict=True
        ):
            off, size = np.max(np.abs(a - b)), max(np.max(np.abs(b)), floor)
            assert off <= 1e-5 * size, (
                f"{part} {jax.tree_util.keystr(path)}: {off:.3g} of {size:.3g}"
            )
    start = initial_state(build(alone.model), 0)["params"]
    assert all(np.any(found["params"][path] != value) for path, value in start.items())


@lru_cache(maxsize=4)
def single(_: str, spec: RunSpec) -> tuple[dict, dict]:
    return trained(spec)


def trained(spec: RunSpec) -> tuple[dict, dict]:
    """Losses, parameters and moments after STEPS steps on two batches in turn, compiled as a run's
    are; and the bytes that a device sends in a step, by mesh axis.
    """
    mesh, model = make_mesh(spec.execution.mesh), build(spec.model)
    shardings = state_shardings(model, abstract_state(model), mesh)
    rows = batch_sharding(mesh)
    numbers = hyper(spec)
    step = (
        jax.jit(
            traced(spec, model, mesh)[0],
            in_shardings=(shardings, None, rows),
            out_shardings=(shardings, None),
        )
        .lower(abstract_state(model), numbers, abstract_batch(spec))
        .compile()
    )
    state = jax.device_put(initial_state(model, 0), shardings)
    place, losses = placer(mesh, spec)[0], []
    batches = [place(batch(spec, seed)) for seed in (0, 1)]
    for i in range(STEPS):
        state, loss = step(state, numbers, batches[i % 2])
        losses.append(np.asarray(jax.block_until_ready(loss)))
    sent = by_axis(collectives(str(step.as_text()), n_devices=mesh.size), dict(mesh.shape))
    kept = {"params": state["params"], "mu": state["opt"][1].mu, "losses": losses}
    return jax.device_get(kept), sent


def batch(spec: RunSpec, seed: int) -> dict[str, np.ndarray]:
    """Random tokens in two documents a row, as an objective gives them."""
    rng, length, vocab = np.random.default_rng(seed), spec.data.seq_len, spec.model.vocab
    tokens = rng.integers(0, vocab, (ROWS, length + 1)).astype(np.int32)
    cut_B1 = rng.integers(1, length, (ROWS, 1))
    at_T = np.arange(length)
    if spec.model.extra_inputs:
        tokens[:, ::3] = vocab  # hidden
    arrays = {
        "tokens_BT": tokens[:, :-1],
        "targets_BT": tokens[:, 1:] % vocab,
        "segments_BT": (at_T >= cut_B1).astype(np.int32),
        "weights_BT": (at_T + 1 != cut_B1).astype(np.float32),
        "counted_BT": np.ones((ROWS, length), np.float32),
    }
    return {name: arrays[name] for name in spec.objective.batch}


# -- what is refused -------------------------------------------------------------------------------

BAD = [
    (
        run("ssd"),
        {"sequence": 2},
        "ring",
        "execution.sequence: ring; this scheme does not compute ssd",
    ),
    (
        run(**HEADS),
        {"sequence": 8},
        "ulysses",
        "execution.mesh.sequence: 8; ulysses gives each device whole heads, and it does not divide",
    ),
    (
        run("moe", model__repeat__0__ffn__capacity=1.0),
        {"sequence": 2},
        "zigzag",
        "execution.sequence: zigzag; a moe layer with a capacity drops tokens by their order",
    ),
    (
        run("moe", length=15),
        {"sequence": 2},
        "ring",
        "data.seq_len: 15; the layers of this model take statistics .* write 16",
    ),
    (
        run(length=15),
        {"sequence": 2},
        "none",
        "execution.mesh.sequence: 2; does not divide data.seq_len 15",
    ),
]


@pytest.mark.parametrize("spec, mesh, name, said", BAD, ids=[said[:40] for *_, said in BAD])
def test_what_cannot_be_shared_is_one_line_before_anything_is_compiled(
    spec: RunSpec, mesh: dict, name: str, said: str, tmp_path, monkeypatch
):
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    changed = {"execution.sequence": name, **{f"execution.mesh.{k}": v for k, v in mesh.items()}}
    with pytest.raises(InputError, match=said):
        programs(put(spec, changed), cache=tmp_path)


def test_a_scheme_that_is_none_is_refused_with_the_nearest():
    with pytest.raises(
        InputError, match="execution.sequence: zigzga; no such .* did you mean zigzag"
    ):
        put(run(), {"execution.sequence": "zigzga"})


@pytest.mark.parametrize(
    "arch, mesh, chosen",
    [
        ("dense", {}, "none"),
        ("dense", {"sequence": 8}, "zigzag"),  # heads do not divide
        ("dense", {"sequence": 2}, "ulysses"),
        ("s4d", {"sequence": 2}, "none"),
    ],
)
def test_auto_takes_the_first_scheme_that_computes_every_mixer(arch: str, mesh: dict, chosen: str):
    spec = put(
        run(arch, **(HEADS if arch == "dense" else {})),
        {f"execution.mesh.{k}": v for k, v in mesh.items()},
    )
    assert scheme_name(spec) == chosen


def test_one_device_on_the_sequence_axis_is_the_program_without_a_scheme():
    spec = put(run(), {"execution.sequence": "zigzag"})
    assert scheme_name(spec) == "none" and laid_out_length(spec) == 16
