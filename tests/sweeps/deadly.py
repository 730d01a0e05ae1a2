"""A feed-forward layer of somebody's own that takes its process down when it is traced."""

import os
import signal
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from model.ffns import gelu
from parallelism.axes import SPEC

extra_flops = gelu.extra_flops


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(gelu.Spec):
    kind: Literal["tests.sweeps.deadly"] = "tests.sweeps.deadly"  # pyright: ignore[reportIncompatibleVariableOverride]
    how: Literal["kill", "raise"] = "kill"


class Layer(gelu.Layer):
    def __call__(self, x_BTD: Any, ctx: Any) -> Any:
        if isinstance(self.spec, Spec) and self.spec.how == "raise":
            raise RuntimeError("the layer is broken")
        os.kill(os.getpid(), signal.SIGKILL)
