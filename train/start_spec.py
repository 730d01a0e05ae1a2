"""From what does a run begin, as a value? From a finished run of fewer layers, of one stream, or of
a mixture of experts.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class StartSpec:
    """`grow` stacks the layers of `run` to the model's depth (train/grow.py); `recycle` gives a run
    of one stream the parallel streams of the model (train/recycle.py); `upcycle` makes chains of a
    run's mixtures of experts (train/upcycle.py). Optimiser and schedule are new. `run` is a run's
    id or folder, and the id alone is part of the new run's identity.
    """

    kind: Literal["grow", "recycle", "upcycle"]
    run: str = Field(min_length=1)
    frozen: bool = False  # recycle: train only what the streams add
    data: Literal["continue", "fresh"] = (
        "continue"  # after what `run` read, or in an order of its own
    )

    def __post_init__(self):
        if not re.fullmatch("[0-9a-f]{12}", self.run_id):
            raise ValueError(
                f"{self.run!r} is no run; write the 12 characters of its id, or its folder"
            )
        if self.frozen and self.kind != "recycle":
            made = {"grow": "a grown", "upcycle": "an upcycled"}[self.kind]
            raise ValueError(f"{made} run trains every layer; write frozen=false, or kind recycle")

    @property
    def run_id(self) -> str:
        return Path(self.run).name
