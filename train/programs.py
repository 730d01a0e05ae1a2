"""Which programs does a run execute, and when are they compiled? Once per distinct shape.

`Programs` holds the compiled training and evaluation step of one shape. It is kept for the life of
the process, found by `shape_key`, and compiled under a file lock with the persistent cache on, so
processes that share a root never compile the same program twice.
"""

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from model.decoder import Model, build
from parallelism.axes import RUN
from parallelism.errors import InputError
from parallelism.expert import exchange
from parallelism.kernels import Chip, here
from parallelism.mesh import make_mesh
from parallelism.pipeline import pipeline
from parallelism.place import (
    batch_sharding,
    constrainer,
    parameter_sharding,
    replicated,
    report,
    row_sharding,
    stacked,
    told_of,
)
from parallelism.rules import RESIDUALS
from train.attention import choice, kernel, tell
from train.carry import Carry, carry_shapes
from train.record import disk_error
from train.recycle import frozen
from train.schedule import hyper
from train.scheme import laid_out_length, scheme, scheme_name
from train.spec import RunSpec, to_dict
from train.step import State, abstract_state, forward, train_step


@dataclass(frozen=True)
class Compilation:
    """One program made ready: `cached` when the persistent cache supplied it."""

    program: str
    shape: str
    seconds: float
    cached: bool


@dataclass(frozen=True)
class Programs:
    model: Model
    mesh: Mesh
    shardings: Any  # of the state of one run
    step: Any  # (state, hyper, batch) -> (state, loss); donates the state
    # (params, batch) -> the sums of the objective's score, and the carry of a batch with carry
    evaluate: Any
    carry: Carry  # the shapes of what rows remember from batch to batch; None: nothing
    # Of a stack, in whose programs every array of every argument and result has its runs ahead:
    # (state, place in the stack) -> the state of one run; None where there is no stack
    take: Any = None


RESOLVED = ("sequence", "attention", "compute_dtype", "layers")  # what `resolved_execution` gives


def resolved_execution(spec: RunSpec, chip: Chip | None = None) -> dict[str, str]:
    """What `auto` means for this spec on this program's devices, or on a chip: float32 and unrolled
    layers on CPU, bfloat16 and scanned elsewhere, and a kernel for attention where one can be.
    """
    cpu = (here() if chip is None else chip).platform == "cpu"
    dtype, layers = spec.execution.compute_dtype, spec.execution.layers
    dtype = dtype if dtype != "auto" else "float32" if cpu else "bfloat16"
    return {
        "sequence": scheme_name(spec),
        "attention": choice(spec, dtype=dtype, chip=chip).name,
        "compute_dtype": dtype,
        "layers": layers if layers != "auto" else "unroll" if cpu else "scan",
    }


def devices(spec: RunSpec) -> dict[str, Any]:
    """What the programs run on and how, as JSON for the record."""
    found = jax.devices()
    declared = build(spec.model).declarations
    resolved = resolved_execution(spec)
    placed = report({p: (d.dims, d.shape) for p, d in declared.items()}, spec.execution.mesh.sizes)
    return {
        "devices": {
            "count": len(found),
            "kind": found[0].device_kind,
            "platform": found[0].platform,
        },
        "processes": jax.process_count(),
        "placement": placed.to_json(),
        "resolved": {**resolved, "mesh": spec.execution.mesh.sizes},
        "kernels_refused": choice(spec, dtype=resolved["compute_dtype"]).refused,
    }


