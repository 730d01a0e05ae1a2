"""What do P parallel streams cost? A training step, a decoding step, and the memory of both.

    python -m benchmarks.streams [--d-model 128] [--streams 1,2,4,8] [--k 0.35] [--rounds 7]

Training: a compiled step of 4 x 512 tokens. Decoding: one token of one sequence after 512, beside a
dense model of equal loss, which is the width whose parameters outside tables come nearest to
N (1 + k ln P) (Chen et al. 2025; `--k` is a fitted k: the paper has .39 and .33, docs/signatures.md
ours). Sides take turns within a round; medians and quartiles over rounds. Memory is the compiler's
count of temporaries, and parameters plus state for decoding.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from model import archs
from model.count import count
from model.decoder import build
from model.spec import ModelSpec, StreamsSpec
from parallelism.mesh import make_mesh
from train.paths import put
from train.programs import abstract_batch, traced
from train.schedule import hyper
from train.spec import RunSpec
from train.step import initial_state

ROWS, LENGTH = 4, 512


def with_streams(d_model: int, streams: int) -> ModelSpec:
    return replace(archs.dense(d_model), streams=StreamsSpec(count=streams))


def outside_tables(spec: ModelSpec) -> int:
    return count(spec, seq_len=LENGTH).params["non_embedding"]


def equal_loss(spec: ModelSpec, *, k: float) -> ModelSpec:
    """The dense model whose parameters come nearest to what the streams are worth."""
    wanted = outside_tables(replace(spec, streams=None)) * (1 + k * math.log(spec.n_streams))
    widths = [w for w in archs.widths("dense") if w <= 4 * spec.d_model]
    return min(map(archs.dense, widths), key=lambda s: abs(math.log(outside_tables(s) / wanted)))


def training(spec: ModelSpec) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A compiled step as a function of nothing, and what it costs."""
    sizes = {"data.seq_len": LENGTH, "budget.batch_tokens": ROWS * LENGTH}
    run = put(RunSpec(model=spec), {**sizes, "budget.tokens": ROWS * LENGTH})
    model = build(spec)
    mesh = make_mesh(run.execution.mesh)
    step, _ = traced(run, model, mesh)
    batch = {
        name: jnp.zeros(like.shape, like.dtype) if name != "weights_BT" else jnp.ones(like.shape)
        for name, like in abstract_batch(run).items()
    }
    state = jax.tree.map(jnp.asarray, initial_state(model, 0))
    numbers = {name: jnp.asarray(value) for name, value in hyper(run).items()}
    compiled = jax.jit(step).lower(state, numbers, batch).compile()
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend does not count memory"
    flops = count(spec, seq_len=LENGTH).flops_per_token["causal_attn"]
    costs = {"flops_per_token": flops, "temporary_bytes": memory.temp_size_in_bytes}
    return lambda: jax.block_until_ready(compiled(state, numbers, batch)[1]), costs


def decoding(spec: ModelSpec) -> tuple[Callable[[], Any], dict[str, Any]]:
    """One token after LENGTH of one sequence."""
    model = build(spec)
    params = {path: jnp.asarray(value) for path, value in model.initialise(0).items()}
    state = model.start(1, length=LENGTH + 1, dtype=jnp.float32)
    state["position"] = jnp.asarray(LENGTH, jnp.int32)
    token_BT = jnp.zeros((1, 1), jnp.int32)

    def one(params: Any, token_BT: jax.Array, state: Any) -> Any:
        return model.extend(params, token_BT, state, dtype=jnp.float32)

    compiled = jax.jit(one).lower(params, token_BT, state).compile()
    held = sum(x.nbytes for x in jax.tree.leaves(state))
    weights = sum(x.nbytes for x in params.values())
    costs = {"parameter_bytes": weights, "state_bytes": held, "outside": outside_tables(spec)}
    return lambda: jax.block_until_ready(compiled(params, token_BT, state)), costs


def timed(runs: dict[str, Callable[[], Any]], *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds of a call by side, one a round."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            for _ in range(calls):
                run()
            seconds[name].append((time.perf_counter() - begun) / calls)
    return seconds


def told(made: dict[str, tuple[Callable[[], Any], dict[str, Any]]], *, rounds: int, calls: int):
    """One row a side; ratios are medians of ratios to the first side within a round."""
    seconds = timed({name: run for name, (run, _) in made.items()}, rounds=rounds, calls=calls)
    first = next(iter(made))
    for name, (_, costs) in made.items():
        low, middle, high = statistics.quantiles(seconds[name], n=4)
        ratios = [a / b for a, b in zip(seconds[name], seconds[first], strict=True)]
        yield {
            "side": name,
            "ms": round(1e3 * middle, 3),
            "quartiles": [round(1e3 * low, 3), round(1e3 * high, 3)],
            f"over {first}": round(statistics.median(ratios), 2),
            **costs,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--streams", default="1,2,4,8", metavar="P,P")
    parser.add_argument("--k", type=float, default=0.35)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    counts = [int(P) for P in args.streams.split(",")]
    specs = {P: with_streams(args.d_model, P) for P in counts}
    print("training step", flush=True)
    made = {f"P {P}": training(spec) for P, spec in specs.items()}
    for row in told(made, rounds=args.rounds, calls=2):
        print(json.dumps(row), flush=True)
    print("decoding step", flush=True)
    made = {}
    for P, spec in specs.items():
        made[f"P {P}"] = decoding(spec)
        if P > 1:
            dense = equal_loss(spec, k=args.k)
            made[f"dense {dense.d_model}, as good as P {P}"] = decoding(dense)
    for row in told(made, rounds=args.rounds, calls=50):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
