"""What is a program on one device of a mesh? Arrays of bytes, the operations between them, and what
they add up to."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parallelism.layouts import Layout, share, unsharded
from parallelism.program import Val


@dataclass(eq=False)
class Buffer:
    """An array on one device."""

    bytes: float


@dataclass(eq=False)
class Step:
    """An operation on one device; `bodies` of a loop or a manual region; `cuts`: how much of each
    input it reads, where it wants less than there is."""

    name: str
    ins: list[Buffer]
    outs: list[Buffer]
    cuts: list[float]
    bodies: "list[Scope]" = field(default_factory=list)
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Scope:
    ins: list[Buffer]
    outs: list[Buffer]
    steps: list[Step]


@dataclass(frozen=True)
class Spread:
    """Where a value lies. `partial`: axes over which a sum is still to be taken. `weight`: made of
    parameters alone. `chain`: buffers that hold the unfinished sum since it left a loop."""

    shape: tuple[int, ...]
    itemsize: float
    layout: Layout
    buffer: Buffer
    partial: frozenset[str] = frozenset()
    weight: bool = False
    chain: tuple[Buffer, ...] = ()
    towards: Layout | None = None  # of what an unfinished sum will be used with

    @staticmethod
    def constant(v: Val) -> "Spread":
        """Part of the program: held by none, and as good as a parameter."""
        layout = unsharded(len(v.shape))
        return Spread(v.shape, v.itemsize, layout, Buffer(0.0), weight=v.size == 1)

    def local(self, mesh: Mapping[str, int]) -> float:
        return math.prod(self.shape) * self.itemsize / share(self.layout, mesh)


@dataclass
class Totals:
    """Of one device and one run of the program: `sent` bytes by (axes, kind), matrix-product
    `flops`, bytes `moved` to and from its memory."""

    sent: Counter = field(default_factory=Counter)
    flops: float = 0.0
    moved: float = 0.0
    unknown: Counter = field(default_factory=Counter)
