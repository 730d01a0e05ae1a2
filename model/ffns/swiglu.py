"""Gated feed-forward layer: out(silu(gate x) * (up x)) (Shazeer 2020; LLaMA's width of 8/3
d_model).
"""

from collections.abc import Mapping
from typing import Literal

import jax
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.chunked import PointwiseFfn
from model.context import Context
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["swiglu"] = "swiglu"  # pyright: ignore[reportIncompatibleVariableOverride]
    ratio: float = Field(default=8 / 3, gt=0)  # hidden width over d_model
    multiple_of: int = Field(default=8, ge=1)  # the hidden width is rounded to a multiple of this

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        return {"F": max(1, round(self.ratio * shared["D"] / self.multiple_of)) * self.multiple_of}


class Layer(PointwiseFfn):
    def __init__(self, spec: Spec, declare: Declare):
        self.gate = declare.matrix("gate", "D F", contract="D")
        self.up = declare.matrix("up", "D F", contract="D")
        self.out = declare.matrix("out", "F D", contract="F", role=scaling.RESIDUAL)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        h_BTF = jax.nn.silu(linear(x_BTD, self.gate)) * linear(x_BTD, self.up)
        return linear(h_BTF, self.out), {}


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: none that count."""
    return 0.0
