"""Do the README's own commands work, word for word?"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), re.M | re.S)
    return [body for name, body in fenced if name == language]


def commands(block: str) -> list[list[str]]:
    parts = [part for line in block.splitlines() for part in line.split("  #")[0].split("&&")]
    lines = [part.strip() for part in parts]
    return [shlex.split(line) for line in lines if line.startswith("ladder ")]


def ladder(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ladder", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    )


def write_sweeps(folder: Path) -> None:
    (toml,) = blocks("toml")
    (python,) = blocks("python")
    (folder / "sweep.toml").write_text(toml)
    (folder / "sweep.py").write_text(python)


def by_hand() -> list[list[str]]:
    (block,) = [b for b in blocks("") if "ladder sweep sweep.toml" in b]
    return commands(block)


def test_every_verb_that_the_readme_names_exists_and_has_an_example():
    named = {c[1] for b in blocks("") for c in commands(b)}
    assert {"demo", "show", "plan", "sweep", "fit", "size", "train", "report"} <= named
    for verb in sorted(named):
        told = ladder([verb, "--help"], README.parent)
        assert told.returncode == 0
        assert f"  ladder {verb}" in told.stdout.partition("example:")[2]


def test_the_toml_and_the_python_sweep_of_the_readme_make_one_plan(tmp_path):
    write_sweeps(tmp_path)
    plans = []
    for name in ("sweep.toml", "sweep.py"):
        assert (tmp_path / name).read_text().strip()
        made = ladder(["plan", name, "--json", f"{name}.json"], tmp_path)
        assert made.returncode == 0, made.stderr
        plans.append(json.loads((tmp_path / "runs/plans/dense.json").read_text()))
        (tmp_path / "runs/plans/dense.json").unlink()
    assert plans[0] == plans[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_path_by_hand_runs_from_a_sweep_to_a_trained_production_run(tmp_path):
    write_sweeps(tmp_path)
    for command in by_hand():
        done = ladder(command[1:], tmp_path)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr[-800:]}"
    spec = json.loads((tmp_path / "production.json").read_text())
    assert spec["model"]["arch"] == "dense"
    assert "<svg" in (tmp_path / "report.html").read_text()
