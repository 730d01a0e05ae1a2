"""Plans: the same sweep from TOML, Python and plan.json; identity; every mistake in one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from parallelism.errors import InputError
from sweeps import doctor
from sweeps.dry_run import dry_run
from sweeps.grid import axis, product
from sweeps.load import load
from sweeps.make import grid, isoflop
from sweeps.plan import read
from train.record import RunDir
from train.spec import to_dict

TOML = """
name = "ladder-1"
why = "does the valley move?"

[isoflop]
arch = "dense"
budgets = [1e13, 3e13]
sizes = 4
span = 3
convention = "full_attn"
seeds = [0, 1]
transfer = { rule = "power_lines", exponent = -0.5 }

[set]
optim.lr = 4e-3
data.seq_len = 128
"budget.batch_tokens" = 1024
"""
PYTHON = """
from sweeps.make import isoflop

plan = isoflop(
    name="ladder-1", why="does the valley move?", arch="dense", budgets=[1e13, 3e13],
    sizes=4, span=3, convention="full_attn", seeds=[0, 1],
    transfer={"rule": "power_lines", "exponent": -0.5},
    set={"optim.lr": 4e-3, "data.seq_len": 128, "budget.batch_tokens": 1024},
)
"""
GRID_TOML = """
name = "lr"
[grid]
arch = "gpt2"
width = 64
product = { optim.lr = [1e-3, 2e-3], seed = [0, 1, 2] }
[set]
data.seq_len = 128
"""
GRID_PYTHON = """
from sweeps.grid import axis, product
from sweeps.make import grid