def shape_key(spec: RunSpec) -> str:
    """Runs with equal keys execute the same programs; only data differs."""
    parts = [*shape(spec), resolved_execution(spec)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def shape(spec: RunSpec) -> list[Any]:
    """As JSON, all that the programs of a spec are made from but what `auto` means here: it can be
    asked where no device may be touched.
    """
    tree = to_dict(spec)
    del tree["model"]["arch"], tree["model"]["objective"]
    stacks = [(getattr(spec.model, p), tree["model"][p]) for p in ("first", "repeat", "last")]
    if spec.model.encoder is not None:
        stacks.append((spec.model.encoder.repeat, tree["model"]["encoder"]["repeat"]))
    for blocks, said in stacks:  # weights of the layers' own losses are data
        for block, one in zip(blocks, said, strict=True):
            for name, layer in (("mixer", block.mixer), ("cross", block.cross), ("ffn", block.ffn)):
                for field in layer.penalties.values() if layer is not None else ():
                    del one[name][field]
    compiled_in = ("mesh", "residuals", "rounds", "remat", "remat_chunk", "accumulate")
    execution = {k: tree["execution"][k] for k in compiled_in} | {"parts": spec.microbatches}
    return [
        tree["model"],
        [spec.data.seq_len, spec.data.source_length],
        spec.data.isolate_documents,
        spec.data.carry_state,
        spec.sequences_per_batch,
        # its other knobs act on the host
        [spec.objective.kind, sorted(spec.objective.arrays), *spec.objective.compiled],
        execution,
        sorted(frozen(spec)),
    ]


def abstract_batch(spec: RunSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """An array's name ends with its dims."""
    sizes = {
        "B": spec.sequences_per_batch,
        "T": laid_out_length(spec),
        "S": spec.data.source_length,
    }
    return {
        name: jax.ShapeDtypeStruct(tuple(sizes[d] for d in name.rpartition("_")[2]), kind)
        for name, kind in spec.objective.batch.items()
    }


def state_shardings(model: Model, state: State, mesh: Mesh) -> Any:
    """A sharding for every leaf: like its parameter, scalars everywhere."""
    by_path = {
        p: parameter_sharding(d.dims, d.shape, mesh, what=p) for p, d in model.declarations.items()
    }

    def one(path: tuple, leaf: Any):
        last = path[-1]
        name = last.key if isinstance(last, jax.tree_util.DictKey) else None
        if path[0] == jax.tree_util.DictKey("carry"):
            return row_sharding(mesh)
        return by_path[name] if name in by_path else replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, state)


def traced(
    spec: RunSpec,
    model: Model,
    mesh: Mesh,
    *,
    chip: Chip | None = None,
    counted: bool = False,
) -> tuple[Any, Any]:
    """The step and the evaluation as plain functions of arrays, for this program's devices or for a
    chip. `counted`: to be read by the cost model, not run.
    """
    resolved = resolved_execution(spec, chip)
    loss = partial(
        forward,
        model,
        constrain=constrainer(mesh),
        residual=constrainer(mesh, RESIDUALS[spec.execution.residuals]),
        exchange=exchange(mesh, residuals=spec.execution.residuals),
        pipeline=pipeline(mesh, microbatches=spec.microbatches, rounds=spec.execution.rounds),
        sequence=scheme(spec, model, mesh),
        kernel=kernel(spec, mesh, dtype=resolved["compute_dtype"], chip=chip, counted=counted),
        filled=laid_out_length(spec) != spec.data.seq_len,
        layers=resolved["layers"],
        remat=spec.execution.remat,
        remat_chunk=spec.execution.remat_chunk,
        dtype=jnp.dtype(resolved["compute_dtype"]),
        isolate=spec.data.isolate_documents,
        objective=spec.objective.loss,
        over_positions=spec.objective.over_positions,
    )
    loss = told_of(mesh, loss)

    def evaluation(params: Any, batch: Any) -> tuple[jax.Array, ...]:
        *sums, aux = loss(params, batch, objective=spec.objective.score)
        return (*sums, aux["carry"]) if "carry" in batch else tuple(sums)

    step = train_step(
        model,
        loss,
        accumulate=spec.execution.accumulate,
        frozen=frozen(spec),
        normaliser=spec.objective.normaliser,
    )
    return step, evaluation


_READY: dict[str, Programs] = {}  # compiled programs live as long as the process, as jax's own do


def programs(
    spec: RunSpec, *, cache: Path, stack: int | None = None
) -> tuple[Programs, list[Compilation]]:
    """The compiled programs of a spec's shape, and what it took to make them (nothing, the second
    time); of a `stack` of so many runs of that shape, those that train them all.
    """
    key = shape_key(spec) + ("" if stack is None else f"x{stack}")
    if key in _READY:
        return _READY[key], []
    _check_stack(spec, stack)
    mesh = make_mesh(spec.execution.mesh)
    model = build(spec.model)
    carry = alone = carry_shapes(spec, model)
    state = abstract_state(model, frozen=frozen(spec), carry=carry)
    shardings = state_shardings(model, state, mesh)
    step, evaluate = traced(spec, model, mesh)
    numbers = {k: jax.ShapeDtypeStruct((), v.dtype) for k, v in hyper(spec).items()}
    batch = abstract_batch(spec)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    one, take = shardings, None
    if stack is not None:
        # what the layers say of where their arrays lie is said of each run's
        mapped = partial(jax.vmap, spmd_axis_name=RUN if mesh.shape[RUN] > 1 else None)
        step, evaluate = mapped(step), mapped(evaluate)
        state, numbers, batch, carry = _runs(stack, (state, numbers, batch, carry))
        shardings, rows, whole = jax.tree.map(stacked, (shardings, rows, whole))
        take = jax.jit(
            lambda state, i: jax.tree.map(lambda x: x[i], state),
            in_shardings=(shardings, replicated(mesh)),
            out_shardings=one,
        )
    # the state is donated: its memory is reused for the next one
    steps = jax.jit(
        step,
        in_shardings=(shardings, whole, rows),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )
    asked, asked_in, told_in = batch, rows, whole
    if carry is not None:
        asked = {**batch, "carry": carry}
        asked_in = {**dict.fromkeys(batch, rows), "carry": shardings["carry"]}
        told_in = (whole, whole, whole, shardings["carry"])
    evaluations = jax.jit(
        evaluate, in_shardings=(shardings["params"], asked_in), out_shardings=told_in
    )
    if jax.process_index() == 0:
        tell(spec, dtype=resolved_execution(spec)["compute_dtype"])
    with _alone(cache, key):
        compiled_step, first = _compile("train_step", steps, (state, numbers, batch), key)
        compiled_evaluate, second = _compile("evaluate", evaluations, (state["params"], asked), key)
    _READY[key] = Programs(
        model=model,
        mesh=mesh,
        shardings=one,
        step=compiled_step,
        evaluate=compiled_evaluate,
        carry=alone,
        take=take,
    )
    return _READY[key], [first, second]


def _runs(stack: int, tree: Any) -> Any:
    """The shapes of such arrays of several runs."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((stack, *x.shape), x.dtype), tree)


def _check_stack(spec: RunSpec, stack: int | None) -> None:
    ways = spec.execution.mesh.run
    if stack is None and ways > 1:
        raise InputError(
            "execution.mesh.run",
            ways,
            "shares the runs of a stack, and this is one run; write 1, or train it in a sweep "
            "with execution.stack",
        )


def use_cache(cache: Path) -> None:
    """Turn the persistent compilation cache on, for every program however small."""
    folder = cache / "xla"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if not _EVENTS:
        _EVENTS.append(0)
        jax.monitoring.register_event_listener(_on_event)


_EVENTS: list[int] = []  # one counter of persistent-cache hits: jax reports them only to a listener


def _on_event(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _EVENTS[0] += 1


def _compile(name: str, function: Any, args: tuple[Any, ...], key: str) -> tuple[Any, Compilation]:
    begun, hits = time.perf_counter(), _EVENTS[0] if _EVENTS else 0
    compiled = function.lower(*args).compile()
    cached = bool(_EVENTS) and _EVENTS[0] > hits
    return compiled, Compilation(
        program=name, shape=key, seconds=time.perf_counter() - begun, cached=cached
    )


@contextlib.contextmanager
def _alone(cache: Path, key: str) -> Iterator[None]:
    """One process compiles a shape while others wait, then read the cache."""
    folder = cache / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / key, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
