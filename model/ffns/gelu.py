"""Plain two-matrix feed-forward layer with GELU (Vaswani et al. 2017; GPT-2's tanh form of
Hendrycks and Gimpel).
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
    kind: Literal["gelu"] = "gelu"  # pyright: ignore[reportIncompatibleVariableOverride]
    ratio: float = Field(default=4.0, gt=0)  # hidden width over d_model
    bias: bool = False

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        return {"F": max(1, round(self.ratio * shared["D"]))}


class Layer(PointwiseFfn):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.up = declare.matrix("up", "D F", contract="D")
        self.out = declare.matrix("out", "F D", contract="F", role=scaling.RESIDUAL)
        if spec.bias:
            self.up_bias = declare.vector("up_bias", "F", init="zeros")
            self.out_bias = declare.vector("out_bias", "D", init="zeros")

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        h_BTF = linear(x_BTD, self.up)
        if self.spec.bias:
            h_BTF = h_BTF + self.up_bias[...].astype(h_BTF.dtype)
        y_BTD = linear(jax.nn.gelu(h_BTF, approximate=True), self.out)
        if self.spec.bias:
            y_BTD = y_BTD + self.out_bias[...].astype(y_BTD.dtype)
        return y_BTD, {}


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: none that count."""
    return 0.0
