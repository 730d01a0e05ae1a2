"""What will a run cost on a mesh of devices, here or named, and which mesh should it take?

The run's own step is traced on an abstract mesh, which needs no device; parallelism/cost.py reads
the trace. Settings that say `auto` are those of the devices asked about.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from model.decoder import build
from parallelism.accelerators import Accelerator, of_device
from parallelism.axes import MESH_AXES, MeshSpec
from parallelism.candidates import Ranked, meshes, rank
from parallelism.cost import ACCELERATOR, CPU, Cost, cost
from parallelism.errors import InputError
from parallelism.kernels import here as this_chip
from parallelism.kernels import named
from parallelism.layouts import share
from parallelism.place import batch_sharding, partition, replicated
from parallelism.placed import Buffer, Spread
from parallelism.rules import PARAMETERS
from train import paths
from train.programs import abstract_batch, state_shardings, traced
from train.recycle import frozen
from train.schedule import hyper
from train.spec import RunSpec
from train.step import abstract_state

AUTO = "execution.mesh=auto"


def estimate(spec: RunSpec, *, chip: Accelerator | None = None) -> Cost:
    """The cost of one step on the run's mesh; raises InputError where the mesh cannot be."""
    here = chip is None and jax.default_backend() == "cpu"
    if not here:
        auto = {"compute_dtype": "bfloat16", "layers": "scan"}
        said = {k: v for k, v in auto.items() if getattr(spec.execution, k) == "auto"}
        spec = paths.put(spec, {f"execution.{k}": v for k, v in said.items()})
    sizes = spec.execution.mesh.sizes
    mesh: Any = AbstractMesh(
        tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES)
    )
    model = build(spec.model)
    state = abstract_state(model, frozen=frozen(spec))
    numbers = {k: jax.ShapeDtypeStruct((), v.dtype) for k, v in hyper(spec).items()}
    batch = abstract_batch(spec)
    whole, rows = replicated(mesh), batch_sharding(mesh)
    placed = (
        state_shardings(model, state, mesh),
        dict.fromkeys(numbers, whole),
        dict.fromkeys(batch, rows),
    )
    asked = this_chip() if chip is None else named(chip.kind)
    step, _ = traced(spec, model, mesh, chip=asked, counted=True)
    args = (state, numbers, batch)
    closed = jax.make_jaxpr(step)(*args)
    leaves = jax.tree_util.tree_flatten_with_path(args)[0]
    shardings = jax.tree.leaves(placed, is_leaf=lambda x: isinstance(x, NamedSharding))
    labels = [_label(path) for path, _ in leaves]
    lying = [
        _spread(leaf, sharding, sizes, weight=label in ("parameters", "numbers"))
        for (_, leaf), sharding, label in zip(leaves, shardings, labels, strict=True)
    ]
    compiler = CPU if here else ACCELERATOR
    found = cost(closed, lying, labels=labels, mesh=sizes, compiler=compiler)
    return replace(found, microbatches=spec.microbatches if sizes["pipeline"] > 1 else None)


def ranked(spec: RunSpec, *, devices: int, chip: Accelerator | None = None) -> Ranked:
    """Meshes of so many devices for a run, best first. Axes are those that the model has a use
    for: `expert` with experts, `pipeline` where units divide into stages, `sequence` where rows
    alone do not occupy the devices."""
    declared = build(spec.model).declarations.values()
    axes = ["data", "fsdp", "tensor"]
    axes += ["expert"] if any("E" in d.dims for d in declared) else []
    axes += ["pipeline"] if _has_stages(spec) else []
    if spec.sequences_per_batch // spec.execution.accumulate < devices:
        axes.append("sequence")
    node = 8 if chip is None else min(chip.node, 16)
    sized = {p.path: (p.dims, p.shape) for p in declared}

    def measure(mesh: MeshSpec) -> Cost:
        for path, (dims, shape) in sized.items():  # cheap reasons come before a trace
            partition(dims, shape, rules=PARAMETERS, mesh=mesh.sizes, what=path)
        execution = replace(spec.execution, mesh=mesh)
        try:
            one = replace(spec, execution=execution)
        except InputError:
            raise
        except ValueError as error:
            raise InputError("execution.mesh", None, _reason(error)) from None
        return _estimate(one, chip)

    units, rounds = spec.model.n_repeats, spec.execution.rounds
    some = meshes(devices, axes, most={"tensor": node, "sequence": node, "expert": node})
    some = (m for m in some if m.pipeline == 1 or units % (m.pipeline * rounds) == 0)
    return rank(some, measure, chip=chip, devices=devices)


def _has_stages(spec: RunSpec) -> bool:
    """Whether there is a pipeline, however short, that can run it."""
    units = spec.model.n_repeats
    for n in (n for n in range(2, units + 1) if units % n == 0):
        try:
            replace(spec, execution=replace(spec.execution, mesh=MeshSpec(pipeline=n)))
        except ValueError:
            continue
        return True
    return False


def with_mesh(spec: RunSpec) -> RunSpec:
    """`spec` on the mesh of this program's devices that the estimate puts first."""
    found = jax.devices()
    chip = of_device(found[0].device_kind)
    best = ranked(spec, devices=len(found), chip=chip).best
    return replace(spec, execution=replace(spec.execution, mesh=MeshSpec(**best.mesh)))


_estimate = lru_cache(maxsize=256)(lambda spec, chip: estimate(spec, chip=chip))


def _reason(error: ValueError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("Value error, ")]
    text = told[0].removeprefix("Value error, ") if told else lines[0]
    return text.partition(" [type=")[0]


def _label(path: tuple[Any, ...]) -> str:
    part = path[0].idx
    if part:
        return ("", "numbers", "batch")[part]
    return {"params": "parameters", "opt": "moments"}.get(path[1].key, "numbers")


def _spread(leaf: Any, sharding: Any, mesh: dict[str, int], *, weight: bool) -> Spread:
    parts = [(p,) if isinstance(p, str) else tuple(p or ()) for p in sharding.spec]
    parts += [()] * (len(leaf.shape) - len(parts))
    layout = tuple(tuple(a for a in p if mesh[a] > 1) for p in parts)
    size = leaf.size * leaf.dtype.itemsize / share(layout, mesh)
    return Spread(leaf.shape, leaf.dtype.itemsize, layout, Buffer(size), weight=weight)
