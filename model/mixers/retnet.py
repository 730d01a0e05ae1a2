"""Retention (RetNet): linear attention whose heads forget at fixed rates, with rotary positions.

Sun et al. 2023: S_t = g_h S_(t-1) + k_t v_t^T with g_h = 1 - 2^(-5-h), a norm over each head's
output, and a swish gate. Differs from the paper: the norm has a gain for each channel of a head
(as in flash-linear-attention), and rotary angles are the usual ones, without xPos's decay, which
the g_h take over.
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
from model.ops.rotary import rotary
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC

__all__ = ["Layer", "Spec", "decode_state", "extra_flops"]


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["retnet"] = "retnet"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=32, ge=2, multiple_of=2)  # of queries and keys
    expand_v: int = Field(default=2, ge=1)  # values per key channel (paper: 2)
    rotary_theta: float | None = Field(default=10_000.0, gt=0)  # None: no rotary positions
    first_decay: int = Field(default=5, ge=1, le=60)  # head h keeps 1 - 2^(-first_decay - h)
    chunk: int = Field(default=64, ge=1, le=512)

    @property
    def carries(self) -> bool:
        return self.rotary_theta is None  # angles are those of positions in the row

    @property
    def sequence_form(self) -> str:
        return "scalar_decay"

    def recurrence(self, sizes: Mapping[str, int]) -> tuple[int, int, int]:
        return sizes["H"], sizes["K"], sizes["M"]

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        width = shared["D"]
        if width % self.d_head:
            raise ValueError(
                f"d_head {self.d_head} does not divide d_model {width}; write an even divisor of "
                f"{width}"
            )
        K = self.d_head
        return {"H": width // K, "K": K, "M": self.expand_v * K}

    def log_decay(self, heads: int) -> np.ndarray:
        """log(1 - 2^(-first_decay - h)), float32; it falls to 0 over many heads."""
        return np.log1p(-(2.0 ** (-self.first_decay - np.arange(heads)))).astype(np.float32)


class Layer(GatedHeads):
    def __init__(self, spec: Spec, declare: Declare):
        super().__init__(declare)
        self.spec = spec

    def mix(self, x_BTD: jax.Array, ctx: Context, state_BHKM: jax.Array | None):
        spec, (H, _, _) = self.spec, self.state
        q_BTHK, k_BTHK, v_BTHM = (linear(x_BTD, w) for w in (self.q, self.k, self.v))
        if spec.rotary_theta is not None:
            q_BTHK, k_BTHK = (
                rotary(x, ctx.positions_BT, theta=spec.rotary_theta) for x in (q_BTHK, k_BTHK)
            )
        decay_BTH = jnp.broadcast_to(spec.log_decay(H), (1, x_BTD.shape[1], H))
        return scalar_decay.form(naive=ctx.naive, chunk=spec.chunk, sequence=ctx.sequence)(
            q_BTHK * jnp.asarray(self.scale, q_BTHK.dtype),
            k_BTHK,
            v_BTHM,
            decay_BTH,
            ctx.segments_BT,
            state_BHKM=state_BHKM,
        )


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
