"""Causal softmax attention with grouped queries, rotary positions and optional QK-norm.

Vaswani et al. 2017; grouped queries: Ainslie et al. 2023; rotary: Su et al. 2021; QK-norm: Henry et
al. 2020, as RMSNorm with one gain per channel shared by the heads (Qwen3's form).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.chunked import ChunkedMixer
from model.context import Context, State
from model.ops.attention import attend_cache, attention, naive_attention
from model.ops.norm import rmsnorm
from model.ops.rotary import rotary
from model.param import Declare, Parameter, linear
from model.spec import LayerSpec
from model.streams import prefix
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["attention"] = "attention"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=32, ge=2, multiple_of=2)
    queries_per_kv: int = Field(default=1, ge=1)  # query heads that share one key-value head
    rotary_theta: float | None = Field(default=10_000.0, gt=0)  # None: no rotary positions
    qk_norm: bool = False
    bias: bool = False  # of queries, keys, values and the output
    qkv_bias: bool = False  # of the first three alone (Qwen2, Time-MoE)
    # static blocks of queries, each compiled by itself; changes the order of sums only
    query_blocks: int = Field(default=2, ge=1, le=64)

    @property
    def bidirectional(self) -> bool:
        return True

    @property
    def takes_prefix(self) -> bool:
        return True

    @property
    def sequence_form(self) -> str:
        return "softmax"

    def attentions(self, sizes: Mapping[str, int]) -> tuple[tuple[int, int, Any], ...]:
        return ((sizes["H"], sizes["J"], None),)

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


class Layer(ChunkedMixer):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.q = declare.matrix("q", "D H K", contract="D")
        self.k = declare.matrix("k", "D J K", contract="D")
        self.v = declare.matrix("v", "D J K", contract="D")
        self.out = declare.matrix("out", "H K D", contract="H K", role=scaling.RESIDUAL)
        if spec.qk_norm:
            self.q_gain = declare.vector("q_gain", "K", init="ones")
            self.k_gain = declare.vector("k_gain", "K", init="ones")
        if spec.bias or spec.qkv_bias:
            self.q_bias = declare.vector("q_bias", "H K", init="zeros")
            self.k_bias = declare.vector("k_bias", "J K", init="zeros")
            self.v_bias = declare.vector("v_bias", "J K", init="zeros")
        if spec.bias:
            self.out_bias = declare.vector("out_bias", "D", init="zeros")
        self.scale = scaling.attention_scale(declare.rule, per_head=declare.sizes["K"])
        self.prefix = prefix(declare)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        q_BTHK, k_BTJK, v_BTJK = self._heads(x_BTD, ctx)
        ahead = None if self.prefix is None else self.prefix(x_BTD.shape[0], dtype=x_BTD.dtype)
        elsewhere = ctx.sequence or ctx.kernel
        if elsewhere is not None:
            y_BTHK = elsewhere.softmax(
                q_BTHK,
                k_BTJK,
                v_BTJK,
                ctx.segments_BT,
                scale=self.scale,
                prefix_BT=ctx.prefix_BT,
                ahead=ahead,
            )
            return self._out(y_BTHK), {}
        if ahead is not None:
            k_BTJK, v_BTJK = (
                jnp.concatenate(pair, axis=1) for pair in zip(ahead, (k_BTJK, v_BTJK), strict=True)
            )
        form = naive_attention
        if not ctx.naive:
            form = partial(attention, blocks=min(self.spec.query_blocks, x_BTD.shape[1]))
        y_BTHK = form(
            q_BTHK,
            k_BTJK,
            v_BTJK,
            ctx.segments_BT,
            scale=self.scale,
            prefix_BT=ctx.prefix_BT,
        )
        return self._out(y_BTHK), {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        shape = (rows, length, self.k.decl.shape[-2], self.k.decl.shape[-1])
        return {
            "k_BSJK": jnp.zeros(shape, dtype),
            "v_BSJK": jnp.zeros(shape, dtype),
        }

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        q_BTHK, k_BTJK, v_BTJK = self._heads(x_BTD, ctx)
        begin = ctx.positions_BT[0, 0]
        k_BSJK, v_BSJK = (
            jax.lax.dynamic_update_slice_in_dim(held, new.astype(held.dtype), begin, axis=1)
            for held, new in ((state["k_BSJK"], k_BTJK), (state["v_BSJK"], v_BTJK))
        )
        keys_S = jnp.arange(k_BSJK.shape[1])
        seen_BTS = keys_S <= ctx.positions_BT[:, :, None]
        ahead = None if self.prefix is None else self.prefix(x_BTD.shape[0], dtype=k_BSJK.dtype)
        y_BTHK = attend_cache(q_BTHK, k_BSJK, v_BSJK, seen_BTS, scale=self.scale, ahead=ahead)
        return self._out(y_BTHK), {"k_BSJK": k_BSJK, "v_BSJK": v_BSJK}, {}

    def keys(self, x_BTD: jax.Array, ctx: Context) -> dict[str, jax.Array]:
        return {"k_BSJK": self._keys(x_BTD, ctx), "v_BSJK": self._values(x_BTD)}

    def part(
        self,
        x_BTD: jax.Array,
        keys: Mapping[str, jax.Array],
        seen_BTS: jax.Array,
        ctx: Context,
    ) -> jax.Array:
        ahead = None if self.prefix is None else self.prefix(x_BTD.shape[0], dtype=x_BTD.dtype)
        q_BTHK = self._queries(x_BTD, ctx)
        return self._out(
            attend_cache(q_BTHK, **keys, seen_BTS=seen_BTS, scale=self.scale, ahead=ahead)
        )

    def _heads(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, jax.Array, jax.Array]:
        return self._queries(x_BTD, ctx), self._keys(x_BTD, ctx), self._values(x_BTD)

    def _queries(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
        q_BTHK = linear(x_BTD, self.q)
        if self.spec.bias or self.spec.qkv_bias:
            q_BTHK = q_BTHK + self.q_bias[...].astype(x_BTD.dtype)
        return self._placed(q_BTHK, ctx, self.q_gain if self.spec.qk_norm else None)

    def _keys(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
        k_BTJK = linear(x_BTD, self.k)
        if self.spec.bias or self.spec.qkv_bias:
            k_BTJK = k_BTJK + self.k_bias[...].astype(x_BTD.dtype)
        return self._placed(k_BTJK, ctx, self.k_gain if self.spec.qk_norm else None)

    def _values(self, x_BTD: jax.Array) -> jax.Array:
        v_BTJK = linear(x_BTD, self.v)
        return (
            v_BTJK + self.v_bias[...].astype(x_BTD.dtype)
            if self.spec.bias or self.spec.qkv_bias
            else v_BTJK
        )

    def _placed(self, x_BTHK: jax.Array, ctx: Context, gain: Parameter | None) -> jax.Array:
        if gain is not None:
            x_BTHK = rmsnorm(x_BTHK, gain[...])
        theta = self.spec.rotary_theta
        return x_BTHK if theta is None else rotary(x_BTHK, ctx.positions_BT, theta=theta)

    def _out(self, y_BTHK: jax.Array) -> jax.Array:
        y_BTD = linear(y_BTHK, self.out)
        if self.spec.bias:
            y_BTD = y_BTD + self.out_bias[...].astype(y_BTD.dtype)
        return y_BTD


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: scores and weighted values of the
    positions, and of a stream's prefix.
    """
    keys = (seq_len / 2 if causal else seq_len) + sizes.get("S", 0)
    return 4.0 * keys * sizes["H"] * sizes["K"]


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: `per_token` of context, and `fixed`."""
    return {"per_token": 2 * sizes["J"] * sizes["K"], "fixed": 0}
