"""Mamba-2's block (state space duality): a gated linear recurrence with input-dependent step sizes.

Dao and Gu 2024: S_t = exp(-e^A_log dt_t) S_(t-1) + dt_t b_t x_t^T and y_t = c_t^T S_t + skip x_t,
where x, b and c pass a short convolution and silu, and dt is the softplus of a projection; then a
norm of y silu(z), and the way out. It is mixer and feed-forward in one: the paper stacks it alone.
Differs from state-spaces/mamba: one matrix for each of z, x, b, c and dt instead of a fused one,
and this framework's epsilon in the norm (1e-6; theirs 1e-5).
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
from model.inits import InverseSoftplusOfLogUniform, LogOfUniform, Uniform
from model.ops import scalar_decay
from model.ops.norm import rmsnorm
from model.ops.short_convolution import naive_short_convolution, short_convolution
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC

CONVOLVED = {"x": "H M", "b": "J N", "c": "J N"}


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["ssd"] = "ssd"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=64, ge=1)  # values of one decay
    d_state: int = Field(default=128, ge=1)  # keys of one group
    expand: int = Field(default=2, ge=1)  # width of all values over d_model
    groups: int = Field(default=1, ge=1)  # of heads that share b and c
    taps: int = Field(default=4, ge=1, le=64)
    decay_min: float = Field(default=1.0, gt=0)  # e^A_log starts uniform between the two
    decay_max: float = Field(default=16.0, gt=0)
    step_min: float = Field(default=1e-3, gt=0)  # the step starts log-uniform between the two
    step_max: float = Field(default=1e-1, gt=0)
    chunk: int = Field(default=64, ge=1, le=512)

    def __post_init__(self):
        for low, high in (("decay_min", "decay_max"), ("step_min", "step_max")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"{low} {getattr(self, low)} is above {high} {getattr(self, high)}; write a "
                    f"{low} of at most {getattr(self, high)}"
                )

    @property
    def carries(self) -> bool:
        return True

    @property
    def sequence_form(self) -> str:
        return "scalar_decay"

    def recurrence(self, sizes: Mapping[str, int]) -> tuple[int, int, int]:
        return sizes["H"], sizes["N"], sizes["M"]

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        width = self.expand * shared["D"]
        if width % self.d_head:
            raise ValueError(
                f"d_head {self.d_head} does not divide the inner width {width} (d_model "
                f"{shared['D']} x expand {self.expand}); write a divisor of {width}"
            )
        heads = width // self.d_head
        if heads % self.groups:
            raise ValueError(
                f"groups {self.groups} does not divide the {heads} heads (inner width {width} / "
                f"d_head {self.d_head}); write a divisor of {heads}"
            )
        return {"H": heads, "J": self.groups, "M": self.d_head, "N": self.d_state, "W": self.taps}


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.sizes = {letter: declare.sizes[letter] for letter in "HJMNW"}
        bound = spec.taps**-0.5  # the customary start of a convolution, of its taps and its bias
        self.z = declare.matrix("z", "D H M", contract="D")
        self.dt = declare.matrix("dt", "D H", contract="D")
        into, taps, bias = {}, {}, {}
        for name, dims in CONVOLVED.items():
            into[name] = declare.matrix(name, f"D {dims}", contract="D")
            taps[name] = declare.vector(f"{name}_taps", f"W {dims}", init=Uniform(-bound, bound))
            bias[name] = declare.vector(f"{name}_bias", dims, init=Uniform(-bound, bound))
        self.into, self.taps, self.bias = nnx.Dict(into), nnx.Dict(taps), nnx.Dict(bias)
        self.dt_bias = declare.recurrence(
            "dt_bias", "H", init=InverseSoftplusOfLogUniform(spec.step_min, spec.step_max)
        )
        self.A_log = declare.recurrence(
            "A_log", "H", init=LogOfUniform(spec.decay_min, spec.decay_max)
        )
        self.skip = declare.vector("skip", "H", init="ones")
        self.gain = declare.vector("gain", "H M", init="ones")
        self.out = declare.matrix("out", "H M D", contract="H M", role=scaling.RESIDUAL)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self._mix(x_BTD, ctx, None)[0], {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        H, M, N = (self.sizes[letter] for letter in "HMN")
        held: State = {"state_BHNM": jnp.zeros((rows, H, N, M), jnp.float32)}
        for name, dims in CONVOLVED.items():
            channels = (self.sizes[letter] for letter in dims.split())
            held[name] = jnp.zeros((rows, self.sizes["W"] - 1, *channels), dtype)
        return held

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        y_BTD, state = self._mix(x_BTD, ctx, state)
        return y_BTD, state, {}

    def _mix(self, x_BTD: jax.Array, ctx: Context, state: State | None):
        dtype = x_BTD.dtype
        made, held = {}, {}
        for name in CONVOLVED:
            made[name], held[name] = self._convolved(x_BTD, name, ctx, state)
        dt_BTH = linear(x_BTD, self.dt, dtype=jnp.float32)
        dt_BTH = jax.nn.softplus(dt_BTH + self.dt_bias[...])
        v_BTHM = (made["x"] * dt_BTH[..., None]).astype(dtype)
        y_BTHM, state_BHNM = scalar_decay.form(
            naive=ctx.naive, chunk=self.spec.chunk, sequence=ctx.sequence
        )(
            made["c"],
            made["b"],
            v_BTHM,
            -jnp.exp(self.A_log[...]) * dt_BTH,
            ctx.segments_BT,
            state_BHKM=None if state is None else state["state_BHNM"],
        )
        y_BTHM = y_BTHM + self.skip[...][:, None] * made["x"]
        y_BTHM = y_BTHM * jax.nn.silu(linear(x_BTD, self.z))
        # one norm over all heads of a group, so that a group is the same whatever device it is on
        y_BTJM = y_BTHM.reshape(*y_BTHM.shape[:2], self.spec.groups, -1)
        y_BTJM = rmsnorm(y_BTJM, self.gain[...].reshape(self.spec.groups, -1))
        y_BTD = linear(y_BTJM.reshape(y_BTHM.shape).astype(dtype), self.out)
        return y_BTD, {"state_BHNM": state_BHNM, **held}

    def _convolved(self, x_BTD: jax.Array, name: str, ctx: Context, state: State | None):
        z_BTC, taps_WC = linear(x_BTD, self.into[name]), self.taps[name][...]
        if ctx.naive and state is None:
            y_BTC, after_BWC = naive_short_convolution(z_BTC, taps_WC, ctx.segments_BT), z_BTC
        else:
            before = None if state is None else state[name]
            y_BTC, after_BWC = short_convolution(z_BTC, taps_WC, ctx.segments_BT, state=before)
        return jax.nn.silu(y_BTC + self.bias[name][...].astype(z_BTC.dtype)), after_BWC


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: pairs within a chunk, and the state."""
    return scalar_decay.flops(
        groups=sizes["J"],
        heads=sizes["H"],
        key=sizes["N"],
        value=sizes["M"],
        chunk=spec.chunk,
        seq_len=seq_len,
        causal=causal,
        decays=sizes["H"],
    )


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: `per_token` of context, and `fixed`."""
    H, J, M, N = (sizes[letter] for letter in "HJMN")
    return {"per_token": 0, "fixed": H * N * M + (sizes["W"] - 1) * (H * M + 2 * J * N)}
