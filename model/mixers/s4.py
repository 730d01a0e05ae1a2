"""S4: a state space of diagonal plus rank one in every channel, then GELU and a gated linear map.

Gu, Goel, Re 2021 (arXiv 2111.00396) with the diagonal plus rank one of Goel et al. 2022: its kernel
by the generating function, its decoding by the recurrence. Differs from the papers' code: C itself
is learned where that learns C (1 - A^length), so a prefix and another length have the same kernel;
each layer starts all channels from the same HiPPO-LegS; no biases, no dropout.
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
from model.ops import structured_state_space as structured
from model.ops.hippo import legs_diagonal_plus_rank_one
from model.ops.long_convolution import long_convolution, long_convolution_flops
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC

SLOWEST = -1e-4  # the largest real part of a pole (state-spaces/s4)


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["s4"] = "s4"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_state: int = Field(default=64, ge=2, le=1024, multiple_of=2)  # real; half as many modes
    step_min: float = Field(default=1e-3, gt=0)
    step_max: float = Field(default=1e-1, gt=0)
    state_lr: float = Field(default=0.1, gt=0)  # of all but C, times the run's

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
class Legs(Init):
    """A part of HiPPO-LegS as diagonal plus rank one, the same in every channel."""

    part: Literal["log_decay", "frequency", "p_re", "p_im", "b_re", "b_im"]

    def __call__(self, rng, shape, place):
        lam_N, p_N, b_N = legs_diagonal_plus_rank_one(2 * shape[-1])
        values_N = {
            "log_decay": np.log(-np.real(lam_N)),
            "frequency": np.imag(lam_N),
            "p_re": np.real(p_N),
            "p_im": np.imag(p_N),
            "b_re": np.real(b_N),
            "b_im": np.imag(b_N),
        }[self.part]
        return np.broadcast_to(values_N, shape)


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        def part(name: Any):
            return declare.recurrence(name, "D N", init=Legs(name), lr=spec.state_lr)

        steps = LogUniform(spec.step_min, spec.step_max)
        self.log_step = declare.recurrence("log_step", "D", init=steps, lr=spec.state_lr)
        self.log_decay, self.frequency = part("log_decay"), part("frequency")
        self.p_re, self.p_im = part("p_re"), part("p_im")
        self.b_re, self.b_im = part("b_re"), part("b_im")
        self.c_re = declare.vector("c_re", "D N", init=Normal(0.5**0.5))
        self.c_im = declare.vector("c_im", "D N", init=Normal(0.5**0.5))
        self.skip = declare.vector("skip", "D", init=Normal(1.0))
        self.gate = declare.matrix("gate", "D D", contract="D")
        self.out = declare.matrix("out", "D D", contract="D", role=scaling.RESIDUAL)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        system, u_BTD = self._system(), x_BTD.astype(jnp.float32)
        if ctx.naive:
            y_BTD, _ = structured.recurrence(system, u_BTD, ctx.segments_BT)
        else:
            kernel_TD = structured.kernel(system, x_BTD.shape[1])
            y_BTD = long_convolution(u_BTD, kernel_TD, ctx.segments_BT)
        return self._out(x_BTD, y_BTD), {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        shape = (rows, *self.c_re.decl.shape[-2:])
        return {name: jnp.zeros(shape, jnp.float32) for name in ("re_BDN", "im_BDN")}

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        held_BDN = jax.lax.complex(state["re_BDN"], state["im_BDN"])
        u_BTD = x_BTD.astype(jnp.float32)
        y_BTD, held_BDN = structured.recurrence(
            self._system(), u_BTD, ctx.segments_BT, state_BDN=held_BDN
        )
        return self._out(x_BTD, y_BTD), {"re_BDN": held_BDN.real, "im_BDN": held_BDN.imag}, {}

    def _system(self) -> structured.System:
        decay_DN = jnp.minimum(-jnp.exp(self.log_decay[...]), SLOWEST)
        return structured.System(
            lam_DN=jax.lax.complex(decay_DN, self.frequency[...]),
            p_DN=jax.lax.complex(self.p_re[...], self.p_im[...]),
            b_DN=jax.lax.complex(self.b_re[...], self.b_im[...]),
            c_DN=jax.lax.complex(self.c_re[...], self.c_im[...]),
            step_D=jnp.exp(self.log_step[...]),
        )

    def _out(self, x_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
        h_BTD = jax.nn.gelu(y_BTD + self.skip[...] * x_BTD).astype(x_BTD.dtype)
        return linear(h_BTD, self.out) * jax.nn.sigmoid(linear(h_BTD, self.gate))


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: the convolution.

    The kernel is one for all rows of a batch and not counted: 2 D (2 N)^3 log2(T) for the power of
    the state matrix and about 60 D N T / 2 for its generating function, once a step.
    """
    return sizes["D"] * long_convolution_flops(seq_len)


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: `per_token` of context, and `fixed`."""
    return {"per_token": 0, "fixed": 2 * sizes["D"] * sizes["N"]}
