"""Is a run of a stack the run that it would be alone, whatever its neighbours do?"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from model.decoder import build
from parallelism.errors import InputError
from parallelism.wire import collectives
from tests.train.tiny import at_step, ledger, tiny
from train.carry import carry_shapes
from train.checkpoint import Checkpoints
from train.course import Outcome
from train.loop import train
from train.paths import put
from train.programs import programs, shape_key
from train.record import RunDir
from train.spec import RunSpec, SourceSpec, from_dict
from train.stack import train_stack
from train.step import abstract_state

CLOSE = 1e-5  # of a number of the ledger, and of an array's largest entry (float32, ten steps)
TOKENS = 128 * 10
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "other": {"seed": 3, "optim.lr": 2e-4, "optim.beta1": 0.8, "optim.weight_decay": 0.3},
    "short": {"schedule.kind": "wsd", "budget.tokens": 128 * 7, "execution.log_every": 2},
    "wild": {"optim.lr": 1e38, "schedule.warmup": 0.0},
    "calm": {"optim.lr": 1e-4, "evaluation.every": 5},
}
GOOD = ("plain", "other", "short")


def member(corpus: SourceSpec, name: str, **execution: Any) -> RunSpec:
    """With an lr and an eps at which ten steps do not amplify rounding, as in test_meshes.py."""
    fixed = {"model.n_layers": 1, "budget.tokens": TOKENS, "optim.lr": 5e-4, "optim.eps": 1e-3}
    return tiny(corpus, {**fixed, **CHANGES[name]}, stack=4, **execution)


def stack(corpus: SourceSpec, root: Path, *names: str, **more: Any) -> dict[str, Any]:
    """How each of these ended, trained in four places."""
    specs = {name: member(corpus, name) for name in names}
    told = train_stack(list(specs.values()), root=root, places=4, **more)
    return {name: told[spec.run_id] for name, spec in specs.items()}


def status(told: dict[str, Any], spec: RunSpec) -> str:
    return told[spec.run_id].status


def last(root: Path, spec: RunSpec) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint: parameters, and the moments of their gradients."""
    model = build(spec.model)
    abstract = abstract_state(model, carry=carry_shapes(spec, model))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    checkpoints = Checkpoints(RunDir(root / spec.run_id).checkpoints, keep=2)
    found = checkpoints.restore(abstract, jax.tree.map(lambda _: one, abstract), say=print)
    checkpoints.close()
    assert found is not None and found[0] == spec.steps
    leaves = jax.tree_util.tree_leaves_with_path(found[1])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_close(root: Path, other: Path, spec: RunSpec) -> None:
    """Ledger and last checkpoint."""
    for row, wanted in zip(ledger(root, spec), ledger(other, spec), strict=True):
        assert row == pytest.approx(wanted, rel=CLOSE)
    found, wanted = last(root, spec), last(other, spec)
    assert found.keys() == wanted.keys() and wanted
    for name, value in wanted.items():
        off, size = np.max(np.abs(found[name] - value)), np.max(np.abs(value))
        assert off <= CLOSE * size, f"{name} differs by {off:.3g} of {size:.3g}"


@pytest.fixture(scope="module")
def roots(new_root: Callable[[str], Path]) -> dict[str, Path]:
    """Two roots over one cache: of runs trained alone, and of a stack of them."""
    return {name: new_root(name) for name in ("alone", "stacked")}


@pytest.fixture(scope="module")
def stacked(corpus: SourceSpec, roots: dict[str, Path]) -> dict[str, Outcome]:
    return stack(corpus, roots["stacked"], *GOOD, "wild")


def test_a_run_of_a_stack_is_the_run_alone(corpus, roots, stacked):
    alone = {name: train(member(corpus, name), root=roots["alone"]) for name in (*GOOD, "wild")}
    specs = {name: member(corpus, name) for name in alone}
    losses = {alone[name].metrics["loss/train"] for name in GOOD}
    assert len(losses) == 3 and max(losses) - min(losses) > 100 * CLOSE, "they differ"
    for name in GOOD:
        assert stacked[name].status == alone[name].status == "done"
        assert_close(roots["stacked"], roots["alone"], specs[name])
    assert stacked["wild"].status == alone["wild"].status == "diverged"
    assert stacked["wild"].reason == alone["wild"].reason
    made = [one.program for outcome in stacked.values() for one in outcome.compilations]
    assert sorted(made) == ["evaluate", "train_step"], "one compilation for the stack"


