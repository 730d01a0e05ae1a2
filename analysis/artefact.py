"""What does a fit leave behind? One JSON value that predictions, plans and reports are made from,
and nothing else.

Carries the law's name, parameters, bootstrap samples, conventions, exclusions with reasons, the
back-test, and the hash of the data, so that a number can be traced to what it came from.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis import laws
from analysis.coordinates import Coordinates
from analysis.law import Law
from parallelism.errors import InputError

FORMAT = 1  # of fit.json
POINTS = 5000  # rows: curves of many checkpoints would make fit.json larger than their data

CONVERGED, MULTIMODAL, AT_BOUND = "CONVERGED", "MULTIMODAL", "AT_BOUND"
ILL_POSED, FAILED = "ILL_POSED", "FAILED"
STATUSES = (CONVERGED, MULTIMODAL, AT_BOUND, ILL_POSED, FAILED)
AGAIN = "write it again with ladder fit --json"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted law as an artefact. Lists and plain values only: JSON both ways."""

    law: str
    equation: str
    params: dict[str, float]
    objective: float
    status: str
    rows: int
    excluded: list[dict[str, str]]
    conventions: dict[str, Any]
    bootstrap: dict[str, Any]  # n, kind, clusters, singular, failed, params {name: {se, lo, hi}}
    backtest: dict[str, Any]
    data_hash: str
    version: str
    seconds: dict[str, float]
    warnings: list[str]
    delta: float  # Huber's, in log loss
    delta_origin: str
    reduce: str
    level: float
    seed: int
    starts: int
    starts_agree: int
    basins: list[dict[str, Any]]  # other optima that the data do not reject
    unidentified: list[dict[str, Any]]  # directions in parameter space the data do not fix
    condition: float  # of J^T J in fit coordinates
    noise: dict[str, Any]  # sd of log loss, dof, origin
    lack_of_fit: dict[str, Any]
    form: float  # relative error of form per e-fold of compute beyond the data
    calibration: float  # factor on intervals, from the coverage of the back-test
    theta: list[float]  # fit coordinates
    samples: list[list[float]]  # bootstrap draws in fit coordinates
    centre: list[float]
    scale: float
    ranges: dict[str, list[float]]  # fitted range of each input, of D/N and of C
    budgets: list[float]
    flops_per_token: list[list[float]] | None  # (N, C/D) pairs of the family; None is 6 N
    run_ids: list[str]
    source: str
    options: dict[str, Any] = field(default_factory=dict)  # how the law was made from its name
    missing: list[dict[str, str]] = field(default_factory=list)  # what the rows lack to fix it
    rivals: list[dict[str, Any]] = field(default_factory=list)  # other laws of a menu, weighted
    outliers: list[str] = field(default_factory=list)  # ids whose residual is beyond OUTLIER sd
    points: list[list[float]] = field(default_factory=list)  # N, D, C of up to POINTS rows
    format: int = FORMAT

    @property
    def where(self) -> Coordinates:
        return Coordinates(laws.build(self.law, self.options), np.array(self.centre), self.scale)

    @property
    def theta_p(self) -> np.ndarray:
        return np.array(self.theta)

    @property
    def samples_Sp(self) -> np.ndarray:
        """Bootstrap draws, or the fit itself when none were drawn."""
        return np.array(self.samples) if self.samples else self.theta_p[None]

    @property
    def dof(self) -> int:
        return int(self.noise["dof"])

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def write(self, path: Path | str) -> None:
        from train.record import write_json

        write_json(Path(path), self.to_json())

    def text(self) -> str:
        """The fit for people."""
        boot = self.bootstrap["params"]
        lines = [
            f"{self.law}: {self.equation}",
            f"{self.rows} rows, {len(self.excluded)} excluded; {self.status}"
            f" ({self.starts_agree} of {self.starts} starts agree)",
        ]
        for name, value in self.params.items():
            interval = ""
            if name in boot:
                interval = (
                    f"  se {boot[name]['se']:.3g}  [{boot[name]['lo']:.5g}, {boot[name]['hi']:.5g}]"
                )
            lines.append(f"  {name:<8}{value:.6g}{interval}")
        lines.append(
            f"objective {self.objective:.9g} ({self.reduce} of Huber terms, delta {self.delta:.3g}:"
            f" {self.delta_origin}); noise {self.noise['sd']:.2%} of loss"
        )
        lines += [f"held out: {fold}" for fold in self.backtest.get("lines", [])]
        if self.outliers:
            shown = ", ".join(self.outliers[:10]) + (" ..." if len(self.outliers) > 10 else "")
            lines.append(f"kept, but far off the law: {shown}")
        if self.excluded:
            lines.append("excluded:")
            why: dict[str, list[str]] = {}
            for row in self.excluded:
                why.setdefault(row["reason"], []).append(row["id"])
            for reason, ids in why.items():
                shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
                lines.append(f"  {shown}: {reason}")
        lines += [f"warning: {w}" for w in self.warnings]
        return "\n".join(lines)


