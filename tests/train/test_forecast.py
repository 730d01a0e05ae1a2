"""Does the forecasting objective ask what it says, and does a forecast follow its schedule?"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ladder import main
from model import archs
from model.context import Context
from model.decoder import build
from parallelism.errors import InputError
from tests.properties import assert_close, trained_params
from tests.train.tiny import ledger
from train.data.windows import Windows
from train.forecast import ahead, schedule
from train.loop import open_text, train
from train.objectives.forecast import (
    Spec,
    arrays,
    huber,
    normalised,
    restored,
    statistics,
)
from train.paths import override, put
from train.spec import RunSpec

HORIZONS, T = (1, 3, 5), 9


def windows(rows: int = 4, *, seed: int = 0, missing: float = 0.2) -> Windows:
    rng = np.random.default_rng(seed)
    values_BW = 5 + 3 * rng.standard_normal((rows, T + 1))
    known_BW = rng.random(values_BW.shape) >= missing
    return Windows(np.where(known_BW, values_BW, np.nan), known_BW)


def objective(**knobs) -> Spec:
    return replace(Spec(**knobs), horizons=HORIZONS)


def small(width: int = 16):
    spec = archs.build("time_moe", width)
    return replace(spec, series=replace(spec.series, horizons=HORIZONS))  # pyright: ignore[reportArgumentType]


# -- the loss --------------------------------------------------------------------------------------


def by_hand(said_BTO, rows: Windows, *, delta: float, asked_from: int, statistics_of: int):
    """Mean Huber loss by head, one number after another."""
    out = []
    for i, h in enumerate(HORIZONS):
        begin, total, n = sum(HORIZONS[:i]), 0.0, 0
        for b in range(len(said_BTO)):
            known = rows.values_BW[b, :statistics_of][rows.known_BW[b, :statistics_of]]
            scaled = (rows.values_BW[b] - known.mean()) / known.std()
            for t in range(asked_from, T):
                for j in range(h):
                    if t + 1 + j > T or not rows.known_BW[b, t + 1 + j]:
                        continue
                    error = abs(said_BTO[b, t, begin + j] - scaled[t + 1 + j])
                    quadratic = error**2 / 2 if error <= delta else delta * (error - delta / 2)
                    total, n = total + quadratic, n + 1
        out.append(total / n)
    return out


def test_the_loss_is_the_mean_huber_loss_of_each_head_over_what_is_known():
    said_BTO = np.random.default_rng(1).standard_normal((4, T, sum(HORIZONS))) * 2
    rows = windows()
    for delta in (0.5, 2.0):
        asks = objective(delta=delta)
        made = asks.prepare(rows, rows_B=np.arange(4), seed=0, vocab=256)
        sums, weights = jax.jit(asks.loss)(said_BTO, made)
        expected = by_hand(said_BTO, rows, delta=delta, asked_from=0, statistics_of=T + 1)
        np.testing.assert_allclose(sums / weights, expected, rtol=1e-5)
        np.testing.assert_allclose(asks.normaliser(jax.tree.map(jnp.asarray, made)), weights)
    ((name, held),) = asks.held_out(rows, rows_B=np.arange(4), vocab=256)
    summed = jax.jit(asks.score)(said_BTO, held)
    found = asks.report("val", summed, bytes_per_token=None, answers=False)
    expected = by_hand(said_BTO, rows, delta=2.0, asked_from=T // 2 - 1, statistics_of=T // 2)
    assert name == "" and found["loss/val"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert found["stat/val/huber_3"] == pytest.approx(expected[1], rel=1e-5)
    assert not any(key.startswith("bpb") for key in found)


def test_huber_turns_from_square_to_straight_at_delta():
    error = jnp.asarray([-5.0, -2.0, -1.0, 0.0, 1.5, 2.0, 3.0])
    np.testing.assert_allclose(huber(error, delta=2.0), [8, 2, 0.5, 0, 1.125, 2, 4])
    slopes = jax.vmap(jax.grad(lambda e: huber(e, delta=2.0)))(error)
    np.testing.assert_allclose(slopes, [-2, -2, -1, 0, 1.5, 2, 2])


def test_what_is_missing_or_beyond_the_row_has_no_gradient_and_no_part_in_another_head():
    asks, rows = objective(), windows(missing=0.4)
    made = asks.prepare(rows, rows_B=np.arange(4), seed=0, vocab=256)
    said_BTO = jnp.ones((4, T, sum(HORIZONS)))
    slope = jax.jit(jax.grad(lambda s, batch: jnp.sum(asks.loss(s, batch)[0])))
    slope_BTO = np.asarray(slope(said_BTO, made))
    for i, h in enumerate(HORIZONS):
        for j in range(h):
            for t in range(T):
                column = slope_BTO[:, t, sum(HORIZONS[:i]) + j]
                known_B = rows.known_BW[:, t + 1 + j] if t + 1 + j <= T else np.zeros(4, bool)
                assert (column[~known_B] == 0).all() and (column[known_B] != 0).all()
    # another document is not asked for either
    made["segments_BT"] = np.asarray([[0] * 4 + [1] * 5] * 4, np.int32)
    apart_BTO = np.asarray(slope(said_BTO, made))
    assert (apart_BTO[:, 2, 2:4] == 0).sum() > (slope_BTO[:, 2, 2:4] == 0).sum()


def test_parts_of_a_batch_add_up_to_the_whole():
    asks = objective()
    made = asks.prepare(windows(8), rows_B=np.arange(8), seed=0, vocab=256)
    said_BTO = np.random.default_rng(1).standard_normal((8, T, sum(HORIZONS)))
    halves = [{k: v[i::2] for k, v in made.items()} for i in range(2)]
    loss = jax.jit(asks.loss)
    parts = [loss(said_BTO[i::2], half) for i, half in enumerate(halves)]
    for together, apart in zip(loss(said_BTO, made), zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(together, sum(apart), rtol=1e-5)
    assert len({tuple(np.asarray(n).tolist()) for _, n in parts}) == 2, "halves weigh alike"


# -- scale -----------------------------------------------------------------------------------------


def test_scaling_inverts_and_leaves_a_constant_row_finite():
    values_BN = np.array([[1.0, 2.0, np.nan, 7.0], [3.0] * 4, [np.nan] * 4, [1e12] * 4])
    known_BN = np.isfinite(values_BN)
    mean_B1, deviation_B1 = statistics(values_BN, known_BN)
    scaled_BN = normalised(values_BN, mean_B1, deviation_B1)
    assert scaled_BN[0, known_BN[0]].mean() == pytest.approx(0)
    assert deviation_B1[1:].tolist() == [[1]] * 3
    assert scaled_BN[0, known_BN[0]].std() == pytest.approx(1)
    back_BN = restored(scaled_BN, mean_B1, deviation_B1)
    np.testing.assert_allclose(back_BN, values_BN, rtol=1e-15)
    assert (scaled_BN[1] == 0).all() and (scaled_BN[3] == 0).all()


def test_a_held_out_row_is_scaled_and_asked_without_its_second_half():
    rows = windows(missing=0.0)
    changed = Windows(rows.values_BW.copy(), rows.known_BW)
    changed.values_BW[:, T // 2 :] *= 100
    a, b = (arrays(r, by=T // 2, every=False) for r in (rows, changed))
    assert (a["values_BT"][:, : T // 2] == b["values_BT"][:, : T // 2]).all()
    assert (a["values_BT"][:, T // 2 :] != b["values_BT"][:, T // 2 :]).all()
    assert a["asked_BT"].tolist() == [[0] * (T // 2 - 1) + [1] * (T - T // 2 + 1)] * 4
    whole = arrays(rows, by=T + 1, every=True)
    assert (whole["asked_BT"] == 1).all() and (whole["values_BT"] != a["values_BT"]).all()


# -- forecasts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizons", [(1, 8, 32, 64), (1, 3, 5), (4,), (3, 7)])
def test_a_schedule_covers_the_horizon_exactly_with_the_longest_heads_first(horizons):
    for n in range(1, 200):
        made = schedule(n, horizons)
        assert sum(taken for _, taken in made) == n
        assert all(taken == head for head, taken in made[:-1])
        heads = [head for head, _ in made]
        assert heads == sorted(heads, reverse=True) and set(heads) <= set(horizons)
    assert schedule(107, (1, 8, 32, 64)) == [(64, 64), (32, 32), (8, 8), *[(1, 1)] * 3]


@pytest.mark.slow
def test_a_forecast_is_what_the_model_says_when_it_is_asked_anew_each_time():
    """Without a memory: all numbers so far through the whole model, the next head's part taken."""
    model = build(small())
    params = trained_params(model)
    values_BT = windows(3, missing=0.2).values_BW
    told_BH = ahead(model, params, values_BT, horizon=9, dtype=jnp.float32)
    mean_B1, deviation_B1 = statistics(values_BT, np.isfinite(values_BT))
    read_BT = np.asarray(normalised(values_BT, mean_B1, deviation_B1), np.float32)
    n = read_BT.shape[1]
    for begin, head in ((4, 5), (1, 3), (0, 1)):
        positions_BT = jnp.broadcast_to(jnp.arange(read_BT.shape[1]), read_BT.shape)
        ctx = Context(positions_BT=positions_BT, segments_BT=None)
        said_BTO = model(params, jnp.asarray(read_BT), ctx, dtype=jnp.float32)[0]
        said_BH = np.asarray(said_BTO)[:, -1, begin : begin + head]
        read_BT = np.concatenate([read_BT, said_BH], axis=1)
    expected_BH = np.asarray(read_BT[:, n:], np.float64) * deviation_B1 + mean_B1
    assert_close(told_BH, expected_BH)
    assert np.ptp(told_BH, axis=1).min() > 0.1, "nothing was forecast"


