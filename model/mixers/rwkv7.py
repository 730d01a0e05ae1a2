"""RWKV-7 ("Goose"): a recurrence that removes, fades and writes by channel, each as it decides.

Peng et al. 2025 (arXiv 2503.14456), after BlinkDL/RWKV-LM: every projection sees its own mix of a
position and the one before (token shift); w, a, the gate and the share of the first layer's values
come from products of low rank. Of each head the memory S (K, M) goes

    S <- diag(e^w) S - (kk a) (kk^T S) + k v^T,    y = r^T S

What differs: the low-rank factors are matrices like any other, so weight decay reaches them; the
share of the first layer's values has the rank of w and a (the authors' is lower from width 768 on);
the stream has no norm right after the embedding.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.context import Context, State
from model.inits import Constant, Init, Orthogonal
from model.mixers.deltanet import whole_heads
from model.ops import delta
from model.ops.dplr import FASTEST, LARGEST_CHUNK, dplr, flops, naive_dplr
from model.ops.over_devices import over_devices
from model.ops.short_convolution import later
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC
from parallelism.place import positions_are_shared
from parallelism.sequence import DELTA

TARGETS = 6  # inputs that mix two positions each in their own way: r w k v a g, in this order
PUBLISHED = "first_values"


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    """`value_residual`: a model's first layer publishes its values, the others mix them into their
    own; `none` is a layer by itself.
    """

    kind: Literal["rwkv7"] = "rwkv7"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=64, ge=2)
    rank: int = Field(default=32, ge=1)  # of what makes w, a and the share of the first values
    gate_rank: int = Field(default=32, ge=1)
    value_residual: Literal["publish", "mix", "none"] = "none"
    # the authors' value; flash-linear-attention's is d_head * 1e-5, the same at a d_head of 64
    norm_epsilon: float = Field(default=64e-5, gt=0)
    chunk: int = Field(default=32, ge=1, le=LARGEST_CHUNK)  # the order of sums only

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
        for name in ("rank", "gate_rank"):
            if (rank := getattr(self, name)) > shared["D"]:
                raise ValueError(
                    f"{name} {rank} is above d_model {shared['D']}, and more than that adds "
                    f"nothing; write at most {shared['D']}"
                )
        sizes = {"H": heads, "K": self.d_head, "M": self.d_head}
        return {**sizes, "Y": TARGETS, "R": self.rank, "F": self.gate_rank}

    @property
    def publishes(self) -> tuple[str, ...]:
        return (PUBLISHED,) if self.value_residual == "publish" else ()

    @property
    def reads(self) -> tuple[str, ...]:
        return (PUBLISHED,) if self.value_residual == "mix" else ()


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        matrix, vector = declare.matrix, declare.vector
        self.mix = vector("mix", "Y D", init=ShiftMix())
        self.r = matrix("r", "D H K", contract="D", init=Square(1.0))
        self.k = matrix("k", "D H K", contract="D", init=Square(0.1))
        self.v = matrix("v", "D H M", contract="D", init=Square(1.0))
        self.w_down = matrix("w_down", "D R", contract="D", init="zeros")
        self.w_up = matrix("w_up", "R H K", contract="R", init=Square(0.1))
        # twice the learning rate: the authors' group of its own in the optimiser
        self.w_bias = declare.recurrence("w_bias", "H K", init=Decay(), lr=2.0)
        self.a_down = matrix("a_down", "D R", contract="D", init="zeros")
        self.a_up = matrix("a_up", "R H K", contract="R", init=Square(0.1))
        self.a_bias = vector("a_bias", "H K", init=Ramp(-0.19, linear=0.4, zigzag=0.3))
        if spec.value_residual == "mix":
            self.v_down = matrix("v_down", "D R", contract="D", init="zeros")
            self.v_up = matrix("v_up", "R H M", contract="R", init=Square(0.1))
            self.v_bias = vector("v_bias", "H M", init=Ramp(0.73, linear=-0.4))
        self.gate_down = matrix("gate_down", "D F", contract="D", init="zeros")
        self.gate_up = matrix("gate_up", "F H M", contract="F", init=Square(0.1))
        self.removal = vector("removal", "H K", init=Ramp(0.71, linear=-0.1))
        self.writing = vector("writing", "H K", init=Constant(1.02))
        self.bonus = vector("bonus", "H K", init=Constant(-0.04))
        self.gain = vector("gain", "H M", init=Deeper(0.7))
        self.bias = vector("bias", "H M", init="zeros")
        self.out = matrix("out", "H M D", contract="H M", role=scaling.RESIDUAL, init="zeros")

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        before_BTD = _shifted(x_BTD, jnp.zeros_like(x_BTD[:, 0]), ctx)
        form = naive_dplr if ctx.naive else partial(dplr, chunk=self.spec.chunk)
        form = over_devices(form, ctx.sequence, form=DELTA, values=3)
        form = partial(_documents_last, form, ctx.segments_BT)
        y_BTD, _, aux = self._run(x_BTD, before_BTD, form, ctx)
        return y_BTD, aux

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        D, H, K = self.r.decl.shape[-3:]
        return {
            "before_BD": jnp.zeros((rows, D), dtype),
            "memory_BHKM": jnp.zeros((rows, H, K, K), jnp.float32),
        }

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        before_BTD = _shifted(x_BTD, state["before_BD"], ctx)
        form = partial(
            dplr,
            segments_BT=ctx.segments_BT,
            chunk=self.spec.chunk,
            state_BHKM=state["memory_BHKM"],
        )
        y_BTD, memory_BHKM, aux = self._run(x_BTD, before_BTD, form, ctx)
        after_BD = x_BTD[:, -1].astype(state["before_BD"].dtype)
        return y_BTD, {"before_BD": after_BD, "memory_BHKM": memory_BHKM}, aux

    def _run(self, x_BTD: jax.Array, before_BTD: jax.Array, recurrence: Any, ctx: Context):
        """y, the memory after it, and aux; the recurrence takes r, decay, k, v, a, b."""
        dtype, aux = x_BTD.dtype, {}
        mix_YD = self.mix[...].astype(dtype)
        xr, xw, xk, xv, xa, xg = (x_BTD + (before_BTD - x_BTD) * mix_YD[i] for i in range(TARGETS))
        r_BTHK, k_BTHK, v_BTHM = linear(xr, self.r), linear(xk, self.k), linear(xv, self.v)
        raw_BTHK = _low_rank(jnp.tanh(linear(xw, self.w_down)), self.w_up) + self.w_bias[...]
        decay_BTHK = -FASTEST * jax.nn.sigmoid(raw_BTHK)
        if self.spec.value_residual == "publish":
            aux[f"share/{PUBLISHED}"] = v_BTHM
        if self.spec.value_residual == "mix":
            raw = _low_rank(linear(xv, self.v_down), self.v_up) + self.v_bias[...]
            share = jax.nn.sigmoid(raw).astype(dtype)
            v_BTHM = v_BTHM + (ctx.shared[PUBLISHED] - v_BTHM) * share
        rate_BTHK = jax.nn.sigmoid(_low_rank(linear(xa, self.a_down), self.a_up) + self.a_bias[...])
        gate_BTHM = linear(jax.nn.sigmoid(linear(xg, self.gate_down)), self.gate_up)
        removed_BTHK = _unit(k_BTHK.astype(jnp.float32) * self.removal[...])
        k_BTHK = (k_BTHK * (1 + (rate_BTHK - 1) * self.writing[...])).astype(dtype)
        y_BTHM, memory_BHKM = recurrence(
            r_BTHK,
            decay_BTHK,
            k_BTHK,
            v_BTHM,
            -removed_BTHK.astype(dtype),
            (removed_BTHK * rate_BTHK).astype(dtype),
        )
        y_BTHM = _normed(y_BTHM, self.spec.norm_epsilon) * self.gain[...] + self.bias[...]
        own_BTH1 = jnp.sum(r_BTHK * k_BTHK * self.bonus[...], axis=-1, keepdims=True)
        y_BTHM = (y_BTHM + own_BTH1 * v_BTHM).astype(dtype) * gate_BTHM
        return linear(y_BTHM, self.out), memory_BHKM, aux


def _documents_last(form: Any, segments_BT: jax.Array | None, *arrays: jax.Array):
    return form(*arrays, segments_BT)


def _shifted(x_BTD: jax.Array, first_BD: jax.Array, ctx: Context) -> jax.Array:
    """The position before each one, `first_BD` before the row: 0 where a document begins."""
    first_BD = first_BD.astype(x_BTD.dtype)
    if positions_are_shared():
        before_BTD = later(x_BTD, 1).at[:, 0].set(first_BD)
    else:
        before_BTD = jnp.concatenate([first_BD[:, None], x_BTD[:, :-1]], axis=1)
    begins_BT = delta.begins(ctx.segments_BT, x_BTD.shape[:2])
    return jnp.where(begins_BT[..., None], 0, before_BTD)


def _low_rank(x_BTR: jax.Array, up: Any) -> jax.Array:
    return linear(x_BTR, up, dtype=jnp.float32)


def _unit(x_BTHK: jax.Array) -> jax.Array:
    """Unit length; a length below 1e-12 counts as that (torch's F.normalize)."""
    squared = jnp.sum(x_BTHK * x_BTHK, axis=-1, keepdims=True)
    return x_BTHK * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def _normed(y_BTHM: jax.Array, epsilon: float) -> jax.Array:
    """Mean 0 and deviation 1 of each head, float32."""
    y = y_BTHM.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)


