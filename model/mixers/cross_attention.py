"""Softmax attention of a decoder to what an encoder made of a source (Vaswani et al. 2017).

No rotary positions: queries and keys count along different texts, and what the encoder gives knows
its own place. Keys and values of a source are computed once, however long the target grows.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import jax
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.context import Context, State
from model.ops.cross_attention import cross_attention, naive_cross_attention
from model.ops.norm import rmsnorm
from model.param import Declare, linear
from model.spec import LayerSpec
from model.spec_checks import SOURCE
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["cross_attention"] = "cross_attention"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=32, ge=1)
    queries_per_kv: int = Field(default=1, ge=1)  # query heads that share one key-value head
    qk_norm: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        return SOURCE

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        width = shared["D"]
        if width % self.d_head:
            raise ValueError(
                f"d_head {self.d_head} does not divide d_model {width}; write a divisor of "
                f"{width}, or a d_model that is a multiple of {self.d_head}"
            )
        heads = width // self.d_head
        if heads % self.queries_per_kv:
            raise ValueError(
                f"queries_per_kv {self.queries_per_kv} does not divide the {heads} heads "
                f"(d_model {width} / d_head {self.d_head}); write a divisor of {heads}"
            )
        return {"H": heads, "J": heads // self.queries_per_kv, "K": self.d_head}


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        far = replace(declare, of_source=True)  # multiplied once for each position of the source
        self.q = declare.matrix("q", "D H K", contract="D")
        self.k = far.matrix("k", "D J K", contract="D")
        self.v = far.matrix("v", "D J K", contract="D")
        self.out = declare.matrix("out", "H K D", contract="H K", role=scaling.RESIDUAL)
        if spec.qk_norm:
            self.q_gain = declare.vector("q_gain", "K", init="ones")
            self.k_gain = declare.vector("k_gain", "K", init="ones")
        self.scale = scaling.attention_scale(declare.rule, per_head=declare.sizes["K"])

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self._attend(x_BTD, *self._source(ctx, x_BTD.dtype), ctx), {}

    def read(self, ctx: Context, *, dtype: Any) -> State:
        """What is remembered of the sources in `ctx` when decoding: all of it, from the start."""
        k_BSJK, v_BSJK = self._source(ctx, dtype)
        return {"k_BSJK": k_BSJK, "v_BSJK": v_BSJK}

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        return self._attend(x_BTD, state["k_BSJK"], state["v_BSJK"], ctx), state, {}

    def _source(self, ctx: Context, dtype: Any) -> tuple[jax.Array, jax.Array]:
        source_BSD = ctx.shared["source"].astype(dtype)
        k_BSJK, v_BSJK = linear(source_BSD, self.k), linear(source_BSD, self.v)
        if self.spec.qk_norm:
            k_BSJK = rmsnorm(k_BSJK, self.k_gain[...])
        return k_BSJK, v_BSJK

    def _attend(
        self, x_BTD: jax.Array, k_BSJK: jax.Array, v_BSJK: jax.Array, ctx: Context
    ) -> jax.Array:
        q_BTHK = linear(x_BTD, self.q)
        if self.spec.qk_norm:
            q_BTHK = rmsnorm(q_BTHK, self.q_gain[...])
        form = naive_cross_attention if ctx.naive else cross_attention
        y_BTHK = form(q_BTHK, k_BSJK, v_BSJK, self._seen(x_BTD, ctx), scale=self.scale)
        return linear(y_BTHK, self.out)

    def _seen(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
        """(B, T, S): the source of its own segment; of segment 0 where there is but one."""
        segments_BS = ctx.shared["source_segments"]
        if ctx.segments_BT is None:
            return (segments_BS == 0)[:, None].repeat(x_BTD.shape[1], axis=1)
        return ctx.segments_BT[:, :, None] == segments_BS[:, None, :]


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: scores and weighted values of the S
    positions of a source.
    """
    return 4.0 * sizes["S"] * sizes["H"] * sizes["K"]


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: keys and values of the S positions of its source."""
    return {"per_token": 0, "fixed": 2 * sizes["S"] * sizes["J"] * sizes["K"]}
