"""Does docs/extending.md do what it says, word for word?"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()


def written(folder: Path) -> Path:
    """The page's file, in an empty folder."""
    (body,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    (folder / "ema.py").write_text(body)
    return folder


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(cwd), str(ROOT)])}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def test_the_pages_file_is_an_architecture(tmp_path: Path):
    assert "\nladder show ema:model\n" in PAGE
    done = run([sys.executable, "-m", "ladder", "show", "ema:model"], written(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "mixer.rate" in done.stdout and "not covered" in done.stdout


def test_a_pattern_of_ones_own_is_an_architecture(tmp_path: Path):
    (body,) = re.findall(r"^    # mine.py\n((?:    .*\n|\n)+)", PAGE, re.M)
    (tmp_path / "mine.py").write_text("\n".join(line[4:] for line in body.splitlines()) + "\n")
    done = run([sys.executable, "-m", "ladder", "show", "mine:model"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mine:model: d_model 128, 6 layers")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_pages_file_holds_the_properties(tmp_path: Path):
    (line,) = [line for line in PAGE.splitlines() if "--mixer ema" in line]
    words = shlex.split(line.replace("PATH_TO_LADDER", str(ROOT)))
    assert words[:2] == ["PYTHONPATH=.", "pytest"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        *words[2:],
        "-c",
        str(ROOT / "pyproject.toml"),
    ]
    done = run(command, written(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 10
