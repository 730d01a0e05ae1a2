"""How does a stream become queries, keys and values, and come back? For the mixers that differ from
attention in who sees whom: grouped queries, rotary positions, optional QK-norm.
"""

from collections.abc import Mapping

import jax
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.context import Context
from model.ops.norm import rmsnorm
from model.ops.rotary import rotary
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class HeadsSpec(LayerSpec):
    """Abstract: the knobs of such a mixer's heads."""

    d_head: int = Field(default=32, ge=2, multiple_of=2)
    queries_per_kv: int = Field(default=1, ge=1)  # query heads that share one key-value head
    rotary_theta: float | None = Field(default=10_000.0, gt=0)  # None: no rotary positions
    qk_norm: bool = False

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


class Heads(nnx.Module):
    def __init__(self, spec: HeadsSpec, declare: Declare):
        self.rotary_theta = spec.rotary_theta
        self.q = declare.matrix("q", "D H K", contract="D")
        self.k = declare.matrix("k", "D J K", contract="D")
        self.v = declare.matrix("v", "D J K", contract="D")
        self.out = declare.matrix("out", "H K D", contract="H K", role=scaling.RESIDUAL)
        self.q_gain = declare.vector("q_gain", "K", init="ones") if spec.qk_norm else None
        self.k_gain = declare.vector("k_gain", "K", init="ones") if spec.qk_norm else None
        self.scale = scaling.attention_scale(declare.rule, per_head=declare.sizes["K"])

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (B, T, H, K), keys and values (B, T, J, K)."""
        q_BTHK, k_BTJK, v_BTJK = linear(x_BTD, self.q), linear(x_BTD, self.k), linear(x_BTD, self.v)
        if self.q_gain is not None and self.k_gain is not None:
            q_BTHK, k_BTJK = rmsnorm(q_BTHK, self.q_gain[...]), rmsnorm(k_BTJK, self.k_gain[...])
        if self.rotary_theta is not None:
            q_BTHK = rotary(q_BTHK, ctx.positions_BT, theta=self.rotary_theta)
            k_BTJK = rotary(k_BTJK, ctx.positions_BT, theta=self.rotary_theta)
        return q_BTHK, k_BTJK, v_BTJK

    def back(self, y_BTHK: jax.Array) -> jax.Array:
        return linear(y_BTHK, self.out)
