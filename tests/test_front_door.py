"""Does every mistake a user can make end in one line that helps, and exit status 2?"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ladder
from train.record import RunDir, write_json

TINY = [
    "--arch=dense",
    "--set=model.d_model=16",
    "--set=data.seq_len=32",
    "--set=budget.batch_tokens=128",
    "--set=budget.tokens=512",
    "--set=evaluation.tokens=128",
    "--quiet",
]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal."""
    try:
        status = ladder.main(arguments)
    except SystemExit as stop:
        status = stop.code
    told = capsys.readouterr()
    assert status == 2, f"exit status {status}: {told}"
    lines = told.err.strip().splitlines()
    assert len(lines) == 1, f"not one line: {told.err}"
    assert "Traceback" not in told.err
    return lines[0]


def train(tmp_path: Path, *settings: str) -> list[str]:
    return ["train", *TINY, f"--root={tmp_path}", *(f"--set={s}" for s in settings)]


def measurements(path: Path, *, budgets: tuple[float, ...] = (1e18, 3e18, 1e19)) -> Path:
    rows = ["params,tokens,loss"]
    for C in budgets:
        for N in (1e8, 2e8, 4e8, 8e8):
            D = C / (6 * N)
            rows.append(f"{N},{D},{1.7 + 400 / N**0.34 + 410 / D**0.28}")
    path.write_text("\n".join(rows) + "\n")
    return path


MAP = "--map=N=params,D=tokens,loss=loss"


