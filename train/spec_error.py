"""How does a list of validation errors become the one line that a user reads?"""

import json
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import ValidationError

from parallelism.errors import InputError, nearest_path


@dataclass(frozen=True)
class _Row:
    path: str
    given: Any
    kind: str
    message: str
    known: list[str] | None  # fields beside it, where the layer that refused it told


def _rows(
    errors: list[Any], prefix: tuple[Any, ...] = (), fields: list[str] | None = None
) -> list[_Row]:
    rows = []
    for e in errors:
        # what refuses a relation may know the part that it is about
        place = getattr(e.get("ctx", {}).get("error"), "place", ())
        loc = (*prefix, *e["loc"], *place)
        if e["type"] == "nested":
            rows += _rows(e["ctx"]["errors"], loc, e["ctx"]["fields"])
            continue
        message = e["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        stem = ".".join(str(p) for p in prefix)
        known = None if fields is None else [f"{stem}.{name}" for name in fields]
        path = ".".join(str(p) for p in loc)
        rows.append(_Row(path, e.get("input"), e["type"], message, known))
    return rows


def input_error(error: ValidationError, *, source: str, root: type) -> InputError:
    """One line from pydantic's list of errors: each wrong path, what was given, what to write.

    `root` is the dataclass that was validated: its fields are what an unknown one is compared with.
    """
    rows = _rows(error.errors(include_url=False))
    # a sequence is also "too short" where one of its items is wrong
    rows = [r for r in rows if not any(other.path.startswith(f"{r.path}.") for other in rows)]
    path, given, kind, message = rows[0].path, rows[0].given, rows[0].kind, rows[0].message
    if kind == "unexpected_keyword_argument":
        message = "no such field; " + nearest_path(path, rows[0].known or _siblings(root, path))
    elif kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        given, message = "nothing", "this field is required; write a value"
    elif isinstance(given, dict | tuple | list) or hasattr(given, "kwargs"):
        given = None
    elif given is None:
        given = "null"
    message = _instead(message)
    if len(rows) > 1:
        message += f" (and {len(rows) - 1} more: {', '.join(r.path for r in rows[1:5])})"
    if source == "spec":
        source = ""
    field = f"{source}: {path}" if path and source else (path or source)
    return InputError(field, given, message)


def _instead(message: str) -> str:
    known = {
        "Input should be a valid integer, unable to parse string as an integer": (
            "write a whole number"
        ),
        "Input should be a valid number, unable to parse string as a number": "write a number",
    }
    return known.get(message, message[:1].lower() + message[1:])


def _siblings(root: type, path: str) -> list[str]:
    """Dotted names of the fields beside `path`, as far down as there are dataclasses."""
    *parents, _ = path.split(".")
    node, prefix = root, ""
    for key in parents:
        below = get_type_hints(node).get(key)
        if not is_dataclass(below) or not isinstance(below, type):
            break
        node, prefix = below, f"{prefix}{key}."
    return [f"{prefix}{field.name}" for field in fields(node)]


def no_truth_for_numbers(given: Any, read: Any, path: str) -> None:
    """pydantic reads true as 1; a person who wrote it meant something else."""
    if isinstance(given, bool) and not isinstance(read, bool):
        raise InputError(path, json.dumps(given), "write a number")
    stem = path if not path or path.endswith(": ") else f"{path}."
    if isinstance(given, dict) and isinstance(read, dict):
        for key in given:
            no_truth_for_numbers(given[key], read.get(key), f"{stem}{key}")
    elif isinstance(given, list | tuple) and isinstance(read, list):
        for i, (one, other) in enumerate(zip(given, read, strict=False)):
            no_truth_for_numbers(one, other, f"{stem}{i}")