def from_json(tree: Any, *, source: str = "fit.json") -> Fit:
    """A Fit from its JSON; raises InputError when it is not one or a newer ladder wrote it."""
    if not isinstance(tree, dict) or "law" not in tree:
        raise InputError(source, "not a fit", "give the file that ladder fit --json wrote")
    version = tree.get("format", FORMAT)
    if isinstance(version, int) and version > FORMAT:
        raise InputError(
            source, f"format {version}", f"upgrade ladder; this one reads up to {FORMAT}"
        )
    for key, holds in HOLDS.items():
        if key not in tree and key not in LATER:
            raise InputError(f"{source}: {key}", "missing", AGAIN)
        if key in tree and not holds(tree[key]):
            raise InputError(f"{source}: {key}", tree[key], AGAIN)
    try:
        law = laws.build(tree["law"], tree.get("options", {}))
    except InputError:
        own = "run where its module can be imported, or " if ":" in tree["law"] else ""
        raise InputError(f"{source}: law", tree["law"], own + AGAIN) from None
    if key := _unlike(law, tree):
        raise InputError(f"{source}: {key}", tree[key], f"{AGAIN}: the law is {law.name}")
    return Fit(**{k: v for k, v in tree.items() if k in HOLDS})


def _unlike(law: Law, tree: dict[str, Any]) -> str | None:
    """The first key whose lengths or names are not the law's, or None."""
    p = len(law.params)
    ranges = set(law.input_names) | ({"C", "D/N"} if law.input_names == ("N", "D") else set())
    agrees = {
        "params": set(tree["params"]) == set(law.names),
        "theta": len(tree["theta"]) == p,
        "samples": all(len(row) == p for row in tree["samples"]),
        "basins": all(len(b["theta"]) == p for b in tree["basins"]),
        "centre": len(tree["centre"]) == len(law.input_names),
        "ranges": ranges <= set(tree["ranges"]),
    }
    return next((key for key, ok in agrees.items() if not ok), None)


# -- what each key of fit.json holds ---------------------------------------------------------------


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    # json reads NaN and Infinity, and True is an int
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _level(value: Any) -> bool:
    return _number(value) and 0 < value < 1


def _several(count: int) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and len(value) == count and all(_positive(v) for v in value)
    )


def _range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_number(v) for v in value)


def _list(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(of(v) for v in value)


def _map(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(of(v) for v in value.values())


def _object(**keys: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """An object with these keys, and perhaps others."""
    return lambda value: (
        isinstance(value, dict) and all(k in value and of(value[k]) for k, of in keys.items())
    )


HOLDS: dict[str, Callable[[Any], bool]] = {
    "law": _text,
    "equation": _text,
    "params": _map(_number),
    "objective": _number,
    "status": lambda value: value in STATUSES,
    "rows": _count,
    "excluded": _list(_object(id=_text, reason=_text)),
    "conventions": _map(lambda value: True),
    "bootstrap": _object(n=_count, params=_map(_object(se=_number, lo=_number, hi=_number))),
    "backtest": _object(lines=_list(_text), folds=_list(_object(flops=_number))),
    "data_hash": _text,
    "version": _text,
    "seconds": _object(solve=_number, bootstrap=_number),
    "warnings": _list(_text),
    "delta": _positive,
    "delta_origin": _text,
    "reduce": _text,
    "level": _level,
    "seed": lambda value: isinstance(value, int),
    "starts": _count,
    "starts_agree": _count,
    "basins": _list(_object(theta=_list(_number), weight=_number)),
    "unidentified": _list(_object(params=_list(_text))),
    "condition": _number,
    "noise": _object(sd=_number, dof=_count, origin=_text),
    "lack_of_fit": _object(verdict=_text),
    "form": _number,
    "calibration": _positive,
    "theta": _list(_number),
    "samples": _list(_list(_number)),
    "centre": _list(_number),
    "scale": _positive,
    "ranges": _map(_range),
    "budgets": _list(_positive),
    "flops_per_token": lambda value: value is None or _list(_several(2))(value),
    "run_ids": _list(_text),
    "source": _text,
    "options": _map(lambda value: True),
    "missing": _list(_object(given=_text, instead=_text)),
    "outliers": _list(_text),
    "points": _list(_several(3)),
    "rivals": _list(
        _object(law=_text, theta=_list(_number), centre=_list(_number), weight=_number)
    ),
    "format": lambda value: _count(value) and value >= 1,
}
# absent from the files of older versions, which had no such thing
LATER = ("options", "missing", "outliers", "rivals", "points", "format")


def read_fit(path: Path | str) -> Fit:
    path = Path(path)
    if not path.is_file():
        said = "a folder" if path.is_dir() else "no such file"
        raise InputError(str(path), said, "give the file that ladder fit --json wrote")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise InputError(
            str(path), "not JSON", "give the file that ladder fit --json wrote"
        ) from None
    except OSError as error:
        raise InputError(
            str(path), error.strerror or str(error), "give a file that can be read"
        ) from None
    return from_json(tree, source=str(path))