@pytest.mark.parametrize(
    ("setting", "field", "instead"),
    [
        ("optim.lrr=1e-3", "optim.lrr", "did you mean optim.lr?"),
        ("model.repeat.0.mixer.d_hed=8", "d_hed", "did you mean model.repeat.0.mixer.d_head?"),
        ("optim.lr=fast", "optim.lr", "write a number"),
        ("data.seq_len=1.5", "data.seq_len", "integer"),
        ("schedule.kind=cosin", "schedule.kind", "'cosine'"),
        ("model.repeat.0.mixer.kind=atention", "mixer", "did you mean attention?"),
        ("model.repeat.0.mixer.d_head=6", "repeat.0.mixer: d_head 6", "write a divisor of 16"),
        ("budget.batch_tokens=100", "budget.batch_tokens 100", "write 96"),
        ("budget.tokens=3", "budget.tokens 3", "write at least 128"),
        ("execution.mesh.data=3", "data x fsdp x expert = 3", "divides it"),
        ("execution.accumulate=3", "execution.accumulate 3", "write a divisor of 4"),
        ("execution.mesh.run=2", "execution.mesh.run 2", "write a divisor of 1"),
        ("execution.sequence=rng", "execution.sequence: rng;", "did you mean ring?"),
        ("execution.mesh.modell=2", "mesh.modell: no such", "choose one of execution.mesh.data,"),
        ("execution.mesh.tensr=2", "mesh.tensr: no such", "did you mean execution.mesh.tensor?"),
        ("execution.lr=1e-3", "execution.lr: no such", "did you mean optim.lr?"),
        ("execution.stack=0", "execution.stack", "greater than or equal to 1"),
        ("optim.lr", "--set", "write path=value"),
        ("model.d_model=1e400", "model.d_model", "finite"),
        ("model.n_layers=1e8", "model.n_layers", "10000"),
        ("model.repeat.0.mixer.kind=os.path", "mixer", "no layer"),
        ("data.tokenizer=nowhere.json", "data.tokenizer", "nowhere.json"),
        ("model.vocab=100", "model.vocab", "256"),
        ("execution.attention=cudnn", "execution.attention: cudnn", "write auto or plain"),
        ("execution.attention=pallas", "written for TPU, and this is cpu", "write auto or plain"),
        ("execution.attention=flash", "execution.attention", "'cudnn'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_to_write(tmp_path, capsys, setting, field, instead):
    line = refused(train(tmp_path, setting), capsys)
    assert field in line and instead in line
    assert not list(tmp_path.glob("*/spec.json"))


@pytest.mark.parametrize(
    ("arch", "layer", "size"),
    [
        ("moe", "model.repeat.0.ffn", "chosen=100"),
        ("blockdense", "model.first.0.mixer", "d_head=10"),
    ],
)
def test_a_size_that_a_layer_refuses_names_the_layer(capsys, arch, layer, size):
    line = refused(["show", arch, f"--set={layer}.{size}"], capsys)
    assert line.startswith(f"error: {layer}: {size.replace('=', ' ')} ") and "; write " in line


def test_a_mesh_without_the_devices_is_refused(tmp_path, capsys):
    import jax

    many = 2 * len(jax.devices())
    rows = f"budget.batch_tokens={32 * many}"
    line = refused(
        train(tmp_path, f"execution.mesh.data={many}", rows, f"budget.tokens={64 * many}"), capsys
    )
    assert "execution.mesh.data" in line and str(many) in line and "devices" in line


def test_a_size_that_a_mesh_axis_does_not_divide_is_refused(tmp_path, capsys):
    line = refused(
        train(tmp_path, "execution.mesh.tensor=8", "model.repeat.0.mixer.d_head=8"), capsys
    )
    assert "execution.mesh.tensor" in line and "heads" in line and "H = 2" in line


def test_a_pipeline_that_layers_or_rows_do_not_fill_is_refused(tmp_path, capsys):
    line = refused(train(tmp_path, "execution.mesh.pipeline=2", "model.n_layers=3"), capsys)
    assert "execution.mesh.pipeline" in line and "the 3 repeated units" in line
    line = refused(train(tmp_path, "execution.mesh.pipeline=2", "execution.microbatches=3"), capsys)
    assert "execution.microbatches 3" in line and "write a divisor of 4" in line


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (None, None, "no such"),
        ("a.txt", b"", "empty"),
        ("a.txt", b"caf\xe9 and more text than a sequence needs to be long", "UTF-8"),
        ("a.txt", b"short", "at least two"),
    ],
)
def test_a_corpus_that_cannot_be_trained_on_is_named(tmp_path, capsys, name, content, told):
    folder = tmp_path / "texts"
    if name is not None:
        folder.mkdir()
        (folder / name).write_bytes(content)
    root = tmp_path / "runs"
    path = ["data.sources.0.kind=text", f"data.sources.0.path={folder}"]
    # both fields at once: either alone is no source
    source = json.dumps({"kind": "text", "path": str(folder)})
    assert path
    line = refused(train(root, f"data.sources.0={source}"), capsys)
    assert told in line and ("texts" in line or "data.sources" in line)
    assert not list(root.glob("*/spec.json"))


def test_a_budget_too_small_for_the_family_says_which_would_do(tmp_path, capsys):
    sweep = tmp_path / "sweep.toml"
    sweep.write_text('name = "x"\n[isoflop]\narch = "dense"\nbudgets = [1e6, 3e6]\n')
    line = refused(["plan", str(sweep), f"--root={tmp_path}"], capsys)
    assert "too small" in line and "write at least" in line


def test_a_misspelt_key_of_a_sweep_is_named(tmp_path, capsys):
    sweep = tmp_path / "sweep.toml"
    sweep.write_text('name = "x"\n[isoflop]\narch = "dense"\nbudget = [1e12]\n')
    line = refused(["plan", str(sweep), f"--root={tmp_path}"], capsys)
    assert "budget" in line and "budgets" in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fitt"], "fit"),
        (["train"], "--arch"),
        (["train", "--arch=dens"], "did you mean dense?"),
        (["train", "nowhere.json"], "no such file"),
        (["show", "nothing"], "--arch"),
        (["fit", "nowhere.csv"], "nowhere.csv"),
        (["predict", "nowhere.json", "--at=N=1,D=1"], "nowhere.json"),
        (["size", "nowhere.json", "--flops=many"], "number"),
        (["demo", "--size=huge"], "tiny"),
        (["table", "--root=nowhere"], "nowhere"),
        (["check", "transfer", "--widths=64"], "at least two"),
        (["check", "transfer", "--widths=7,9"], "d_head"),
        (["fit", "x.csv", "--bootstrap=inf"], "whole number"),
        (["show", "dense", "--json=/dev/full"], "/dev/full"),
        (["show", "dense", "--json=nowhere/x.json"], "nowhere"),
        (["train", "--arch=dense", "--quiet", "--root=/dev/null"], "/dev/null"),
    ],
)
def test_a_wrong_command_line_is_one_line(tmp_path, capsys, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert told in refused(arguments, capsys)


def test_a_missing_column_is_named_with_those_there_are(tmp_path, capsys):
    data = measurements(tmp_path / "m.csv")
    line = refused(["fit", str(data), "--map=N=size,D=tokens,loss=loss"], capsys)
    assert "size" in line and "params" in line


def test_fewer_points_than_parameters_is_refused(tmp_path, capsys):
    data = measurements(tmp_path / "m.csv", budgets=(1e18,))
    line = refused(["fit", str(data), MAP], capsys)
    assert "4" in line and "5" in line


def test_one_budget_only_is_refused_with_what_is_missing(tmp_path, capsys):
    data = tmp_path / "m.csv"
    rows = ["params,tokens,loss"]
    for N in (1e8, 1.5e8, 2e8, 3e8, 4e8, 6e8, 8e8):
        D = 1e18 / (6 * N)
        rows.append(f"{N},{D},{1.7 + 400 / N**0.34 + 410 / D**0.28}")
    data.write_text("\n".join(rows))
    before = data.read_bytes()
    line = refused(["fit", str(data), MAP], capsys)
    assert "budget" in line
    assert data.read_bytes() == before


def test_a_run_of_a_newer_ladder_is_refused_and_left_alone(tmp_path, capsys):
    assert ladder.main(train(tmp_path)) == 0
    capsys.readouterr()
    (run,) = (p.parent for p in tmp_path.glob("*/spec.json"))
    env = json.loads((run / "env.json").read_text())
    write_json(run / "env.json", {**env, "format": 99})
    before = {p: p.read_bytes() for p in run.glob("*.json*")}
    for command in (train(tmp_path), ["table", f"--root={tmp_path}"]):
        assert "newer" in refused(command, capsys)
    assert {p: p.read_bytes() for p in run.glob("*.json*")} == before


def test_a_second_train_of_one_run_does_nothing_twice(tmp_path, capsys):
    assert ladder.main([*train(tmp_path), "--json=-"]) == 0
    first = json.loads(capsys.readouterr().out)
    ledger = RunDir(tmp_path / first["run_id"]).path / "metrics.jsonl"
    before = ledger.stat().st_mtime_ns
    assert ladder.main([*train(tmp_path), "--json=-"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert (first["skipped"], second["skipped"]) == (False, True)
    assert first["metrics"] == second["metrics"]
    assert ledger.stat().st_mtime_ns == before


def test_a_finished_run_is_not_handed_out_for_another_text(tmp_path, capsys):
    folder, root = tmp_path / "texts", tmp_path / "runs"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"text number {i} says nothing much. " * 40)
    source = json.dumps({"kind": "text", "path": str(folder)})
    command = train(root, f"data.sources.0={source}")
    assert ladder.main(command) == 0
    (folder / "3.txt").write_text("and now it says something else. " * 40)
    capsys.readouterr()
    line = refused(command, capsys)
    assert "data.sources" in line and "changed" in line


def test_every_resume_is_recorded_beside_the_first_start(tmp_path):
    spec = ladder._spec("dense", [a.removeprefix("--set=") for a in TINY if a.startswith("--set")])
    run = RunDir(tmp_path / spec.run_id)
    run.path.mkdir()
    write_json(run.path / "env.json", {"format": 1, "commit": "before"})
    run.resumed(step=3, env={"commit": "after"})
    run.resumed(step=5, env={"commit": "later"})
    env = json.loads((run.path / "env.json").read_text())
    assert env["commit"] == "before"
    assert [(r["step"], r["commit"]) for r in env["resumes"]] == [(3, "after"), (5, "later")]


def test_a_diverged_run_is_a_result_and_exit_status_one(tmp_path, capsys):
    wild = ["optim.lr=1e30", "schedule.warmup=0", "budget.tokens=4096"]
    assert ladder.main([*train(tmp_path, *wild), "--json=-"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["status"] == "diverged" and "non-finite" in value["reason"]
    assert all(math.isfinite(v) for v in value["metrics"].values())


def test_the_fit_of_a_file_carries_the_contract(tmp_path, capsys):
    data = measurements(tmp_path / "m.csv")
    out = tmp_path / "fit.json"
    assert ladder.main(["fit", str(data), MAP, "--bootstrap=20", f"--json={out}"]) == 0
    fit = json.loads(out.read_text())
    assert {
        "law", "params", "objective", "status", "rows", "excluded", "conventions", "bootstrap",
        "backtest", "data_hash", "version", "seconds",
    } <= set(fit)  # fmt: skip
    assert set(fit["bootstrap"]["params"]["alpha"]) >= {"se", "lo", "hi"}
    capsys.readouterr()
    assert ladder.main(["predict", str(out), "--at=N=1e9,D=2e10", "--json=-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"mean", "lo", "hi", "sd", "in_domain", "extrapolation"} <= set(told)
    assert set(told["sd"]) == {"statistical", "basin", "form", "noise"}
    assert told["mean"] == pytest.approx(1.7 + 400 / 1e9**0.34 + 410 / 2e10**0.28, rel=1e-6)
    production = tmp_path / "production.json"
    assert ladder.main(
        ["size", str(out), "--flops=1e20", "--devices=h100:4", f"--out={production}", "--json=-"]
    ) == 0  # fmt: skip
    sized = json.loads(capsys.readouterr().out)
    for name in ("N", "D", "loss"):
        assert sized[name]["lo"] <= sized[name]["value"] <= sized[name]["hi"]
    assert {"flat", "lr", "batch_tokens", "weight_decay", "devices"} <= set(sized)
    assert ladder.main(["show", str(production), "--json=-"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["params"]["total"] == pytest.approx(sized["N"]["value"], rel=0.3)


def test_help_of_every_verb_has_an_example():
    verbs = ladder.parser()._subparsers
    assert verbs is not None
    for name, one in verbs._group_actions[0].choices.items():  # type: ignore[union-attr]
        assert f"\n  ladder {name}" in one.format_help().partition("example:")[2]


def test_a_closed_pipe_is_not_a_traceback(tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m ladder show dense | head -1",
        shell=True, capture_output=True, text=True, timeout=120, cwd=Path(ladder.__file__).parent,
        env={**os.environ},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("dense")
