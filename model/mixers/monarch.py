"""Monarch Mixer: gates around a convolution as long as the sequence, with an implicit filter.

Fu et al. 2023 (arXiv 2310.12109). The filter is a small network of the lag (Poli et al. 2023) times
an exponential window. The convolution is a product of polynomials, evaluated and interpolated by
Monarch matrices (model/ops/monarch.py); causal because powers of degree t answer for position t,
not by a mask. Projections may be Monarch matrices too: D^1.5 weights instead of D^2. Differs from
the paper's code: `max_len` and not the sequence's length is the unit of the lag, so a prefix has
the same filter; the filter is scaled to unit energy under its window; no biases but the filter's.
Rows longer than `max_len` are not refused, since decoding and prefixes need lags of any length, but
every window has fallen to `floor` at lag slow x max_len and goes on falling: with max_len 8 the
filter sees some 12 positions, however long the row.
"""

import math
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
from model.inits import Normal
from model.ops.long_convolution import (
    FFT,
    long_convolution,
    long_convolution_flops,
    naive_long_convolution,
)
from model.ops.monarch import MONARCH, factors
from model.ops.short_convolution import naive_short_convolution, short_convolution
from model.param import Declare, block_linear, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC

TRANSFORMS = {"fft": FFT, "monarch": MONARCH}
INPUTS = ("first", "second", "value")  # the paper's x1, x2, v


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["monarch"] = "monarch"  # pyright: ignore[reportIncompatibleVariableOverride]
    causal: bool = (
        True  # False: a second filter for the positions after; such a mixer cannot decode
    )
    projection: Literal["monarch", "dense"] = "monarch"
    transform: Literal["fft", "monarch"] = "fft"
    taps: int = Field(default=3, ge=1, le=64)
    max_len: int = Field(default=1024, ge=1)  # positions: the unit of lags, not a limit
    bands: int = Field(default=2, ge=1, le=512)  # frequencies of the lag's features
    d_filter: int = Field(default=64, ge=1, le=4096)
    filter_layers: int = Field(default=3, ge=1, le=16)  # sines between the features and the filter
    sine: float = Field(default=10.0, gt=0)  # frequency that the sines start from
    fast: float = Field(default=0.3, gt=0)  # share of max_len after which the fastest channel's
    slow: float = Field(default=1.5, gt=0)  # (the slowest's) window has fallen to `floor`
    floor: float = Field(default=1e-2, gt=0, lt=1)

    def __post_init__(self):
        if self.slow < self.fast:
            raise ValueError(
                f"slow {self.slow:g} is below fast {self.fast:g}; write a slow of at least "
                f"{self.fast:g}"
            )

    @property
    def sees_later(self) -> bool:
        return not self.causal

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        sizes = {"X": 2 * self.bands + 1, "F": self.d_filter, "W": self.taps}
        if self.projection == "monarch":
            blocks, per_block = factors(shared["D"])
            if blocks == 1 and shared["D"] > 3:
                raise ValueError(
                    f"d_model {shared['D']} is prime, so no Monarch matrix maps it; write "
                    f"{math.isqrt(shared['D']) ** 2}, another product, or projection dense"
                )
            sizes |= {"G": blocks, "K": per_block}
        return sizes


class Projection(nnx.Module):
    """D to D: a matrix, or two block-diagonal ones with a permutation between."""

    def __init__(self, spec: Spec, declare: Declare, *, role: str = scaling.HIDDEN):
        self.structured = spec.projection == "monarch"
        if not self.structured:
            self.dense = declare.matrix("dense", "D D", contract="D", role=role)
            return
        self.inner = declare.matrix("inner", "G K K", contract="K", batch="G")
        self.outer = declare.matrix("outer", "K G G", contract="G", batch="K", role=role)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        if not self.structured:
            return linear(x_BTD, self.dense)
        blocks, per_block = self.inner.decl.shape[-3:-1]
        x_BTGK = x_BTD.reshape(*x_BTD.shape[:-1], blocks, per_block)
        x_BTKG = block_linear(x_BTGK, self.inner).swapaxes(-1, -2)
        return block_linear(x_BTKG, self.outer).reshape(x_BTD.shape)


