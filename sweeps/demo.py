"""What does the whole path look like, small? Sweep, fit, predict, train the held-out rung, size.

The real thing on real text: the prediction of the held-out rung is written down before the rung is
trained, and a second call finds everything done. Sizes are chosen for two CPU cores.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.artefact import Fit
from analysis.fit import fit as fit_law
from analysis.isoflop import isoflop as valleys
from analysis.observations import observe
from analysis.planner import Sizing, size
from analysis.predict import HeldOut, Prediction, predict
from analysis.report import write_report
from model import archs
from parallelism.errors import InputError
from sweeps.launch.local import sweep
from sweeps.make import isoflop
from sweeps.plan import Plan, PlannedRun
from sweeps.production import Production, production
from sweeps.summary import Summary
from train.record import RunDir, read_object, write_json

CONVENTION = "causal_attn"
RUNG = 3  # the held-out budget over the largest fitted one
PRODUCTION = 1000  # the sized run's budget over the largest fitted one


@dataclasses.dataclass(frozen=True)
class Size:
    """Budgets in FLOPs, widths and number of seeds at each, and settings common to all runs."""

    budgets: tuple[float, ...]
    widths: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]  # of every size at each budget
    settings: dict[str, Any]


# Batches of 256 tokens: with more, a run of a million tokens has too few steps. At width 64 and
# 0.58M bytes three seeds gave 1.765 with these two values and 1.805 with 512 and 8e-3; the learning
# rate was not swept at this batch (benchmarks/README.md has what was).
COMMON = {
    "data.seq_len": 128,
    "budget.batch_tokens": 256,
    "optim.lr": 0.006,
    "evaluation.tokens": 262_144,
    "execution.checkpoint_every": 2000,
}
SIZES = {
    "small": Size(
        budgets=(1e11, 3e11, 9e11),
        widths=((16, 24, 32, 40), (24, 32, 48, 64), (32, 48, 64, 80)),
        seeds=(2, 1, 1),
        settings=COMMON,
    ),
    "tiny": Size(
        budgets=(3e10, 9e10, 2.7e11),
        widths=((16, 24, 32, 40),) * 3,
        seeds=(1, 1, 1),
        settings={**COMMON, "evaluation.tokens": 65_536},
    ),
    # whether a new architecture goes the whole path; a law of so short runs is not to be believed
    "smoke": Size(
        budgets=(1e10, 2e10, 4e10),
        widths=((16, 24, 32, 40),) * 3,
        seeds=(1, 1, 1),
        settings={**COMMON, "evaluation.tokens": 16_384},
    ),
}


@dataclasses.dataclass(frozen=True)
class Demo:
    """Everything the demo found; `began` (since the epoch) and `seconds` are this call's."""

    plan: Plan
    summaries: tuple[Summary, ...]
    fit: Fit
    heldout: HeldOut
    before_training: (
        bool  # the prediction of the held-out run was written before the run was trained
    )
    sizing: Sizing
    production: Production
    spec_path: Path
    report: Path
    began: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        held = self.heldout.to_json()
        return {
            "cells": [
                {"run_id": run.run_id, **run.labels, **self._cell(run.run_id)}
                for run in self.plan.runs
            ],
            "budgets": sorted({run.labels["budget"] for run in self.plan.runs}),
            "fit": {"params": self.fit.params, "status": self.fit.status, "rows": self.fit.rows},
            "heldout": {
                **{k: held[k] for k in ("predicted", "lo", "hi", "measured", "inside")},
                "before_training": self.before_training,
            },
            "production": self.production.to_json(),
            "compilations": self.compilations,
            "compilations_in_all": sum(s.compilations for s in self.summaries),
            "compile_seconds": sum(s.to_json()["compile_seconds"] for s in self.summaries),
            "seconds": self.seconds,
            "report": str(self.report),
        }

    @property
    def compilations(self) -> int:
        """Train steps compiled by this call: none when everything was done before."""
        ours = [x for s in self.summaries for x in s.sessions if x["started"] >= self.began]
        return int(sum(x["programs"].get("train_step", {}).get("compiled", 0) for x in ours))

    def _cell(self, run_id: str) -> dict[str, Any]:
        return self.summaries[0].cells[run_id]

    def text(self) -> str:
        shapes = {run.labels["size"] for run in self.plan.runs}
        late = "" if self.before_training else "; nothing shows that the prediction came first"
        return "\n".join(
            [
                "",
                self.fit.text(),
                "",
                f"held-out rung, {RUNG} x the largest budget: {self.heldout.text()}{late}",
                "",
                self.sizing.text(),
                self.production.text(),
                f"launch it with: ladder train {self.spec_path}",
                "",
                f"{self.seconds:.0f} s; {self.compilations} train steps compiled for {len(shapes)} "
                f"sizes and the rung",
                f"report: {self.report}",
            ]
        )


