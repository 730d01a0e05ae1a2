"""Gated linear attention (GLA): each key channel of the state forgets at a rate of the input's.

Yang et al. 2024: S_t = diag(e^a_t) S_(t-1) + k_t v_t^T with a_t = logsigmoid(W2 W1 x_t + b) / 16,
W2 W1 of rank 16, a norm over each head's output and a swish gate. As in flash-linear-attention
queries and keys have no activation. The bias b starts at 0; theirs is drawn from +-1/4.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from pydantic import Field
from pydantic.dataclasses import dataclass

from model.context import Context
from model.gated_heads import GatedHeads, decode_state
from model.ops import channel_decay
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC

__all__ = ["Layer", "Spec", "decode_state", "extra_flops"]


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["gla"] = "gla"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=32, ge=1)  # of values
    d_key: int = Field(default=16, ge=1)  # of queries and keys (paper: half of d_head)
    gate_rank: int = Field(default=16, ge=1)
    gate_divisor: float = Field(default=16.0, gt=0)  # of the logarithm of the decay
    chunk: int = Field(default=64, ge=1, le=512)

    @property
    def carries(self) -> bool:
        return True

    @property
    def sequence_form(self) -> str:
        return "channel_decay"

    def recurrence(self, sizes: Mapping[str, int]) -> tuple[int, int, int]:
        return sizes["H"], sizes["K"], sizes["M"]

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


class Layer(GatedHeads):
    def __init__(self, spec: Spec, declare: Declare):
        super().__init__(declare)
        self.spec = spec
        self.decay_in = declare.matrix("decay_in", "D R", contract="D")
        self.decay_out = declare.matrix("decay_out", "R H K", contract="R")
        self.decay_bias = declare.vector("decay_bias", "H K", init="zeros")

    def mix(self, x_BTD: jax.Array, ctx: Context, state_BHKM: jax.Array | None):
        spec = self.spec
        q_BTHK, k_BTHK, v_BTHM = (linear(x_BTD, w) for w in (self.q, self.k, self.v))
        decay_BTHK = linear(linear(x_BTD, self.decay_in), self.decay_out, dtype=jnp.float32)
        decay_BTHK = jax.nn.log_sigmoid(decay_BTHK + self.decay_bias[...]) / spec.gate_divisor
        return channel_decay.form(naive=ctx.naive, chunk=spec.chunk, sequence=ctx.sequence)(
            q_BTHK * jnp.asarray(self.scale, q_BTHK.dtype),
            k_BTHK,
            v_BTHM,
            decay_BTHK,
            ctx.segments_BT,
            state_BHKM=state_BHKM,
        )


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
