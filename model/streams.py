"""How do P parallel streams run through one decoder? ParScale (Chen et al. 2025, arXiv 2505.10475).

The embedding of a token enters P times; streams differ by learned prefixes of their mixers, and
after the final norm a small network weighs them position by position and they become one. A row's
streams lie beside one another, row (b p), so that the stream axis is inside the batch of a device.
The paper's release is inference code: the start of the prefixes is ours, normal(0.02).
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model import scaling
from model.context import Context
from model.inits import Normal
from model.param import Declare, linear
from model.spec import StreamsSpec

PREFIX_STD = 0.02  # guess, as the release initialises everything else


class Prefix(nnx.Module):
    """Keys and values of each stream that a mixer's positions see ahead of the first one: without
    positions, and of no document. As vectors, they do not decay.
    """

    def __init__(self, declare: Declare):
        self.k = declare.vector("prefix_k", "P S J K", init=Normal(PREFIX_STD))
        self.v = declare.vector("prefix_v", "P S J K", init=Normal(PREFIX_STD))

    def __call__(self, rows: int, *, dtype: Any) -> tuple[jax.Array, jax.Array]:
        """(rows, S, J, K) of keys and of values, of rows (b p)."""
        k_BSJK, v_BSJK = (
            jnp.tile(x[...].astype(dtype), (rows // x.decl.shape[-4], 1, 1, 1))
            for x in (self.k, self.v)
        )
        return k_BSJK, v_BSJK


def prefix(declare: Declare) -> Prefix | None:
    """For a mixer whose LayerSpec.takes_prefix is True; None where there is one stream."""
    return Prefix(declare) if "P" in declare.sizes else None


class Streams(nnx.Module):
    def __init__(self, spec: StreamsSpec, declare: Declare):
        self.spec = spec
        # the input is feature-major: channel d of every stream, then channel d + 1
        self.hidden = declare.matrix("hidden", "D P D", contract="D P")
        self.hidden_bias = declare.vector("hidden_bias", "D", init="zeros")
        self.weight = declare.matrix("weight", "D P", contract="D", role=scaling.ROUTER)
        self.weight_bias = declare.vector("weight_bias", "P", init="zeros")

    def apart(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, Context]:
        """Every row P times, and the context of those rows."""

        def rows(x: jax.Array | None) -> jax.Array | None:
            return None if x is None else jnp.repeat(x, self.spec.count, axis=0)

        positions_BT = jnp.repeat(ctx.positions_BT, self.spec.count, axis=0)
        more = replace(
            ctx,
            positions_BT=positions_BT,
            segments_BT=rows(ctx.segments_BT),
            prefix_BT=rows(ctx.prefix_BT),
        )
        x_BTD = jnp.repeat(x_BTD, self.spec.count, axis=0)
        return ctx.residual(x_BTD, "B T D"), more

    def together(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
        """The streams of each row, weighed position by position."""
        P, smoothing = self.spec.count, self.spec.smoothing
        rows, T, D = x_BTD.shape
        x_BPTD = x_BTD.reshape(rows // P, P, T, D)
        h_BTD = linear(x_BPTD.transpose(0, 2, 3, 1), self.hidden)
        h_BTD = jax.nn.silu(h_BTD + self.hidden_bias[...].astype(h_BTD.dtype))
        score_BTP = linear(h_BTD, self.weight, dtype=jnp.float32) + self.weight_bias[...]
        # without the even share a stream at weight 0 gets no gradient and stays there
        weight_BTP = (1 - smoothing) * jax.nn.softmax(score_BTP, axis=-1) + smoothing / P
        y_BTD = jnp.einsum("btp,bptd->btd", weight_BTP, x_BPTD.astype(jnp.float32))
        return ctx.constrain(y_BTD.astype(x_BTD.dtype), "B T D")


def streams(spec: StreamsSpec | None, declare: Declare) -> Streams | None:
    """None where there is one stream: the plain decoder."""
    if spec is None or spec.count == 1:
        return None
    return Streams(spec, declare.within("streams"))
