"""What enters the blocks of a decoder, and what is read out of them? Ids and logits, or the real
numbers of a series and forecasts of those that follow.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model import scaling
from model.context import Context
from model.param import Declare, Parameter, linear
from model.spec import ModelSpec


class Tokens(nnx.Module):
    """Tables that ids look up, and logits of the vocabulary."""

    def __init__(self, spec: ModelSpec, declare: Declare):
        self.spec = spec
        self.embed = declare.table("embed", "V D", matmuls=1.0 if spec.tied else 0.0)
        # a table of its own: the vocabulary stays as divisible as it was
        self.extra = declare.table("extra", "U D") if spec.extra_inputs else None
        self.positions = declare.table("positions", "T D") if spec.learned_positions else None
        self.weight = (
            None
            if spec.tied
            else declare.matrix("readout", "D V", contract="D", role=scaling.READOUT)
        )

    def embedded(
        self,
        tokens_BT: jax.Array,
        ctx: Context,
        *,
        dtype: Any,
        positions: Parameter | None = None,
    ) -> jax.Array:
        """`positions`: another table of them than the decoder's."""
        # whole rows, or the compiler gathers what was looked up in place of the table
        embed_VD = ctx.constrain(self.embed[...], "V D")
        if self.extra is None:
            x_BTD = embed_VD[tokens_BT]
        else:
            beyond_BT = tokens_BT - self.spec.vocab
            known_BTD = embed_VD[jnp.minimum(tokens_BT, self.spec.vocab - 1)]
            extra_BTD = self.extra[...][jnp.maximum(beyond_BT, 0)]
            x_BTD = jnp.where(beyond_BT[..., None] >= 0, extra_BTD, known_BTD)
        positions = self.positions if positions is None else positions
        if positions is not None:
            x_BTD = x_BTD + positions[...][ctx.positions_BT]
        # whole before it is shared, or every device looks its positions up in the whole table
        x_BTD = ctx.constrain(x_BTD.astype(dtype), "B T D")
        return ctx.residual(x_BTD, "B T D")

    @property
    def read(self) -> tuple[str, ...]:
        """Attributes that `readout` takes."""
        return ("embed",) if self.weight is None else ("weight",)

    def readout(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
        """Logits (B, T, V) in float32."""
        if self.weight is not None:
            return ctx.constrain(linear(x_BTD, self.weight, dtype=jnp.float32), "B T V")
        B, T, D = x_BTD.shape
        flat = jax.lax.dot_general(
            x_BTD.reshape(B * T, D),
            self.embed[...].astype(x_BTD.dtype),
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        scale = scaling.tied_readout_scale(self.spec.parametrisation, d_model=D)
        return ctx.constrain(flat.reshape(B, T, -1) * scale, "B T V")


class Values(nnx.Module):
    """A SwiGLU embedding of each number by itself, and one linear head a horizon (Time-MoE).

    The heads are columns of one matrix: the first `horizons[0]` are the first head's, and so on.
    The products of the embedding have one number as their input, so they are tables of one row to
    the parametrisation: neither scale nor learning rate follows the width.
    """

    def __init__(self, spec: ModelSpec, declare: Declare):
        self.gate = declare.table("gate", "D", matmuls=1.0)
        self.up = declare.table("up", "D", matmuls=1.0)
        learned = spec.series is not None and spec.series.missing
        # not from zero, where the first norm's slope is a thousand
        self.missing = declare.table("missing", "D") if learned else None
        self.positions = declare.table("positions", "T D") if spec.learned_positions else None
        self.heads = declare.matrix("heads", "D O", contract="D", role=scaling.READOUT)

    def embedded(self, values_BT: jax.Array, ctx: Context, *, dtype: Any) -> jax.Array:
        """silu(x gate) * x up, the learned vector where x is NaN."""
        x_BT1 = values_BT[..., None]
        absent_BT1 = jnp.isnan(x_BT1)
        if self.missing is not None:
            # before any arithmetic: NaN times the zero gradient of a mask would be NaN
            x_BT1 = jnp.where(absent_BT1, 0.0, x_BT1)
        x_BTD = jax.nn.silu(x_BT1 * self.gate[...]) * (x_BT1 * self.up[...])
        if self.missing is not None:
            x_BTD = jnp.where(absent_BT1, self.missing[...], x_BTD)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions[...][ctx.positions_BT]
        return ctx.residual(x_BTD.astype(dtype), "B T D")

    @property
    def read(self) -> tuple[str, ...]:
        """Attributes that `readout` takes."""
        return ("heads",)

    def readout(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
        """Forecasts (B, T, O) in float32 of the numbers after each position, by every head."""
        return ctx.constrain(linear(x_BTD, self.heads, dtype=jnp.float32), "B T O")
