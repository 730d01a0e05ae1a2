"""Does the model go on from batch to batch as in one long row, with gradients cut between them?"""

import os
import signal
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model.mixers.quasi_lstm as quasi_lstm
from model.archs import build as arch
from model.context import Context, unplaced
from model.decoder import build
from parallelism.errors import InputError
from tests import properties as p
from tests.properties import Case, assert_close
from tests.train.tiny import at_step, ledger, tiny
from train.carry import carry_shapes
from train.checkpoint import read_params
from train.loop import open_text, train
from train.objectives import next_token
from train.paths import put
from train.record import RunDir
from train.schedule import hyper
from train.spec import RunSpec, SourceSpec
from train.step import forward, initial_state, train_step

MODEL = build(Case(room="mixers", kind="quasi_lstm", knobs=(("d_head", 8),)).model)
T, ROWS = 8, 4
# Row 0 goes on over the cut, row 1 begins a document with it, rows 2 and 3 have their own.
SEGMENTS = np.array([[0] * 16, [0] * 8 + [1] * 8, [0] * 5 + [1] * 11, [0] * 12 + [1] * 4])


def long_batch() -> p.Batch:
    data = p.batch(ROWS, 2 * T)
    weights_BT = np.pad(SEGMENTS[:, 1:] == SEGMENTS[:, :-1], ((0, 0), (0, 1)), constant_values=True)
    return {**data, "segments_BT": jnp.asarray(SEGMENTS), "weights_BT": jnp.float32(weights_BT)}


def halves(data: p.Batch) -> list[p.Batch]:
    """Two batches in contiguous order; documents of the second numbered from that of the first."""
    first, second = ({k: v[:, i * T : (i + 1) * T] for k, v in data.items()} for i in (0, 1))
    segments_BT = second["segments_BT"] - first["segments_BT"][:, -1:]
    return [first, {**second, "segments_BT": segments_BT}]


def loss(params, batch, *, model=MODEL, layers="scan", remat="none", **more):
    run = partial(forward, model, constrain=unplaced, layers=layers, remat=remat, isolate=True)
    return run(params, batch, dtype=jnp.float32, **more)


def carried(params, data: p.Batch, *, carry: bool):
    """Mean nats of both halves, each from what the one before left."""
    state = start(carry=carry)
    total = 0.0
    for half in halves(data):
        nats, _, aux = loss(params, half if state is None else {**half, "carry": state})
        state, total = aux.get("carry"), total + nats
    return total / jnp.sum(data["weights_BT"])


def start(model=MODEL, *, carry: bool = True):
    run = put(
        RunSpec(model=model.spec),
        {"data.order": "contiguous", "data.carry_state": carry, "data.seq_len": T}
        | {"budget.batch_tokens": ROWS * T},
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), carry_shapes(run, model))


def one_row(params, data: p.Batch):
    """Mean nats of the rows in one piece, position after position."""
    positions_BT = jnp.broadcast_to(jnp.arange(2 * T), (ROWS, 2 * T))
    ctx = Context(positions_BT=positions_BT, segments_BT=data["segments_BT"], naive=True)
    nats, weights = next_token(MODEL(params, data["tokens_BT"], ctx, dtype=jnp.float32)[0], data)
    return nats / weights


def cut_recurrence(f_BTHK, u_BTHK, segments_BT):
    """The naive recurrence with no gradient through the cell between positions T - 1 and T."""
    c_BHK, out = jnp.zeros_like(u_BTHK[:, 0]), []
    for t in range(f_BTHK.shape[1]):
        c_BHK = jax.lax.stop_gradient(c_BHK) if t == T else c_BHK
        same_B = segments_BT[:, t] == segments_BT[:, max(t - 1, 0)]
        c_BHK = f_BTHK[:, t] * jnp.where(same_B[:, None, None], c_BHK, 0) + u_BTHK[:, t]
        out.append(c_BHK)
    return jnp.stack(out, axis=1)


def test_loss_and_gradients_equal_those_of_one_long_row_cut_between_batches(monkeypatch):
    params, data = p.trained_params(MODEL), long_batch()

    def differentiated(function, **more):
        return jax.jit(jax.value_and_grad(partial(function, **more)))(params, data)

    found, cold = differentiated(carried, carry=True), differentiated(carried, carry=False)
    uncut = differentiated(one_row)
    monkeypatch.setattr(quasi_lstm, "naive_linear_recurrence", cut_recurrence)
    cut = differentiated(one_row)
    assert abs(float(found[0] - cold[0])) > 1e-4, "carrying changed nothing"
    assert max(float(jnp.max(jnp.abs(cut[1][k] - uncut[1][k]))) for k in params) > 1e-4
    assert_close(found, cut)


@pytest.mark.parametrize(
    "kind", ["deltanet", *(pytest.param(k, marks=pytest.mark.slow) for k in ("ssd", "gla", "s4"))]
)
def test_the_loss_of_other_memories_is_that_of_one_long_row(kind: str):
    knobs = () if kind == "s4" else (("d_head", 8),)
    made = build(Case(room="mixers", kind=kind, knobs=knobs).model)
    run, settled = partial(loss, layers="unroll", remat="full", model=made), start(made)

    @jax.jit
    def losses(params, data):
        state, warm, cold = settled, 0.0, 0.0
        for half in halves(data):
            nats, _, aux = run(params, {**half, "carry": state})
            state, warm = aux["carry"], warm + nats
            cold += run(params, half)[0]
        return warm, cold, run(params, data)[0]

    warm, cold, whole = losses(p.trained_params(made), long_batch())
    assert abs(float(cold - whole)) > 1e-3
    assert_close(warm, whole)