def demo(
    *,
    arch: str,
    size_name: str,
    root: Path,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Demo | None:
    """Run the demo, or what is left of it; None when it was interrupted."""
    began = time.time()
    if size_name not in SIZES:
        raise InputError("--size", size_name, f"choose one of {', '.join(SIZES)}")
    if archs.build(arch).encoder is not None:
        # a solved task's loss falls to zero, and the split between the sides has a law of its own
        raise InputError(
            "--arch",
            arch,
            "the demo fits a law of one size and of text; for the law of an encoder's and a "
            "decoder's size write ladder sweep split.toml, as in docs/translation.md",
        )
    plan = _plan(arch, size_name)
    plan.write(root)
    say(f"{len(plan.runs)} runs of {arch} at {len(SIZES[size_name].budgets)} budgets: {root}")
    first = sweep(plan, root, workers=workers)
    if first.interrupted:
        return None

    observations = observe(root, run_ids=[run.run_id for run in plan.runs], convention=CONVENTION)
    folder = root / "reports" / plan.name
    fit = fit_law(observations)
    fit.write(folder / "fit.json")
    say(fit.text())

    rung, prediction, before = _rung(plan, fit, folder / "heldout.json", root, say)
    second = sweep(rung, root, workers=1)
    if second.interrupted:
        return None
    held = _measured(rung.runs[0].run_id, prediction, root)
    say(held.text())

    largest = max(run.labels["budget"] for run in plan.runs)
    sizing = size(fit, PRODUCTION * largest, anyway=True)
    big = _production(plan, n=sizing.N["value"], flops=PRODUCTION * largest)
    expected = predict(fit, {"N": big.params["total"], "D": big.tokens})
    spec_path = folder / "production.json"
    big.write(spec_path, prediction=expected.to_json())
    report = write_report(
        folder / "report.html",
        fit=fit,
        observations=observe(root, run_ids=[r.run_id for r in plan.runs], convention=CONVENTION),
        isoflop=valleys(observations, fit=fit),
        heldout=held,
        sizing=sizing,
        production={**big.to_json(), "prediction": expected.to_json()},
        sweep=first.to_json(),
        title=f"ladder demo: {arch}",
    )
    return Demo(
        plan=plan,
        summaries=(first, second),
        fit=fit,
        heldout=held,
        before_training=before,
        sizing=sizing,
        production=big,
        spec_path=spec_path,
        report=report,
        began=began,
        seconds=time.time() - began,
    )


def _plan(arch: str, size_name: str) -> Plan:
    chosen = SIZES[size_name]
    name = f"demo-{arch}-{size_name}"
    runs: list[PlannedRun] = []
    for budget, widths, seeds in zip(chosen.budgets, chosen.widths, chosen.seeds, strict=True):
        part = isoflop(
            name=name,
            arch=arch,
            budgets=[budget],
            widths=widths,
            seeds=range(seeds),
            convention=CONVENTION,
            set=chosen.settings,
        )
        runs += part.runs
    recipe = {"kind": "demo", "arch": arch, "size": size_name}
    return Plan(name, "the whole path once, small", tuple(runs), recipe)


def _rung(
    plan: Plan, fit: Fit, path: Path, root: Path, say: Callable[[str], None]
) -> tuple[Plan, Prediction, bool]:
    """The held-out run, its prediction, and whether that was written before any training of it."""
    budget = RUNG * max(run.labels["budget"] for run in plan.runs)
    big = _production(plan, n=size(fit, budget, anyway=True).N["value"], flops=budget)
    rung = _one(plan, big.spec.model.d_model, budget)
    run = RunDir(root / rung.runs[0].run_id)
    begun = (run.path / "result.json").exists() or bool(run.metrics())
    if path.exists():
        kept = read_object(path, run_id=str, data_hash=str, prediction=dict, before_training=bool)
        same_data = kept.get("data_hash") == fit.data_hash
        if kept.get("run_id") == run.run_id and "prediction" in kept and (begun or same_data):
            before = kept.get("before_training", False)
            return rung, Prediction(**kept["prediction"]), before
    prediction = predict(fit, {"N": big.params["total"], "D": rung.runs[0].spec.tokens})
    kept = {
        "run_id": run.run_id,
        "d_model": big.spec.model.d_model,
        "data_hash": fit.data_hash,
        "written": time.time(),
        "before_training": not begun,
        "prediction": prediction.to_json(),
    }
    write_json(path, kept)
    when = "AFTER training of the rung" if begun else "before the rung"
    then = "had begun" if begun else "is trained"
    say(f"predicted {when} {run.run_id} {then}: {prediction.text()}")
    return rung, prediction, not begun


def _one(plan: Plan, width: int, budget: float) -> Plan:
    made = isoflop(
        name=f"{plan.name}.rung",
        arch=plan.recipe["arch"],
        budgets=[budget],
        widths=[width],
        convention=CONVENTION,
        why="the held-out rung",
        set=SIZES[plan.recipe["size"]].settings,
    )
    # another fit may choose another width: still the demo's rung, under the same name
    return dataclasses.replace(made, recipe={**plan.recipe, "kind": "demo rung"})


def _production(plan: Plan, *, n: float, flops: float) -> Production:
    base = plan.runs[0].spec
    return production(base, n=n, flops=flops, convention=CONVENTION, arch=plan.recipe["arch"])


def _measured(run_id: str, prediction: Prediction, root: Path) -> HeldOut:
    run = RunDir(root / run_id).read()
    result = run.result or {"status": run.status, "metrics": {}}
    metrics = result["metrics"]
    return HeldOut(
        run_id=run_id,
        prediction=prediction,
        measured=metrics.get("loss/val") if result["status"] == "done" else None,
        flops=run.counts["flops_per_token"][CONVENTION] * run.counts["tokens_planned"],
    )
