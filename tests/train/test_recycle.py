"""Does a run of one stream go on as ParScale, and does a frozen backbone stay what it was?"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ladder
from model.archs import build as arch
from model.context import unplaced
from model.decoder import build
from parallelism.errors import InputError
from tests import properties as p
from tests.train.tiny import STEPS, at_step, ledger, tiny
from train.loop import train
from train.paths import differences, override, put
from train.programs import shape_key
from train.record import RunDir
from train.recycle import frozen
from train.sample import load
from train.schedule import hyper
from train.spec import RunSpec, SourceSpec, from_dict, to_dict
from train.start import first_state, origin
from train.step import abstract_state, forward, initial_state, train_step

STREAMS = {"count": 2, "prefix": 4}


@pytest.fixture(scope="module")
def dense(corpus: SourceSpec, new_root: Callable[[str], Path]):
    """A finished dense run: (its root, its spec, its last parameters)."""
    root = new_root("dense")
    spec = tiny(corpus, {"budget.tokens": 128 * 40, "optim.lr": 0.02})
    assert train(spec, root=root).status == "done"
    params = {k: np.asarray(v) for k, v in load(spec.run_id, root=root).params.items()}
    return root, spec, params


@pytest.fixture
def root(dense, root: Path) -> Path:
    """An empty root but for the dense run."""
    shutil.copytree(dense[0] / dense[1].run_id, root / dense[1].run_id)
    return root


def recycled(spec: RunSpec, **start) -> RunSpec:
    begin = {"kind": "recycle", "run": spec.run_id, **start}
    return put(spec, {"model.streams": STREAMS, "model.arch": "parscale", "start": begin})


def test_the_first_state_is_the_run_with_new_streams_and_empty_moments(dense, root: Path):
    _, spec, params = dense
    run = recycled(spec)
    model = build(run.model)
    state = first_state(run, model, root=root)
    fresh = model.initialise(run.seed)
    new = set(fresh) - set(params)
    assert {k.rpartition(".")[2] for k in new} == {
        "prefix_k", "prefix_v", "hidden", "hidden_bias", "weight", "weight_bias"
    }  # fmt: skip
    for path, value in state["params"].items():
        assert np.array_equal(value, fresh[path] if path in new else params[path]), path
        assert path in new or fresh[path].ndim == 1 or not np.array_equal(value, fresh[path]), path
    adam = state["opt"][1]
    assert set(adam.mu) == set(adam.nu) == set(model.declarations)
    assert int(state["step"]) == int(adam.count) == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves((adam.mu, adam.nu)))


@pytest.mark.slow
def test_the_loss_jumps_and_recovers_with_the_backbone_trained_or_frozen(dense, root: Path):
    _, spec, params = dense
    before = RunDir(root / spec.run_id).metrics()[-1]["loss/val"]
    ends = {}
    for still in (False, True):
        run = put(
            recycled(spec, frozen=still), {"evaluation.every": 1, "budget.tokens": 128 * STEPS * 2}
        )
        assert train(run, root=root).status == "done"
        losses = [row["loss/val"] for row in ledger(root, run)]
        assert losses[-1] < losses[0]
        ends[still] = losses[-1]
        now = load(run.run_id, root=root).params
        same = {path: bool(np.array_equal(now[path], params[path])) for path in params}
        assert all(same.values()) if still else not any(same.values())
        moved = build(run.model).initialise(run.seed)
        assert all(not np.array_equal(now[k], moved[k]) for k in set(now) - set(params))
    assert ends[False] != ends[True] and ends[False] < before + 0.1


def test_nothing_is_kept_or_computed_for_frozen_parameters(dense):
    spec = dense[1]
    run, free = recycled(spec, frozen=True), recycled(spec)
    model = build(run.model)
    still = frozen(run)
    assert still == frozenset(build(spec.model).declarations) and frozen(free) == frozenset()
    assert shape_key(run) != shape_key(free) == shape_key(put(free, {"start": None}))
    state = abstract_state(model, frozen=still)
    assert set(state["opt"][1].mu) == set(model.declarations) - still
    assert set(state["params"]) == set(model.declarations)
    loss = partial(
        forward, model, constrain=unplaced, layers="unroll", remat="none",
        dtype=jnp.float32, isolate=True,
    )  # fmt: skip
    batch, numbers = p.batch(8, 16, vocab=run.model.vocab), hyper(run)
    flops, traces = {}, {}
    for name, paths in (("all", frozenset()), ("some", still)):
        step = jax.jit(train_step(model, loss, accumulate=2, frozen=paths))
        start = initial_state(model, 0, frozen=paths)
        start["params"]["readout"] = p.stream(32, 256)
        traces[name] = step.lower(start, numbers, batch)
        flops[name] = traces[name].cost_analysis()["flops"]
        after, _ = traces[name].compile()(start, numbers, batch)
        for path, value in after["params"].items():
            if path in paths:
                assert np.array_equal(value, start["params"][path]), path
    assert flops["some"] < 0.85 * flops["all"], "gradients of frozen matrices are computed"


def test_data_goes_on_after_what_the_dense_run_read(dense, root: Path):
    _, spec, _ = dense
    begun = origin(recycled(spec), RunDir(root / "none"))
    assert begun is not None
    assert begun.rows == spec.steps * spec.sequences_per_batch and begun.tokens == spec.tokens
    per_token = RunDir(root / spec.run_id).read().counts["flops_per_token"]["causal_attn"]
    assert begun.flops == per_token * spec.tokens
    fresh = origin(recycled(spec, data="fresh"), RunDir(root / "none"))
    assert fresh is not None and fresh.rows == 0


def test_a_recycled_run_resumes_to_the_same_ledger_without_its_origin(dense, root: Path, tmp_path):
    _, spec, _ = dense
    run = put(recycled(spec, frozen=True), {"budget.tokens": 128 * STEPS})
    other = tmp_path / "other"
    other.mkdir()
    for name in (spec.run_id, ".cache"):
        (other / name).symlink_to(root / name)
    assert train(run, root=other).status == "done"
    stop = at_step(6, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train(run, root=root, progress=stop).status == "interrupted"
    shutil.rmtree(root / spec.run_id)
    assert train(run, root=root).status == "done"
    assert ledger(root, run) == ledger(other, run)
    record = RunDir(root / run.run_id).read()
    assert record.env["start"]["run"] == spec.run_id == record.counts["start"]["run"]


# -- one science, one id ---------------------------------------------------------------------------


def test_the_id_of_the_origin_is_science_and_where_its_folder_lies_is_not(dense, root: Path):
    spec = dense[1]
    run = recycled(spec)
    assert recycled(spec, run=str(root / spec.run_id)).run_id == run.run_id
    ids = {r.run_id for r in (run, recycled(spec, frozen=True), recycled(spec, data="fresh"))}
    ids |= {recycled(spec, run="0123456789ab").run_id, put(run, {"start": None}).run_id}
    assert len(ids) == 5
    assert from_dict(json.loads(json.dumps(to_dict(run)))) == run
    tree = to_dict(spec)
    del tree["start"]
    assert from_dict(tree).run_id == spec.run_id


def test_differences_are_named_by_path():
    a = arch("dense", 32)
    b = replace(arch("parscale", 32), n_layers=4)
    found = differences(a, b)
    assert found["n_layers"] == (2, 4) and found["arch"] == ("dense", "parscale")
    assert found["streams.count"] == (None, 4) and "d_model" not in found
    assert differences(a, a) == {}


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model.repeat.0.ffn.ratio": 4.0}, "model.repeat.0.ffn.ratio: 4.0; .* does not fit, with"),
        ({"model.n_layers": 4}, "model.n_layers: 4; .* does not fit, with 2"),
        ({"model.streams": None}, "model.streams: 1; recycling gives a run streams; write two"),
        ({"seed": 1}, "seed: 1; the run that it begins from has 0, .* start.data=fresh"),
        ({"data.validation": 0.1}, "data.validation: 0.1; the run that it begins from has 0.05"),
        ({"start.run": "0123456789ab"}, "start.run: 0123456789ab; no such run"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_before_anything_is_compiled(
    dense, root: Path, changes: dict, said: str, monkeypatch
):
    monkeypatch.setattr("train.loop.programs", lambda *_, **__: pytest.fail("compiled"))
    run = put(recycled(dense[1]), changes)
    with pytest.raises(InputError, match=said) as caught:
        train(run, root=root)
    assert "\n" not in str(caught.value)
    assert not (root / run.run_id / "spec.json").exists()


def test_an_unfinished_origin_is_refused(dense, root: Path):
    RunDir(root / dense[1].run_id).clear_result()
    with pytest.raises(InputError, match="is unfinished; train it to its end first"):
        train(recycled(dense[1]), root=root)


@pytest.mark.parametrize(
    "start, said",
    [
        ('{"kind":"grow","run":"x"}', "'x' is no run; write the 12 characters of its id"),
        ('{"kind":"graft","run":"0123456789ab"}', "input should be 'grow', 'recycle' or 'upcycle'"),
        ('{"kind":"grow","run":"0123456789ab","frozen":true}', "a grown run trains every layer"),
        ('{"kind":"grow"}', "start.run"),
    ],
)
def test_a_start_that_cannot_be_is_one_line(start: str, said: str):
    with pytest.raises(InputError, match=said) as caught:
        override(RunSpec(model=arch("dense", 32)), [f"start={start}"])
    assert "\n" not in str(caught.value)


def test_the_front_door_says_it_in_one_line(dense, root: Path, capsys):
    begin = json.dumps({"kind": "recycle", "run": dense[1].run_id})
    status = ladder.main(
        ["train", "--arch", "parscale", "--root", str(root), "--set", f"start={begin}"]
    )
    err = capsys.readouterr().err
    assert status == 2 and "does not fit" in err and len(err.strip().splitlines()) == 1
