"""Quasi-LSTM of the Languini Kitchen (Stanic et al. 2023): an LSTM cell whose gates see the input
alone, so that its cell is a linear recurrence and runs in parallel over time.

f = sigmoid(W_f x + b_f + forget_bias), i = sigmoid, z = tanh, o = sigmoid, all of x;
c_t = f c_{t-1} + i z; y = W_out (o tanh c). Differs from the published code in the scan (theirs
goes through logarithms of gates in blocks) and in the start of the weights, which is the
parametrisation's. Gates and cell are float32. Decoding keeps the cell, one number a channel.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.context import Context, State
from model.ops.linear_recurrence import linear_recurrence, naive_linear_recurrence
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["quasi_lstm"] = "quasi_lstm"  # pyright: ignore[reportIncompatibleVariableOverride]
    ratio: float = Field(default=1.0, gt=0)  # cells over d_model; Languini's mini model has 1/2
    d_head: int = Field(default=32, ge=1)  # cells of a group: they are sharded by whole groups
    forget_bias: float = 1.0  # Languini's: cells start with a memory of a few positions

    @property
    def carries(self) -> bool:
        return True

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        cells = self.ratio * shared["D"]
        if cells != round(cells) or round(cells) % self.d_head:
            raise ValueError(
                f"ratio {self.ratio} x d_model {shared['D']} is {cells:g} cells, not whole groups "
                f"of d_head {self.d_head}; write a d_head that divides the cells"
            )
        return {"H": round(cells) // self.d_head, "K": self.d_head}


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.forget = declare.matrix("forget", "D H K", contract="D")
        self.input = declare.matrix("input", "D H K", contract="D")
        self.value = declare.matrix("value", "D H K", contract="D")
        self.output = declare.matrix("output", "D H K", contract="D")
        self.forget_offset = declare.vector("forget_bias", "H K", init="zeros")
        self.input_offset = declare.vector("input_bias", "H K", init="zeros")
        self.value_offset = declare.vector("value_bias", "H K", init="zeros")
        self.output_offset = declare.vector("output_bias", "H K", init="zeros")
        self.out = declare.matrix("out", "H K D", contract="H K", role=scaling.RESIDUAL)
        self.out_offset = declare.vector("out_bias", "D", init="zeros")

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        f_BTHK, u_BTHK, o_BTHK = self._gates(x_BTD)
        form = naive_linear_recurrence if ctx.naive else linear_recurrence
        return self._out(o_BTHK, form(f_BTHK, u_BTHK, ctx.segments_BT), dtype=x_BTD.dtype), {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        return {"c_BHK": jnp.zeros((rows, *self.forget.decl.shape[-2:]), jnp.float32)}

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        f_BTHK, u_BTHK, o_BTHK = self._gates(x_BTD)
        c_BTHK = linear_recurrence(f_BTHK, u_BTHK, ctx.segments_BT, start_BHK=state["c_BHK"])
        return self._out(o_BTHK, c_BTHK, dtype=x_BTD.dtype), {"c_BHK": c_BTHK[:, -1]}, {}

    def _gates(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Forget gate, gated input and output gate, in float32."""

        def product(weight, offset):
            return linear(x_BTD, weight, dtype=jnp.float32) + offset[...]

        f_BTHK = product(self.forget, self.forget_offset) + self.spec.forget_bias
        i_BTHK = product(self.input, self.input_offset)
        z_BTHK = product(self.value, self.value_offset)
        o_BTHK = product(self.output, self.output_offset)
        u_BTHK = jax.nn.sigmoid(i_BTHK) * jnp.tanh(z_BTHK)
        return jax.nn.sigmoid(f_BTHK), u_BTHK, jax.nn.sigmoid(o_BTHK)

    def _out(self, o_BTHK: jax.Array, c_BTHK: jax.Array, *, dtype: Any) -> jax.Array:
        y_BTHK = (o_BTHK * jnp.tanh(c_BTHK)).astype(dtype)
        return linear(y_BTHK, self.out) + self.out_offset[...].astype(dtype)


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: none that count."""
    return 0.0


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: its cells, however long it is."""
    return {"per_token": 0, "fixed": sizes["H"] * sizes["K"]}
