"""How is a plan made? `isoflop` and `grid`, called from Python or from a TOML file's tables.

`isoflop` trains several sizes of a family at each compute budget; `grid` is any list of cells over
dotted paths.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from model import archs
from model.spec import ModelSpec
from parallelism.errors import InputError
from sweeps import budget as budgets_
from sweeps import transfer as transfers
from sweeps.grid import Cell
from sweeps.plan import Plan, PlannedRun
from train import paths
from train.counted import counted
from train.spec import RunSpec
from train.spec_error import input_error


def isoflop(
    *,
    name: str,
    arch: str,
    budgets: Sequence[float],
    why: str = "",
    sizes: int = 5,
    convention: str = "causal_attn",
    tokens_per_param: float = 20,
    span: float = 4,
    widths: Sequence[int] | None = None,
    transfer: str | Mapping[str, Any] = "fixed",
    seeds: Sequence[int] = (0,),
    set: Mapping[str, Any] | None = None,
) -> Plan:
    """Several sizes of `arch` at each budget (FLOPs in `convention`), each spending it.

    The `sizes` are log-spaced from centre/span to centre*span, the centre having
    `tokens_per_param`; `widths` names them instead. `set` holds what is common to all, by dotted
    path. Raises InputError on what cannot be met.
    """
    budgets = _numbers("isoflop.budgets", budgets)
    _number("isoflop.sizes", sizes, whole=True)
    if not 1e-6 <= _number("isoflop.tokens_per_param", tokens_per_param) <= 1e9:
        raise InputError(
            "isoflop.tokens_per_param", tokens_per_param, "write 1e-6 to 1e9, for example 20"
        )
    if not 1 < _number("isoflop.span", span) <= 1e6:
        raise InputError("isoflop.span", span, "write a factor above 1, for example 4")
    seeds = _whole_numbers("isoflop.seeds", seeds, least=0)
    if widths is not None:
        widths = _whole_numbers("isoflop.widths", widths, least=1)
    budgets_.check_convention(convention)
    changes = _common(
        set, reserved={"model.d_model": "widths", "budget.tokens": "budgets", "seed": "seeds"}
    )
    base = _base(arch, changes)
    family = budgets_.family(arch, base)
    any_size = base(family.widths[0])  # to check and record what is common to all
    transfers.check(transfer, base=any_size, explicit=changes)
    if widths is None:
        chosen = budgets_.sizes(
            family,
            budgets,
            convention=convention,
            n=sizes,
            tokens_per_param=tokens_per_param,
            span=span,
        )
    else:
        chosen = {b: list(widths) for b in budgets}
    runs, notes = [], []
    for target in budgets:
        for width in chosen[target]:
            spec, said = _cell(base(width), target, convention=convention, transfer=transfer)
            notes += [f"width {width}, budget {target:.4g}: {note}" for note in said]
            for seed in seeds:
                labels = {"budget": target, "size": width, "seed": seed}
                runs.append(
                    _planned(dataclasses.replace(spec, seed=seed), labels, convention, target)
                )
    recipe = {
        "kind": "isoflop",
        "arch": arch,
        "budgets": budgets,
        "sizes": sizes if widths is None else len(widths),
        "convention": convention,
        "tokens_per_param": float(tokens_per_param),
        "span": float(span),
        "widths": widths,
        "transfer": transfer if isinstance(transfer, str) else dict(transfer),
        "seeds": seeds,
        "set": {path: paths.get(any_size, path) for path in changes},
    }
    return _plan(name, why, runs, recipe, notes)


def grid(
    *,
    name: str,
    arch: str,
    cells: Iterable[Cell],
    why: str = "",
    width: int | None = None,
    convention: str = "causal_attn",
    set: Mapping[str, Any] | None = None,
) -> Plan:
    """One run a cell (sweeps/grid.py) of `arch` at `width`; `model.d_model` re-sizes the family."""
    budgets_.check_convention(convention)
    changes = _common(set, reserved={})
    cells = [dict(cell) for cell in cells]
    runs = []
    for cell in cells:
        more = {path: value for path, value in cell.items() if path != "model.d_model"}
        spec = _base(arch, {**changes, **more})(cell.get("model.d_model", width))
        labels = {
            "size": spec.model.d_model,
            "seed": spec.seed,
            "cell": {p: paths.get(spec, p) for p in cell},
        }
        runs.append(_planned(spec, labels, convention, None))
    recipe = {
        "kind": "grid",
        "arch": arch,
        "width": width,
        "convention": convention,
        "set": changes,
        "cells": cells,
    }
    return _plan(name, why, runs, recipe, [])


def achieved(spec: RunSpec) -> dict[str, float]:
    """Training FLOPs of a run, by convention."""
    counts = counted(spec)
    return {name: per_token * spec.tokens for name, per_token in counts.flops_per_token.items()}


def _cell(
    spec: RunSpec, target: float, *, convention: str, transfer: str | Mapping[str, Any]
) -> tuple[RunSpec, tuple[str, ...]]:
    """The run of a width at a budget: transfer first (it may set the batch), then tokens."""
    counts = counted(spec)
    per_token = counts.flops_per_token[convention]
    moved = transfers.transferred(
        transfer, params=counts.params, tokens=target / per_token, base=spec
    )
    batch = int(moved.changes.get(transfers.BATCH, spec.budget.batch_tokens))
    tokens = budgets_.whole_tokens(
        target,
        flops_per_token=per_token,
        batch_tokens=batch,
        unit=transfers.quantum(spec),
        what=f"{spec.model.arch} at width {spec.model.d_model}",
    )
    return paths.put(spec, {**moved.changes, "budget.tokens": tokens}), moved.notes


def _planned(
    spec: RunSpec, labels: dict[str, Any], convention: str, target: float | None
) -> PlannedRun:
    costs = {
        "convention": convention,
        "target_flops": target,
        "achieved_flops": achieved(spec)[convention],
    }
    return PlannedRun(spec, {**labels, **costs})


def _plan(
    name: str, why: str, runs: list[PlannedRun], recipe: dict[str, Any], notes: list[str]
) -> Plan:
    """Runs of the same science are one run: the first stays, and the plan says so."""
    kept: dict[str, PlannedRun] = {}
    dropped = 0
    for run in runs:
        dropped += run.run_id in kept
        kept.setdefault(run.run_id, run)
    if dropped:
        notes = [
            *notes,
            f"{dropped} of {len(runs)} cells repeat another cell's science; each is trained once",
        ]
    return Plan(name, why, tuple(kept.values()), recipe, tuple(notes))


def _base(arch: str, changes: Mapping[str, Any]):
    if not isinstance(arch, str):
        raise InputError("arch", arch, 'write the name of a family in quotes, such as "dense"')

    def spec(width: int | None) -> RunSpec:
        if width is not None:
            _number("model.d_model", width, whole=True)
        try:
            model = archs.build(arch, width)
        except ValidationError as error:
            raise input_error(error, source=f"{arch} at width {width}", root=ModelSpec) from None
        return paths.put(RunSpec(model=model, seed=0), changes)

    return spec


def _common(changes: Mapping[str, Any] | None, *, reserved: Mapping[str, str]) -> dict[str, Any]:
    changes = dict(changes or {})
    for path, instead in reserved.items():
        if path in changes:
            raise InputError(
                f"set.{path}",
                changes[path],
                f"an isoFLOP plan computes it; write isoflop.{instead}",
            )
    return changes


def _number(field: str, value: Any, *, whole: bool = False, least: float = 1) -> float:
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise InputError(field, value, f"write {kind}")
    if not math.isfinite(value) or (value < least if whole else value <= 0):
        raise InputError(
            field, value, f"write {kind} {f'of at least {least:g}' if whole else 'above 0'}"
        )
    return value


def _list(field: str, values: Any) -> list[Any]:
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise InputError(field, values, "write a list of numbers")
    values = list(values)
    if not values:
        raise InputError(field, "an empty list", "give at least one number")
    if len(set(map(str, values))) < len(values):
        raise InputError(field, values, "each number once")
    return values


def _numbers(field: str, values: Any) -> list[float]:
    return [float(_number(field, v)) for v in _list(field, values)]


def _whole_numbers(field: str, values: Any, *, least: int) -> list[int]:
    return [int(_number(field, v, whole=True, least=least)) for v in _list(field, values)]
