"""How is a set of cells written down? As lists of `{dotted path: value}` and pure functions.

A cell is a dict of dotted paths into RunSpec. Every function takes lists of cells and gives a list
of cells, so they nest: `product(axis("optim.lr", [1e-3, 2e-3]), axis("seed", [0, 1]))`. The algebra
is Simply's (google-deepmind/simply, utils/sweep.py).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from parallelism.errors import InputError

Cell = dict[str, Any]


def axis(path: str, values: Iterable[Any]) -> list[Cell]:
    """One cell a value."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InputError(path, values, "give the values of a sweep axis as a list")
    cells = [{path: value} for value in values]
    if not cells:
        raise InputError(path, "an empty list", "give at least one value")
    return cells


def product(*factors: list[Cell]) -> list[Cell]:
    """Every combination, the last factor changing fastest."""
    cells: list[Cell] = [{}]
    for factor in factors:
        cells = [_merge(cell, more) for cell in cells for more in factor]
    return cells


def zipped(*factors: list[Cell]) -> list[Cell]:
    """The first cells of every factor together, then the second ones, and so on."""
    lengths = {_paths(factor): len(factor) for factor in factors}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{paths} has {n}" for paths, n in lengths.items())
        raise InputError("zipped", told, "give lists of one length, or use product")
    out: list[Cell] = []
    for together in zip(*factors, strict=True):
        cell: Cell = {}
        for more in together:
            cell = _merge(cell, more)
        out.append(cell)
    return out


def chain(*parts: list[Cell]) -> list[Cell]:
    """One list after the other; a cell that is there already is left out."""
    seen: set[str] = set()
    out: list[Cell] = []
    for cell in (cell for part in parts for cell in part):
        key = json.dumps(cell, sort_keys=True, default=repr)
        if key not in seen:
            seen.add(key)
            out.append(cell)
    return out


def where(cells: list[Cell], keep: Callable[[Cell], bool]) -> list[Cell]:
    """The cells that `keep` holds for."""
    return [cell for cell in cells if keep(cell)]


def _merge(cell: Cell, more: Cell) -> Cell:
    for path in more:
        if path in cell:
            raise InputError(path, "set by two factors of a grid", "write each path in one factor")
    return {**cell, **more}


def _paths(factor: list[Cell]) -> str:
    return "+".join(sorted({path for cell in factor for path in cell}))
