"""What does a model that reads and forecasts real numbers add to an architecture, as a value?"""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from parallelism.axes import SPEC

FARTHEST = 10**6  # beyond any forecast: a slip of the keyboard


@dataclass(frozen=True, kw_only=True, config=SPEC)
class SeriesSpec:
    """Time-MoE (arXiv 2409.16040): each position reads one number of a series, NaN where it is
    missing, and forecasts the `horizons[i]` numbers after it by its i-th head.
    """

    horizons: tuple[Annotated[int, Field(ge=1, le=FARTHEST)], ...] = Field(
        default=(1, 8, 32, 64), min_length=1
    )
    missing: bool = True  # a learned vector stands for a missing number; False: none may be missing

    def __post_init__(self):
        if list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError(f"horizons {list(self.horizons)}: write them rising, each once")
