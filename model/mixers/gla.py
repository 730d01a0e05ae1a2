"""Gated linear attention (GLA): each key channel of the state forgets at a rate of the input's.

Yang et al. 2024: S_t = diag(e^a_t) S_(t-1) + k_t v_t^T with a_t = logsigmoid(W2 W1 x_t + b) / 16,
W2 W1 of rank 16, a norm over each head's output and a swish gate. As in flash-linear-attention
queries and keys have no activation. The bias b starts at 0; theirs is drawn from +-1/4.
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
from model.ops import channel_decay
from model.ops.norm import rmsnorm
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["gla"] = "gla"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=32, ge=1)  # of values
    d_key: int = Field(default=16, ge=1)  # of queries and keys (paper: half of d_head)
    gate_rank: int = Field(default=16, ge=1)
    gate_divisor: float = Field(default=16.0, gt=0)  # of the logarithm of the decay
    chunk: int = Field(default=64, ge=1, le=512)

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        width = shared["D"]
        if width % self.d_head:
            raise ValueError(
                f"d_head {self.d_head} does not divide d_model {width}; write a divisor of {width}"
            )
        if self.gate_rank > width:
            raise ValueError(
                f"gate_rank {self.gate_rank} is above d_model {width}, and more than that adds "
                f"nothing; write at most {width}"
            )
        heads = width // self.d_head
        return {"H": heads, "K": self.d_key, "M": self.d_head, "R": self.gate_rank}


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.q = declare.matrix("q", "D H K", contract="D")
        self.k = declare.matrix("k", "D H K", contract="D")
        self.v = declare.matrix("v", "D H M", contract="D")
        self.gate = declare.matrix("gate", "D H M", contract="D")
        self.decay_in = declare.matrix("decay_in", "D R", contract="D")
        self.decay_out = declare.matrix("decay_out", "R H K", contract="R")
        self.decay_bias = declare.vector("decay_bias", "H K", init="zeros")
        self.gain = declare.vector("gain", "M", init="ones")
        self.out = declare.matrix("out", "H M D", contract="H M", role=scaling.RESIDUAL)
        self.scale = scaling.attention_scale(declare.rule, per_head=declare.sizes["K"])
        self.state = tuple(declare.sizes[letter] for letter in "HKM")

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self._mix(x_BTD, ctx, None)[0], {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        return {"state_BHKM": jnp.zeros((rows, *self.state), jnp.float32)}

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        y_BTD, state_BHKM = self._mix(x_BTD, ctx, state["state_BHKM"])
        return y_BTD, {"state_BHKM": state_BHKM}, {}

    def _mix(self, x_BTD: jax.Array, ctx: Context, state_BHKM: jax.Array | None):
        spec = self.spec
        q_BTHK, k_BTHK, v_BTHM = (linear(x_BTD, w) for w in (self.q, self.k, self.v))
        decay_BTHK = linear(linear(x_BTD, self.decay_in), self.decay_out, dtype=jnp.float32)
        decay_BTHK = jax.nn.log_sigmoid(decay_BTHK + self.decay_bias[...]) / spec.gate_divisor
        y_BTHM, state_BHKM = channel_decay.form(naive=ctx.naive, chunk=spec.chunk)(
            q_BTHK * jnp.asarray(self.scale, q_BTHK.dtype),
            k_BTHK,
            v_BTHM,
            decay_BTHK,
            ctx.segments_BT,
            state_BHKM=state_BHKM,
        )
        y_BTHM = rmsnorm(y_BTHM, self.gain[...]).astype(x_BTD.dtype)
        return linear(y_BTHM * jax.nn.silu(linear(x_BTD, self.gate)), self.out), state_BHKM


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: pairs within a chunk, and the state."""
    return channel_decay.flops(
        heads=sizes["H"],
        key=sizes["K"],
        value=sizes["M"],
        chunk=spec.chunk,
        seq_len=seq_len,
        causal=causal,
    )


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: `per_token` of context, and `fixed`."""
    return {"per_token": 0, "fixed": sizes["H"] * sizes["K"] * sizes["M"]}
