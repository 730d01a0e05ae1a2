"""What does a compiled program send? The collectives of an optimised HLO text, in bytes and by mesh
axis.

Bytes are those that one device sends, by the usual ring algorithms for W devices and a result of R
bytes: all-gather R (W-1)/W, all-reduce 2 R (W-1)/W, reduce-scatter R (W-1), all-to-all R (W-1)/W,
permute R. A collective in a loop counts as often as the loop runs (XLA's known trip count).
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Collective:
    """One instruction. `groups` are the devices that exchange, by position in the mesh; of a
    permute, the (source, target) pairs of different devices."""

    kind: str
    result_bytes: int  # on each device, of one execution
    groups: Groups
    times: int  # executions in one run of the program
    shapes: tuple[str, ...]
    op: str  # the source operation, as JAX names it

    @property
    def ways(self) -> int:
        """Devices of a group."""
        return max((len(group) for group in self.groups), default=1)

    @property
    def wire_bytes(self) -> float:
        """Bytes that one device sends, all executions together."""
        w = self.ways
        share = {
            "all-gather": (w - 1) / w,
            "all-reduce": 2 * (w - 1) / w,
            "reduce-scatter": w - 1.0,
            "all-to-all": (w - 1) / w,
            "collective-permute": 1.0 if self.groups else 0.0,
        }[self.kind]
        return share * self.result_bytes * self.times

    def axes(self, mesh: Mapping[str, int]) -> tuple[str, ...]:
        """The mesh axes along which it sends: those in which members of a group differ."""
        shape = tuple(mesh.values())
        found: set[str] = set()
        for group in self.groups:
            places = np.array([np.unravel_index(d, shape) for d in group])
            moved = (places != places[0]).any(axis=0)
            found |= {name for name, differs in zip(mesh, moved, strict=True) if differs}
        return tuple(name for name in mesh if name in found)


def collectives(hlo: str, *, n_devices: int) -> list[Collective]:
    """Those of `compiled.as_text()`, in its order."""
    times = _executions(hlo)
    found, computation = [], ""
    for line in hlo.splitlines():
        if head := _HEAD.match(line):
            computation = head["name"]
        if (made := _INSTRUCTION.match(line)) is None:
            continue
        shapes = _SHAPE.findall(made["result"])
        if made["start"]:  # an asynchronous pair: the start gives operands, then results
            if made["kind"] == "collective-permute":
                shapes = shapes[1:2]
            elif made["kind"] != "all-reduce":
                shapes = shapes[len(shapes) // 2 :]
        op = _OP.search(line)
        found.append(
            Collective(
                kind=made["kind"],
                result_bytes=sum(_bytes(kind, dims) for kind, dims in shapes),
                groups=_groups(line, n_devices=n_devices),
                times=times.get(computation, 1),
                shapes=tuple(f"{kind}[{dims}]" for kind, dims in shapes),
                op=op[1] if op else "",
            )
        )
    return found


def by_axis(found: Iterable[Collective], mesh: Mapping[str, int]) -> dict[str, float]:
    """Bytes that one device sends along each mesh axis; `data+fsdp` where a group spans two."""
    out: dict[str, float] = {}
    for one in found:
        axes = one.axes(mesh)
        if axes:
            name = "+".join(axes)
            out[name] = out.get(name, 0.0) + one.wire_bytes
    return out


def kinds(found: Iterable[Collective]) -> dict[str, int]:
    """Executions by kind, for a reader."""
    rows = sorted(found, key=lambda one: one.kind)
    return {
        kind: sum(one.times for one in some)
        for kind, some in itertools.groupby(rows, key=lambda one: one.kind)
    }


_HEAD = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(
    rf"^\s*(?:ROOT )?%?[\w.\-]+ = (?P<result>.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\("
)
_SHAPE = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")
_OP = re.compile(r'op_name="([^"]*)"')
_CALLS = re.compile(
    r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? \{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=(\[[\d,]*\]<=\[[\d,]*\](?:T\([\d,]*\))?)")
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}")


def _bytes(kind: str, dims: str) -> int:
    digits = re.search(r"\d+", kind)
    bits = BITS.get(kind, int(digits[0]) if digits else 8)
    return math.prod(int(d) for d in dims.split(",") if d) * bits // 8


def _executions(hlo: str) -> dict[str, int]:
    """How often each computation runs: its callers' times, times the trips of a loop body."""
    calls: dict[str, list[tuple[str, int]]] = {}
    entry = computation = ""
    for line in hlo.splitlines():
        if head := _HEAD.match(line):
            computation = head["name"]
            calls[computation] = []
            entry = computation if line.startswith("ENTRY") else entry
            continue
        trips = _TRIPS.search(line) if " while(" in line else None
        for callee in _CALLS.findall(line):
            calls.setdefault(computation, []).append((callee, int(trips[1]) if trips else 1))
        for several in _BRANCHES.findall(line):
            names = [name.strip().lstrip("%") for name in several.split(",")]
            calls.setdefault(computation, []).extend((name, 1) for name in names)
    times: dict[str, int] = {}
    paths = [(entry, 1)]  # a computation that is called twice is walked twice: calls do not recurse
    for name, n in paths:
        times[name] = times.get(name, 0) + n
        paths += [(callee, n * trips) for callee, trips in calls.get(name, ())]
    return times


def _groups(line: str, *, n_devices: int) -> Groups:
    if " collective-permute" in line:
        listed = _LISTED.search(line)
        pairs = re.findall(r"\{(\d+),(\d+)\}", listed[1] if listed else "")
        return tuple((int(a), int(b)) for a, b in pairs if a != b)
    if found := _MESH.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        shape = [int(size) for size in sizes.values()]
        ids = np.arange(n_devices) if found[2] is None else _iota(found[2])
        along = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", found[3])]
        grid = np.moveaxis(
            ids.reshape(shape), along, range(len(shape) - len(along), len(shape))
        ).reshape(-1, math.prod(shape[a] for a in along))
        return tuple(tuple(int(d) for d in row) for row in grid)
    if found := _IOTA.search(line):
        shape, _, rest = found[1].partition("<=")
        sizes = [int(d) for d in shape.strip("[]").split(",")]
        grid = _iota(rest).reshape(sizes)
        return tuple(tuple(int(d) for d in row) for row in grid)
    listed = _LISTED.search(line)
    rows = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
    if not rows:  # none written: all devices together
        return (tuple(range(n_devices)),)
    return tuple(tuple(int(d) for d in row.split(",")) for row in rows)


def _iota(text: str) -> np.ndarray:
    """`[2,2,2]T(1,0,2)`: device ids counted up in that shape, then transposed."""
    shape, _, order = text.partition("T")
    sizes = [int(d) for d in shape.strip("[]").split(",")]
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    if order:
        ids = ids.transpose([int(d) for d in order.strip("()").split(",")])
    return ids.ravel()