# -- initial values: BlinkDL's, over channels c = 0 .. C-1 and layers l = 0 .. L-1 -----------------


@plain_dataclass(frozen=True)
class ShiftMix(Init):
    """1 - (c / C)^(p (1 - l / L)): the first channels look back, in deeper layers fewer do."""

    powers: tuple[float, ...] = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)  # r w k v a g

    def __call__(self, rng, shape, place):
        channel_D = np.arange(shape[-1]) / shape[-1]
        depth = 1 - place.layer / place.n_layers
        return np.stack([1 - channel_D ** (p * depth) for p in self.powers])


@plain_dataclass(frozen=True)
class Ramp(Init):
    """Around `middle`, by a line over all channels and a curve over those of each head."""

    middle: float
    linear: float = 0.0
    zigzag: float = 0.0

    def __call__(self, rng, shape, place):
        channel = _fraction(math.prod(shape)).reshape(shape) - 0.5
        within_K = 2 * _fraction(shape[-1]) - 1
        return self.middle + self.linear * channel + self.zigzag * within_K * np.abs(within_K)


@plain_dataclass(frozen=True)
class Decay(Init):
    """From slow to fast over the channels, in deeper layers slow for longer."""

    def __call__(self, rng, shape, place):
        depth = place.layer / max(1, place.n_layers - 1)
        slow = -6 + 6 * _fraction(math.prod(shape)).reshape(shape) ** (1 + depth**0.3)
        return slow + Ramp(0.5, zigzag=2.5)(rng, shape, place)


@plain_dataclass(frozen=True)
class Deeper(Init):
    """((l + 1) / L)^power."""

    power: float

    def __call__(self, rng, shape, place):
        return np.full(shape, ((place.layer + 1) / place.n_layers) ** self.power)


@plain_dataclass(frozen=True)
class Square(Init):
    """An orthogonal matrix from the first dim to all the others together."""

    gain: float

    def __call__(self, rng, shape, place):
        flat = (shape[0], math.prod(shape[1:]))
        return Orthogonal(self.gain)(rng, flat, place).reshape(shape)


def _fraction(n: int) -> np.ndarray:
    return np.arange(n) / max(1, n - 1)


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: those of the chunks, all pairs of one
    counted, as they are computed.
    """
    chunk = min(spec.chunk, seq_len)
    return sizes["H"] * flops(chunk=chunk, keys=sizes["K"], values=sizes["M"])


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: the memory, and the position before."""
    return {"per_token": 0, "fixed": sizes["H"] * sizes["K"] * sizes["M"] + sizes["D"]}
