"""Do the rooms import in one direction, and is every file one question long?"""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]
LOWER = {
    "parallelism": set(),
    "model": {"parallelism"},
    "train": {"parallelism", "model"},
    "analysis": {"parallelism.errors", "parallelism.accelerators", "train.record"},
    "sweeps": {"parallelism", "model", "train", "analysis"},
}
LONGEST = 350
FILES = sorted(
    path
    for room in (*LOWER, "tests", "benchmarks")
    for path in (HERE / room).rglob("*.py")
    if "__pycache__" not in path.parts
)
ROOM_FILES = [f for f in FILES if f.relative_to(HERE).parts[0] in LOWER]


def name(path: Path) -> str:
    return str(path.relative_to(HERE))


def imported(source: str) -> set[str]:
    """Dotted names of every import, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def forbidden(room: str, source: str) -> set[str]:
    """Imports that go against the direction; a room may always import itself."""
    allowed = {room, *LOWER[room]}
    names = {
        n
        for n in imported(source)
        if n.split(".")[0] in {*LOWER, "tests", "ladder", "ladder_options"}
    }
    return {n for n in names if not any(n == a or n.startswith(f"{a}.") for a in allowed)}


@pytest.mark.parametrize("path", ROOM_FILES, ids=name)
def test_rooms_import_in_one_direction(path: Path):
    room = path.relative_to(HERE).parts[0]
    assert forbidden(room, path.read_text()) == set()


@pytest.mark.parametrize(
    "room, source, wrong",
    [
        ("model", "from train.spec import RunSpec", {"train.spec.RunSpec"}),
        ("parallelism", "def f():\n    import model.param", {"model.param"}),
        ("analysis", "from train import loop", {"train.loop"}),
        ("analysis", "from train import record\nimport train.record", set()),
        ("analysis", "from parallelism import mesh", {"parallelism.mesh"}),
        ("train", "from sweeps.plan import Plan", {"sweeps.plan.Plan"}),
        ("sweeps", "from analysis.fit import fit\nimport ladder", {"ladder"}),
        ("train", "import numpy, jax\nfrom model.spec import ModelSpec", set()),
    ],
)
def test_the_walk_finds_an_import_against_the_direction(room: str, source: str, wrong: set):
    assert forbidden(room, source) == wrong


def test_every_room_was_walked():
    assert {f.relative_to(HERE).parts[0] for f in ROOM_FILES} == set(LOWER)
    assert len(ROOM_FILES) > 50


@pytest.mark.parametrize("path", [*FILES, HERE / "ladder.py", HERE / "ladder_options.py"], ids=name)
def test_a_file_answers_one_question(path: Path):
    """`ladder.py` is the front door: one short function a verb, so as long as there are verbs."""
    if path.name == "ladder.py":
        longest = max(
            node.end_lineno - node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef)
            and node.end_lineno is not None
            and [a.arg for a in node.args.args] == ["args"]
        )
        assert 5 < longest <= 60, "a verb has grown a body; it belongs in a room"
    else:
        if path.name != "archs.py":  # THE list of architectures: it grows by a function a name
            assert len(path.read_text().splitlines()) <= LONGEST


DIMS_CALLS = {"matrix", "table", "vector", "constrain", "letters"}


@pytest.mark.parametrize("path", [f for f in ROOM_FILES if f.parts[-2] != "parallelism"], ids=name)
def test_dims_are_letters_of_the_axis_table(path: Path):
    from parallelism.axes import AXES

    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr not in DIMS_CALLS:
            continue
        texts = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
        texts += [k.value.value for k in node.keywords
                  if k.arg == "contract" and isinstance(k.value, ast.Constant)]  # fmt: skip
        for text in texts:
            assert isinstance(text, str) and set(text.split()) <= set(AXES), f"{text!r}"


def test_axes_are_born_in_one_file():
    """Nobody else makes an Axis, and nobody adds to the table."""
    for path in ROOM_FILES:
        if name(path) == "parallelism/axes.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "Axis", name(path)
            if isinstance(node, ast.Assign | ast.AugAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                assert not any("AXES" in ast.unparse(t) for t in targets), name(path)
