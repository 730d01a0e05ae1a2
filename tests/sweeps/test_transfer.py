"""Transfer rules against the numbers of their sources."""

import math

import pytest

from model.archs import build
from parallelism.errors import InputError
from sweeps.transfer import RULES, check, rule_of, transferred, whole_batch
from train.paths import put
from train.spec import RunSpec

MUP = RunSpec(model=build("dense", 128), seed=0)
STANDARD = put(MUP, {"model.parametrisation.kind": "standard"})


def params(n: float) -> dict[str, int]:
    return {"total": int(n), "non_embedding": int(n), "active": int(n)}


def test_step_law_gives_its_published_value_at_a_billion_parameters():
    got = RULES["step_law"].apply(params(1e9), 1e11, STANDARD, {})
    assert got["optim.lr"] == pytest.approx(1.632e-3, abs=5e-7)
    # published from unrounded coefficients: half a percent apart would be another law
    assert got["budget.batch_tokens"] == pytest.approx(1.1075e6, rel=1e-3)


def test_step_law_takes_parameters_without_embeddings():
    two = {"total": 10**9, "non_embedding": 5 * 10**8, "active": 10**9}
    got = RULES["step_law"].apply(two, 1e11, STANDARD, {})
    assert got["optim.lr"] == pytest.approx(1.79 * 5e8**-0.713 * 1e11**0.307, rel=1e-12)


def test_olmo_ladder_is_its_reference_at_108_million_parameters():
    got = RULES["olmo_ladder"].apply(params(108e6), 1e10, STANDARD, {})
    assert got == {"optim.lr": 0.0047 / 2, "budget.batch_tokens": 2048 * 160}


def test_olmo_ladder_scales_as_two_thirds_and_minus_one_third():
    one, eight = (RULES["olmo_ladder"].apply(params(n), 1, STANDARD, {}) for n in (1e8, 8e8))
    assert eight["budget.batch_tokens"] / one["budget.batch_tokens"] == pytest.approx(4)
    assert eight["optim.lr"] / one["optim.lr"] == pytest.approx(0.5)


def test_power_lines_decay_reaches_the_wanted_timescale_of_the_weight_average():
    n, d, setting = 1e8, 3e9, {"scale": 1.084, "exponent": -0.527}
    got = RULES["power_lines"].apply(params(n), d, STANDARD, setting)
    tau = STANDARD.budget.batch_tokens / (STANDARD.optim.lr * got["optim.weight_decay"] * d)
    assert tau == pytest.approx(1.084 * 30**-0.527, rel=1e-12)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_power_lines_under_mup_means_the_product_that_matrices_train_with(p):
    base = put(MUP, {"model.parametrisation.weight_decay_exponent": p})
    got = RULES["power_lines"].apply(params(1e8), 3e9, base, {"scale": 1.0, "exponent": -0.5})
    multiple = 128 / base.model.parametrisation.base_d_model
    product = base.optim.lr / multiple * got["optim.weight_decay"] * multiple**p
    tau = base.budget.batch_tokens / (product * 3e9)
    assert tau == pytest.approx(30**-0.5, rel=1e-12)


def test_fixed_changes_nothing():
    assert transferred("fixed", params=params(1e9), tokens=1e11, base=MUP).changes == {}


@pytest.mark.parametrize("rule", ["step_law", "olmo_ladder"])
def test_rules_of_the_standard_parametrisation_refuse_mup(rule):
    with pytest.raises(InputError, match="muP carries the width"):
        transferred(rule, params=params(1e9), tokens=1e11, base=MUP)


def test_a_value_that_the_rule_computes_may_not_be_set_as_well():
    with pytest.raises(InputError) as error:
        check("step_law", base=STANDARD, explicit={"optim.lr": 1e-3})
    assert error.value.field == "optim.lr"


@pytest.mark.parametrize(
    ("given", "field", "hint"),
    [
        ("step_lawn", "transfer", "step_law"),
        ({"exponent": 1}, "transfer", "choose one of"),
        ({"rule": "power_lines", "exponet": -0.5}, "transfer.exponet", "exponent"),
        ({"rule": "power_lines", "exponent": "x"}, "transfer.exponent", "write a number"),
        ({"rule": "step_law", "power_of_two": 2}, "transfer.power_of_two", "true or false"),
    ],
)
def test_a_mistyped_rule_or_setting_names_the_nearest(given, field, hint):
    with pytest.raises(InputError, match=hint) as error:
        rule_of(given)
    assert error.value.field == field


@pytest.mark.parametrize("tokens", [1.0, 255.9, 256.0, 1000.0, 8200.0, 1.1e6])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_batch_is_whole_sequences_and_divides_over_mesh_and_micro_batches(tokens, power_of_two):
    base = put(
        MUP,
        {"budget.batch_tokens": 256 * 24, "execution.mesh.data": 4, "execution.accumulate": 3},
    )
    unit = 256 * 4 * 3
    batch = whole_batch(tokens, base=base, power_of_two=power_of_two)
    assert batch % unit == 0 and batch >= unit
    put(base, {"budget.batch_tokens": batch})  # the spec agrees
    if power_of_two:
        assert math.log2(batch // unit).is_integer()
    elif tokens >= unit:
        assert abs(batch - tokens) <= unit / 2


def test_a_batch_below_one_sequence_becomes_one_and_is_said():
    moved = transferred("step_law", params=params(1e4), tokens=2e4, base=STANDARD)
    assert moved.changes["budget.batch_tokens"] == STANDARD.data.seq_len
    assert not moved.notes  # 166 tokens round to the 256 of a sequence
    moved = transferred("step_law", params=params(1e4), tokens=1e3, base=STANDARD)
    assert moved.changes["budget.batch_tokens"] == STANDARD.data.seq_len
    assert "smallest is 256" in moved.notes[0]