def test_a_run_of_a_stack_leaves_the_directory_of_a_run(corpus, roots, stacked):
    spec = member(corpus, "short")
    ids = [member(corpus, name).run_id for name in (*GOOD, "wild")]
    run = RunDir(roots["stacked"] / spec.run_id).read()
    names = {p.name for p in run.path.iterdir()}
    assert {"spec.json", "env.json", "counts.json", "metrics.jsonl", "result.json"} <= names
    assert from_dict(run.spec) == spec and run.status == "done"
    assert run.env["stack"] == {"runs": ids, "places": 4}
    assert [row["step"] for row in run.metrics()] == [2, 4, 6, 7]
    assert train(spec, root=roots["stacked"]).skipped and RunDir(run.path).owner() is None
    seconds = [RunDir(roots["stacked"] / i).metrics()[-1] for i in ids]
    shared = sum(row["time/device_seconds"] for row in seconds)
    assert shared < 1.01 * max(row["time/seconds"] for row in seconds), "one device, shared by all"


def test_neither_neighbours_nor_its_place_change_a_bit(corpus, root, roots, stacked):
    again = stack(corpus, root, "calm", "short", "plain", "other")
    assert stacked["wild"].status == "diverged" and again["calm"].status == "done"
    for name in GOOD:
        spec = member(corpus, name)
        assert ledger(root, spec) == ledger(roots["stacked"], spec)
        found, wanted = last(root, spec), last(roots["stacked"], spec)
        assert all(np.array_equal(found[k], wanted[k]) for k in wanted)


def test_a_stopped_stack_resumes_to_the_same_ledgers(corpus, root, roots, stacked):
    stop = at_step(6, lambda: os.kill(os.getpid(), signal.SIGINT))
    first = stack(corpus, root, *GOOD, "wild", progress=stop)
    assert [first[name].status for name in GOOD] == ["interrupted"] * 3
    assert first["wild"].status == "diverged"
    # what is left, in other places; one of them by itself
    second = stack(corpus, root, "short", "other")
    assert [second[name].status for name in ("short", "other")] == ["done"] * 2
    for name in ("short", "other"):
        spec = member(corpus, name)
        assert ledger(root, spec) == ledger(roots["stacked"], spec)
    spec = member(corpus, "plain")
    assert train(spec, root=root).status == "done"
    assert_close(root, roots["stacked"], spec)


def test_a_mistake_in_one_run_is_its_own(corpus, root, roots, stacked):
    good, bad = member(corpus, "other"), member(corpus, "plain")
    bad = put(bad, {"data.sources.0.path": str(root / "no_such_corpus")})
    told = train_stack([bad, good], root=root, places=4)
    assert isinstance(told[bad.run_id], InputError) and "no_such_corpus" in str(told[bad.run_id])
    assert status(told, good) == "done"
    assert ledger(root, good) == ledger(roots["stacked"], good)


def test_a_run_that_another_has_in_hand_is_left_to_it(corpus, root, stacked):
    mine, theirs = member(corpus, "short"), member(corpus, "plain")
    with RunDir(root / theirs.run_id).claim():
        told = train_stack([theirs, mine], root=root, places=4)
    assert (status(told, theirs), status(told, mine)) == ("held", "done")


def test_runs_shared_out_over_devices_are_the_runs_alone(corpus, root, roots, stacked):
    mesh = {"mesh.run": 4, "mesh.data": 2}
    specs = [member(corpus, name, **mesh) for name in (*GOOD, "wild")]
    for name in GOOD:  # nothing, where that was done before
        train(member(corpus, name), root=roots["alone"])
    told = train_stack(specs, root=root)
    assert [status(told, spec) for spec in specs] == ["done"] * 3 + ["diverged"]
    for spec in specs[:3]:
        assert_close(root, roots["alone"], spec)
    ready, made = programs(specs[0], cache=root / ".cache", stack=4)
    assert made == [], "that of the stack"
    sent = collectives(ready.step.as_text(), n_devices=8)
    assert {axis for c in sent for axis in c.axes(dict(ready.mesh.shape))} == {"data"}
    placed = [at.spec for at in jax.tree.leaves(ready.step.input_shardings[0])]
    assert placed and {spec[0] for spec in placed} == {"run"}, "state, numbers and batch"


# -- bad input -------------------------------------------------------------------------------------


def test_runs_of_other_programs_are_no_stack(corpus, root):
    one, other = member(corpus, "plain"), put(member(corpus, "other"), {"model.d_model": 48})
    assert shape_key(one) != shape_key(other)
    with pytest.raises(InputError, match="run different programs; stack runs that differ in") as e:
        train_stack([one, other], root=root)
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="is there twice"):
        train_stack([one, one], root=root)


def test_a_run_axis_fits_its_stack_and_is_of_no_use_alone(corpus, root):
    for ways in (3, 8):
        with pytest.raises(InputError, match=f"{ways} does not divide the runs of execution.stack"):
            member(corpus, "plain", **{"mesh.run": ways})
    with pytest.raises(InputError, match="shares the runs of a stack, and this is one run"):
        train(member(corpus, "plain", **{"mesh.run": 2}), root=root)
