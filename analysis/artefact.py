"""What does a fit leave behind? One JSON value that predictions, plans and reports are made from,
and nothing else.

Carries the law's name, parameters, bootstrap samples, conventions, exclusions with reasons, the
back-test, and the hash of the data, so that a number can be traced to what it came from.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis import laws
from analysis.law import Coordinates
from parallelism.errors import InputError

FORMAT = 1  # of fit.json

CONVERGED, MULTIMODAL, AT_BOUND = "CONVERGED", "MULTIMODAL", "AT_BOUND"
ILL_POSED, FAILED = "ILL_POSED", "FAILED"


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
    format: int = FORMAT

    @property
    def where(self) -> Coordinates:
        return Coordinates(laws.resolve(self.law), np.array(self.centre), self.scale)

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
        if self.excluded:
            lines.append("excluded:")
            lines += [f"  {e['id']}: {e['reason']}" for e in self.excluded[:20]]
            if len(self.excluded) > 20:
                lines.append(f"  ... and {len(self.excluded) - 20} more")
        lines += [f"warning: {w}" for w in self.warnings]
        return "\n".join(lines)


def from_json(tree: Any, *, source: str = "fit.json") -> Fit:
    """A Fit from its JSON; raises InputError when it is not one or a newer ladder wrote it."""
    if not isinstance(tree, dict) or "law" not in tree:
        raise InputError(source, "not a fit", "give the file that ladder fit --json wrote")
    if tree.get("format", FORMAT) > FORMAT:
        raise InputError(
            source, f"format {tree['format']}", f"upgrade ladder; this one reads up to {FORMAT}"
        )
    fields = {f.name for f in dataclasses.fields(Fit)}
    if missing := fields - set(tree) - {"format"}:
        raise InputError(
            source, f"no {sorted(missing)[0]}", "write the fit again with ladder fit --json"
        )
    return Fit(**{k: v for k, v in tree.items() if k in fields})


def read_fit(path: Path | str) -> Fit:
    path = Path(path)
    if not path.is_file():
        raise InputError(str(path), "no such file", "give the file that ladder fit --json wrote")
    try:
        tree = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(
            str(path), "not JSON", "give the file that ladder fit --json wrote"
        ) from None
    return from_json(tree, source=str(path))
