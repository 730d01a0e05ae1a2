"""Does a run train on its objective, whoever reads its rows, and refuse one that cannot be?"""

import os
import signal
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from model.archs import build as arch
from model.context import Context
from model.decoder import build
from parallelism.errors import InputError
from tests.train.tiny import at_step, ledger, tiny
from train import objectives
from train.batches import held_out, training
from train.loop import open_text, train
from train.paths import override, put
from train.programs import shape_key
from train.spec import RunSpec, SourceSpec, from_dict, to_dict

ARCHS = {
    "next_token": "dense",
    "masked_diffusion": "diffusion",
    "span_mixture": "span_mixture",
    "translation": "encoder_decoder",
    "forecast": "time_moe",
}
KINDS = ("next_token", "masked_diffusion", "span_mixture")  # of rows of text


def of(kind: str, corpus: SourceSpec, **changes) -> RunSpec:
    spec = tiny(corpus, {"budget.tokens": 128 * 24, **changes}, checkpoint_every=1000)
    return replace(spec, model=arch(ARCHS[kind], 32), objective=None)


def test_a_named_architecture_brings_the_objective_it_is_made_for():
    assert objectives.names() == sorted(ARCHS)
    for kind in ARCHS:
        spec = RunSpec(model=arch(ARCHS[kind], 32))
        assert spec.objective.kind == kind
        assert from_dict(to_dict(spec)) == spec
        assert override(spec, ["optim.lr=0.01"]).objective == spec.objective


def test_knobs_change_the_run_and_not_its_programs():
    for kind, path in (("masked_diffusion", "samples"), ("span_mixture", "mean_span")):
        spec = RunSpec(model=arch(ARCHS[kind], 32))
        other = put(spec, {f"objective.{path}": 7})
        assert other.run_id != spec.run_id and shape_key(other) == shape_key(spec)
    ways = put(RunSpec(model=arch("span_mixture", 32)), {"objective.bidirectional_prefix": True})
    assert shape_key(ways) != shape_key(replace(ways, objective=None))


MINE = """
from typing import Literal
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from parallelism.axes import SPEC
from train.objectives import NextToken


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(NextToken):
    kind: Literal["my_objectives.late"] = "my_objectives.late"
    share: float = Field(default=0.5, gt=0, lt=1)  # of a row's targets: the last ones

    def prepare(self, batch, **how):
        made = super().prepare(batch, **how)
        late_T = np.arange(batch.tokens_BT.shape[1]) >= (1 - self.share) * batch.tokens_BT.shape[1]
        return made | {"weights_BT": batch.weights_BT * late_T}
"""