class Filter(nnx.Module):
    """The kernel as a function of the lag: sines of sines of features of the lag, times a window.

    One for all rows of a batch, so its products are not counted per token.
    """

    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        widths = ["X"] + ["F"] * spec.filter_layers
        # PyTorch's default spread, for which the paper's code chose the frequency of its sines
        spread = [(3 * declare.sizes[w]) ** -0.5 for w in widths]
        self.weights = nnx.List(
            declare.matrix(f"weight{i}", f"{w} F", contract=w, init=Normal(s), matmuls=0.0)
            for i, (w, s) in enumerate(zip(widths[:-1], spread, strict=False))
        )
        self.biases = nnx.List(
            declare.vector(f"bias{i}", "F", init=Normal(spread[i]))
            for i in range(spec.filter_layers)
        )
        self.sine = declare.vector("sine", "F", init="ones")
        self.out = declare.matrix("out", "F D", contract="F", matmuls=0.0)

    def __call__(self, length: int) -> jax.Array:
        """(T, D) float32: entries depend on the lag alone, never on `length`."""
        spec = self.spec
        lag_T1 = jnp.arange(length, dtype=jnp.float32)[:, None] / spec.max_len
        angle_TX = 2 * jnp.pi * lag_T1 * jnp.linspace(1e-4, spec.bands - 1, spec.bands)
        h_TX = jnp.concatenate([lag_T1, jnp.cos(angle_TX), -jnp.sin(angle_TX)], axis=-1)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h_TX = jnp.sin(spec.sine * self.sine[...] * (linear(h_TX, weight) + bias[...]))
        kernel_TD = linear(h_TX, self.out)
        depth = -math.log(spec.floor)
        rate_D = jnp.linspace(depth / spec.slow, depth / spec.fast, kernel_TD.shape[1])
        # a filter of ones would have energy 1 over all lags
        unit_D = jnp.sqrt(-jnp.expm1(-2 * rate_D / spec.max_len))
        return kernel_TD * jnp.exp(-lag_T1 * rate_D) * unit_D


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.first, self.second, self.value = (
            Projection(spec, declare.within(name)) for name in INPUTS
        )
        taps = Normal(spec.taps**-0.5)
        self.taps = nnx.Dict(
            {name: declare.vector(f"{name}_taps", "W D", init=taps) for name in INPUTS}
        )
        self.before = Filter(spec, declare.within("before"))
        self.after = None if spec.causal else Filter(spec, declare.within("after"))
        self.skip = declare.vector("skip", "D", init=Normal(1.0))
        self.out = Projection(spec, declare.within("out"), role=scaling.RESIDUAL)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        short = naive_short_convolution if ctx.naive else _short
        first_BTD, second_BTD, value_BTD = (
            short(x, self.taps[name][...], ctx.segments_BT) for name, x in self._inputs(x_BTD)
        )
        u_BTD = (first_BTD * value_BTD).astype(jnp.float32)
        y_BTD = self._convolved(u_BTD, ctx)
        return self._out(second_BTD, u_BTD, y_BTD), {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        if not self.spec.causal:
            raise ValueError(
                "a Monarch mixer that sees later positions cannot decode; write causal true"
            )
        D, W = self.skip.decl.shape[-1], self.spec.taps
        state = {f"{name}_BWD": jnp.zeros((rows, W - 1, D), dtype) for name in INPUTS}
        return {"u_BSD": jnp.zeros((rows, length, D), dtype), **state}

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        short, after = {}, {}
        for name, x in self._inputs(x_BTD):
            short[name], after[f"{name}_BWD"] = short_convolution(
                x, self.taps[name][...], None, state=state[f"{name}_BWD"]
            )
        u_BTD = short["first"] * short["value"]
        begin, T = ctx.positions_BT[0, 0], x_BTD.shape[1]
        u_BSD = jax.lax.dynamic_update_slice_in_dim(
            state["u_BSD"], u_BTD.astype(state["u_BSD"].dtype), begin, axis=1
        )
        S = u_BSD.shape[1]
        past_BSD, kernel_SD = u_BSD.astype(jnp.float32), self.before(S)
        if T == 1:
            lag_S = begin - jnp.arange(S)
            weight_SD = jnp.where(lag_S[:, None] >= 0, kernel_SD[jnp.maximum(lag_S, 0)], 0)
            y_BTD = jnp.sum(weight_SD * past_BSD, axis=1, keepdims=True)
        else:
            y_BSD = long_convolution(
                past_BSD, kernel_SD, None, transform=TRANSFORMS[self.spec.transform]
            )
            y_BTD = jax.lax.dynamic_slice_in_dim(y_BSD, begin, T, axis=1)
        y_BTD = self._out(short["second"], u_BTD.astype(jnp.float32), y_BTD)
        return y_BTD, {"u_BSD": u_BSD, **after}, {}

    def _inputs(self, x_BTD: jax.Array):
        projections = (self.first, self.second, self.value)
        return [(name, f(x_BTD)) for name, f in zip(INPUTS, projections, strict=True)]

    def _convolved(self, u_BTD: jax.Array, ctx: Context) -> jax.Array:
        form = naive_long_convolution
        if not ctx.naive:
            form = partial(long_convolution, transform=TRANSFORMS[self.spec.transform])
        T, segments_BT = u_BTD.shape[1], ctx.segments_BT
        y_BTD = form(u_BTD, self.before(T), segments_BT)
        if self.after is None:
            return y_BTD
        # later positions: the same backwards, from the next one on
        kernel_TD = jnp.pad(self.after(T)[:-1], ((1, 0), (0, 0)))
        reversed_BT = None if segments_BT is None else segments_BT[:, ::-1]
        return y_BTD + form(u_BTD[:, ::-1], kernel_TD, reversed_BT)[:, ::-1]

    def _out(self, second_BTD: jax.Array, u_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
        y_BTD = y_BTD + self.skip[...] * u_BTD
        return self.out(second_BTD * y_BTD.astype(second_BTD.dtype))


def _short(x_BTD: jax.Array, weight_WD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    return short_convolution(x_BTD, weight_WD, segments_BT)[0]


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: the convolution, each way. The
    filter, one for all rows of a batch, is not counted.
    """
    once = long_convolution_flops(seq_len, transform=TRANSFORMS[spec.transform])
    return sizes["D"] * once * (1 if spec.causal else 2)


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: `per_token` of context, and `fixed`."""
    return {"per_token": sizes["D"], "fixed": 3 * (sizes["W"] - 1) * sizes["D"]}
