"""Where does an array lie? Dims + rules + mesh -> shardings; the sharding report.

Names reach the mesh in two places: the shardings of the state when it is created, and `constrainer`
as called in model/block.py and model/decoder.py.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parallelism.axes import AXES, RUN, letters
from parallelism.errors import InputError
from parallelism.rules import ACTIVATIONS, PARAMETERS

Rules = Mapping[str, tuple[str, ...]]


def partition(
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    *,
    rules: Rules,
    mesh: Mapping[str, int],
    what: str,
) -> PartitionSpec:
    """The mesh axes of each dim; raises InputError where a dimension does not divide."""
    used: set[str] = set()
    parts: list[tuple[str, ...] | str | None] = []
    for letter, size in zip(dims, shape, strict=True):
        name = AXES[letter].name
        axes = tuple(a for a in rules.get(name, ()) if mesh[a] > 1 and a not in used)
        ways = math.prod(mesh[a] for a in axes)
        if size % ways:
            raise InputError(
                f"execution.mesh.{axes[0]}",
                ways,
                f"does not divide {name} ({letter} = {size}) of {what}; write a divisor of "
                f"{size}, or change the size",
            )
        used.update(axes)
        parts.append(None if not axes else axes[0] if len(axes) == 1 else axes)
    return PartitionSpec(*parts)


def parameter_sharding(
    dims: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, *, what: str
) -> NamedSharding:
    return NamedSharding(
        mesh, partition(dims, shape, rules=PARAMETERS, mesh=dict(mesh.shape), what=what)
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a (B, T) batch over every replica axis; positions over the sequence axis."""
    return NamedSharding(mesh, PartitionSpec(ACTIVATIONS["batch"], *ACTIVATIONS["time"]))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (B, ...) of anything that goes along with a batch, over every replica axis."""
    return NamedSharding(mesh, PartitionSpec(ACTIVATIONS["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def stacked(sharding: NamedSharding) -> NamedSharding:
    """Of such arrays of several runs, runs ahead, which the run axis shares out."""
    return NamedSharding(sharding.mesh, PartitionSpec(RUN, *sharding.spec))


def constrainer(mesh: Mesh, rules: Rules = ACTIVATIONS) -> Callable[[jax.Array, str], jax.Array]:
    """`constrain(x, "B T D")` on a mesh; on one device it says nothing."""
    if mesh.size == 1:
        return lambda x, dims: x

    def constrain(x: jax.Array, dims: str) -> jax.Array:
        spec = partition(
            letters(dims),
            x.shape,
            rules=rules,
            mesh=dict(mesh.shape),
            what=f"activation {dims}",
        )
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    return constrain


def told_of(mesh: Mesh, function: Callable) -> Callable:
    """`function`, which asks `positions_are_shared` while it is traced for this mesh."""
    if all(mesh.shape[axis] == 1 for axis in ACTIVATIONS["time"]):
        return function
    abstract = mesh.abstract_mesh

    def told(*args: Any, **settings: Any) -> Any:
        with jax.sharding.use_abstract_mesh(abstract):
            return function(*args, **settings)

    return told


def positions_are_shared() -> bool:
    """Whether several devices hold the positions of a row. Rows and positions must not be made one
    dim there: what a device holds would be no contiguous part of it, and all of it is gathered.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    return any(sizes.get(axis, 1) > 1 for axis in ACTIVATIONS["time"])


@dataclass(frozen=True)
class Report:
    """How parameters lie on a mesh. `rows` by path: the partition, how many devices hold a copy of
    each element, and along which of the mesh axes that shard parameters it is not sharded.
    """

    mesh: Mapping[str, int]
    rows: Mapping[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """`whole`: every path that is not sharded along an axis, the largest first."""
        return {
            "parameters": sum(row["size"] for row in self.rows.values()),
            "parameters_per_device": sum(row["per_device"] for row in self.rows.values()),
            "whole": {axis: self._whole(axis) for axis in _sharding_axes(self.mesh)},
        }

    def _whole(self, axis: str) -> list[str]:
        paths = [path for path, row in self.rows.items() if axis in row["whole_over"]]
        return sorted(paths, key=lambda path: -self.rows[path]["size"])

    def text(self) -> str:
        """Nothing on one device."""
        used = {axis: size for axis, size in self.mesh.items() if size > 1}
        if not used:
            return ""
        said = self.to_json()
        lines = [
            f"on {' x '.join(f'{axis} {size}' for axis, size in used.items())}: "
            f"{said['parameters_per_device']:,} of {said['parameters']:,} parameters a device, "
            f"as many gradients, and two moments of each"
        ]
        for axis, paths in said["whole"].items():
            named = [f"{path} ({self.rows[path]['size']:,})" for path in paths]
            lines.append(f"not sharded over {axis}: {', '.join(named) or 'nothing'}")
        return "\n".join(lines)


def _sharding_axes(mesh: Mapping[str, int]) -> list[str]:
    """Those along which parameters are sharded, of more than one device."""
    named = {axis for axes in PARAMETERS.values() for axis in axes}
    return [axis for axis, size in mesh.items() if size > 1 and axis in named]


def report(
    declared: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]], mesh: Mapping[str, int]
) -> Report:
    """Of parameters by path, with their dims and shapes."""
    rows: dict[str, dict[str, Any]] = {}
    for path, (dims, shape) in declared.items():
        spec = partition(dims, shape, rules=PARAMETERS, mesh=mesh, what=path)
        used = [
            a
            for part in spec
            if part is not None
            for a in ((part,) if isinstance(part, str) else part)
        ]
        size, ways = math.prod(shape), math.prod(mesh[a] for a in used)
        rows[path] = {
            "partition": str(tuple(spec)),
            "copies": math.prod(n for axis, n in mesh.items() if axis != RUN) // ways,
            "size": size,
            "per_device": size // ways,
            "whole_over": [axis for axis in _sharding_axes(mesh) if axis not in used],
        }
    return Report(mesh=mesh, rows=rows)
