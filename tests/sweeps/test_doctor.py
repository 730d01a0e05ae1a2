"""What is wrong with a sweep is found, named and never dropped."""

import pytest

from parallelism.errors import InputError
from sweeps.doctor import findings, status
from sweeps.make import grid, isoflop
from sweeps.plan import Plan
from train.record import RunDir
from train.spec import to_dict

WIDTHS = (32, 48, 64, 80)


def plan(seeds=(0,), budgets=(1e12,)) -> Plan:
    settings = {"data.seq_len": 64, "budget.batch_tokens": 512}
    return isoflop(
        name="t", arch="dense", budgets=budgets, widths=WIDTHS, seeds=seeds, set=settings
    )


def end(root, run, loss: float | None, *, state: str = "done", reason: str | None = None) -> None:
    directory = RunDir(root / run.run_id)
    directory.start(spec=to_dict(run.spec), env={}, counts={})
    metrics = {} if loss is None else {"loss/val": loss, "step": float(run.spec.steps)}
    directory.finish(status=state, metrics=metrics, reason=reason)


def kinds(root, made: Plan) -> list[str]:
    return [finding.kind for finding in findings(root, [made])]


def test_a_valley_inside_the_grid_is_no_finding(tmp_path):
    made = plan()
    for run, loss in zip(made.runs, (2.3, 2.1, 2.0, 2.2), strict=True):
        end(tmp_path, run, loss)
    assert findings(tmp_path, [made]) == []


@pytest.mark.parametrize(
    ("losses", "side", "width"),
    [((2.0, 2.1, 2.2, 2.3), "smaller", 32), ((2.3, 2.2, 2.1, 2.0), "larger", 80)],
)
def test_a_minimum_at_the_edge_says_on_which_side_to_add_sizes(losses, side, width, tmp_path):
    made = plan()
    for run, loss in zip(made.runs, losses, strict=True):
        end(tmp_path, run, loss)
    (found,) = findings(tmp_path, [made])
    assert found.kind == "unbracketed"
    assert f"size {width}" in found.text and f"add {side} sizes" in found.text
    assert set(found.run_ids) == {run.run_id for run in made.runs}


def test_seeds_of_a_size_are_averaged_before_the_valley_is_judged(tmp_path):
    made = plan(seeds=(0, 1))
    # one lucky seed at the edge: its mean is not the lowest
    losses = {32: (1.9, 2.5), 48: (2.1, 2.1), 64: (2.0, 2.1), 80: (2.2, 2.2)}
    for run in made.runs:
        end(tmp_path, run, losses[run.labels["size"]][run.labels["seed"]])
    assert findings(tmp_path, [made]) == []


def test_each_budget_is_judged_by_itself(tmp_path):
    made = plan(budgets=(1e12, 3e12))
    for run in made.runs:
        bracketed = {32: 2.3, 48: 2.1, 64: 2.0, 80: 2.2}[run.labels["size"]]
        edge = {32: 2.3, 48: 2.2, 64: 2.1, 80: 2.0}[run.labels["size"]]
        end(tmp_path, run, bracketed if run.labels["budget"] == 1e12 else edge)
    (found,) = findings(tmp_path, [made])
    assert "budget 3e+12" in found.text


def test_a_lost_edge_is_said_where_it_unbrackets_a_budget(tmp_path):
    made = plan()
    for run, loss in zip(made.runs[:3], (2.3, 2.2, 2.1), strict=True):
        end(tmp_path, run, loss)
    end(tmp_path, made.runs[3], None, state="diverged", reason="non-finite loss at step 3")
    found = findings(tmp_path, [made])
    assert [f.kind for f in found] == ["diverged", "unbracketed"]
    assert "non-finite loss at step 3" in found[0].text
    assert found[0].run_ids == (made.runs[3].run_id,)
    assert "no result" in found[1].text


def test_failed_retried_and_unfinished_runs_are_each_named(tmp_path):
    made = plan()
    end(tmp_path, made.runs[0], None, state="failed", reason="worker killed by SIGKILL")
    RunDir(tmp_path / made.runs[1].run_id).record_attempt(reason="worker killed by SIGBUS")
    found = findings(tmp_path, [made])
    assert [f.kind for f in found] == ["failed", "retried", "unfinished"]
    assert "SIGKILL" in found[0].text and "SIGBUS" in found[1].text
    assert found[2].run_ids == tuple(run.run_id for run in made.runs[1:])


def test_too_few_finished_sizes_for_a_valley_are_said(tmp_path):
    made = plan()
    for run, state in zip(made.runs, ("done", "done", "diverged", "failed"), strict=True):
        end(tmp_path, run, 2.0 if state == "done" else None, state=state, reason="r")
    assert kinds(tmp_path, made) == ["diverged", "failed", "few_sizes"]


def test_a_grid_without_budgets_has_no_valleys(tmp_path):
    made = grid(name="g", arch="dense", cells=[{"optim.lr": 1e-3}])
    end(tmp_path, made.runs[0], 2.0)
    assert findings(tmp_path, [made]) == []


def test_status_of_a_root_shows_every_plan_and_every_run_once(tmp_path):
    made = plan()
    made.write(tmp_path)
    # what lies beside the plans is not one
    (tmp_path / "plans" / "t.summary.json").write_text('{"cells": {}}')
    (tmp_path / "plans" / "t.fit.json").write_text('{"law": "chinchilla", "rows": []}')
    end(tmp_path, made.runs[0], 2.5)
    lonely = grid(name="x", arch="dense", width=16, cells=[{"seed": 3}]).runs[0]
    end(tmp_path, lonely, 3.5)
    seen = status(tmp_path)
    rows = {row["run_id"]: row for row in seen.rows}
    assert len(seen.rows) == len(rows) == 5
    assert rows[made.runs[0].run_id]["status"] == "done"
    assert rows[made.runs[0].run_id]["loss/val"] == 2.5
    assert rows[made.runs[1].run_id]["status"] == "planned"
    assert rows[made.runs[1].run_id]["loss/val"] is None, "absence is absence"
    assert rows[lonely.run_id]["plan"] is None
    assert all(run_id in seen.text() for run_id in rows)
    of_plan = status(tmp_path, made)
    assert [row["run_id"] for row in of_plan.rows] == [run.run_id for run in made.runs]


def test_a_run_that_a_living_process_holds_is_running(tmp_path):
    made = plan()
    run = RunDir(tmp_path / made.runs[0].run_id)
    run.start(spec=to_dict(made.runs[0].spec), env={}, counts={})
    with run.claim():
        assert status(tmp_path, made).rows[0]["status"] == "running"
    assert status(tmp_path, made).rows[0]["status"] == "unfinished"


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        status(tmp_path / "nowhere")
