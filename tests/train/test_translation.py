"""Does a run on pairs learn to translate, say so in plain nats, resume, and spread over a mesh?"""

import json
import math
import os
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import ladder
from model.archs import build
from parallelism.errors import InputError
from tests.data.test_pairs import pairs, written
from tests.train.tiny import at_step, ledger
from train.batches import training
from train.draw import Drawing
from train.loop import open_text, train
from train.paths import put
from train.programs import shape_key
from train.record import RunDir
from train.sample import load, sample
from train.spec import RunSpec

TASK = {"kind": "translation", "shortest": 2, "longest": 3, "letters": 4}
GREEDY = Drawing(temperature=0)


def tiny(changes: dict | None = None) -> RunSpec:
    fixed = {
        "data.sources": [TASK],
        "data.seq_len": 16,
        "data.source_len": 12,
        "budget.batch_tokens": 128,
        "budget.tokens": 128 * 12,
        "evaluation.tokens": 256,
        "evaluation.every": 8,
        "execution.log_every": 3,
        "execution.checkpoint_every": 4,
    }
    return put(RunSpec(model=build("encoder_decoder", 32)), {**fixed, **(changes or {})})


@pytest.mark.slow
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(root: Path):
    spec = tiny()
    whole = train(spec, root=root / "whole")
    cut = at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(spec, root=root / "cut", progress=cut).status == "interrupted"
    again = train(spec, root=root / "cut")
    assert whole.status == again.status == "done"
    assert ledger(root / "cut", spec) == ledger(root / "whole", spec)
    params = RunDir(root / "whole" / spec.run_id).read().counts["params"]
    assert params["encoder"] > 0 and params["decoder"] > params["encoder"]


@pytest.mark.slow
def test_micro_batches_and_meshes_change_nothing(root: Path):
    plain = tiny({"optim.eps": 1e-3})
    rows = ledger_of(plain, root / "plain")
    for changes in (
        {"execution.accumulate": 2, "execution.mesh.data": 2},
        {"execution.mesh.fsdp": 2, "execution.mesh.tensor": 2},
    ):
        spec = put(plain, changes)
        assert spec.run_id == plain.run_id and shape_key(spec) != shape_key(plain)
        for a, b in zip(ledger_of(spec, root / str(len(changes))), rows, strict=True):
            assert a["loss/train"] == pytest.approx(b["loss/train"], rel=1e-5)


def ledger_of(spec: RunSpec, root: Path) -> list[dict]:
    train(spec, root=root)
    return ledger(root, spec)


def test_the_loss_is_plain_nats_of_target_tokens(root: Path, tmp_path: Path):
    """A readout at zero says every id alike: ln 256, with nothing smoothed."""
    source = written(tmp_path / "corpus", pairs())
    spec = tiny({"optim.lr": 1e-9, "data.sources": [asdict(source)]})
    outcome = train(spec, root=root)
    assert outcome.metrics["loss/val"] == pytest.approx(math.log(256), rel=1e-5)
    data = open_text(spec, cache=root / ".cache")
    bytes_per_token = data.bytes_per_token()
    assert bytes_per_token is not None
    per_byte = outcome.metrics["loss/val"] / math.log(2) / bytes_per_token
    assert outcome.metrics["bpb/val"] == pytest.approx(per_byte)
    assert bytes_per_token < 1, "the end of a target is asked for and has no bytes"
    batch = training(spec, data, 0)
    assert set(batch) == {"tokens_BT", "targets_BT", "segments_BT", "weights_BT",
                          "source_BS", "source_segments_BS"}  # fmt: skip
    assert {k: v.shape[1] for k, v in batch.items()}["source_BS"] == 12


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("translated")
    spec = tiny({"budget.tokens": 256 * 800, "budget.batch_tokens": 256, "optim.lr": 0.01})
    fewer = {"evaluation.every": None, "execution.checkpoint_every": 800}
    spec = put(spec, {**fewer, "execution.log_every": 100})
    outcome = train(spec, root=root)
    assert outcome.metrics["accuracy/val"] > 0.99 and outcome.metrics["loss/val"] < 0.02
    return root, outcome.run_id


@pytest.mark.slow
def test_a_run_that_has_learned_says_words_backwards(learned: tuple[Path, str], capsys):
    root, run = learned
    for word in ("abc", "da", "dcb"):
        found = sample(run, word, root=root, tokens=8, n=2, drawing=GREEDY)
        assert found.texts == (word[::-1],) * 2 and found.ended == (True, True)
    argv = ["sample", run, "--root", str(root), "--prompt", "abc", "--temperature", "0"]
    assert ladder.main([*argv, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["samples"][0]["text"] == "cba" and "abc -> cba" in err
    trained = load(run, root=root)
    assert trained.spec.data.source_len == 12
    long = sample(run, "ab" * 10, root=root, tokens=20, drawing=GREEDY)
    assert len(long.notes) == 2 and "--prompt: 20 tokens and an end go beyond" in long.notes[0]
    with pytest.raises(InputError, match="--tokens: 1024 tokens; .*write at most 1023"):
        sample(run, "abc", root=root, tokens=1024)


@pytest.mark.slow
def test_two_hundred_steps_in_bfloat16_are_stable(root: Path):
    spec = tiny({"budget.tokens": 128 * 200, "execution.compute_dtype": "bfloat16"})
    outcome = train(spec, root=root)
    losses = [row["loss/train"] for row in ledger(root, spec)]
    assert outcome.status == "done" and np.all(np.isfinite(losses))
    assert losses[-1] < 0.5 * losses[0]
