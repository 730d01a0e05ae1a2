"""Does a run of a mixture of experts go on as a chain of experts, from the loss where it stood?"""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import pytest

import ladder
from model.archs import build as arch
from model.decoder import build
from model.upcycle import moe_to_chain
from parallelism.errors import InputError
from tests.train.tiny import STEPS, at_step, ledger, tiny
from train.loop import train
from train.paths import override, put
from train.record import RunDir
from train.sample import load
from train.spec import RunSpec, SourceSpec
from train.start import first_state, origin
from train.upcycle import check

FFN = "model.repeat.0.ffn"
EXPERTS = {"experts": 4, "chosen": 2, "ratio": 1.0}


@pytest.fixture(scope="module")
def mixture(corpus: SourceSpec, new_root: Callable[[str], Path]):
    """A finished run of a mixture: (its root, its spec, its last parameters)."""
    root = new_root("mixture")
    ffn = {"kind": "moe", **EXPERTS}  # without a bias, which moves whatever the learning rate
    spec = tiny(corpus, {FFN: ffn, "model.arch": "moe", "optim.lr": 0.02})
    assert train(spec, root=root).status == "done"
    params = {k: np.asarray(v) for k, v in load(spec.run_id, root=root).params.items()}
    return root, spec, params


@pytest.fixture
def root(mixture, root: Path) -> Path:
    """An empty root but for the run of a mixture."""
    shutil.copytree(mixture[0] / mixture[1].run_id, root / mixture[1].run_id)
    return root


def chained(spec: RunSpec, **start) -> RunSpec:
    knobs = {"passes": 2, "residual": "upcycled", "routers": "each"}
    ffn = {"kind": "chain_of_experts", **EXPERTS, **knobs}
    begin = {"kind": "upcycle", "run": spec.run_id, **start}
    return put(spec, {FFN: ffn, "model.arch": "chain_of_experts", "start": begin})


@pytest.mark.parametrize("passes, routers", [(2, "each"), (3, "one")])
def test_the_first_state_is_the_chain_of_the_mixture_with_empty_moments(
    mixture, root: Path, passes: int, routers: Literal["each", "one"]
):
    _, spec, params = mixture
    run = put(chained(spec), {f"{FFN}.passes": passes, f"{FFN}.routers": routers})
    model = build(run.model)
    state = first_state(run, model, root=root)
    assert set(state["params"]) == set(model.declarations) != set(params)
    _, expected = moe_to_chain(spec.model, params, passes=passes, routers=routers)
    fresh = model.initialise(run.seed)
    for path, value in state["params"].items():
        assert isinstance(value, np.ndarray) and np.array_equal(value, expected[path]), path
    assert any(not np.array_equal(state["params"][k], fresh[k]) for k in fresh)
    adam = state["opt"][1]
    assert int(state["step"]) == int(adam.count) == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves((adam.mu, adam.nu)))


def test_the_loss_goes_on_from_where_the_mixture_stood(mixture, root: Path):
    _, spec, params = mixture
    before = RunDir(root / spec.run_id).metrics()[-1]["loss/val"]
    # steps too small to move a float32, so that what is evaluated after the first is the start
    still = {"optim.lr": 1e-20, "evaluation.every": 1, "budget.tokens": 128 * 2}
    losses = {}
    for name, run in (
        ("upcycled", put(chained(spec), still)),
        ("scratch", put(chained(spec), {**still, "start": None})),
    ):
        assert train(run, root=root).status == "done"
        losses[name] = ledger(root, run)[0]["loss/val"]
    assert losses["upcycled"] == pytest.approx(before, rel=2e-6)
    assert abs(losses["scratch"] - before) > 0.01
    made = load(put(chained(spec), still).run_id, root=root)
    assert set(made.params) - set(params) >= {"repeat.0.ffn.mix_0", "repeat.0.ffn.router_1.weight"}


