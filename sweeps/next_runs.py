"""What is the answer of `ladder next` as a sweep? The family's runs that realise a design's cells.

Each cell becomes the run of the family with the cell's size and compute, every other setting that
of a run the law was fitted to; a replicate is the same run with a seed that no other run has.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.artefact import Fit
from analysis.proposal import Choice, Design
from model import archs
from model.count import CONVENTIONS
from parallelism.errors import InputError
from sweeps.plan import Plan, PlannedRun
from sweeps.production import production
from train import paths
from train.counted import counted
from train.record import RunDir
from train.spec import RunSpec, from_dict, to_dict

VALIDATION = "validation"  # label of the run whose prediction was made before it


def base_of(fit: Fit, *, root: Path = Path("runs"), arch: str | None = None) -> RunSpec:
    """A run the law was fitted to, or a named family with its default settings; raises InputError
    where there is neither, or `arch` is another family than the law's."""
    fitted = fit.conventions.get("model.arch")
    if fitted in archs.names() and arch not in (None, fitted):
        raise InputError("--arch", arch, f"the law is of {fitted}; fit runs of {arch} first")
    for folder in (Path(fit.source), Path(root)):
        for run_id in fit.run_ids[:1]:
            directory = RunDir(folder / run_id)
            if (directory.path / "spec.json").exists():
                return from_dict(directory.read().spec, source=str(directory.path))
    if arch is None:
        raise InputError(
            "--arch",
            "none, and the law is not of runs here",
            f"name the family to train: {', '.join(archs.names()[:8])}",
        )
    return RunSpec(model=archs.build(arch), seed=0)


def realisable(
    fit: Fit, base: RunSpec, *, arch: str | None = None, most: float = 1e12
) -> dict[float, float]:
    """FLOPs per token of the family's sizes up to `most` parameters, by N, in the fit's
    conventions: `sizes` of `analysis.design.next_runs`."""
    convention, kind = convention_of(fit), kind_of(fit)
    family = arch or base.model.arch
    if family not in archs.names():
        raise InputError("--arch", family, "name the family; this run's model has its own label")
    given = paths.flatten(to_dict(base)["model"])
    plain = RunSpec(model=archs.build(base.model.arch, base.model.d_model), seed=0)
    own = paths.flatten(to_dict(plain)["model"]) if base.model.arch == family else given
    changed = {f"model.{path}": value for path, value in given.items() if own.get(path) != value}
    out: dict[float, float] = {}
    for width in archs.widths(family):
        try:
            spec = paths.put(dataclasses.replace(base, model=archs.build(family, width)), changed)
        except InputError:  # a size that a setting of the sweep does not fit, a head width say
            continue
        counts = counted(spec)
        if counts.params[kind] > most:
            break
        out[float(counts.params[kind])] = float(counts.flops_per_token[convention])
    return out


def convention_of(fit: Fit) -> str:
    """The FLOP convention of a fit; raises InputError for a column that is none."""
    convention = str(fit.conventions.get("C"))
    if convention not in CONVENTIONS:
        raise InputError(
            "fit.json",
            f"compute in column {convention}",
            f"fit again without C in --map (C is then 6 N D), or by {', '.join(CONVENTIONS)}",
        )
    return convention


def kind_of(fit: Fit) -> str:
    """Which parameters the fit's N counts."""
    return "non_embedding" if fit.conventions.get("N") == "params.non_embedding" else "total"


def plan_of(
    design: Design,
    fit: Fit,
    base: RunSpec,
    *,
    name: str = "next",
    arch: str | None = None,
    transfer: str | Mapping[str, Any] = "fixed",
) -> Plan:
    """The plan that `ladder plan` and `ladder sweep` take: the design's cells in their order, then
    its validation run; raises InputError on a cell that the family cannot realise."""
    convention, kind = convention_of(fit), kind_of(fit)
    taken = set(fit.run_ids)
    runs: list[PlannedRun] = []
    notes: list[str] = list(design.notes)

    def add(N: float, C: float, **labels: Any) -> None:
        made = production(
            base, n=N, flops=C, convention=convention, arch=arch, transfer=transfer, kind=kind
        )
        spec = made.spec
        # a run that exists teaches nothing when it is trained again: another seed does
        while spec.run_id in taken:
            spec = dataclasses.replace(spec, seed=(spec.seed or 0) + 1)
        taken.add(spec.run_id)
        labels |= {"size": spec.model.d_model, "seed": spec.seed, "budget": C}
        labels |= {"convention": convention, "target_flops": C}
        runs.append(PlannedRun(spec, {**labels, "achieved_flops": made.flops[convention]}))
        notes.extend(f"width {spec.model.d_model}: {note}" for note in made.notes)

    for k, cell in enumerate(design.cells):
        add(cell.N, cell.C, order=k + 1, buys=_buys(cell))
    if design.validation is not None:
        v = design.validation
        add(v["N"], v["C"], order=len(design.cells) + 1, role=VALIDATION, predicted=v["prediction"])
    if not runs:
        raise InputError("--cost", design.limit, f"it buys no run ({design.stopped}): raise it")
    recipe = {
        "kind": "next",
        "target": design.target,
        "limit": design.limit,
        "unit": design.unit,
        "law": fit.law,
        "data_hash": fit.data_hash,
        "convention": convention,
        "transfer": transfer if isinstance(transfer, str) else dict(transfer),
    }
    why = (
        f"to know {design.target['flops']:.3g} FLOPs: loss +-{design.before.half:.3g} before,"
        f" +-{design.after.half:.3g} after"
    )
    return Plan(name, why, tuple(runs), recipe, tuple(dict.fromkeys(notes)))


def _buys(cell: Choice) -> dict[str, float | str]:
    return {"why": cell.why, "half": cell.after.half, "N_factor": cell.after.N_factor}
