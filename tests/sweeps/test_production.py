"""From a fitted size to a run that can be launched."""

import math
from dataclasses import replace

import pytest

from model.archs import build, widths
from model.count import CONVENTIONS, count
from parallelism.errors import InputError
from sweeps.make import isoflop
from sweeps.production import production
from train.record import read_json
from train.spec import from_dict

SETTINGS = {"data.seq_len": 128, "budget.batch_tokens": 1024, "optim.lr": 3e-3, "model.vocab": 512}


def base(**changes):
    plan = isoflop(name="t", arch="dense", budgets=[1e13], widths=[64], set={**SETTINGS, **changes})
    return plan.runs[0].spec


def total(width: int) -> int:
    return count(replace(build("dense", width), vocab=512), seq_len=128).params["total"]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("n", [2e5, 3.3e5, 1e6])
def test_the_nearest_size_spends_the_budget(n, convention):
    made = production(base(), n=n, flops=3e13, convention=convention)
    assert abs(made.flops[convention] / 3e13 - 1) <= 0.01
    counts = count(made.spec.model, seq_len=128)
    assert made.params == counts.params
    trained = made.spec.steps * made.spec.budget.batch_tokens
    assert made.flops[convention] == counts.flops_per_token[convention] * trained
    for width in widths("dense")[:14]:
        assert abs(math.log(total(width) / n)) >= abs(math.log(counts.params["total"] / n))


def test_settings_of_the_sweep_carry_over_and_its_size_does_not():
    made = production(base(), n=1e6, flops=3e13, convention="causal_attn").spec
    assert made.model.vocab == 512 and made.optim.lr == 3e-3 and made.data.seq_len == 128
    plain = build("dense", made.model.d_model)
    assert made.model.n_layers == plain.n_layers and made.model.repeat == plain.repeat
    assert made.model.d_model > 64


def test_the_transfer_rule_is_applied_at_the_production_size():
    start = base(**{"model.parametrisation.kind": "standard"})
    made = production(start, n=1e6, flops=3e13, convention="causal_attn", transfer="step_law")
    n, spec = made.params["non_embedding"], made.spec
    assert spec.model.parametrisation.kind == "standard"
    assert spec.optim.lr == pytest.approx(1.79 * n**-0.713 * spec.tokens**0.307, rel=0.01)
    assert abs(spec.budget.batch_tokens - 0.58 * spec.tokens**0.571) <= 128
    with pytest.raises(InputError, match="muP carries the width"):
        production(base(), n=1e6, flops=3e13, convention="causal_attn", transfer="step_law")


def test_the_spec_on_disk_is_the_run_and_its_prediction_lies_beside_it(tmp_path):
    made = production(base(), n=1e6, flops=3e13, convention="causal_attn")
    sidecar = made.write(tmp_path / "big.json", prediction={"mean": 2.0, "lo": 1.9, "hi": 2.1})
    again = from_dict(read_json(tmp_path / "big.json"))
    assert again == made.spec and again.run_id == made.spec.run_id
    told = read_json(sidecar)
    assert sidecar.name == "big.prediction.json"
    assert told["prediction"] == {"mean": 2.0, "lo": 1.9, "hi": 2.1}
    assert told["run_id"] == made.spec.run_id and told["asked"]["n"] == 1e6


def test_a_batch_that_the_devices_cannot_share_is_said():
    def notes(devices: int):
        n = total(96)
        return production(base(), n=n, flops=3e13, convention="six_nd", devices=devices).notes

    assert "8 sequences" in notes(16)[0] and "multiple of 2048" in notes(16)[0]
    assert notes(8) == ()


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"n": 10}, "the family dense has sizes from"),
        ({"n": 0}, "above 0"),
        ({"n": math.nan}, "above 0"),
        ({"flops": 1e9}, "write at least"),
        ({"flops": math.inf}, "above 0"),
        ({"convention": "causal"}, "did you mean causal_attn"),
        ({"arch": "unheard_of"}, "name the family"),
        ({"transfer": "fixd"}, "did you mean fixed"),
    ],
)
def test_productions_that_cannot_be_are_refused(changes, hint):
    given = {"n": 1e6, "flops": 3e13, "convention": "causal_attn", **changes}
    with pytest.raises(InputError, match=hint):
        production(base(), **given)


def test_a_prediction_needs_a_json_name(tmp_path):
    made = production(base(), n=1e6, flops=3e13, convention="causal_attn")
    with pytest.raises(InputError, match="ending in .json"):
        made.write(tmp_path / "big.toml", prediction={})
