"""The ring over stripes: a device holds every W-th position (Brandon et al. 2023).

Every hop is a triangle, with or without its diagonal: the work of devices differs by that alone.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from parallelism.sequence import ring


def striped(block: Any, index: Any, *, blocks: int, length: int) -> Any:
    return index * blocks + block


@dataclass(frozen=True)
class Scheme(ring.Scheme):
    permutes: ClassVar[bool] = True
    place = staticmethod(striped)
