"""What do heads with a matrix for a memory share? Queries, keys, values, a norm over each head's
output, a gate, and the state that training leaves and decoding takes up.

RetNet, Lightning attention and GLA differ in what they do with queries and keys, in how the memory
fades, and in the gate: that is their `mix`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model import scaling
from model.context import Context, State
from model.ops.norm import rmsnorm
from model.param import Declare, linear


class GatedHeads(nnx.Module):
    """Abstract: a sequence mixer whose heads remember a matrix (K, M)."""

    def __init__(self, declare: Declare):
        self.q = declare.matrix("q", "D H K", contract="D")
        self.k = declare.matrix("k", "D H K", contract="D")
        self.v = declare.matrix("v", "D H M", contract="D")
        self.gate = declare.matrix("gate", "D H M", contract="D")
        self.gain = declare.vector("gain", "M", init="ones")
        self.out = declare.matrix("out", "H M D", contract="H M", role=scaling.RESIDUAL)
        self.scale = scaling.attention_scale(declare.rule, per_head=declare.sizes["K"])
        self.state = tuple(declare.sizes[letter] for letter in "HKM")

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self._mixed(x_BTD, ctx, None)[0], {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        return {"state_BHKM": jnp.zeros((rows, *self.state), jnp.float32)}

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        y_BTD, state_BHKM = self._mixed(x_BTD, ctx, state["state_BHKM"])
        return y_BTD, {"state_BHKM": state_BHKM}, {}

    @abstractmethod
    def mix(
        self, x_BTD: jax.Array, ctx: Context, state_BHKM: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """What the heads read (B, T, H, M), and their memory after the last position."""

    def gated(self, gate_BTHM: jax.Array) -> jax.Array:
        """The projection that gates the output, activated."""
        return jax.nn.silu(gate_BTHM)

    def _mixed(self, x_BTD: jax.Array, ctx: Context, state_BHKM: jax.Array | None):
        y_BTHM, state_BHKM = self.mix(x_BTD, ctx, state_BHKM)
        y_BTHM = rmsnorm(y_BTHM, self.gain[...]).astype(x_BTD.dtype)
        return linear(y_BTHM * self.gated(linear(x_BTD, self.gate)), self.out), state_BHKM


def decode_state(spec: Any, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: `per_token` of context, and `fixed`."""
    return {"per_token": 0, "fixed": sizes["H"] * sizes["K"] * sizes["M"]}