def test_an_objective_of_ones_own_is_a_module(root, corpus, tmp_path, monkeypatch):
    (tmp_path / "my_objectives").mkdir()
    (tmp_path / "my_objectives/late.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    plain = of("next_token", corpus)
    spec = override(plain, ["objective=my_objectives.late"])
    spec = override(spec, ["objective.share=0.25"])
    assert spec.run_id != plain.run_id and from_dict(to_dict(spec)) == spec
    data = open_text(spec, cache=root / ".cache")
    made, whole = training(spec, data, 0), training(plain, data, 0)
    assert (made["weights_BT"] == whole["weights_BT"] * (np.arange(16) >= 12)).all()
    with pytest.raises(InputError, match="objective.share"):
        override(spec, ["objective.share=2"])


@pytest.mark.parametrize(
    "name, settings, words",
    [
        ("dense", ["objective=masked_difusion"], "did you mean masked_diffusion"),
        ("dense", ["objective=masked_diffusion"], "the model is causal; write model.causal=false"),
        ("dense", ["objective=nobody.knows"], "dotted name of a module of your own"),
        ("diffusion", ["model.extra_inputs=0"], "write model.extra_inputs=1"),
        ("diffusion", ["objective=next_token"], "write objective.kind=masked_diffusion"),
        ("diffusion", ["objective.epsilon=0"], "objective.epsilon"),
        ("diffusion", ['data.sources=[{"kind": "recall"}]'], "objective=next_token, or sources of"),
        ("ssd", ["model.causal=false"], "a ssd layer sees earlier positions only; write"),
        ("span_mixture", ["objective.ratios=[0.5, 1.5]"], "shares between 0 and 1"),
        ("span_mixture", ["objective.mean_spam=3"], "did you mean objective.mean_span"),
        ("span_mixture", ["model.vocab=32"], "32 ids of its own and model.vocab is 32; write"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name: str, settings: list[str], words: str):
    with pytest.raises(InputError) as error:
        override(RunSpec(model=arch(name, 32)), settings)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_prefix_that_sees_itself_needs_mixers_that_see_both_ways():
    model = replace(arch("ssd", 32), vocab=288)
    settings = {"objective": {"kind": "span_mixture", "bidirectional_prefix": True}}
    with pytest.raises(InputError, match="write objective.bidirectional_prefix=false"):
        put(RunSpec(model=model), settings)


def test_marks_have_ids_of_their_own(root, corpus):
    spec = put(of("span_mixture", corpus), {"model.vocab": 280})
    with pytest.raises(InputError, match="has 256 ids and the objective 32 of its own; write 288"):
        open_text(spec, cache=root / ".cache")


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return set(a) == set(b) and all((a[k] == b[k]).all() for k in a)


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_processes_reads_the_same_batch(root, corpus, kind: str):
    spec = of(kind, corpus)
    data = open_text(spec, cache=root / ".cache")
    shares = [{"process_index": p, "process_count": 4} for p in range(4)]
    for step in (0, 17):
        whole = training(spec, data, step)
        parts = [training(spec, data, step, **share) for share in shares]
        assert equal(whole, {k: np.concatenate([p[k] for p in parts]) for k in whole})
    other = replace(spec, seed=1)
    same_text = training(other, data, 0)  # the text of seed 0, drawn for by seed 1
    assert equal(training(spec, data, 0), same_text) == (kind == "next_token")
    measures = list(held_out(spec, data))
    for i, measure in enumerate(measures):
        parts = [list(held_out(spec, data, **share))[i] for share in shares]
        for n, batch in enumerate(measure.batches):
            assert equal(
                batch, {k: np.concatenate([p.batches[n][k] for p in parts]) for k in batch}
            )
    assert all(
        equal(a, b)
        for one, two in zip(measures, held_out(other, data), strict=True)
        for a, b in zip(one.batches, two.batches, strict=True)
    )


def test_a_step_draws_anew_and_the_same_the_next_time(root, corpus):
    spec = of("masked_diffusion", corpus)
    data = open_text(spec, cache=root / ".cache")
    hidden = [training(spec, data, step)["tokens_BT"] == spec.model.vocab for step in (0, 1, 0)]
    assert (hidden[0] == hidden[2]).all() and (hidden[0] != hidden[1]).any()
    assert (hidden[0][0] != hidden[0][1]).any(), "every row has draws of its own"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_run_learns_and_resumes_to_the_same_ledger(root, corpus, kind: str):
    spec = of(kind, corpus, **{"evaluation.every": 1})
    whole = train(spec, root=root / "whole")
    rows = ledger(root / "whole", spec)
    assert whole.status == "done"
    assert rows[-1]["loss/val"] < rows[0]["loss/val"] - 0.1
    report = at_step(9, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train(spec, root=root / "cut", progress=report).status == "interrupted"
    assert train(spec, root=root / "cut").status == "done"
    assert ledger(root / "cut", spec) == rows
    assert ("loss/val/infill" in rows[-1]) == (kind == "span_mixture")
    assert "bpb/val/infill" not in rows[-1]


@pytest.mark.slow
def test_micro_batches_on_a_mesh_are_divided_by_what_the_whole_batch_counts(root, corpus):
    spec = of("masked_diffusion", corpus, **{"budget.tokens": 128 * 6})
    one = train(spec, root=root / "one").metrics
    mesh = {"execution.mesh.fsdp": 2, "execution.mesh.tensor": 2}
    two = train(put(spec, {"execution.accumulate": 4, **mesh}), root=root / "two").metrics
    assert two["loss/train"] == pytest.approx(one["loss/train"], rel=1e-5)
    assert two["loss/val"] == pytest.approx(one["loss/val"], rel=2e-4)


def test_the_recorded_bound_is_nats_of_hidden_tokens_over_all_tokens(root, corpus):
    """An untrained readout is uniform: every hidden token costs log V, whatever is hidden."""
    spec = of("masked_diffusion", corpus)
    data = open_text(spec, cache=root / ".cache")
    (measure,) = held_out(spec, data)
    model = build(spec.model)
    params = {k: jnp.asarray(v) for k, v in model.initialise(0).items()}
    assert not params["readout"].any() and params["readout"].shape == (32, 256)
    assert params["extra"].shape == (1, 32) and params["embed"].shape == (256, 32)
    total = counted = hidden = 0.0
    for batch in measure.batches:
        arrays = {k: jnp.asarray(v) for k, v in batch.items()}
        ctx = Context(positions_BT=jnp.arange(16)[None], segments_BT=arrays["segments_BT"])
        logits_BTV, _ = model(params, arrays["tokens_BT"], ctx, dtype=jnp.float32)
        nats, n = spec.objective.loss(logits_BTV, arrays)
        total, counted = total + float(nats), counted + float(n)
        hidden += float(batch["weights_BT"].sum())
    assert counted == 256 * spec.objective.samples
    assert total == pytest.approx(np.log(256) * hidden, rel=1e-5)
    assert total / counted == pytest.approx(np.log(256), rel=0.3)
    # a byte of text that is asked for is a token, and so is the end of every document
    (side,) = data.held_out
    assert side.text_bytes is not None and measure.bytes_per_token is not None
    assert measure.bytes_per_token == pytest.approx(side.text_bytes / side.n_tokens)
    assert 0.9 < measure.bytes_per_token < 1 == data.bytes_per_token()