@pytest.mark.slow
def test_micro_batches_carry_their_own_rows():
    # eps well above the rounding of gradients, which Adam would turn into steps of size lr
    run = put(RunSpec(model=MODEL.spec), {"optim.eps": 1e-3, "schedule.warmup": 0.0})

    def trained(accumulate: int, *, carry: bool):
        step = jax.jit(train_step(MODEL, loss, accumulate=accumulate))
        empty = start(carry=carry)
        state = initial_state(MODEL, 0, carry=empty)
        for half in halves(long_batch()):
            state, _ = step(state, hyper(run), half)
        return {"params": state["params"], "carry": state.get("carry")}

    once, twice = trained(1, carry=True), trained(2, carry=True)
    assert_close(twice, once)
    assert not np.allclose(
        once["params"]["readout"], trained(1, carry=False)["params"]["readout"], atol=1e-6
    )


def spec(corpus: SourceSpec, *, carry: bool = True, **mesh: int) -> RunSpec:
    mixer = {"model.repeat.0.mixer": {"kind": "quasi_lstm", "d_head": 8}, "model.n_layers": 1}
    order = {"data.order": "contiguous", "data.carry_state": carry}
    return put(
        tiny(corpus, mixer), {**order, **{f"execution.mesh.{k}": n for k, n in mesh.items()}}
    )


@pytest.mark.slow
def test_a_run_resumes_and_is_sharded_to_the_same_numbers_and_differs_without(root, corpus):
    whole, cold = spec(corpus), spec(corpus, carry=False)
    assert train(whole, root=root).status == "done"
    rows = ledger(root, whole)
    assert train(cold, root=root).status == "done"
    assert rows[-1]["loss/val"] != ledger(root, cold)[-1]["loss/val"]

    again = root / "again"
    again.mkdir()
    (again / ".cache").symlink_to(root / ".cache")
    stop = at_step(6, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train(whole, root=again, progress=stop).status == "interrupted"
    assert train(whole, root=again).status == "done"
    assert ledger(again, whole) == rows

    spread = spec(corpus, fsdp=4, tensor=2)
    elsewhere = root / "sharded"
    elsewhere.mkdir()
    (elsewhere / ".cache").symlink_to(root / ".cache")
    assert train(spread, root=elsewhere).status == "done"
    for row, expected in zip(ledger(elsewhere, spread), rows, strict=True):
        assert row == pytest.approx(expected, rel=2e-4)  # another order of sums; test_resume.py

    held_out_in_one_piece(root, whole, rows[-1]["loss/val"])


def held_out_in_one_piece(root: Path, whole: RunSpec, found: float) -> None:
    """The recorded loss is that of each place's stretch of held-out text as one row."""
    made = build(whole.model)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        k: jax.ShapeDtypeStruct(d.shape, np.float32, sharding=one)
        for k, d in made.declarations.items()
    }
    _, params = read_params(RunDir(root / whole.run_id).checkpoints, abstract, say=print)
    batches = list(open_text(whole, cache=root / ".cache").validation(whole.evaluation.tokens))
    assert len(batches) > 1
    tokens_BT, targets_BT, weights_BT = (
        jnp.concatenate([getattr(b, name) for b in batches], axis=1)
        for name in ("tokens_BT", "targets_BT", "weights_BT")
    )
    last_B, numbered = 0, []
    for b in batches:
        numbered.append(b.segments_BT + last_B)
        last_B = numbered[-1][:, -1:]
    data = {"targets_BT": targets_BT, "weights_BT": weights_BT}
    ctx = Context(positions_BT=tokens_BT, segments_BT=jnp.concatenate(numbered, axis=1))
    nats, weights = next_token(made(params, tokens_BT, ctx, dtype=jnp.float32)[0], data)
    assert found == pytest.approx(float(nats / weights), rel=1e-5)


CARRY = {"data.order": "contiguous", "data.carry_state": True}


@pytest.mark.parametrize(
    "name, changes, wrong",
    [
        ("dense", CARRY, "mixer kind attention grows with the context.*data.carry_state=false"),
        ("sliding_window", CARRY, "mixer kind sliding_window"),
        ("retnet", CARRY, "mixer kind retnet.*counts positions in the row"),
        ("lact", CARRY, "mixer kind lact"),
        ("monarch", CARRY, "mixer kind monarch"),
        ("quasi_lstm", {"data.carry_state": True}, "write data.order=contiguous"),
        ("quasi_lstm", {**CARRY, "model.learned_positions": 512}, "learned positions"),
        ("quasi_lstm", {**CARRY, "objective.kind": "span_mixture"}, "objective span_mixture"),
        (
            "dense",
            {"data.order": "contiguous", "data.sources": [{"kind": "recall"}]},
            "reads one source of text",
        ),
        (
            "dense",
            {"data.order": "contiguous", "data.sources": [{"kind": "stdlib"}] * 2},
            "reads one source of text",
        ),
    ],
)
def test_what_cannot_go_on_is_refused_in_one_line(name: str, changes: dict, wrong: str):
    with pytest.raises(InputError, match=wrong) as refused:
        put(RunSpec(model=arch(name, 64)), changes)
    assert "\n" not in str(refused.value)


def test_retention_without_rotary_positions_carries():
    put(RunSpec(model=arch("retnet", 64)), {**CARRY, "model.repeat.0.mixer.rotary_theta": None})
