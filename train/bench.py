"""How fast does this machine train a spec, and what does the loop add to the compiled step?

The real loop runs; at its log points the compiled step alone and a matrix product are timed, so
that the three alternate in one process and a disturbance of the machine meets all of them alike.
"""

import dataclasses
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parallelism.errors import InputError
from parallelism.place import replicated
from train.batches import training
from train.counted import counted
from train.environment import environment
from train.loop import IN_FLIGHT, Progress, open_text, train
from train.paths import put
from train.programs import Programs, programs, resolved_execution, use_cache
from train.recycle import frozen
from train.schedule import hyper
from train.spec import RunSpec
from train.spread import placer
from train.step import initial_state

ROUNDS = 10  # counted ones; one before them warms up and one after them evaluates
# Sizes of the square products, by platform: the best of them is the peak. Large enough to be bound
# by arithmetic, small enough that a round of them takes less time than a round of steps.
PRODUCTS = {"cpu": (1024, 1536, 2048), "gpu": (4096, 8192), "tpu": (4096, 8192)}


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and quartiles over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measured on one machine. Times in seconds a step; FLOPs by the causal_attn convention."""

    arch: str
    d_model: int
    n_layers: int
    params: int
    batch_tokens: int
    seq_len: int
    steps: int
    compute_dtype: str
    layers: str
    devices: str
    flops_per_token: float
    compile_seconds: float
    from_cache: bool  # the persistent cache supplied the programs
    step: Spread  # the compiled step alone
    loop: Spread  # a step of the loop: data, dispatch, and a log point every steps / rounds
    overhead: Spread  # loop / step - 1, round by round
    peak: Spread  # FLOP/s of the best square product, all devices together
    environment: dict[str, Any]

    @property
    def tokens_per_second(self) -> float:
        return self.batch_tokens / self.loop.median

    @property
    def flops_per_second(self) -> float:
        return self.tokens_per_second * self.flops_per_token

    @property
    def fraction_of_peak(self) -> float:
        return self.flops_per_second / self.peak.median

    def to_json(self) -> dict[str, Any]:
        derived = ("tokens_per_second", "flops_per_second", "fraction_of_peak")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in derived}}

    def text(self) -> str:
        def milliseconds(s: Spread) -> str:
            return f"{s.median * 1e3:.2f} ms  ({s.low * 1e3:.2f} to {s.high * 1e3:.2f})"

        def giga(flops: float) -> str:
            return f"{flops / 1e9:,.1f}"

        over, peak = self.overhead, self.peak
        shape = f"d_model {self.d_model}, {self.n_layers} layers, {self.params:,} parameters"
        cached = "  (persistent cache)" if self.from_cache else ""
        rows = [
            ("model", f"{self.arch} {shape}"),
            ("batch", f"{self.batch_tokens // self.seq_len} x {self.seq_len} tokens"),
            ("machine", f"{self.devices}, {self.compute_dtype}, layers {self.layers}"),
            ("compiled in", f"{self.compile_seconds:.1f} s{cached}"),
            ("tokens a second", f"{self.tokens_per_second:,.0f}"),
            ("model FLOP/s", f"{giga(self.flops_per_second)} G  (causal_attn)"),
            ("product peak", f"{giga(peak.median)} G  ({giga(peak.low)} to {giga(peak.high)})"),
            ("fraction of peak", f"{self.fraction_of_peak:.1%}"),
            ("compiled step alone", milliseconds(self.step)),
            ("step of the loop", milliseconds(self.loop)),
            ("the loop adds", f"{over.median:.1%}  ({over.low:.1%} to {over.high:.1%})"),
        ]
        width = max(len(name) for name, _ in rows)
        note = f"medians (quartiles) of {ROUNDS} rounds of {self.steps // ROUNDS} steps"
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows) + f"\n{note}"


def bench(spec: RunSpec, *, root: Path, steps: int = 100) -> Bench:
    """Train `steps` steps of a spec's shape and time them; only caches are left under `root`."""
    if steps < ROUNDS:
        raise InputError("--steps", steps, f"write at least {ROUNDS}, one for each round")
    if jax.process_count() > 1:
        raise InputError("--distributed", "", "bench one process at a time")
    each = steps // ROUNDS
    spec = _only_steps(spec, each=each, steps=each * (ROUNDS + 2))
    root = root / ".cache" / "bench"
    use_cache(root / ".cache")
    ready, made = programs(spec, cache=root / ".cache")
    rounds = _Rounds(spec, ready, cache=root / ".cache", each=each)
    shutil.rmtree(root / spec.run_id, ignore_errors=True)  # of a bench that was killed
    try:
        outcome = train(spec, root=root, progress=rounds)
    finally:
        shutil.rmtree(root / spec.run_id, ignore_errors=True)
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    if outcome.status != "done":
        raise InputError("bench", outcome.status, outcome.reason or "lower optim.lr")
    counts = counted(spec)
    resolved = resolved_execution(spec)
    return Bench(
        arch=spec.model.arch,
        d_model=spec.model.d_model,
        n_layers=spec.model.n_layers,
        params=counts.params["total"],
        batch_tokens=spec.budget.batch_tokens,
        seq_len=spec.data.seq_len,
        steps=each * ROUNDS,
        compute_dtype=resolved["compute_dtype"],
        layers=resolved["layers"],
        devices=f"{ready.mesh.size} x {jax.devices()[0].device_kind}",
        flops_per_token=counts.flops_per_token["causal_attn"],
        compile_seconds=sum(c.seconds for c in made),
        from_cache=bool(made) and all(c.cached for c in made),
        step=Spread.of(rounds.step),
        loop=Spread.of(rounds.loop),
        overhead=Spread.of([a / b - 1 for a, b in zip(rounds.loop, rounds.step, strict=True)]),
        peak=Spread.of(rounds.peak),
        environment=environment(),
    )


