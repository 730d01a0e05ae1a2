"""Gated DeltaNet: the delta rule on a memory that also fades, by a factor each head decides.

Yang, Kautz and Hatamizadeh 2024 (arXiv 2412.06464): DeltaNet's queries, keys, values and writing
strength, Mamba-2's decay exp(-A softplus(x W + bias)), and an output gate beside the norm of each
head. With a decay of 1 it is DeltaNet.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.context import Context, State
from model.inits import InverseSoftplusOfLogUniform, LogOfUniform
from model.mixers.deltanet import Heads, normed, query, strength, unit
from model.ops.delta import delta_rule, flops, naive_delta_rule
from model.ops.over_devices import over_devices
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC
from parallelism.sequence import DELTA


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    """The authors' layers have a `key_ratio` of 3/4 and a `value_ratio` of 2: 6 D^2 parameters."""

    kind: Literal["gated_deltanet"] = "gated_deltanet"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=32, ge=1)  # width of a head's keys
    key_ratio: float = Field(default=1.0, gt=0)  # width of all heads' keys over d_model
    value_ratio: int = Field(default=1, ge=1)  # width of a head's values over that of its keys
    taps: int = Field(default=4, ge=1, le=64)  # of the short convolution; 1: a gain a channel
    gate: bool = True  # the output times SiLU of a projection
    negative_eigenvalues: bool = False
    chunk: int = Field(default=32, ge=1)  # positions solved at once; the order of sums only

    @property
    def carries(self) -> bool:
        return True

    @property
    def sequence_form(self) -> str:
        return "delta"

    def recurrence(self, sizes: Mapping[str, int]) -> tuple[int, int, int]:
        return sizes["H"], sizes["K"], sizes["M"]

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        width, heads = shared["D"], self.key_ratio * shared["D"] / self.d_head
        if not heads.is_integer():
            raise ValueError(
                f"d_head {self.d_head} does not divide {self.key_ratio:g} (key_ratio) x {width} "
                f"(d_model); write a divisor of that, or a d_model that is a multiple of "
                f"{self.d_head / self.key_ratio:g}"
            )
        sizes = {"H": int(heads), "K": self.d_head, "M": self.value_ratio * self.d_head}
        return {**sizes, "W": self.taps}


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.q = Heads("q", declare, width="K")
        self.k = Heads("k", declare, width="K")
        self.v = Heads("v", declare, width="M")
        self.beta = declare.matrix("beta", "D H", contract="D")
        self.step = declare.matrix("step", "D H", contract="D")
        # Mamba-2's: rates up to 16, steps from 0.001 to 0.1; a rate of zero has no logarithm
        self.rate = declare.recurrence("log_rate", "H", init=LogOfUniform(1e-4, 16.0))
        steps = InverseSoftplusOfLogUniform(1e-3, 1e-1)
        self.step_bias = declare.recurrence("step_bias", "H", init=steps)
        self.gate = declare.matrix("gate", "D H M", contract="D") if spec.gate else None
        self.gain = declare.vector("gain", "M", init="ones")
        self.out = declare.matrix("out", "H M D", contract="H M", role=scaling.RESIDUAL)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        q, k, v = (heads(x_BTD, ctx) for heads in (self.q, self.k, self.v))
        form = naive_delta_rule if ctx.naive else partial(delta_rule, chunk=self.spec.chunk)
        form = over_devices(form, ctx.sequence, form=DELTA)
        y_BTHM, _ = form(query(q), unit(k), v, *self._rates(x_BTD), ctx.segments_BT)
        return self._out(x_BTD, y_BTHM), {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        H, K = self.q.project.decl.shape[-2:]
        heads = {"q": self.q, "k": self.k, "v": self.v}
        held = {name: part.start(rows, dtype=dtype) for name, part in heads.items()}
        M = self.gain.decl.shape[-1]
        return {**held, "memory_BHKM": jnp.zeros((rows, H, K, M), jnp.float32)}

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        q, held_q = self.q.extend(x_BTD, state["q"], ctx)
        k, held_k = self.k.extend(x_BTD, state["k"], ctx)
        v, held_v = self.v.extend(x_BTD, state["v"], ctx)
        y_BTHM, memory_BHKM = delta_rule(
            query(q),
            unit(k),
            v,
            *self._rates(x_BTD),
            ctx.segments_BT,
            chunk=self.spec.chunk,
            state_BHKM=state["memory_BHKM"],
        )
        state = {"q": held_q, "k": held_k, "v": held_v, "memory_BHKM": memory_BHKM}
        return self._out(x_BTD, y_BTHM), state, {}

    def _rates(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(B, T, H): the writing strength, and the logarithm of what is kept of the memory."""
        beta_BTH = strength(x_BTD, self.beta, negative_eigenvalues=self.spec.negative_eigenvalues)
        step_BTH = jax.nn.softplus(
            linear(x_BTD, self.step, dtype=jnp.float32) + self.step_bias[...]
        )
        return beta_BTH, -jnp.exp(self.rate[...]) * step_BTH

    def _out(self, x_BTD: jax.Array, y_BTHM: jax.Array) -> jax.Array:
        y_BTHM = normed(y_BTHM, self.gain[...])
        if self.gate is not None:
            y_BTHM = y_BTHM * jax.nn.silu(linear(x_BTD, self.gate))
        return linear(y_BTHM, self.out)


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: those of the chunks, all pairs of one
    counted, as they are computed, and the sums of log decays.
    """
    chunk = min(spec.chunk, seq_len)
    one = flops(chunk=chunk, keys=sizes["K"], values=sizes["M"]) + 2 * chunk
    return sizes["H"] * one


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: the memory, and the inputs that the taps see."""
    H, K, M = sizes["H"], sizes["K"], sizes["M"]
    return {"per_token": 0, "fixed": H * K * M + (sizes["W"] - 1) * H * (2 * K + M)}
