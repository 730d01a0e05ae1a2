"""What does a step cost on a mesh of named devices? FLOPs, bytes in memory and on the wire of each
device, and seconds.

Everything is read from the traced step (parallelism/program.py, partitioned.py, live.py); no array
is made and nothing is compiled. A step takes the longest of its matrix products, its memory
traffic and what it sends beside them, plus what it has to wait for: sums over `data` and `fsdp`,
parameters on their way and ring steps overlap with computation, sums over `tensor`, exchanges of
tokens and what a stage hands to the next one do not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import ClosedJaxpr

from parallelism.accelerators import Accelerator
from parallelism.live import peak, traffic
from parallelism.partition_rules import RULES
from parallelism.partitioned import Partitioner
from parallelism.placed import Spread
from parallelism.program import program

# Share of the peak rate that large matrix products reach, and of the memory that a step may fill:
# guesses (published kernels reach .6 to .8 of the data sheet; the runtime keeps some memory).
PRODUCTS, FILLED = 0.7, 0.92
WAITED = ("tensor", "expert", "pipeline", "all-to-all")  # axes and kinds that nothing overlaps


@dataclass(frozen=True)
class Compiler:
    """What differs between XLA's back ends. `scatters`: a sum that is then cut up is sent as a
    reduce-scatter; `barriers`: what is rematerialised stays apart from its first computation
    outside loops too."""

    scatters: bool
    barriers: bool


CPU, ACCELERATOR = Compiler(False, False), Compiler(True, True)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one device and one step. `held`: bytes of the step's arguments by what they are, which
    stay; `temporary`: the most that it needs besides; `sent`: bytes by (mesh axes, kind)."""

    mesh: Mapping[str, int]
    flops: float
    moved: float
    held: Mapping[str, float]
    temporary: float
    sent: Mapping[tuple[str, str], float]
    unknown: Mapping[str, int]  # operations that the model has no rule for
    microbatches: int | None = None  # parts that follow one another through a pipeline

    @property
    def memory(self) -> float:
        return sum(self.held.values()) + self.temporary

    @property
    def by_axis(self) -> dict[str, float]:
        out: dict[str, float] = {}
        for (axes, _), size in self.sent.items():
            out[axes] = out.get(axes, 0.0) + size
        return out

    def seconds(self, chip: Accelerator) -> dict[str, float]:
        """Of products, memory, overlapped and waited-for wire, and the step."""
        hidden = waited = 0.0
        for (axes, kind), size in self.sent.items():
            time = size / rate(axes.split("+"), self.mesh, chip)
            alone = kind in WAITED or any(axis in WAITED for axis in axes.split("+"))
            waited += time if alone else 0.0
            hidden += 0.0 if alone else time
        products = self.flops / (chip.flops_per_second * PRODUCTS)
        memory = self.moved / chip.memory_rate
        step = max(products, memory, hidden) + waited
        return {
            "products": products,
            "memory": memory,
            "wire_hidden": hidden,
            "wire_waited": waited,
            "step": step,
        }

    def fits(self, chip: Accelerator) -> bool:
        return self.memory <= FILLED * chip.memory_bytes


def rate(axes: Sequence[str], mesh: Mapping[str, int], chip: Accelerator) -> float:
    """Bytes a second that one device sends to a group along these axes. Later mesh axes are nearer:
    a group within a node has the node's links; one that spans nodes has as many ports as it has
    members in each."""
    members = apart = 1
    stride = 1
    for name in reversed(tuple(mesh)):
        if name in axes:
            near = max(1, min(mesh[name], chip.node // stride))
            members *= near
            apart *= math.ceil(mesh[name] / near)
        stride *= mesh[name]
    return chip.inside if apart == 1 else min(chip.inside, members * chip.between)


def cost(
    closed: ClosedJaxpr,
    arguments: Sequence[Spread],
    *,
    labels: Sequence[str],
    mesh: Mapping[str, int],
    compiler: Compiler,
) -> Cost:
    """The cost of a traced step whose arguments lie as given; `labels` say what each of them is."""
    whole = program(closed, barriers=compiler.barriers)
    consts = whole.ins[: len(whole.ins) - len(arguments)]
    walk = Partitioner(mesh, rules=RULES, scatters=compiler.scatters)
    scope, _ = walk.scope(whole, [*(Spread.constant(v) for v in consts), *arguments])
    held: dict[str, float] = {}
    for label, one in zip(labels, arguments, strict=True):
        held[label] = held.get(label, 0.0) + one.buffer.bytes
    return Cost(
        mesh=dict(mesh),
        flops=walk.totals.flops,
        moved=traffic(scope),
        held=held,
        temporary=peak(scope, given=scope.ins),
        sent=dict(walk.totals.sent),
        unknown=dict(walk.totals.unknown),
    )


def to_json(found: Cost, chip: Accelerator | None) -> dict[str, Any]:
    out: dict[str, Any] = {
        "mesh": dict(found.mesh),
        "devices": math.prod(found.mesh.values()),
        "flops_per_device": found.flops,
        "memory_per_device": {
            **found.held,
            "temporary": found.temporary,
            "total": found.memory,
        },
        "sent_per_device": found.by_axis,
        "unknown": dict(found.unknown),
    }
    if found.microbatches is not None:
        out["microbatches"] = found.microbatches
    if chip is not None:
        out |= {"fits": found.fits(chip), "seconds": found.seconds(chip)}
    return out
