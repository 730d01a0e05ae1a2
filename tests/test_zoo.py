"""Does the zoo report what its runs found, and say what is missing?"""

import math

import numpy as np
import pytest

from benchmarks import zoo_notes, zoo_page
from benchmarks.zoo_measure import compiled_over_counted
from benchmarks.zoo_plan import Zoo, by_arch, plans, tasks
from benchmarks.zoo_results import _at_budget, _task, gather, interval, near_active
from sweeps.launch.local import sweep
from train.loop import train


def row(**more):
    return {"task": "text", "budget": 1e9, "d_model": 16, "lr": 0.01, "status": "done", **more}


def test_the_interval_is_students_and_one_seed_has_none():
    values = [2.0, 2.3, 2.6]
    found = interval(values)
    half = 4.302652729911275 * np.std(values, ddof=1) / math.sqrt(3)  # t of 2 degrees, 97.5 %
    assert found["mean"] == pytest.approx(2.3) and found["n"] == 3
    assert found["hi"] - 2.3 == pytest.approx(half) == pytest.approx(2.3 - found["lo"])
    assert interval([2.0]) == {"n": 1, "mean": 2.0, "lo": None, "hi": None}
    assert interval([])["mean"] is None


def test_diverged_runs_are_counted_and_a_width_with_fewer_seeds_does_not_win():
    rows = [row(loss=2.0), row(loss=2.2), row(loss=0.1, budget=2e9)]
    rows += [row(d_model=32, loss=1.0), row(d_model=32, status="diverged", loss=None)]
    found = _at_budget(rows, 1e9)
    assert (found["d_model"], found["losses"]) == (16, [2.0, 2.2])
    assert found["ended"] == {"diverged": 1}
    nothing = _at_budget([row(status="diverged")], 1e9)
    assert nothing["mean"] is None and nothing["ended"] == {"diverged": 1}


def test_a_task_reports_its_best_learning_rate():
    rows = [row(lr=lr, accuracy=a) for lr, a in ((0.1, 0.4), (0.1, 0.6), (0.2, 0.9), (0.2, 0.3))]
    assert _task(rows)["lr"] == 0.2 and _task(rows)["mean"] == pytest.approx(0.6)


def test_every_architecture_has_the_same_flops_seeds_and_steps():
    zoo = Zoo(archs=("dense", "gpt2"), budgets=(8e9, 2e10), tasks=tasks(10, (0.01,)))
    text, task, left_out = plans(zoo)
    assert text is not None and task is not None and not left_out
    for plan in (text, task):
        ours = by_arch(plan)
        assert set(ours) == {"dense", "gpt2"} and len(set(map(len, ours.values()))) == 1
    for run in text.runs:
        assert run.labels["achieved_flops"] == pytest.approx(run.labels["budget"], rel=0.01)
    assert len({(r.labels["task"], r.spec.steps) for r in task.runs}) == len(zoo.tasks)


def test_the_papers_order_is_judged_by_intervals_and_unsteady_seeds_are_told():
    def one(*accuracies: float):
        return {"tasks": {"recall": {"accuracies": list(accuracies), **interval(accuracies)}}}

    found = {
        "dense": one(0.99, 1.0, 1.0),
        "deltanet": one(0.99, 0.98, 1.0),
        "gla": one(0.40, 0.41, 0.42),
        "linear": one(0.6, 0.61, 0.62),
        "ssd": one(0.2, 0.9, 0.9),
    }
    order, unsteady = zoo_notes._separation("recall", found)
    assert "dense 0.997 over deltanet 0.990: not apart" in order
    assert "deltanet 0.990 over gla 0.410: holds" in order
    assert "gla 0.410 over linear 0.610: NOT SO" in order
    assert unsteady.endswith("ssd 0.200, 0.900, 0.900.") and "dense" not in unsteady
    assert zoo_notes._separation("parity", found) == []


def test_architectures_are_compared_at_the_width_whose_active_parameters_come_nearest():
    def runs(**active: int):
        return [
            row(d_model=int(w[1:]), active=n, tokens=5, flops=1e9, loss=n)
            for w, n in active.items()
        ]

    found = {
        "dense": {"text": {"1e+09": {"d_model": 24}}, "runs": runs(w16=100, w24=200)},
        "other": {"text": {}, "runs": runs(w16=190, w24=400)},
        "none": {"text": {}, "runs": []},
    }
    near = near_active(found, 1e9)
    assert (near["dense"]["d_model"], near["dense"]["mean"]) == (24, 200)
    assert (near["other"]["d_model"], near["other"]["active"]) == (16, 190)
    assert "active" not in near["none"] and near["none"]["mean"] is None


def test_what_is_made_once_a_step_is_seen_in_the_compilers_count():
    cells = {
        name: plans(Zoo(archs=(name,), budgets=(8e9,), widths=(24,), seeds=(0,)))[0]
        for name in ("dense", "s4")
    }
    found = {name: compiled_over_counted(plan.runs[0].spec) for name, plan in cells.items() if plan}
    assert found["dense"] == pytest.approx(1, abs=0.25) and found["s4"] > 2


def test_uncounted_compute_is_told_where_there_is_any():
    def found(**shares: float):
        return {arch: {"compiled_over_counted": x} for arch, x in shares.items()}

    (line,) = zoo_notes._uncounted(found(dense=1.0, gla=1.1, s4=3.5))
    assert "s4 3.50, for all others 1.00 to 1.10" in line
    (alone,) = zoo_notes._uncounted(found(s4=3.5))
    assert "others" not in alone
    assert zoo_notes._uncounted(found(dense=1.0)) == zoo_notes._uncounted({}) == []


@pytest.mark.slow
def test_the_page_is_made_from_the_run_directories_and_names_what_is_missing(root):
    zoo = Zoo(
        archs=("dense", "gpt2"),
        budgets=(2e9,),
        widths=(16,),
        seeds=(0,),
        tasks={"parity": tasks(4, (0.01,))["parity"]},
        task_width=16,
    )
    text, task, left_out = plans(zoo)
    assert not left_out
    assert text is not None and task is not None
    assert sweep(text, root, workers=1, show=False).exit_status == 0
    train(by_arch(task)["dense"][0].spec, root=root)
    found = gather(zoo, text, task, root=root, say=lambda _: None)
    one = found["dense"]["text"]["2e+09"]
    assert one["losses"] == [found["dense"]["runs"][0]["loss"]] and one["losses"][0] > 0
    assert "law" in found["dense"] and "finished runs" in found["dense"]["law"]["reason"]
    assert found["gpt2"]["tasks"]["parity"]["ended"] == {"not run": 1}
    machine = {"cpus": 1, "processor": "p", "device": "cpu", "python": "3", "versions": {}}
    value = {
        "archs": found,
        "machine": machine,
        "commits": [],
        "modified": False,
        "ends": {"done": 3},
        "command": "zoo",
        "convention": "causal_attn",
        "left_out": {"nothing": "of this name"},
    }
    text_page = zoo_page.page(value, zoo, figure="zoo.svg")
    assert f"{one['losses'][0]:.4f} (16)" in text_page and "1 not run" in text_page
    assert "**nothing** is left out: of this name" in text_page
    figure = zoo_page.draw(value, zoo, root / "zoo.svg")
    assert "validation loss" in figure.read_text()


def test_what_reads_no_text_is_left_out_with_the_reason():
    text, _, left_out = plans(Zoo(archs=("dense", "encoder_decoder"), widths=(16,)))
    assert left_out == {"encoder_decoder": "reads pairs, and no text"}
    assert text is not None and {run.labels["arch"] for run in text.runs} == {"dense"}