def _only_steps(spec: RunSpec, *, each: int, steps: int) -> RunSpec:
    """The same shapes with a log point every `each` steps, and the least of everything else."""
    return put(
        spec,
        {
            "budget.tokens": steps * spec.budget.batch_tokens,
            "evaluation.every": None,
            "evaluation.tokens": spec.budget.batch_tokens,
            "execution.log_every": each,
            "execution.checkpoint_every": steps,
        },
    )


class _Rounds:
    """The loop's progress callback: the time since it last returned is a round of the loop; then it
    is the others' turn.
    """

    def __init__(self, spec: RunSpec, ready: Programs, *, cache: Path, each: int):
        self.each, self.ready = each, ready
        self.loop: list[float] = []
        self.step: list[float] = []
        self.peak: list[float] = []
        self.numbers = jax.device_put(hyper(spec), replicated(ready.mesh))
        data = open_text(spec, cache=cache)
        self.batch = placer(ready.mesh, spec)[0](training(spec, data, 0))
        first = initial_state(ready.model, spec.seed, frozen=frozen(spec), carry=ready.carry)
        self.state = jax.device_put(first, ready.shardings)
        self.products = [_product(n, spec) for n in PRODUCTS[jax.default_backend()]]
        self.seen, self.since = 0, 0.0

    def __call__(self, progress: Progress) -> None:
        waited = time.perf_counter() - self.since
        if progress.phase == "train":
            self.seen += 1
            # the first round warms up, the last one evaluates
            if 1 < self.seen <= ROUNDS + 1:
                self.loop.append(waited / self.each)
                self.step.append(self._alone(self.each) / self.each)
                self.peak.append(max(p() for p in self.products) * self.ready.mesh.size)
            # the products emptied the caches: without these steps the loop's round would pay for it
            self._alone(2)
        self.since = time.perf_counter()

    def _alone(self, steps: int) -> float:
        """Seconds of some compiled steps on a batch that is already on the device."""
        began = time.perf_counter()
        losses: deque[jax.Array] = deque()
        for _ in range(steps):
            self.state, loss = self.ready.step(self.state, self.numbers, self.batch)
            losses.append(loss)
            if len(losses) > IN_FLIGHT:  # as the loop does, and for its reason
                losses.popleft().block_until_ready()
        jax.block_until_ready(self.state)
        return time.perf_counter() - began


def _product(n: int, spec: RunSpec) -> Callable[[], float]:
    """Measures FLOP/s of one (n, n) by (n, n) product in the step's compute type."""
    dtype = jnp.dtype(resolved_execution(spec)["compute_dtype"])
    a, b = (
        jnp.asarray(np.random.default_rng(i).standard_normal((n, n), np.float32), dtype)
        for i in range(2)
    )
    multiply = jax.jit(jnp.matmul).lower(a, b).compile()

    def measure() -> float:
        best = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            multiply(a, b).block_until_ready()
            best = min(best, time.perf_counter() - began)
        return 2.0 * n**3 / best

    measure()
    return measure
