"""Causal softmax attention with grouped queries, rotary positions and optional QK-norm.

Vaswani et al. 2017; grouped queries: Ainslie et al. 2023; rotary: Su et al. 2021; QK-norm: Henry et
al. 2020, as RMSNorm with one gain per channel shared by the heads (Qwen3's form).
"""

from collections.abc import Mapping
from typing import Literal

import jax
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.context import Context
from model.ops.attention import attention
from model.ops.norm import rmsnorm
from model.ops.rotary import rotary
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["attention"] = "attention"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=32, ge=2, multiple_of=2)
    queries_per_kv: int = Field(default=1, ge=1)  # query heads that share one key-value head
    rotary_theta: float | None = Field(default=10_000.0, gt=0)  # None: no rotary positions
    qk_norm: bool = False
    bias: bool = False
    query_blocks: int = Field(
        default=2, ge=1
    )  # static blocks of queries; changes the order of sums only

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        width = shared["D"]
        if width % self.d_head:
            raise ValueError(
                f"d_head {self.d_head} does not divide d_model {width}; write a divisor of "
                f"{width}, or a d_model that "
                f"is a multiple of {self.d_head}"
            )
        heads = width // self.d_head
        if heads % self.queries_per_kv:
            raise ValueError(
                f"queries_per_kv {self.queries_per_kv} does not divide the {heads} heads "
                f"(d_model {width} / d_head "
                f"{self.d_head}); write a divisor of {heads}"
            )
        return {"H": heads, "J": heads // self.queries_per_kv, "K": self.d_head}


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.q = declare.matrix("q", "D H K", contract="D")
        self.k = declare.matrix("k", "D J K", contract="D")
        self.v = declare.matrix("v", "D J K", contract="D")
        self.out = declare.matrix("out", "H K D", contract="H K", role=scaling.RESIDUAL)
        if spec.qk_norm:
            self.q_gain = declare.vector("q_gain", "K", init="ones")
            self.k_gain = declare.vector("k_gain", "K", init="ones")
        if spec.bias:
            self.q_bias = declare.vector("q_bias", "H K", init="zeros")
            self.k_bias = declare.vector("k_bias", "J K", init="zeros")
            self.v_bias = declare.vector("v_bias", "J K", init="zeros")
            self.out_bias = declare.vector("out_bias", "D", init="zeros")
        self.scale = scaling.attention_scale(declare.rule, per_head=declare.sizes["K"])

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        spec, dtype = self.spec, x_BTD.dtype
        q_BTHK, k_BTJK, v_BTJK = linear(x_BTD, self.q), linear(x_BTD, self.k), linear(x_BTD, self.v)
        if spec.bias:
            q_BTHK = q_BTHK + self.q_bias[...].astype(dtype)
            k_BTJK = k_BTJK + self.k_bias[...].astype(dtype)
            v_BTJK = v_BTJK + self.v_bias[...].astype(dtype)
        if spec.qk_norm:
            q_BTHK, k_BTJK = rmsnorm(q_BTHK, self.q_gain[...]), rmsnorm(k_BTJK, self.k_gain[...])
        if spec.rotary_theta is not None:
            q_BTHK = rotary(q_BTHK, ctx.positions_BT, theta=spec.rotary_theta)
            k_BTJK = rotary(k_BTJK, ctx.positions_BT, theta=spec.rotary_theta)
        y_BTHK = attention(
            q_BTHK,
            k_BTJK,
            v_BTJK,
            ctx.segments_BT,
            scale=self.scale,
            blocks=min(spec.query_blocks, x_BTD.shape[1]),
        )
        y_BTD = linear(y_BTHK, self.out)
        if spec.bias:
            y_BTD = y_BTD + self.out_bias[...].astype(dtype)
        return y_BTD, {}


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: scores and weighted values."""
    full = 4.0 * seq_len * sizes["H"] * sizes["K"]
    return full / 2 if causal else full


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: `per_token` of context, and `fixed`."""
    return {"per_token": 2 * sizes["J"] * sizes["K"], "fixed": 0}