# -- a run -----------------------------------------------------------------------------------------


def run_of(**changes) -> RunSpec:
    fixed = {
        "data.seq_len": 24,
        "data.sources.0.periods": [6, 12],
        "budget.batch_tokens": 192,
        "budget.tokens": 192 * 12,
        "evaluation.tokens": 480,
        "execution.log_every": 6,
        "model.series.horizons": [1, 4, 8],
    }
    model = replace(archs.build("time_moe", 16), n_layers=2)
    short = replace(model, series=replace(model.series, horizons=(1, 4, 8)))  # pyright: ignore[reportArgumentType]
    return put(RunSpec(model=short), {**fixed, **changes})


@pytest.mark.slow
def test_a_run_records_its_measures_and_forecasts_a_file(root, tmp_path, capsys):
    spec = run_of(**{"data.sources.0.missing": 0.1})
    assert train(spec, root=root).status == "done"
    last = ledger(root, spec)[-1]
    assert {f"stat/val/{m}_{h}" for m in ("mse", "mae", "huber") for h in (1, 4, 8)} <= set(last)
    assert np.isfinite(last["loss/val"]) and "bpb/val" not in last
    path = tmp_path / "two.csv"
    t = np.arange(40)
    rows = [f"d{i:02},{np.sin(i):.4f},{100 + 5 * np.cos(i):.4f}" for i in t]
    path.write_text("\n".join(["day,a,b", *rows[:20], "e,,", *[f"f{r}" for r in rows[20:]]]))
    call = ["sample", spec.run_id, "--root", str(root), "--prompt", str(path), "--tokens", "13"]
    assert main([*call, "--time", "day"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step,two.csv:a,two.csv:b" and len(lines) > 14
    table = np.array([[float(x) for x in line.split(",")] for line in lines[1:14]])
    assert (table[:, 0] == np.arange(1, 14)).all()
    assert np.abs(table[:, 1]).max() < 10 and 50 < table[:, 2].mean() < 150
    for wrong, said in ((["--prompt", "hello"], "forecasts real numbers"), ([], "is no number")):
        assert main([*call, *wrong]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arch, settings, said",
    [
        ("time_moe", ["data.sources.0.kind=stdlib"], "asks for values and not for text"),
        ("dense", ["data.sources.0.kind=seasonal"], "asks for text and not for values"),
        ("time_moe", ["objective=next_token"], "objective"),
        ("dense", ["objective.kind=forecast"], "asks for"),
        ("time_moe", ["data.seq_len=100", "budget.batch_tokens=800"], "horizons has 64"),
        ("time_moe", ["data.seq_len=32"], "period|horizons"),
        ("time_moe", ["model.series.horizons=[8,1]"], "write them rising"),
        ("time_moe", ["model.causal=false"], "causal true"),
        ("time_moe", ["data.sources.0.kind=series"], "data.sources.0.path: nothing"),
    ],
)
def test_a_run_that_cannot_be_is_one_line(arch, settings, said):
    with pytest.raises(InputError, match=said):
        override(RunSpec(model=archs.build(arch, 16)), settings)


def test_missing_numbers_are_refused_where_the_model_has_no_place_for_them(root):
    spec = run_of(**{"data.sources.0.missing": 0.1, "model.series.missing": False})
    with pytest.raises(InputError, match="model.series.missing"):
        open_text(spec, cache=root / ".cache")
    open_text(put(spec, {"model.series.missing": True}), cache=root / ".cache")
