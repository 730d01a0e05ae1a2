"""Plain two-matrix feed-forward layer with a squared ReLU (So et al. 2021, Primer, arXiv
2109.08668).

RWKV's channel mix is this on a learnt mix of each position and the one before. The mix is left out:
it is a state when decoding, and feed-forward layers keep none.
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
    kind: Literal["relu2"] = "relu2"  # pyright: ignore[reportIncompatibleVariableOverride]
    ratio: float = Field(default=4.0, gt=0)  # hidden width over d_model

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        return {"F": max(1, round(self.ratio * shared["D"]))}


class Layer(PointwiseFfn):
    def __init__(self, spec: Spec, declare: Declare):
        self.up = declare.matrix("up", "D F", contract="D")
        self.out = declare.matrix("out", "F D", contract="F", role=scaling.RESIDUAL)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        h_BTF = jax.nn.relu(linear(x_BTD, self.up))
        return linear(h_BTF * h_BTF, self.out), {}


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: none that count."""
    return 0.0
