"""The demo's prediction is one: what was trained before it is said to have been."""

import json
from pathlib import Path

import pytest

from analysis.artefact import Fit
from analysis.fit import fit
from parallelism.errors import InputError
from sweeps import demo
from tests.analysis.synthetic import Truth, grid, observations
from train.record import RunDir
from train.spec import to_dict

PLAN = demo._plan("dense", "tiny")


@pytest.fixture(scope="module")
def law() -> Fit:
    N, D = grid(Truth(), budgets=4, sizes=6)
    return fit(observations(N, D, Truth().loss(N, D)), bootstrap=10)


def rung(law: Fit, root: Path, said: list[str]):
    return demo._rung(PLAN, law, root / "heldout.json", root, said.append)


def end(root: Path, run) -> None:
    directory = RunDir(root / run.run_id)
    directory.start(spec=to_dict(run.spec), env={}, counts={})
    directory.finish(status="done", metrics={"loss/val": 3.0})


def test_a_prediction_written_before_the_rung_stands_after_it(law, tmp_path):
    said: list[str] = []
    plan, prediction, before = rung(law, tmp_path, said)
    kept = (tmp_path / "heldout.json").read_bytes()
    assert before and "before the rung" in said[0]
    assert json.loads(kept)["run_id"] == plan.runs[0].run_id
    end(tmp_path, plan.runs[0])
    again, same, still = rung(law, tmp_path, said)
    assert (again, same, still) == (plan, prediction, True)
    assert (tmp_path / "heldout.json").read_bytes() == kept and len(said) == 1


@pytest.mark.parametrize("kept", [None, {"run_id": "another", "data_hash": "x", "prediction": {}}])
def test_a_prediction_after_the_rung_was_trained_says_so(law, kept, tmp_path):
    said: list[str] = []
    plan, _, _ = rung(law, tmp_path / "elsewhere", said)
    end(tmp_path, plan.runs[0])
    if kept is not None:
        (tmp_path / "heldout.json").write_text(json.dumps(kept))
    _, _, before = rung(law, tmp_path, said)
    assert not before and "AFTER" in said[1]
    assert json.loads((tmp_path / "heldout.json").read_text())["before_training"] is False
    assert rung(law, tmp_path, said)[2] is False


def test_an_encoder_and_its_decoder_are_sent_to_the_sweep_of_their_own_law(tmp_path):
    with pytest.raises(InputError, match="ladder sweep split.toml, as in docs/translation.md"):
        demo.demo(arch="encoder_decoder", size_name="tiny", root=tmp_path)
    assert not list(tmp_path.iterdir())
