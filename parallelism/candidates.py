"""Which meshes of so many devices are there, and which of them is best?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from parallelism.accelerators import Accelerator
from parallelism.axes import MeshSpec
from parallelism.cost import FILLED, Cost, to_json
from parallelism.errors import InputError

GIB = 2**30


@dataclass(frozen=True)
class Ranked:
    """Meshes, best first; `refused` counts those that cannot be, by the reason."""

    chip: Accelerator | None
    devices: int
    found: tuple[Cost, ...]
    refused: dict[str, int]

    @property
    def best(self) -> Cost:
        """The first; raises InputError where none fits, with the numbers."""
        if not self.found:
            reason = next(iter(self.refused), "none divides the sizes")
            raise InputError(
                "execution.mesh", "auto", f"no mesh of {self.devices} devices can be: {reason}"
            )
        first = self.found[0]
        if self.chip is not None and not first.fits(self.chip):
            least = min(self.found, key=lambda c: c.memory)
            raise InputError(
                "execution.mesh",
                f"{self.chip.kind}:{self.devices}",
                f"no mesh fits: the least that a device needs is {least.memory / GIB:.1f} GiB "
                f"({said(least)}) of {FILLED * self.chip.memory_bytes / GIB:.1f}; write more "
                "devices, execution.remat=full, a larger execution.accumulate, or a smaller model",
            )
        return first

    def to_json(self) -> dict[str, Any]:
        return {
            "chip": self.chip.to_json() if self.chip else None,
            "devices": self.devices,
            "meshes": [to_json(one, self.chip) for one in self.found],
            "refused": self.refused,
        }

    def text(self, *, rows: int = 12) -> str:
        head = ["mesh", "GiB", "held", "temporary", "TFLOP", "GB sent by axis"]
        head += [] if self.chip is None else ["s/step", "products", "memory", "wire", "fits"]
        lines = [head]
        for one in self.found[:rows]:
            sent = ", ".join(f"{k} {v / 1e9:.3g}" for k, v in sorted(one.by_axis.items()))
            sizes = (one.memory, sum(one.held.values()), one.temporary)
            line = [said(one), *(f"{n / GIB:.3g}" for n in sizes), f"{one.flops / 1e12:.3g}"]
            line.append(sent or "-")
            if self.chip is not None:
                s = one.seconds(self.chip)
                wire = f"{s['wire_hidden']:.3g}+{s['wire_waited']:.3g}"
                line += [*(f"{s[k]:.3g}" for k in ("step", "products", "memory")), wire]
                line.append("yes" if one.fits(self.chip) else "no")
            lines.append(line)
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        pairs = [zip(line, widths, strict=True) for line in lines]
        text = ["  ".join(c.ljust(w) for c, w in pair).rstrip() for pair in pairs]
        text.append("each device, one step; wire: overlapped + waited for")
        text += [f"{n} meshes refused: {why}" for why, n in self.refused.items()]
        return "\n".join(text)


def said(one: Cost) -> str:
    axes = " ".join(f"{axis}={n}" for axis, n in one.mesh.items() if n > 1) or "one device"
    return axes if one.microbatches is None else f"{axes} ({one.microbatches} microbatches)"


def meshes(devices: int, axes: Sequence[str], *, most: dict[str, int]) -> Iterator[MeshSpec]:
    """Every way to lay `devices` out over these axes, at most `most` along one."""
    for sizes in _factors(devices, len(axes)):
        if all(n <= most.get(axis, n) for axis, n in zip(axes, sizes, strict=True)):
            yield MeshSpec(**dict(zip(axes, sizes, strict=True)))


def rank(
    some: Iterator[MeshSpec],
    measure: Callable[[MeshSpec], Cost],
    *,
    chip: Accelerator | None,
    devices: int,
) -> Ranked:
    """What fits first, by the time of a step; without a named chip by products, bytes sent and
    memory."""
    found, refused = [], {}
    for mesh in some:
        try:
            found.append(measure(mesh))
        except InputError as error:
            refused[str(error)] = refused.get(str(error), 0) + 1

    def key(one: Cost) -> tuple:
        if chip is None:
            return (one.flops, sum(one.sent.values()), one.memory)
        fits = one.fits(chip)
        return (not fits, one.seconds(chip)["step"] if fits else one.memory)

    return Ranked(chip, devices, tuple(sorted(found, key=key)), refused)


def _factors(n: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (n,)
        return
    for first in range(1, n + 1):
        if n % first == 0:
            for rest in _factors(n // first, parts - 1):
                yield (first, *rest)
