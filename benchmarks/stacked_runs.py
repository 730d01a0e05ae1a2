"""Are many small runs done sooner in one program than one after another?

    python -m benchmarks.stacked_runs [--runs 8] [--steps 300] [--widths 16,32,64] [--rounds 3]

Whole runs, as a worker of a sweep trains them: data, steps, evaluation, checkpoints, result. A side
is a process of its own on one core, with the worker's allocator settings, and takes turns with the
other; it trains the runs once with nothing compiled, and others once more with everything ready.
Seconds are those of the core (user and system), which a busy machine disturbs less than the clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sweeps.launch.machine import ALLOCATOR, cores

SIDES = ("alone", "stacked")


def side(name: str, *, runs: int, steps: int, width: int) -> dict[str, Any]:
    """CPU and wall seconds of so many runs: the first time, and with the programs ready."""
    os.sched_setaffinity(0, cores()[:1])  # before jax starts
    from model.archs import build
    from train.loop import train
    from train.paths import put
    from train.spec import RunSpec
    from train.stack import train_stack

    fixed = {
        "data.seq_len": 64,
        "budget.batch_tokens": 256,
        "budget.tokens": 256 * steps,
        "evaluation.tokens": 16384,
    }
    base = put(RunSpec(model=build("dense", width)), fixed)
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        train(put(base, {"budget.tokens": 256, "model.n_layers": 1}), root=root)  # data, imports
        for i, what in enumerate(("compiling", "ready")):
            seeds = range(i * runs, (i + 1) * runs)
            specs = [put(base, {"seed": s, "optim.lr": 1e-3 * (1 + s % runs)}) for s in seeds]
            cpu, wall = time.process_time(), time.perf_counter()
            if name == "stacked":
                told = train_stack(specs, root=root)
                ends: list[Any] = [told[spec.run_id] for spec in specs]
            else:
                ends = [train(spec, root=root) for spec in specs]
            out[what] = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
            assert [end.status for end in ends] == ["done"] * runs
            out[f"loss, {what}"] = statistics.mean(end.metrics["loss/val"] for end in ends)
            made = [c for end in ends for c in end.compilations]
            out[f"compiled, {what}"] = {c.program: c.seconds for c in made}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--widths", default="16,32,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="(of a process of its own)")
    args = parser.parse_args()
    if args.side:
        found = side(args.side, runs=args.runs, steps=args.steps, width=int(args.widths))
        print(json.dumps(found))
        return
    for width in map(int, args.widths.split(",")):
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
        for _ in range(args.rounds):
            for name in SIDES:
                command = [sys.executable, "-m", "benchmarks.stacked_runs", f"--side={name}"]
                sizes = [f"--runs={args.runs}", f"--steps={args.steps}", f"--widths={width}"]
                env = {**os.environ, **ALLOCATOR}
                done = subprocess.run([*command, *sizes], env=env, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
        for what in ("compiling", "ready"):
            for unit in ("cpu", "wall"):
                sides = {k: [one[what][unit] for one in v] for k, v in found.items()}
                ratios = [a / b for a, b in zip(sides["alone"], sides["stacked"], strict=True)]
                said = ", ".join(
                    f"{k} {statistics.median(v):.2f} s ({min(v):.2f} - {max(v):.2f})"
                    for k, v in sides.items()
                )
                print(f"width {width}, {what}, {unit}: {said}; alone / stacked "
                      f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})",
                      flush=True)  # fmt: skip
        print(f"width {width}: {json.dumps({k: v[0] for k, v in found.items()})}", flush=True)


if __name__ == "__main__":
    main()
