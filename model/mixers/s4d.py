"""S4D: a diagonal state space in every channel, then GELU and a gated linear map.

Gu, Gupta, Goel, Re 2022 (arXiv 2206.11893). Step sizes and poles have a learning rate of their own
and no weight decay; B is 1 and folded into C. Differs from the paper's code: no biases and no
dropout, and pole, step and C are a layer's own in float32 whatever the compute type.
"""

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.context import Context, State
from model.inits import Init, LogUniform, Normal
from model.ops.hippo import Diagonal, diagonal
from model.ops.state_space import (
    Discretisation,
    diagonal_chunked,
    diagonal_recurrence,
    discretise,
)
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["s4d"] = "s4d"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_state: int = Field(default=64, ge=2, le=4096, multiple_of=2)  # real; half as many modes
    init: Diagonal = "lin"
    discretisation: Discretisation = "zoh"
    step_min: float = Field(default=1e-3, gt=0)
    step_max: float = Field(default=1e-1, gt=0)
    state_lr: float = Field(default=0.1, gt=0)  # of poles and steps, times the run's
    chunk: int = Field(default=32, ge=1)  # changes the order of sums only

    def __post_init__(self):
        if self.step_max < self.step_min:
            raise ValueError(
                f"step_max {self.step_max:g} is below step_min {self.step_min:g}; write a larger "
                f"step_max"
            )

    @property
    def carries(self) -> bool:
        return True

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        return {"N": self.d_state // 2}


@plain_dataclass(frozen=True)
class Pole(Init):
    """The same poles in every channel: log(-Re a), or Im a."""

    init: Diagonal
    part: Literal["log_decay", "frequency"]

    def __call__(self, rng, shape, place):
        a_N, _ = diagonal(self.init, 2 * shape[-1])
        values_N = np.log(-np.real(a_N)) if self.part == "log_decay" else np.imag(a_N)
        return np.broadcast_to(values_N, shape)


@plain_dataclass(frozen=True)
class Readout(Init):
    """Real or imaginary part of C times B, C complex normal of variance 1."""

    init: Diagonal

    def __call__(self, rng, shape, place):
        _, b_N = diagonal(self.init, 2 * shape[-1])
        return b_N * rng.standard_normal(shape) * 0.5**0.5


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec, lr = spec, spec.state_lr
        steps = LogUniform(spec.step_min, spec.step_max)
        self.log_step = declare.recurrence("log_step", "D", init=steps, lr=lr)
        self.log_decay = declare.recurrence(
            "log_decay", "D N", init=Pole(spec.init, "log_decay"), lr=lr
        )
        self.frequency = declare.recurrence(
            "frequency", "D N", init=Pole(spec.init, "frequency"), lr=lr
        )
        self.c_re = declare.vector("c_re", "D N", init=Readout(spec.init))
        self.c_im = declare.vector("c_im", "D N", init=Readout(spec.init))
        self.skip = declare.vector("skip", "D", init=Normal(1.0))
        self.gate = declare.matrix("gate", "D D", contract="D")
        self.out = declare.matrix("out", "D D", contract="D", role=scaling.RESIDUAL)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        u_BTD, decay_DN, weight_DN = self._system(x_BTD)
        if ctx.naive:
            y_BTD, _ = diagonal_recurrence(u_BTD, decay_DN, weight_DN, ctx.segments_BT)
        else:
            y_BTD, _ = diagonal_chunked(
                u_BTD, decay_DN, weight_DN, ctx.segments_BT, chunk=self._chunk(x_BTD)
            )
        return self._out(x_BTD, y_BTD), {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        shape = (rows, *self.c_re.decl.shape[-2:])
        return {name: jnp.zeros(shape, jnp.float32) for name in ("re_BDN", "im_BDN")}

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        u_BTD, decay_DN, weight_DN = self._system(x_BTD)
        y_BTD, held_BDN = diagonal_chunked(
            u_BTD,
            decay_DN,
            weight_DN,
            ctx.segments_BT,
            chunk=self._chunk(x_BTD),
            state_BDN=jax.lax.complex(state["re_BDN"], state["im_BDN"]),
        )
        return self._out(x_BTD, y_BTD), {"re_BDN": held_BDN.real, "im_BDN": held_BDN.imag}, {}

    def _chunk(self, x_BTD: jax.Array) -> int:
        return min(self.spec.chunk, x_BTD.shape[1])

    def _system(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        a_DN = jax.lax.complex(-jnp.exp(self.log_decay[...]), self.frequency[...])
        decay_DN, gain_DN = discretise(
            a_DN, jnp.exp(self.log_step[...]), rule=self.spec.discretisation
        )
        c_DN = jax.lax.complex(self.c_re[...], self.c_im[...])
        return x_BTD.astype(jnp.float32), decay_DN, c_DN * gain_DN

    def _out(self, x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
        h_BTD = jax.nn.gelu(y_BTD + self.skip[...] * x_BTD).astype(x_BTD.dtype)
        return linear(h_BTD, self.out) * jax.nn.sigmoid(linear(h_BTD, self.gate))


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: lags inside a chunk, into the state and
    out of it. Powers of the poles, one set for all rows of a batch, are not counted.
    """
    inside = 2.0 * min(spec.chunk, seq_len)
    return sizes["D"] * ((inside / 2 if causal else inside) + 8 * sizes["N"])


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: `per_token` of context, and `fixed`."""
    return {"per_token": 0, "fixed": 2 * sizes["D"] * sizes["N"]}
