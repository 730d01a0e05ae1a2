"""What is a causal convolution as long as the sequence, over documents? Fast form and naive twin.

A pair of positions s < t meets once: where halving the sequence parts them, in the first half and
the second half of one span. So each halving is one cyclic convolution of its spans, from first
halves to second ones, and short spans sum lag by lag: T log^2 T for every channel, and a future
position or another document is never touched (one transform of the whole leaves its rounding
there).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

SHORT = 16  # positions summed lag by lag; guess: below it a transform is all overhead


@dataclass(frozen=True)
class Transform:
    """Turns cyclic convolution of real arrays, along the last dim, into products."""

    forward: Callable[[jax.Array], jax.Array]
    inverse: Callable[[jax.Array, int], jax.Array]  # (spectrum, length)
    flops: Callable[[int], float]  # of one of either, by length


FFT = Transform(
    forward=lambda x: jnp.fft.rfft(x),
    inverse=lambda x, length: jnp.fft.irfft(x, n=length),
    flops=lambda length: 2.5 * length * math.log2(length),
)


def long_convolution(
    u_BTD: jax.Array,
    kernel_TD: jax.Array,
    segments_BT: jax.Array | None,
    *,
    transform: Transform = FFT,
    short: int = SHORT,
) -> jax.Array:
    """y_t = sum over lags l <= t of kernel_l u_(t-l), over positions of t's own document.

    `short` bounds the spans that are summed lag by lag; it changes the order of sums only.
    """
    T = u_BTD.shape[1]
    span, halvings = _spans(T, short)
    pad = (span << halvings) - T
    u_BTD = jnp.pad(u_BTD, ((0, 0), (0, pad), (0, 0)))
    kernel_TD = jnp.pad(kernel_TD[:T], ((0, pad), (0, 0)))
    if segments_BT is not None:
        segments_BT = jnp.pad(segments_BT, ((0, 0), (0, pad)), mode="edge")
    y_BTD = short_spans(u_BTD, kernel_TD[:span], segments_BT)
    if halvings:
        u_BDT, kernel_DT = u_BTD.swapaxes(1, 2), kernel_TD.T
        across = [
            _across(u_BDT, kernel_DT, segments_BT, half=span << i, transform=transform)
            for i in range(halvings)
        ]
        y_BTD = y_BTD + sum(across[1:], across[0]).swapaxes(1, 2)
    return y_BTD[:, :T]


def long_convolution_flops(T: int, *, transform: Transform = FFT, short: int = SHORT) -> float:
    """Per position and channel: sums lag by lag, transforms, and products of spectra."""
    span, halvings = _spans(T, short)
    flops = 2.0 * span
    for i in range(halvings):
        length = 2 * (span << i)  # of a span, which goes through one transform each way
        flops += 2 * transform.flops(length) / length + 3
    return flops


def naive_long_convolution(
    u_BTD: jax.Array, kernel_TD: jax.Array, segments_BT: jax.Array | None
) -> jax.Array:
    """The same as one T x T Toeplitz matrix for every channel."""
    T = u_BTD.shape[1]
    lag_TS = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    toeplitz_TSD = jnp.where((lag_TS >= 0)[..., None], kernel_TD[jnp.maximum(lag_TS, 0)], 0)
    if segments_BT is None:
        return jnp.einsum("tsd,bsd->btd", toeplitz_TSD, u_BTD)
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    return jnp.einsum("tsd,bts,bsd->btd", toeplitz_TSD, same_BTS.astype(u_BTD.dtype), u_BTD)


def short_spans(u_BTD: jax.Array, kernel_CD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """Convolution inside each span of C positions by itself, lag by lag; C divides T."""
    B, T, D = u_BTD.shape
    C = kernel_CD.shape[0]
    u_BNCD = u_BTD.reshape(B, T // C, C, D)
    y_BNCD = kernel_CD[0] * u_BNCD
    for lag in range(1, C):
        term = kernel_CD[lag] * u_BNCD[:, :, : C - lag]
        if segments_BT is not None:
            s_BNC = segments_BT.reshape(B, T // C, C)
            same = s_BNC[:, :, lag:] == s_BNC[:, :, : C - lag]
            term = jnp.where(same[..., None], term, 0)
        y_BNCD = y_BNCD + jnp.pad(term, ((0, 0), (0, 0), (lag, 0), (0, 0)))
    return y_BNCD.reshape(B, T, D)


def _spans(T: int, short: int) -> tuple[int, int]:
    """The shortest span and how often it is doubled to hold T positions with little left over."""
    halvings = 0
    while short << halvings < T:
        halvings += 1
    return -(-T // (1 << halvings)), halvings


def _across(
    u_BDT: jax.Array,
    kernel_DT: jax.Array,
    segments_BT: jax.Array | None,
    *,
    half: int,
    transform: Transform,
) -> jax.Array:
    """From the first half of each span of 2 `half` positions to its second half.

    Cyclic over 2 `half`: what wraps around falls on the first half, which is dropped.
    """
    B, D, T = u_BDT.shape
    n = T // (2 * half)
    first_BDNC, passes = u_BDT.reshape(B, D, n, 2, half)[..., 0, :], None
    if segments_BT is not None:
        s_BNC = segments_BT.reshape(B, 1, n, 2, half)
        passes = s_BNC == s_BNC[..., :1, -1:]  # the document that ends the first half
        first_BDNC = jnp.where(passes[..., 0, :], first_BDNC, 0)
    padded = jnp.pad(first_BDNC, ((0, 0), (0, 0), (0, 0), (0, half)))
    kernel = transform.forward(kernel_DT[:, None, : 2 * half])
    product = transform.forward(padded) * kernel
    second_BDNC = transform.inverse(product, 2 * half)[..., half:]
    if passes is not None:
        second_BDNC = jnp.where(passes[..., 1, :], second_BDNC, 0)
    both = jnp.stack([jnp.zeros_like(second_BDNC), second_BDNC], axis=-2)
    return both.reshape(B, D, T)
