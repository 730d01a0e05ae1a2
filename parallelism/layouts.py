"""How do the mesh axes of an array's dims follow a reshape, a product, an elementwise operation?

A layout names the mesh axes of each dim, `(("data", "fsdp"), (), ("tensor",))`. What is written
here is what a partitioner does without sending anything; the rest is for the caller to gather.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import PartitionSpec

from parallelism.rules import ACTIVATIONS

Layout = tuple[tuple[str, ...], ...]
Mesh = Mapping[str, int]

# axes of positions, which follow the rows of a flattened (B*T, ...) array
LATER = frozenset(ACTIVATIONS["time"]) - frozenset(ACTIVATIONS["heads"])

STAGES = "pipeline"  # whose devices hold units that follow one another


def unsharded(rank: int) -> Layout:
    return ((),) * rank


def used(layout: Layout) -> set[str]:
    return {axis for axes in layout for axis in axes}


def ways(axes: Sequence[str], mesh: Mesh) -> int:
    return math.prod(mesh[axis] for axis in axes)


def share(layout: Layout, mesh: Mesh) -> int:
    """Devices that one array is cut among."""
    return math.prod(ways(axes, mesh) for axes in layout)


def fitting(layout: Layout, shape: Sequence[int], mesh: Mesh) -> Layout:
    """Without the axes that do not divide their dim."""
    return tuple(
        axes if size % ways(axes, mesh) == 0 else ()
        for axes, size in zip(layout, shape, strict=True)
    )


def without(layout: Layout, axes: set[str]) -> Layout:
    return tuple(tuple(a for a in dim if a not in axes) for dim in layout)


def constrained(spec: Any, layout: Layout, mesh: Mesh) -> Layout:
    """Of a PartitionSpec, on the axes that this mesh has several devices along; dims that it leaves
    open stay as they are in `layout`."""
    parts = [*spec, *[None] * (len(layout) - len(spec))]
    return tuple(
        mine
        if part is PartitionSpec.UNCONSTRAINED
        else tuple(
            a for a in ((part,) if isinstance(part, str) else part or ()) if mesh.get(a, 1) > 1
        )
        for part, mine in zip(parts, layout, strict=True)
    )


def merged(layouts: Sequence[Layout]) -> Layout:
    """Of an elementwise operation: the first operand that names an axis for a dim has it."""
    out: list[tuple[str, ...]] = [() for _ in layouts[0]]
    taken: set[str] = set()
    for layout in layouts:
        for d, axes in enumerate(layout):
            if axes and not out[d] and not taken & set(axes):
                out[d] = axes
                taken |= set(axes)
    return tuple(out)


def reshaped(layout: Layout, old: Sequence[int], new: Sequence[int], mesh: Mesh) -> Layout:
    """Axes stay with their factor of the size; those that no dim can take are left out."""
    out: list[tuple[str, ...]] = [() for _ in new]
    for before, after in _groups(old, new):
        axes = [axis for d in before for axis in layout[d]]
        targets = [d for d in after if new[d] > 1]
        if not targets:
            continue
        if [old[d] for d in before if old[d] > 1] == [new[d] for d in targets]:
            for d, e in zip([d for d in before if old[d] > 1], targets, strict=True):
                out[e] = layout[d]
            continue
        leading = next((layout[d] for d in before if old[d] > 1), ())
        for axis in axes:
            places = targets
            if axis in LATER and len(targets) > 1 and len(before) == 1:
                places = [*targets[1:], targets[0]]
            elif axis == STAGES:  # its part of a dim is contiguous: of the first factor
                places = targets[:1] if axis in leading else []
            for d in places:
                if new[d] % ways((*out[d], axis), mesh) == 0:
                    out[d] = (*out[d], axis)
                    break
    return tuple(out)


def exchanged(layout: Layout, old: Sequence[int], new: Sequence[int], to: Layout, mesh: Mesh):
    """Where a reshape to layout `to` deals a dim's parts out anew, as units to stages that are not
    next to one another: by axis, how many of its devices exchange."""
    out: dict[str, int] = {}
    for before, after in _groups(old, new):
        for axis in (a for d in before for a in layout[d]):
            there = [e for e in after if axis in to[e]]
            ahead = math.prod(old[d] for d in before if not used(layout[: d + 1]) & {axis})
            for e in there:
                ahead = max(ahead, math.prod(new[a] for a in after if a < e))
                out[axis] = math.gcd(ahead, mesh[axis])
    return out


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of dims of equal product, first to last."""
    out: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        before, after, a, b = [], [], 1, 1
        while True:
            if i < len(old) and (not before or a < b):
                before.append(i)
                a *= old[i]
                i += 1
            elif j < len(new) and (not after or b < a):
                after.append(j)
                b *= new[j]
                j += 1
            else:
                break
        out.append((before, after))
    return out
