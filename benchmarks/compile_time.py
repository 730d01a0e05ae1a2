"""How long does a training step take to compile, against the number of layers?

    python -m benchmarks.compile_time [--layers 4,24] [--unrolled dense] [--rounds 3]

Tracing, lowering and compiling one step of every named architecture at d_model 128, 1024 tokens,
with scanned layers; those of `--unrolled` with their layers written out too. No cache is read or
written. A depth that the pattern does not allow is the nearest that it does. Prints a table of
medians and writes benchmarks/compile_time.json.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import jax

from benchmarks.mixers import machine
from model import archs
from model.decoder import build
from model.spec import ModelSpec
from parallelism.mesh import make_mesh
from train.paths import put
from train.programs import abstract_batch, traced
from train.schedule import hyper
from train.spec import RunSpec
from train.step import abstract_state

HERE = Path(__file__).resolve().parent
D_MODEL = 128


def deep(name: str, n_layers: int) -> ModelSpec:
    """The architecture at the depth nearest to this that its pattern allows."""
    spec = archs.build(name, D_MODEL)
    unit, ends = len(spec.repeat), len(spec.first) + len(spec.last)
    return replace(spec, n_layers=ends + unit * max(1, round((n_layers - ends) / unit)))


def seconds(name: str, n_layers: int, layers: str) -> float:
    """One compilation, with nothing left over from another."""
    run = put(
        RunSpec(model=deep(name, n_layers)),
        {"data.seq_len": 256, "budget.batch_tokens": 1024, "execution.layers": layers},
    )
    model = build(run.model)
    step, _ = traced(run, model, make_mesh(run.execution.mesh))
    jax.clear_caches()
    begun = time.perf_counter()
    jax.jit(step).lower(abstract_state(model), hyper(run), abstract_batch(run)).compile()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--archs", default=",".join(archs.names()))
    parser.add_argument("--layers", default="4,24")
    parser.add_argument("--unrolled", default="dense")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "compile_time.json")
    given = parser.parse_args()
    depths = [int(n) for n in given.layers.split(",")]
    unrolled = set(given.unrolled.split(","))
    rows = []
    print(
        "| | layers | " + " | ".join(map(str, depths)) + " |\n" + "|---" * (len(depths) + 2) + "|"
    )
    for name in given.archs.split(","):
        for layers in ("scan", "unroll") if name in unrolled else ("scan",):
            took: dict[int, list[float]] = {n: [] for n in depths}
            for _ in range(given.rounds):
                for n in depths:
                    took[n].append(seconds(name, n, layers))
            rows += [
                {"arch": name, "layers": layers, "n_layers": n, "seconds": sorted(took[n])}
                for n in depths
            ]
            medians = " | ".join(f"{statistics.median(took[n]):.2f}" for n in depths)
            print(f"| {name} | {layers} | {medians} |", flush=True)
    given.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    main()
