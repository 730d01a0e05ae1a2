"""Translation: every token of a target from its source and the target's tokens before it (Ghorbani
et al. 2021), for models with an encoder.

`loss/<set>` is nats a token of the target, its end counted, without label smoothing, in training
and in evaluation alike.
"""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from model.spec import ModelSpec
from parallelism.axes import SPEC
from train.objectives import NextToken
from train.spec import DataSpec


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(NextToken):
    kind: Literal["translation"] = "translation"  # pyright: ignore[reportIncompatibleVariableOverride]

    takes: ClassVar[tuple[str, ...]] = ("pairs",)

    @property
    def arrays(self) -> dict[str, Any]:
        return {"source_BS": np.int32, "source_segments_BS": np.int32}

    @property
    def data(self) -> DataSpec:
        """Words to be said backwards, a generated task."""
        return DataSpec(sources=({"kind": "translation"},), seq_len=64)

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        if model.encoder is None:
            raise ValueError(
                f"objective {self.kind} gives a source to read and the model has no encoder; write "
                f"one, or start from the architecture encoder_decoder"
            )
