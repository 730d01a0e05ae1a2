"""How is one field of a run named? By a dotted path into RunSpec.

`optim.lr` is the command-line override, the sweep axis, the JSON key and the table column. Values
given as text are parsed by the type of the field they go to.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from parallelism.errors import InputError, nearest_path
from train.record import flatten
from train.spec import RunSpec, from_dict, to_dict


def known_paths(spec: RunSpec | None = None) -> list[str]:
    """Every path of a spec, inner nodes too."""
    if spec is None:
        from model.archs import build

        spec = RunSpec(model=build("dense"))
    leaves = flatten(to_dict(spec))
    inner = {p.rsplit(".", n)[0] for p in leaves for n in range(1, p.count(".") + 1)}
    return sorted({*leaves, *inner})


def get(spec: RunSpec, path: str) -> Any:
    """The value at a path; raises InputError with the nearest valid path."""
    node: Any = to_dict(spec)
    for key in path.split("."):
        node = _child(node, key, path, spec)
    return node


def put(spec: RunSpec, changes: Mapping[str, Any]) -> RunSpec:
    """A new spec with the values at the paths replaced, all at once, then validated.

    Where the `kind` of an object changes, so do its fields: those beside it are the new kind's.
    """
    tree = to_dict(spec)
    renamed = _renamed(changes)
    for path, value in changes.items():
        *parents, leaf = path.split(".")
        node: Any = tree
        for n, key in enumerate(parents, 1):
            child: Any = _child(node, key, path, spec)
            if child is None and ".".join(parents[:n]) in renamed:
                child = node[int(key) if isinstance(node, list) else key] = {}
            node = child
        if ".".join(parents) not in renamed:
            _child(node, leaf, path, spec)
        node[int(leaf) if isinstance(node, list) else leaf] = value
    return from_dict(tree)


def differences(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """What two specs say differently, by path: a's and b's, None where one is silent."""
    flat_a, flat_b = (flatten(TypeAdapter(type(s)).dump_python(s, mode="json")) for s in (a, b))
    pairs = {path: (flat_a.get(path), flat_b.get(path)) for path in {**flat_a, **flat_b}}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def parse(text: str) -> tuple[str, Any]:
    """`optim.lr=3e-3` -> `("optim.lr", 0.003)`; text that is no JSON stays text."""
    path, sign, raw = text.partition("=")
    if not sign or not path:
        raise InputError("--set", text, "write path=value, for example optim.lr=3e-3")
    try:
        return path.strip(), json.loads(raw)
    except json.JSONDecodeError:
        return path.strip(), raw


def override(spec: RunSpec, settings: Iterable[str]) -> RunSpec:
    """Apply `path=value` texts. What goes to a text field stays as it was written."""
    changes, texts, unsure = {}, list(settings), {}
    renamed = _renamed(parse(text)[0] for text in texts)
    for text in texts:
        path, value = parse(text)
        written = text.partition("=")[2]
        new = path.rpartition(".")[0] in renamed  # a field that there may not be yet
        if (
            not new
            and isinstance(get(spec, path), str)
            and not isinstance(value, str)
            and written != "null"
        ):
            value = written
        if new and not isinstance(value, str):
            unsure[path] = written
        changes[path] = value
    try:
        return put(spec, changes)
    except InputError as error:
        if error.field not in unsure:
            raise
        # a text that reads as a number: some ids have digits and an e alone
        return put(spec, {**changes, error.field: unsure[error.field]})


def _renamed(paths: Iterable[str]) -> set[str]:
    """The objects whose kind is among the paths."""
    return {path.removesuffix(".kind") for path in paths if path.endswith(".kind")}


def _child(node: Any, key: str, path: str, spec: RunSpec) -> Any:
    if isinstance(node, dict) and key in node:
        return node[key]
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return node[int(key)]
    raise InputError(path, "no such path", nearest_path(path, known_paths(spec)))
