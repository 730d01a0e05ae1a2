"""DeltaNet: a linear recurrence whose keys correct what the memory holds for them.

Schlag et al. 2021 (arXiv 2102.11174), in chunks Yang et al. 2024 (2406.06484), whose layer this is:
queries and keys through a short convolution, SiLU and unit length, one writing strength beta per
head in (0, 1). Up to 2 it may turn a direction round, which is what state tracking takes (Grazzi et
al. 2024, 2411.12537): `negative_eigenvalues`. No positions: the recurrence is its own order.
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
from model.inits import Uniform
from model.ops.delta import delta_rule, flops, naive_delta_rule
from model.ops.over_devices import over_devices
from model.ops.short_convolution import naive_short_convolution, short_convolution
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC
from parallelism.sequence import DELTA

# flash-linear-attention's values, under roots: of a squared length, of an output's mean square
UNIT_EPSILON, NORM_EPSILON = 1e-6, 1e-5


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["deltanet"] = "deltanet"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=32, ge=1)
    value_ratio: int = Field(default=1, ge=1)  # width of a head's values over that of its keys
    taps: int = Field(default=4, ge=1, le=64)  # of the short convolution; 1: a gain a channel
    gate: bool = False  # the output times SiLU of a projection
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
        heads = whole_heads(shared["D"], self.d_head)
        return {"H": heads, "K": self.d_head, "M": self.value_ratio * self.d_head, "W": self.taps}


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.q = Heads("q", declare, width="K")
        self.k = Heads("k", declare, width="K")
        self.v = Heads("v", declare, width="M")
        self.beta = declare.matrix("beta", "D H", contract="D")
        self.gate = declare.matrix("gate", "D H M", contract="D") if spec.gate else None
        self.gain = declare.vector("gain", "M", init="ones")
        self.out = declare.matrix("out", "H M D", contract="H M", role=scaling.RESIDUAL)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        q, k, v = (heads(x_BTD, ctx) for heads in (self.q, self.k, self.v))
        form = naive_delta_rule if ctx.naive else partial(delta_rule, chunk=self.spec.chunk)
        form = over_devices(form, ctx.sequence, form=DELTA)
        y_BTHM, _ = form(query(q), unit(k), v, self._strength(x_BTD), None, ctx.segments_BT)
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
            self._strength(x_BTD),
            None,
            ctx.segments_BT,
            chunk=self.spec.chunk,
            state_BHKM=state["memory_BHKM"],
        )
        state = {"q": held_q, "k": held_k, "v": held_v, "memory_BHKM": memory_BHKM}
        return self._out(x_BTD, y_BTHM), state, {}

    def _strength(self, x_BTD: jax.Array) -> jax.Array:
        return strength(x_BTD, self.beta, negative_eigenvalues=self.spec.negative_eigenvalues)

    def _out(self, x_BTD: jax.Array, y_BTHM: jax.Array) -> jax.Array:
        y_BTHM = normed(y_BTHM, self.gain[...])
        if self.gate is not None:
            y_BTHM = y_BTHM * jax.nn.silu(linear(x_BTD, self.gate))
        return linear(y_BTHM, self.out)


class Heads(nnx.Module):
    """Final. A projection to heads, a short convolution along the positions, SiLU."""

    def __init__(self, name: str, declare: Declare, *, width: str):
        self.project = declare.matrix(name, f"D H {width}", contract="D")
        # torch's Conv1d default, which flash-linear-attention keeps
        bound = declare.sizes["W"] ** -0.5
        self.taps = declare.vector(f"{name}_taps", f"W H {width}", init=Uniform(-bound, bound))

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
        x_BTHK = linear(x_BTD, self.project)
        if ctx.naive:
            y_BTHK = naive_short_convolution(x_BTHK, self.taps[...], ctx.segments_BT)
        else:
            y_BTHK, _ = short_convolution(x_BTHK, self.taps[...], ctx.segments_BT)
        return jax.nn.silu(y_BTHK)

    def start(self, rows: int, *, dtype: Any) -> jax.Array:
        W, H, K = self.taps.decl.shape[-3:]
        return jnp.zeros((rows, W - 1, H, K), dtype)

    def extend(
        self, x_BTD: jax.Array, held_BWHK: jax.Array, ctx: Context
    ) -> tuple[jax.Array, jax.Array]:
        x_BTHK = linear(x_BTD, self.project)
        y_BTHK, held = short_convolution(x_BTHK, self.taps[...], ctx.segments_BT, state=held_BWHK)
        return jax.nn.silu(y_BTHK), held


def whole_heads(width: int, d_head: int) -> int:
    if width % d_head:
        raise ValueError(
            f"d_head {d_head} does not divide d_model {width}; write a divisor of {width}, or a "
            f"d_model that is a multiple of {d_head}"
        )
    return width // d_head


def unit(x_BTHK: jax.Array) -> jax.Array:
    """Unit length over K: without it the corrections of the delta rule grow without bound."""
    x = x_BTHK.astype(jnp.float32)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(squared + UNIT_EPSILON)).astype(x_BTHK.dtype)


def query(x_BTHK: jax.Array) -> jax.Array:
    """Of length K^-1/2, which matters to the norm after it through its epsilon alone."""
    return unit(x_BTHK) * jnp.asarray(x_BTHK.shape[-1] ** -0.5, x_BTHK.dtype)


def normed(y_BTHM: jax.Array, gain_M: jax.Array) -> jax.Array:
    """A head's output at unit mean square.

    Where a query is nearly orthogonal to all that was written the output is nearly zero and its
    direction is rounding; the epsilon, larger than the stream's, fades it out.
    """
    y = y_BTHM.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + NORM_EPSILON)
    return (y * gain_M).astype(y_BTHM.dtype)


def strength(x_BTD: jax.Array, beta: Any, *, negative_eigenvalues: bool) -> jax.Array:
    """(B, T, H) in (0, 1), or (0, 2): how much of its error a key corrects."""
    beta_BTH = jax.nn.sigmoid(linear(x_BTD, beta, dtype=jnp.float32))
    return 2 * beta_BTH if negative_eigenvalues else beta_BTH


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: those of the chunks, all pairs of one
    counted, as they are computed.
    """
    chunk = min(spec.chunk, seq_len)
    return sizes["H"] * flops(chunk=chunk, keys=sizes["K"], values=sizes["M"])


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: the memory, and the inputs that the taps see."""
    H, K, M = sizes["H"], sizes["K"], sizes["M"]
    return {"per_token": 0, "fixed": H * K * M + (sizes["W"] - 1) * H * (2 * K + M)}
