"""Lightning attention: linear attention whose heads forget at fixed rates, without positions.

Qin et al. 2024 (Lightning Attention-2; the mixer of MiniMax-01): S_t = e^(-s_h) S_(t-1) + k_t v_t^T
with silu on queries, keys and values, a norm over each head's output and a sigmoid gate. The rates
are ALiBi's slopes, s_h = 2^(-8 (h + 1) / H), as in Linear-MoE. flash-linear-attention has others,
s_h = (8 / H) (1 - layer / layers) h, whose head 0 never forgets; rates that depend on the layer are
left out. Silu and sigmoid are from memory of the papers, so they are settings; Linear-MoE's layer
has no activation on queries, keys and values.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from model.context import Context
from model.gated_heads import GatedHeads, decode_state
from model.ops import scalar_decay
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC

__all__ = ["Layer", "Spec", "decode_state", "extra_flops"]


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["lightning"] = "lightning"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=32, ge=1)
    activation: Literal["identity", "silu"] = "silu"  # on queries, keys and values
    gate: Literal["sigmoid", "silu"] = "sigmoid"  # of a projection, on the output
    chunk: int = Field(default=64, ge=1, le=512)

    @property
    def carries(self) -> bool:
        return True

    @property
    def sequence_form(self) -> str:
        return "scalar_decay"

    def recurrence(self, sizes: Mapping[str, int]) -> tuple[int, int, int]:
        return sizes["H"], sizes["K"], sizes["M"]

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        width = shared["D"]
        if width % self.d_head:
            raise ValueError(
                f"d_head {self.d_head} does not divide d_model {width}; write a divisor of {width}"
            )
        K = self.d_head
        return {"H": width // K, "K": K, "M": K}

    def log_decay(self, heads: int) -> np.ndarray:
        """-s_h: ALiBi's slopes, float32."""
        return -(2.0 ** (-8 * np.arange(1, heads + 1) / heads)).astype(np.float32)


ACTIVATIONS = {"identity": lambda x: x, "silu": jax.nn.silu, "sigmoid": jax.nn.sigmoid}


class Layer(GatedHeads):
    def __init__(self, spec: Spec, declare: Declare):
        super().__init__(declare)
        self.spec = spec

    def mix(self, x_BTD: jax.Array, ctx: Context, state_BHKM: jax.Array | None):
        spec, (H, _, _) = self.spec, self.state
        activate = ACTIVATIONS[spec.activation]
        q_BTHK, k_BTHK, v_BTHM = (activate(linear(x_BTD, w)) for w in (self.q, self.k, self.v))
        decay_BTH = jnp.broadcast_to(spec.log_decay(H), (1, x_BTD.shape[1], H))
        return scalar_decay.form(naive=ctx.naive, chunk=spec.chunk, sequence=ctx.sequence)(
            q_BTHK * jnp.asarray(self.scale, q_BTHK.dtype),
            k_BTHK,
            v_BTHM,
            decay_BTH,
            ctx.segments_BT,
            state_BHKM=state_BHKM,
        )

    def gated(self, gate_BTHM: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.spec.gate](gate_BTHM)


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: pairs within a chunk, and the state."""
    return scalar_decay.flops(
        groups=sizes["H"],
        heads=sizes["H"],
        key=sizes["K"],
        value=sizes["M"],
        chunk=spec.chunk,
        seq_len=seq_len,
        causal=causal,
        decays=sizes["H"],
    )
