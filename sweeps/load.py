"""How is a plan read from what a person wrote? From sweep.toml, a Python file, or a plan.json.

sweep.toml has `name`, `why`, one of the tables `[isoflop]` and `[grid]` (the arguments of
sweeps/make.py), and `[set]` with values common to all runs by dotted path. A Python file has a
variable `plan`. The same sweep gives the same plan.json from each.
"""

import contextlib
import datetime
import inspect
import math
import runpy
import sys
import tomllib
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from parallelism.errors import InputError, nearest
from sweeps import make
from sweeps import plan as plans
from sweeps.grid import axis, product, zipped
from sweeps.plan import Plan, PlannedRun
from train import paths

TOP = ("name", "why", "isoflop", "grid", "set")
GRID = ("arch", "width", "convention", "product", "zipped")


def load(path: Path | str, *, set: Mapping[str, Any] | None = None) -> Plan:
    """The plan of a file. `set` adds to a TOML's `[set]`; a made plan takes execution paths."""
    path = Path(path)
    if not path.is_file():
        raise InputError(
            "plan", str(path), "no such file; give a sweep.toml, a Python file or a plan.json"
        )
    readers = {".toml": _toml, ".py": _python, ".json": lambda p, s: _execution(plans.read(p), s)}
    if path.suffix not in readers:
        raise InputError("plan", str(path), "give a file ending in .toml, .py or .json")
    return readers[path.suffix](path, dict(set or {}))


def _toml(path: Path, extra: dict[str, Any]) -> Plan:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"not TOML ({error})", "mend that line") from None
    for key, value in paths.flatten(tree).items():
        _plain(f"{path}: {key}", value)
    _known(path, "", tree, TOP)
    kinds = [kind for kind in ("isoflop", "grid") if kind in tree]
    if len(kinds) != 1:
        given = " and ".join(kinds) or "neither table"
        raise InputError(str(path), given, "write exactly one of the tables [isoflop] and [grid]")
    for key in ("name", "why"):
        if not isinstance(tree.get(key, ""), str):
            raise InputError(f"{path}: {key}", tree[key], "write text in quotes")
    if "name" not in tree:
        raise InputError(f"{path}: name", "nothing", 'write name = "..." above the tables')
    for table in (kinds[0], "set"):
        if not isinstance(tree.get(table, {}), dict):
            raise InputError(f"{path}: {table}", tree[table], f"write it as a table, [{table}]")
    common = {
        "name": tree["name"],
        "why": tree.get("why", ""),
        "set": {**_dotted(tree.get("set", {})), **extra},
    }
    try:
        return (_isoflop if kinds[0] == "isoflop" else _grid)(path, tree[kinds[0]], common)
    except InputError as error:
        if error.field.startswith(str(path)) or error.field.removeprefix("set.") in extra:
            raise
        raise InputError(f"{path}: {error.field}", error.given, error.instead) from None


def _isoflop(path: Path, table: dict[str, Any], common: dict[str, Any]) -> Plan:
    parameters = inspect.signature(make.isoflop).parameters
    _known(path, "isoflop.", table, [key for key in parameters if key not in common])
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in table and key not in common:
            raise InputError(
                f"{path}: isoflop.{key}", "nothing", f"write {key} = ... in the table [isoflop]"
            )
    return make.isoflop(**common, **table)


def _grid(path: Path, table: dict[str, Any], common: dict[str, Any]) -> Plan:
    _known(path, "grid.", table, GRID)
    table = dict(table)
    factors = []
    for key, join in (("product", product), ("zipped", zipped)):
        axes = table.pop(key, {})
        if not isinstance(axes, dict):
            raise InputError(f"{path}: grid.{key}", axes, "write a table of path = [values]")
        if axes:
            factors.append(join(*(axis(p, values) for p, values in _dotted(axes).items())))
    if not factors:
        raise InputError(
            f"{path}: grid", "no axis", "write product or zipped, tables of path = [values]"
        )
    if "arch" not in table:
        raise InputError(f"{path}: grid.arch", "nothing", 'write arch = "..." in the table [grid]')
    return make.grid(cells=product(*factors), **common, **table)


def _python(path: Path, extra: dict[str, Any]) -> Plan:
    here = str(path.resolve().parent)
    sys.path.insert(0, here)  # a sweep may import what lies beside it
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for what --json writes
            found = runpy.run_path(str(path)).get("plan")
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = getattr(error, "lineno", None) or (frames[-1].lineno if frames else "?")
        raise InputError(
            f"{path}:{line}", f"{type(error).__name__}: {error}", "mend that line"
        ) from error
    finally:
        sys.path.remove(here)
    if not isinstance(found, Plan):
        given = "no variable plan" if found is None else f"plan is a {type(found).__name__}"
        raise InputError(
            str(path), given, "end the file with plan = isoflop(...) or plan = grid(...)"
        )
    return _execution(found, extra)


def _execution(plan: Plan, extra: dict[str, Any]) -> Plan:
    """Science of a finished plan stands: its tokens were matched to it."""
    for path in extra:
        if not path.startswith("execution."):
            raise InputError(
                f"--set {path}", extra[path], "the plan is made; write it in the file that makes it"
            )
    if not extra:
        return plan
    return replace(
        plan, runs=tuple(PlannedRun(paths.put(r.spec, extra), r.labels) for r in plan.runs)
    )


def _plain(field: str, value: Any) -> None:
    """A plan is kept as JSON: it has no dates, no infinities, and numbers that a float can hold."""
    if isinstance(value, datetime.date | datetime.time):
        raise InputError(field, str(value), "a TOML date; write a number, or text in quotes")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(field, value, "write a finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise InputError(field, value, "write a whole number below 2^63, or a float such as 1e24")


def _known(path: Path, prefix: str, tree: dict[str, Any], known: Any) -> None:
    for key in tree:
        if key not in known:
            raise InputError(f"{path}: {prefix}{key}", "no such key", nearest(key, known))


def _dotted(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`optim.lr = 1` (TOML nests it) and `"optim.lr" = 1` alike; lists stay whole."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        out.update(_dotted(value, f"{path}.") if isinstance(value, dict) else {path: value})
    return out
