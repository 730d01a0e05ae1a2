"""What does a step of each shape cost on this machine? Time, memory, and so an estimate of it all.

Every shape of the zoo is compiled once (the sweeps find it in the persistent cache) and a few
steps of it are timed, before anything is trained. Kept in `<root>/zoo-measured.json`.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.zoo_plan import Zoo
from model.context import unplaced
from model.count import count
from model.decoder import build
from parallelism.place import batch_sharding, replicated
from sweeps.launch.machine import cores
from sweeps.plan import Plan
from train.counted import counted
from train.environment import environment
from train.programs import abstract_batch, programs, shape_key, use_cache
from train.record import read_json, write_json
from train.schedule import hyper
from train.spec import RunSpec
from train.spread import spread
from train.step import forward, initial_state

WARM, TIMED = 2, 11  # steps; the median of the timed ones is told
PER_RUN = (
    1.5  # seconds of a run outside its steps: opening data, saving, records (measured: 1 to 2)
)


def known(root: Path) -> dict[str, dict[str, Any]]:
    """What was measured before, by shape key."""
    path = root / "zoo-measured.json"
    return read_json(path) if path.exists() else {}


def measure(
    zoo: Zoo, plans: Iterable[Plan], *, root: Path, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Shape key -> seconds to compile and of a step, bytes of temporaries; `error` where it does
    not run. Shapes that were measured before are not measured again."""
    path = root / "zoo-measured.json"
    kept = known(root)
    use_cache(root / ".cache")
    specs = {shape_key(run.spec): run.spec for plan in plans for run in plan.runs}
    archs = sorted({run.labels["arch"] for plan in plans for run in plan.runs})
    specs |= {shape_key(s): s for s in map(zoo.reference_run, archs)}
    missing = {key: spec for key, spec in specs.items() if "step_seconds" not in kept.get(key, {})}
    for i, (key, spec) in enumerate(missing.items()):
        try:
            kept[key] = _measured(spec, root)
            told = f"{kept[key]['step_seconds'] * 1e3:.1f} ms a step"
        except Exception as error:  # a layer's mistake of any kind is this layer's result
            kept[key] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            told = kept[key]["error"]
        shape = f"d {spec.model.d_model}, {spec.sequences_per_batch} x {spec.data.seq_len}"
        say(f"[{i + 1}/{len(missing)}] {spec.model.arch} ({shape}): {told}")
        write_json(path, kept)
    return kept


def _measured(spec: RunSpec, root: Path) -> dict[str, Any]:
    ready, made = programs(spec, cache=root / ".cache")
    rng = np.random.default_rng(0)
    batch = {
        # ids, and of an objective's own arrays and the weights one everywhere
        name: rng.integers(spec.model.vocab, size=like.shape).astype(like.dtype)
        if name in ("tokens_BT", "targets_BT")
        else (np.zeros if name == "segments_BT" else np.ones)(like.shape, like.dtype)
        for name, like in abstract_batch(spec).items()
    }
    rows = batch_sharding(ready.mesh)
    batch = {name: jax.device_put(value, rows) for name, value in batch.items()}
    numbers = jax.device_put(hyper(spec), replicated(ready.mesh))
    state = spread(initial_state(ready.model, spec.seed), ready.shardings)
    seconds = []
    for _ in range(WARM + TIMED):
        began = time.perf_counter()
        state, loss = ready.step(state, numbers, batch)
        jax.block_until_ready((state, loss))
        seconds.append(time.perf_counter() - began)
    memory = ready.step.memory_analysis()
    counts = counted(spec)
    return {
        "arch": spec.model.arch,
        "d_model": spec.model.d_model,
        "n_layers": spec.model.n_layers,
        "seq_len": spec.data.seq_len,
        "batch_tokens": spec.budget.batch_tokens,
        "params": counts.params["total"],
        "flops_per_token": counts.flops_per_token["causal_attn"],
        "decode_state": counts.decode_state,
        "compile_seconds": sum(c.seconds for c in made),
        "step_seconds": statistics.median(seconds[WARM:]),
        "tokens_per_second": spec.budget.batch_tokens / statistics.median(seconds[WARM:]),
        "temporary_bytes": None if memory is None else int(memory.temp_size_in_bytes),
        "load": os.getloadavg()[0],
        "cores": len(cores()),
        "commit": environment()["commit"],
    }


def compiled_over_counted(spec: RunSpec) -> float:
    """The compiler's FLOPs of a forward pass of one batch over those that are counted for it (of
    attention all scores): above 1 by what is no matrix product, and by what is made once a step.
    """
    model, batch = build(spec.model), abstract_batch(spec)
    params = {k: jax.ShapeDtypeStruct(d.shape, jnp.float32) for k, d in model.declarations.items()}
    run = partial(
        forward,
        model,
        constrain=unplaced,
        layers="unroll",
        remat="none",
        dtype=jnp.float32,
        isolate=True,
        objective=spec.objective.loss,
    )
    analysis = jax.jit(run).lower(params, batch).cost_analysis()
    assert analysis is not None, "this backend does not count"
    counts = count(spec.model, seq_len=spec.data.seq_len)
    counted = counts.flops_per_token["full_attn"] / 3 * spec.budget.batch_tokens
    return float(analysis["flops"]) / counted


def estimate(plans: Iterable[Plan], measured: dict[str, Any], *, workers: int) -> dict[str, float]:
    """Seconds of wall that each plan will take, as if no run were done, by the measured steps."""
    out = {}
    for plan in plans:
        total = 0.0
        for run in plan.runs:
            found = measured.get(shape_key(run.spec), {})
            if "step_seconds" in found:
                evaluations = run.spec.evaluation.tokens / run.spec.budget.batch_tokens
                # an evaluation step is a forward pass: a third of a training step
                total += found["step_seconds"] * (run.spec.steps + evaluations / 3) + PER_RUN
        out[plan.name] = total / workers
    return out
