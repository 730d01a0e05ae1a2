"""Is Time-MoE what its authors publish? Sizes, the whole forward pass by hand, what it may see."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import archs
from model.context import Context
from model.count import count
from model.decoder import build
from model.ops.router import balance_loss, counts
from model.series_spec import SeriesSpec
from model.spec import ModelSpec, Parametrisation
from parallelism.mesh import make_mesh
from parallelism.place import batch_sharding
from tests.properties import assert_close, trained_params
from train.batches import training
from train.loop import open_text
from train.paths import put
from train.programs import state_shardings, traced
from train.schedule import hyper
from train.spec import RunSpec
from train.step import abstract_state, initial_state

T = 9


def small(**series) -> ModelSpec:
    """Two layers in the standard parametrisation, which multiplies nothing."""
    spec = archs.build("time_moe", 16)
    return replace(
        spec,
        n_layers=2,
        series=SeriesSpec(horizons=(1, 3), **series),
        parametrisation=Parametrisation(kind="standard"),
    )


@pytest.mark.parametrize(
    "width, n_layers, d_head, total, active",
    [
        # the sizes as published: 113M of which 50M act, 453M and 200M, 2.4B and 1.1B. That of the
        # smallest is the release's configuration; of the others, shape rules from memory
        (384, 12, 32, 113_352_192, 49_651_200),
        (768, 12, 64, 453_196_800, 198_392_832),
        (1024, 36, 64, 2_416_545_792, 1_057_591_296),
    ],
)
def test_the_published_sizes_come_back(width, n_layers, d_head, total, active):
    spec = archs.build("time_moe", width)
    (block,) = spec.repeat
    block = replace(block, mixer=replace(block.mixer, d_head=d_head))
    spec = replace(spec, n_layers=n_layers, repeat=(block,), series=SeriesSpec(missing=False))
    params = count(spec, seq_len=4096).params
    assert (params["total"], params["active"]) == (total, active)
    # the authors' modules, one by one: embedding, attention with its biases, norms, router,
    # experts of half the width, the shared one and its gate, final norm, heads
    d, hidden = width, 4 * width
    experts = 8 * 3 * d * hidden // 2 + 3 * d * hidden + d
    layer = 4 * d * d + 3 * d + 2 * d + 8 * d + experts
    assert total == 2 * d + n_layers * layer + d + (1 + 8 + 32 + 64) * d


# -- by hand ---------------------------------------------------------------------------------------


def silu(x):
    return x / (1 + np.exp(-x))


def rms(x, gain):
    return x / np.sqrt((x**2).mean() + 1e-6) * gain


def turned(x_K, position):
    half = len(x_K) // 2
    angle = position * 10_000.0 ** (-np.arange(half) / half)
    a, b = x_K[:half], x_K[half:]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin])


def by_hand(p, values_T, *, n_layers: int, chosen: int):
    """Forecasts (T, O) in float64: every position, head and expert in a loop."""
    x = [
        p["series.missing"] if np.isnan(v) else silu(v * p["series.gate"]) * (v * p["series.up"])
        for v in values_T
    ]
    for z in range(n_layers):
        w = {k.removeprefix("repeat.0."): v[z] for k, v in p.items() if k.startswith("repeat")}
        seen = [rms(v, w["mixer_norm.gain"]) for v in x]
        q, k, v = (
            [np.einsum("d,dhk->hk", s, w[f"mixer.{n}"]) + w[f"mixer.{n}_bias"] for s in seen]
            for n in "qkv"
        )
        heads, size = q[0].shape
        for t in range(len(x)):
            mixed = np.zeros((heads, size))
            for h in range(heads):
                scores = [turned(q[t][h], t) @ turned(k[s][h], s) / size**0.5 for s in range(t + 1)]
                share = np.exp(scores - np.max(scores))
                mixed[h] = sum(a * v[s][h] for s, a in enumerate(share / share.sum()))
            x[t] = x[t] + np.einsum("hk,hkd->d", mixed, w["mixer.out"])
        for t in range(len(x)):
            s = rms(x[t], w["ffn_norm.gain"])
            logits = s @ w["ffn.router.weight"]
            share = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            out = np.zeros_like(s)
            for e in np.argsort(-share)[:chosen]:
                gate, up, down = (w[f"ffn.experts.{n}"][e] for n in ("gate", "up", "out"))
                out += share[e] * ((silu(s @ gate) * (s @ up)) @ down)  # not renormalised
            gate, up, down = (w[f"ffn.shared.{n}"] for n in ("gate", "up", "out"))
            wide = silu(np.einsum("d,dgf->gf", s, gate)) * np.einsum("d,dgf->gf", s, up)
            shared = np.einsum("gf,gfd->d", wide, down)
            x[t] = x[t] + out + shared / (1 + np.exp(-s @ w["ffn.shared.open"]))
    return np.stack([rms(v, p["norm.gain"]) @ p["series.heads"] for v in x])


def values(rows: int = 2, *, missing: bool = True) -> np.ndarray:
    made = np.random.default_rng(0).standard_normal((rows, T)).astype(np.float32)
    if missing:
        made[0, 3], made[1, 0] = np.nan, np.nan
    return made


def forward(model, params, values_BT):
    positions_BT = jnp.broadcast_to(jnp.arange(values_BT.shape[1]), values_BT.shape)
    return model(params, values_BT, Context(positions_BT, None), dtype=jnp.float32)


def test_the_forward_pass_equals_a_float64_loop_over_positions_heads_and_experts():
    model = build(small())
    params = trained_params(model)
    said_BTO, _ = jax.jit(lambda p, v: forward(model, p, v))(params, values())
    wide = {k: np.asarray(v, np.float64) for k, v in params.items()}
    expected = [by_hand(wide, row.astype(np.float64), n_layers=2, chosen=2) for row in values()]
    assert np.abs(expected).max() > 0.1
    assert_close(said_BTO, np.stack(expected))


def test_later_numbers_and_missing_ones_have_no_gradient_and_earlier_ones_do():
    model = build(small())
    params = trained_params(model)

    @jax.jit
    def slopes(params, values_BT):
        def summed(values_BT):
            return jnp.sum(jnp.square(forward(model, params, values_BT)[0]), axis=(0, 2))

        def loss(params):
            return jnp.sum(jnp.square(forward(model, params, values_BT)[0]))

        return jax.jacrev(summed)(values_BT), jax.grad(loss)(params)

    seen_TBT, grads = slopes(params, values())
    past_TT = np.tril(np.ones((T, T), bool))
    for b, row in enumerate(values()):
        seen_TT = np.asarray(seen_TBT)[:, b]
        assert np.all(seen_TT[~past_TT] == 0)
        assert np.all(seen_TT[:, np.isnan(row)] == 0)
        assert np.all((seen_TT != 0)[:, ~np.isnan(row)] == past_TT[:, ~np.isnan(row)])
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads))


def test_our_balance_loss_times_the_chosen_is_that_of_the_official_code():
    """E sum over k and e of mean(chosen as k-th is e) mean(score of e): K when even."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 20, 8))
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    top_BTK = np.argsort(-share, axis=-1)[..., :2]
    f_KE = np.stack([[np.mean(top_BTK[..., k] == e) for e in range(8)] for k in range(2)])
    official = 8 * np.sum(f_KE * share.mean((0, 1)))
    counted_BE = counts(jnp.asarray(top_BTK), n_experts=8)
    ours = balance_loss(jnp.asarray(share, jnp.float32), counted_BE, over="batch")
    assert official > 1.5 and float(2 * ours) == pytest.approx(official, rel=1e-5)
    spec = archs.build("time_moe", 96)
    assert spec.penalties()["balance"] * spec.n_layers == pytest.approx(2 * 0.02)