@pytest.mark.slow
def test_an_upcycled_run_resumes_to_the_same_ledger_without_its_origin(
    mixture, root: Path, tmp_path
):
    _, spec, _ = mixture
    run = chained(spec)
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
    after = load(run.run_id, root=root).params
    assert np.any(after["repeat.0.ffn.mix_0"]), "the chain learns to use its passes"
    record = RunDir(root / run.run_id).read()
    assert record.env["start"]["run"] == spec.run_id == record.counts["start"]["run"]
    one = record.counts["per_expert"]
    assert (
        one["params"] == 2 * 3 * 32 * 32
        and one["flops_per_token"]["causal_attn"] == 12 * (one["params"])
    )


def test_the_mixtures_compute_and_place_in_the_data_are_the_origins(mixture, root: Path):
    _, spec, _ = mixture
    begun = origin(chained(spec), RunDir(root / "none"))
    assert begun is not None
    assert begun.rows == spec.steps * spec.sequences_per_batch and begun.tokens == 128 * STEPS
    per_token = RunDir(root / spec.run_id).read().counts["flops_per_token"]["causal_attn"]
    assert begun.flops == per_token * spec.tokens
    fresh = origin(chained(spec, data="fresh"), RunDir(root / "none"))
    assert fresh is not None and fresh.rows == 0


def test_the_id_of_the_mixtures_run_is_part_of_the_runs(mixture, root: Path):
    spec = mixture[1]
    run = chained(spec)
    assert chained(spec, run=str(root / spec.run_id)).run_id == run.run_id
    others = (put(run, {"start": None}), put(run, {"start.run": "0123456789ab"}))
    assert len({r.run_id for r in (run, spec, *others)}) == 4


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, said",
    [
        ({f"{FFN}.residual": "prenorm_inner"}, f"{FFN}.residual: prenorm_inner; .* with upcycled;"),
        ({f"{FFN}.chosen": 1}, f"{FFN}.chosen: 1; .* does not fit, which becomes a chain with 2;"),
        ({f"{FFN}.bias_rate": 0.01}, f"{FFN}.bias_rate: 0.01; .* becomes a chain with None;"),
        ({"model.n_layers": 4}, "model.n_layers: 4; .* does not fit, which .* with 2;"),
        ({f"{FFN}.passes": 1}, f"{FFN}.passes: 1; write 2 or more: one pass is the mixture itself"),
        ({FFN: {"kind": "moe", **EXPERTS}}, "model.arch: .* write --arch chain_of_experts"),
        ({"seed": 1}, "seed: 1; the run that it begins from has 0, .* start.data=fresh"),
    ],
)
def test_a_chain_that_the_mixture_does_not_become_is_refused_before_anything_is_compiled(
    mixture, root: Path, changes: dict, said: str, monkeypatch
):
    monkeypatch.setattr("train.loop.programs", lambda *_, **__: pytest.fail("compiled"))
    run = put(chained(mixture[1]), changes)
    with pytest.raises(InputError, match=said) as caught:
        train(run, root=root)
    assert "\n" not in str(caught.value)
    assert not (root / run.run_id / "spec.json").exists()


def test_a_run_without_a_mixture_is_refused(mixture):
    spec = mixture[1]
    with pytest.raises(InputError, match="start.run: 0123456789ab; has no mixture of experts"):
        check(arch("dense", 32), chained(spec).model, run="0123456789ab")


def test_an_upcycled_run_freezes_nothing():
    start = '{"kind":"upcycle","run":"0123456789ab","frozen":true}'
    with pytest.raises(InputError, match="an upcycled run trains every layer"):
        override(RunSpec(model=arch("moe", 32)), [f"start={start}"])


def test_the_front_door_says_it_in_one_line(mixture, root: Path, capsys):
    settings = ["start.kind=upcycle", f"start.run={mixture[1].run_id}"]
    flags = [word for text in settings for word in ("--set", text)]
    status = ladder.main(["train", "--arch", "chain_of_experts", "--root", str(root), *flags])
    err = capsys.readouterr().err
    assert status == 2 and "which becomes a chain with" in err
    assert len(err.strip().splitlines()) == 1
