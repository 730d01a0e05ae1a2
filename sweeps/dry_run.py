"""What would a plan do, before anything is spent? One row a run, and the time it would take.

The speed behind the time is, in this order: stated by the caller; measured by finished runs under
the root; guessed from this machine's matrix products. The report says which.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from model.count import CONVENTIONS
from parallelism.errors import InputError
from sweeps.launch import machine
from sweeps.launch.schedule import shape_of
from sweeps.plan import Plan
from train.counted import counted
from train.record import RunDir, read_runs

UTILISATION = 0.3  # guess: share of the matrix-product speed that a small training step reaches


@dataclasses.dataclass(frozen=True)
class Speed:
    """Training FLOP/s (causal_attn) of the whole machine, and where the number is from."""

    flops_per_second: float | None
    source: str


@dataclasses.dataclass(frozen=True)
class DryRun:
    """Rows by run, in the plan's order, and what holds for all of them."""

    plan: Plan
    rows: list[dict[str, Any]]
    speed: Speed

    @property
    def seconds_left(self) -> float | None:
        left = [row["seconds"] for row in self.rows if row["status"] not in ("done", "diverged")]
        return None if None in left else float(sum(left))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.plan.name,
            "why": self.plan.why,
            "notes": list(self.plan.notes),
            "shapes": len({row["shape"] for row in self.rows}),
            "speed": dataclasses.asdict(self.speed),
            "seconds_left": self.seconds_left,
            "runs": self.rows,
        }

    def text(self) -> str:
        head = (
            "run",
            "size",
            "seed",
            "N",
            "D",
            "D/N",
            "target",
            "achieved",
            "off",
            "batch",
            "steps",
        )
        table: list[tuple[str, ...]] = [(*head, "lr", "decay", "time", "status")]
        for row in self.rows:
            target, achieved = row["target_flops"], row["achieved_flops"]
            table.append(
                (
                    row["run_id"],
                    f"{row['d_model']}x{row['n_layers']}",
                    str(row["seed"]),
                    f"{row['params']['active']:.4g}",
                    f"{row['tokens']:.4g}",
                    f"{row['tokens_per_param']:.3g}",
                    f"{target:.4g}" if target else "-",
                    f"{achieved:.4g}",
                    f"{achieved / target - 1:+.2%}" if target else "-",
                    str(row["batch_tokens"]),
                    str(row["steps"]),
                    f"{row['lr']:.3g}",
                    f"{row['weight_decay']:.3g}",
                    duration(row["seconds"]),
                    row["status"],
                )
            )
        columns = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(v.rjust(w) for v, w in zip(r, columns, strict=True)) for r in table]
        return "\n".join([self._title(), *lines, *self._foot()])

    def _title(self) -> str:
        return f"{self.plan.name}: {self.plan.why}" if self.plan.why else self.plan.name

    def _foot(self) -> list[str]:
        conventions = sorted({row["convention"] for row in self.rows})
        told = "; ".join(f"{name}: {CONVENTIONS[name]}" for name in conventions)
        done = sum(row["status"] == "done" for row in self.rows)
        return [
            f"FLOPs in {told}",
            f"{len(self.rows)} runs, {done} done, {len({r['shape'] for r in self.rows})} shapes to "
            f"compile, about {duration(self.seconds_left)} left ({self.speed.source})",
            *(f"note: {note}" for note in self.plan.notes),
        ]


def dry_run(plan: Plan, root: Path, *, flops_per_second: float | None = None) -> DryRun:
    """Rows of a plan: sizes, tokens, compute by convention, knobs after transfer, time, status."""
    speed = measure(root, stated=flops_per_second)
    rows = []
    for run in plan.runs:
        spec = run.spec
        counts = counted(spec)
        flops = {name: rate * spec.tokens for name, rate in counts.flops_per_token.items()}
        rate = speed.flops_per_second
        rows.append(
            {
                "run_id": run.run_id,
                **run.labels,
                "arch": spec.model.arch,
                "d_model": spec.model.d_model,
                "n_layers": spec.model.n_layers,
                "params": counts.params,
                "tokens": spec.tokens,
                "tokens_per_param": spec.tokens / counts.params["active"],
                "flops": flops,
                "batch_tokens": spec.budget.batch_tokens,
                "steps": spec.steps,
                "lr": spec.optim.lr,
                "weight_decay": spec.optim.weight_decay,
                "seconds": flops["causal_attn"] / rate if rate else None,
                "status": status_of(root, run.run_id),
                "shape": shape_of(spec),
            }
        )
    return DryRun(plan, rows, speed)


def status_of(root: Path, run_id: str) -> str:
    """done, diverged, failed, running, unfinished, or planned (nothing was written yet)."""
    run = RunDir(Path(root) / run_id)
    if not (run.path / "spec.json").exists():
        return "running" if run.path.exists() and run.owner() is not None else "planned"
    return run.read().status


def measure(root: Path, *, stated: float | None = None) -> Speed:
    """FLOP/s of all workers together, and its source; None where nothing can be said."""
    if stated is not None:
        if not stated > 0:
            raise InputError("flops_per_second", stated, "write a number above 0")
        return Speed(float(stated), f"at the stated {stated:.3g} FLOP/s")
    platform = machine.platform()
    workers = len(machine.cores()) if platform == "cpu" else 1
    spent, made, n = 0.0, 0.0, 0
    for run in read_runs(root) if Path(root).is_dir() else []:
        seconds, flops = (
            (run.result or {}).get("seconds"),
            (run.result or {}).get("metrics", {}).get("flops"),
        )
        if run.status == "done" and seconds and flops:
            spent, made, n = spent + seconds, made + flops, n + 1
    if n:
        rate = made / spent * workers
        return Speed(
            rate, f"at {rate:.3g} FLOP/s, measured by {n} finished runs, {workers} workers"
        )
    if platform != "cpu":
        return Speed(None, f"no run has measured this {platform} yet; state flops_per_second")
    rate = _matrix_speed() * UTILISATION
    return Speed(
        rate, f"at {rate:.3g} FLOP/s, a guess: {UTILISATION:.0%} of this CPU's matrix products"
    )


def _matrix_speed() -> float:
    """FLOP/s of a float32 product on all cores, the best of a few."""
    size = 768
    a = np.ones((size, size), np.float32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        np.matmul(a, a)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