def test_counted_flops_agree_with_the_compilers_count():
    spec = replace(archs.build("time_moe", 1024), n_layers=1)
    (block,) = spec.repeat
    # XLA counts the scores that blocks of queries skip, and the empty places of blocks of experts
    one = replace(
        block, mixer=replace(block.mixer, query_blocks=1), ffn=replace(block.ffn, block=1)
    )
    spec = replace(spec, repeat=(one,))
    model, seq_len = build(spec), 64
    params = {k: jax.ShapeDtypeStruct(d.shape, jnp.float32) for k, d in model.declarations.items()}
    read_BT = jax.ShapeDtypeStruct((2, seq_len), jnp.float32)
    lowered = jax.jit(lambda p, v: forward(model, p, v)[0]).lower(params, read_BT)
    analysis = lowered.cost_analysis()
    assert analysis is not None
    counted = count(spec, seq_len=seq_len).flops_per_token["full_attn"] / 3 * 2 * seq_len
    assert analysis["flops"] == pytest.approx(counted, rel=0.01)


# -- as a run --------------------------------------------------------------------------------------


def run_of(**changes) -> RunSpec:
    model = replace(archs.build("time_moe", 16), series=SeriesSpec(horizons=(1, 4)))
    fixed = {
        "data.seq_len": 16,
        "data.sources.0.periods": [4, 8],
        "data.sources.0.missing": 0.1,
        "budget.batch_tokens": 128,
        "budget.tokens": 128 * 3,
        "optim.eps": 1e-3,  # Adam turns noise around zero into steps of size lr
    }
    return put(RunSpec(model=model), {**fixed, **changes})


def trained(run: RunSpec, data, *, steps: int = 3) -> dict:
    mesh, model = make_mesh(run.execution.mesh), build(run.model)
    shardings = state_shardings(model, abstract_state(model), mesh)
    step, _ = traced(run, model, mesh)
    rows = batch_sharding(mesh)
    jitted = jax.jit(step, in_shardings=(shardings, None, rows), out_shardings=(shardings, None))
    state, losses = jax.device_put(initial_state(model, 0), shardings), []
    for i in range(steps):
        batch = jax.device_put(training(run, data, i), rows)
        state, loss = jitted(state, hyper(run), batch)
        losses.append(float(jax.block_until_ready(loss)))
    return {"params": state["params"], "losses": losses}


@pytest.mark.slow
def test_how_it_is_run_changes_nothing(root):
    data = open_text(run_of(), cache=root / ".cache")
    single = trained(run_of(), data)
    for changes in (
        {"execution.remat": "full", "execution.layers": "scan"},
        {"execution.mesh.data": 2, "execution.mesh.fsdp": 2, "execution.accumulate": 2},
    ):
        assert_close(trained(run_of(**changes), data), single, what=str(changes))


@pytest.mark.slow
def test_two_hundred_steps_in_bfloat16_stay_finite_and_learn(root):
    run = run_of(**{"execution.compute_dtype": "bfloat16", "budget.tokens": 128 * 200})
    losses = trained(run, open_text(run, cache=root / ".cache"), steps=200)["losses"]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