cells = product(axis("optim.lr", [1e-3, 2e-3]), axis("seed", [0, 1, 2]))
plan = grid(name="lr", arch="gpt2", width=64, cells=cells, set={"data.seq_len": 128})
"""


def written(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def simple(**changes):
    given = {"name": "t", "arch": "dense", "budgets": [1e13], "widths": [64, 96], **changes}
    return isoflop(**given)


@pytest.mark.parametrize(("toml", "python"), [(TOML, PYTHON), (GRID_TOML, GRID_PYTHON)])
def test_toml_and_python_write_the_same_bytes_of_plan_json_and_it_reads_back(
    toml, python, tmp_path
):
    a = load(written(tmp_path, "sweep.toml", toml)).write(tmp_path / "a")
    b = load(written(tmp_path, "sweep.py", python)).write(tmp_path / "b")
    assert a.read_bytes() == b.read_bytes()
    again = load(a)
    assert again == read(a)
    assert again.write(tmp_path / "c").read_bytes() == a.read_bytes()
    assert len(again.runs) == (16 if toml is TOML else 6)


def test_run_ids_are_those_of_the_specs_and_survive_order_and_execution():
    one = simple(budgets=[1e13, 3e13])
    two = simple(budgets=[3e13, 1e13], set={"execution.log_every": 7})
    assert {r.run_id for r in one.runs} == {r.run_id for r in two.runs}
    assert [r.run_id for r in one.runs] != [r.run_id for r in two.runs]
    assert all(r.run_id == r.spec.run_id for r in one.runs)


def test_a_plans_name_and_reason_do_not_enter_identity():
    assert simple().runs == simple(name="other", why="because").runs


def test_cells_of_one_science_are_trained_once_and_it_is_said():
    cells = product(axis("optim.lr", [1e-3, 1e-3 + 0.0, 2e-3]), axis("execution.log_every", [5, 9]))
    plan = grid(name="t", arch="dense", cells=cells)
    assert len(plan.runs) == 2
    assert "4 of 6 cells repeat" in plan.notes[0]


def test_a_grid_over_the_width_resizes_the_family():
    plan = grid(name="t", arch="dense", cells=axis("model.d_model", [64, 256]))
    assert [r.spec.model.n_layers for r in plan.runs] == [2, 4]


def test_seeds_differ_in_nothing_else():
    a, b = simple(widths=[64], seeds=[3, 4]).runs
    assert replace(a.spec, seed=4) == b.spec and a.run_id != b.run_id


def test_a_finished_plan_takes_execution_settings_and_keeps_its_ids(tmp_path):
    path = simple().write(tmp_path)
    plan = load(path, set={"execution.log_every": 3})
    assert [r.run_id for r in plan.runs] == [r.run_id for r in simple().runs]
    assert {r.spec.execution.log_every for r in plan.runs} == {3}
    with pytest.raises(InputError, match="the plan is made"):
        load(path, set={"optim.lr": 1.0})


def test_settings_of_the_command_line_override_those_of_the_toml(tmp_path):
    path = written(tmp_path, "sweep.toml", TOML)
    assert {r.spec.optim.lr for r in load(path).runs} == {4e-3}
    assert {r.spec.optim.lr for r in load(path, set={"optim.lr": 1e-3}).runs} == {1e-3}


def edited(old: str, new: str) -> str:
    assert old in TOML
    return TOML.replace(old, new)


@pytest.mark.parametrize(
    ("text", "field", "hint"),
    [
        (edited("budgets", "budgtes"), "isoflop.budgtes", "did you mean budgets"),
        (edited("[isoflop]", "[isoflops]"), "isoflops", "did you mean isoflop"),
        (edited("[isoflop]", "[set2]\n[isoflop]"), "set2", "did you mean set"),
        (edited("optim.lr", "optim.lrr"), "optim.lrr", "did you mean optim.lr"),
        (edited("4e-3", '"high"'), "optim.lr", "number"),
        (edited("[1e13, 3e13]", "[]"), "isoflop.budgets", "at least one"),
        (edited("[1e13, 3e13]", "1e13"), "isoflop.budgets", "list of numbers"),
        (edited("[1e13, 3e13]", "[1e13, -1.0]"), "isoflop.budgets", "above 0"),
        (edited("[1e13, 3e13]", "[1e13, 1e13]"), "isoflop.budgets", "once"),
        (edited("[1e13, 3e13]", '["1e13"]'), "isoflop.budgets", "write a number"),
        (edited("sizes = 4", "sizes = 0"), "isoflop.sizes", "whole number"),
        (edited("span = 3", "span = 1"), "isoflop.span", "above 1"),
        (edited("sizes = 4", "widths = [50]"), "width 50", "a d_model that is a multiple"),
        (edited("seeds = [0, 1]", "seeds = [-1]"), "isoflop.seeds", "at least 0"),
        (edited('arch = "dense"', 'arch = "dence"'), "--arch", "did you mean dense"),
        (edited('arch = "dense"', ""), "isoflop.arch", "write arch"),
        (edited('"full_attn"', "3"), "sweep.toml: convention", "choose one of"),
        (edited('"dense"', "3"), "sweep.toml: arch", "in quotes"),
        (edited('{ rule = "power_lines", exponent = -0.5 }', "3"), "transfer", "in quotes"),
        (edited("exponent = -0.5", "exponent = 1e5"), "transfer", "gives optim.weight_decay inf"),
        (edited("sizes = 4", "tokens_per_param = 1e-300"), "isoflop.tokens_per_param", "1e-6"),
        (edited("sizes = 4", "tokens_per_param = 1e300"), "isoflop.tokens_per_param", "1e-6"),
        (edited("4e-3", "nan"), "set.optim.lr", "finite"),
        (edited("optim.lr", "optim.lrr"), "sweep.toml: optim.lrr", "did you mean"),
        (GRID_TOML.replace("1e-3", "2024-01-01"), "product.optim.lr.0", "a TOML date"),
        (edited('name = "ladder-1"', ""), "name", "write name"),
        (edited("ladder-1", "a/b"), "name", "names a file"),
        (edited("optim.lr = 4e-3", "model.d_model = 64"), "set.model.d_model", "isoflop.widths"),
        (edited("optim.lr = 4e-3", "budget.tokens = 64"), "set.budget.tokens", "isoflop.budgets"),
        (edited("optim.lr = 4e-3", "seed = 1"), "set.seed", "isoflop.seeds"),
        (edited("seq_len = 128", "seq_len = 1000"), "budget.batch_tokens", "whole number"),
        ("name = 1\n" + TOML.split("\n", 2)[2], "name", "text in quotes"),
        (TOML + "\n[grid]\narch = 'dense'\n", "", "exactly one of the tables"),
        ("name = 't'\n[set]\n", "", "exactly one of the tables"),
        ("name = [", "", "mend that line"),
        (GRID_TOML.replace("product", "prodct"), "grid.prodct", "did you mean product"),
        (GRID_TOML.replace("product", "zipped"), "zipped", "one length"),
        (GRID_TOML.replace("product = {", "#"), "grid", "product or zipped"),
        (GRID_TOML.replace("[0, 1, 2]", "3"), "seed", "as a list"),
    ],
)
def test_mistakes_in_toml_are_one_line_that_names_the_field(text, field, hint, tmp_path):
    path = written(tmp_path, "sweep.toml", text)
    with pytest.raises(InputError, match=hint) as error:
        load(path)
    assert field in str(error.value).split(hint)[0]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("x = 1", "no variable plan"),
        ("plan = 3", "plan is a int"),
        ("import nothing_of_this_name", ":1: ModuleNotFoundError"),
        ("x = 1\nplan = undefined", ":2: NameError"),
        ("plan = (", "SyntaxError"),
        (
            "from sweeps.make import isoflop\nplan = isoflop(name='t', arch='x', budgets=[1])",
            "--arch",
        ),
    ],
)
def test_mistakes_in_python_name_file_and_line(text, hint, tmp_path):
    path = written(tmp_path, "sweep.py", text)
    with pytest.raises(InputError, match=hint):
        load(path)


def test_files_that_are_no_plan_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(InputError, match="ending in"):
        load(written(tmp_path, "sweep.yaml", ""))
    with pytest.raises(InputError, match="not a plan"):
        load(written(tmp_path, "x.json", "[]"))
    with pytest.raises(InputError, match="not JSON"):
        load(written(tmp_path, "y.json", "{"))


def test_an_edited_or_newer_plan_json_is_refused(tmp_path):
    path = simple().write(tmp_path)
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "format": 99}))
    with pytest.raises(InputError, match="upgrade ladder"):
        load(path)
    tree["runs"][0]["spec"]["optim"]["lr"] = 1.0
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match="the plan was edited"):
        load(path)


def test_a_python_sweep_neither_exits_nor_writes_to_stdout(tmp_path, capsys):
    with pytest.raises(InputError, match=":2: SystemExit"):
        load(written(tmp_path, "a.py", "import sys\nsys.exit(0)"))
    load(written(tmp_path, "b.py", PYTHON + "print('chatter')"))
    captured = capsys.readouterr()
    assert captured.out == "" and "chatter" in captured.err


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"format": "a"}, "format"),
        ({"format": True}, "format"),
        ({"runs": [1]}, "runs.0"),
        ({"runs": [{"run_id": "x"}]}, "runs.0.spec"),
        ({"runs": [{"run_id": "x", "spec": 3}]}, "runs.0.spec"),
        ({"runs": [{"run_id": "x", "spec": {}, "labels": []}]}, "runs.0.labels"),
        (
            {"runs": [{"run_id": "x", "spec": {}, "labels": {"target_flops": "a"}}]},
            "runs.0.labels.target_flops",
        ),
        ({"runs": []}, "plan"),
        ({"name": 3}, "name"),
        ({"recipe": 3}, "recipe"),
        ({"notes": 3}, "notes"),
        ({"why": 3}, "why"),
    ],
)
def test_a_damaged_plan_json_is_one_line_that_names_file_and_key(change, key, tmp_path):
    path = simple().write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError) as error:
        read(path)
    assert error.value.field == f"{path}: {key}"
    status = doctor.status(tmp_path)
    assert [finding.kind for finding in status.findings] == ["damaged"]
    assert key in status.text()


def test_a_plan_does_not_take_the_name_of_another_whose_runs_have_begun(tmp_path):
    old, more = simple(), simple(widths=[64, 96, 128])
    other = simple(set={"optim.lr": 1e-3})
    old.write(tmp_path)
    other.write(tmp_path)  # nothing was trained: nothing is lost
    old.write(tmp_path)
    spec = old.runs[0].spec
    RunDir(tmp_path / spec.run_id).start(spec=to_dict(spec), env={}, counts={})
    with pytest.raises(InputError, match="write another name") as error:
        other.write(tmp_path)
    assert error.value.field == "name" and read(tmp_path / "plans" / "t.json") == old
    old.write(tmp_path)
    more.write(tmp_path)
    assert len(read(tmp_path / "plans" / "t.json").runs) == 3
    simple(widths=[64, 96, 128], set={"execution.log_every": 7}).write(tmp_path)


def test_the_dry_run_tells_what_is_done_and_what_will_be_spent(tmp_path):
    plan = simple(budgets=[1e13, 3e13], set={"data.seq_len": 128})
    done = plan.runs[0]
    run = RunDir(tmp_path / done.run_id)
    run.start(spec=to_dict(done.spec), env={}, counts={})
    run.finish(status="done", metrics={"flops": 1e13}, seconds=50.0)
    dry = dry_run(plan, tmp_path)
    assert [row["status"] for row in dry.rows] == ["done", "planned", "planned", "planned"]
    assert "measured by 1 finished runs" in dry.speed.source
    assert dry.speed.flops_per_second is not None and dry.speed.flops_per_second >= 2e11
    assert dry.to_json()["shapes"] == 2
    text = dry.text()
    for row in dry.rows:
        assert row["run_id"] in text
        assert row["flops"]["six_nd"] == 6 * row["params"]["total"] * row["tokens"]
        assert row["lr"] == 8e-3
    stated = dry_run(plan, tmp_path, flops_per_second=1e12)
    left = sum(row["flops"]["causal_attn"] for row in stated.rows[1:]) / 1e12
    assert stated.seconds_left == pytest.approx(left, rel=1e-12)
    assert "stated" in stated.speed.source
    with pytest.raises(InputError):
        dry_run(plan, tmp_path, flops_per_second=0)


def test_a_dry_run_writes_nothing(tmp_path):
    root = tmp_path / "runs"
    dry_run(simple(), root)
    assert not root.exists()
