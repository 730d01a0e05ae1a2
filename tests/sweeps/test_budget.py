"""Compute matching: achieved against asked, sizes against the family."""

import math
import re

import pytest

from model.archs import build, widths
from model.count import CONVENTIONS, count
from parallelism.errors import InputError
from sweeps import budget
from sweeps.make import isoflop
from train.spec import RunSpec

BUDGETS = (1e13, 3e13, 1e14)
SMALL = {"data.seq_len": 128, "budget.batch_tokens": 1024}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("arch", ["dense", "gpt2"])
def test_achieved_compute_is_within_one_percent_for_every_cell(arch, convention):
    plan = isoflop(name="t", arch=arch, budgets=BUDGETS, convention=convention, set=SMALL)
    assert len(plan.runs) == 15
    for run in plan.runs:
        # counted again from what will be trained: steps x batch
        spec = run.spec
        counts = count(spec.model, seq_len=128, remat=spec.execution.remat)
        trained = spec.steps * spec.budget.batch_tokens
        achieved = counts.flops_per_token[convention] * trained
        assert abs(achieved / run.labels["target_flops"] - 1) <= 0.01
        assert run.labels["achieved_flops"] == achieved
        assert run.labels["convention"] == convention


def test_six_nd_tokens_are_the_hand_computed_ones():
    plan = isoflop(name="t", arch="dense", budgets=[1e13], convention="six_nd", set=SMALL)
    for run in plan.runs:
        n = count(run.spec.model, seq_len=128).params["total"]
        assert abs(run.spec.tokens - 1e13 / (6 * n)) <= 512  # half a batch


def test_conventions_give_different_tokens_for_one_size():
    tokens = set()
    for convention in CONVENTIONS:
        plan = isoflop(
            name="t", arch="dense", budgets=[1e13], widths=[64], convention=convention,
            set={**SMALL, "execution.remat": "full"},
        )  # fmt: skip
        tokens.add(plan.runs[0].spec.tokens)
    assert len(tokens) == len(CONVENTIONS)


def chosen(n=5, span=4.0, tokens_per_param=20.0, budgets=BUDGETS):
    return budget.sizes(
        budget.family("dense"), budgets, convention="six_nd", n=n, span=span,
        tokens_per_param=tokens_per_param,
    )  # fmt: skip


def total(width: int) -> int:
    return count(build("dense", width), seq_len=256).params["total"]


@pytest.mark.parametrize("n", [1, 3, 4, 5, 7])
def test_sizes_are_log_spaced_around_the_wanted_tokens_per_parameter(n):
    for target, sizes in chosen(n=n, span=4).items():
        assert sizes == sorted(set(sizes)) and len(sizes) == n
        centre = math.sqrt(target / 6 / 20)  # 6 N (20 N) = C
        spacing = 2 * math.log(4) / (n - 1) if n > 1 else math.log(4)
        for i, width in enumerate(sizes):
            wanted = math.log(centre) + (i - (n - 1) / 2) * (spacing if n > 1 else 0)
            # the family has one width in ten percent; none may stray a whole spacing
            assert abs(math.log(total(width)) - wanted) <= spacing


def test_budgets_share_widths():
    shared = chosen()
    alone = [chosen(budgets=(target,))[target] for target in BUDGETS]
    distinct = {width for sizes in shared.values() for width in sizes}
    assert len(distinct) < len({width for sizes in alone for width in sizes})
    assert len(distinct) < 15


def test_widths_are_the_familys_own():
    assert {w for sizes in chosen().values() for w in sizes} <= set(widths("dense"))


def number_after(words: str, message: str) -> float:
    found = re.search(words + r" ([0-9.e+]+)", message)
    assert found, message
    return float(found.group(1))


def test_a_budget_too_small_for_the_family_names_one_that_is_enough():
    with pytest.raises(InputError, match="too small for the family dense") as error:
        chosen(budgets=(1e9,))
    enough = number_after("at least", str(error.value))
    assert len(chosen(budgets=(enough,))[enough]) == 5
    with pytest.raises(InputError):
        chosen(budgets=(enough * 0.9,))


@pytest.mark.slow
def test_a_budget_too_large_for_the_family_is_refused():
    with pytest.raises(InputError, match="too large for the family dense"):
        chosen(budgets=(1e30,))


def test_a_family_too_coarse_for_the_grid_says_which_sizes_it_has():
    with pytest.raises(InputError, match="the family dense has") as error:
        chosen(n=20, span=1.5)
    assert error.value.field == "sizes"


def test_a_budget_of_too_few_batches_names_a_budget_and_a_batch_that_do():
    def plan(flops, batch):
        settings = {"data.seq_len": 128, "budget.batch_tokens": batch}
        return isoflop(name="t", arch="dense", budgets=[flops], widths=[64], set=settings)

    per_token = count(build("dense", 64), seq_len=128).flops_per_token["causal_attn"]
    flops = 7.5 * 2048 * per_token
    with pytest.raises(InputError, match="more than 1 %") as error:
        plan(flops, 2048)
    message = str(error.value)
    assert plan(number_after("at least", message), 2048).runs
    batch = int(number_after("budget.batch_tokens=|budget.batch_tokens", message.replace("=", " ")))
    assert batch % 128 == 0
    assert plan(flops, batch).runs


def test_the_gap_between_budget_and_batches_is_checked_not_assumed():
    flops_per_token = 1e6
    with pytest.raises(InputError):
        budget.whole_tokens(
            10.5e9, flops_per_token=flops_per_token, batch_tokens=1000, unit=100, what="t"
        )
    got = budget.whole_tokens(
        10e9, flops_per_token=flops_per_token, batch_tokens=1000, unit=100, what="t"
    )
    assert got == 10_000


def test_an_unknown_convention_names_the_nearest():
    with pytest.raises(InputError, match="did you mean causal_attn"):
        isoflop(name="t", arch="dense", budgets=[1e13], convention="causal_atn")


def test_a_mesh_does_not_change_which_runs_a_plan_has():
    one = isoflop(name="t", arch="dense", budgets=[1e13], set=SMALL)
    two = isoflop(name="t", arch="dense", budgets=[1e13], set={**SMALL, "execution.mesh.data": 2})
    assert [r.run_id for r in one.runs] == [r.run_id for r in two.runs]
    assert isinstance(two.runs[0].spec, RunSpec) and two.runs[0].spec.execution.mesh.data == 2
