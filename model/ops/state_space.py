"""What does a diagonal state space compute? Kernel, recurrence, and the chunked form of both.

Channel d has N complex modes, one of each conjugate pair: x_t = decay x_(t-1) + u_t,
y_t = 2 Re sum over n of weight x_t, where `weight` is C times the input gain. State is reset where
a document begins.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from model.ops.long_convolution import short_spans

Discretisation = Literal["zoh", "bilinear"]


def discretise(
    a_DN: jax.Array, step_D: jax.Array, *, rule: Discretisation
) -> tuple[jax.Array, jax.Array]:
    """(decay, gain) of x' = a x + u in steps: held inputs, or the trapezoid rule."""
    z_DN = step_D[:, None] * a_DN
    if rule == "zoh":
        return jnp.exp(z_DN), jnp.expm1(z_DN) / a_DN
    return (1 + z_DN / 2) / (1 - z_DN / 2), step_D[:, None] / (1 - z_DN / 2)


def powers(decay_DN: jax.Array, length: int) -> jax.Array:
    """decay^l for l < length, by doubling: products, and no logarithm with its branches."""
    out_TDN, next_DN = jnp.ones((1, *decay_DN.shape), decay_DN.dtype), decay_DN
    while out_TDN.shape[0] < length:
        out_TDN = jnp.concatenate([out_TDN, out_TDN * next_DN])
        next_DN = next_DN * next_DN
    return out_TDN[:length]


def diagonal_kernel(decay_DN: jax.Array, weight_DN: jax.Array, length: int) -> jax.Array:
    """The response (T, D) to an impulse: y is the convolution of u with it."""
    return 2 * jnp.sum((weight_DN * powers(decay_DN, length)).real, axis=-1)


def diagonal_recurrence(
    u_BTD: jax.Array,
    decay_DN: jax.Array,
    weight_DN: jax.Array,
    segments_BT: jax.Array | None,
    *,
    state_BDN: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One position after the other; y and the state after the last."""
    held_BDN = _start(u_BTD, decay_DN) if state_BDN is None else state_BDN

    def step(x_BDN, now):
        u_BD, starts_B = now
        x_BDN = jnp.where(starts_B[:, None, None], 0, x_BDN)
        x_BDN = decay_DN * x_BDN + u_BD[..., None]
        return x_BDN, 2 * jnp.sum((weight_DN * x_BDN).real, axis=-1)

    now = (u_BTD.swapaxes(0, 1), document_starts(u_BTD, segments_BT).T)
    held_BDN, y_TBD = jax.lax.scan(step, held_BDN, now)
    return y_TBD.swapaxes(0, 1), held_BDN


def document_starts(u_BTD: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """(B, T): a position that begins another document than the one before it was of."""
    starts_BT = jnp.zeros(u_BTD.shape[:2], bool)
    if segments_BT is None:
        return starts_BT
    return starts_BT.at[:, 1:].set(segments_BT[:, 1:] != segments_BT[:, :-1])


def diagonal_chunked(
    u_BTD: jax.Array,
    decay_DN: jax.Array,
    weight_DN: jax.Array,
    segments_BT: jax.Array | None,
    *,
    chunk: int,
    state_BDN: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The same: lag by lag inside a chunk, through the state between chunks."""
    T = u_BTD.shape[1]
    state_BDN = _start(u_BTD, decay_DN) if state_BDN is None else state_BDN
    whole = T - T % chunk
    parts = []
    # the rest is a shorter chunk: padded, it would carry the state past the last position
    for begin, end, size in ((0, whole, chunk), (whole, T, T - whole)):
        if begin == end:
            continue
        y_BTD, state_BDN = _chunks(
            u_BTD[:, begin:end],
            decay_DN,
            weight_DN,
            None if segments_BT is None else segments_BT[:, begin:end],
            # the document of the position before
            None if segments_BT is None else segments_BT[:, max(begin - 1, 0)],
            size=size,
            state_BDN=state_BDN,
        )
        parts.append(y_BTD)
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1), state_BDN


def _chunks(u_BTD, decay_DN, weight_DN, segments_BT, before_B, *, size, state_BDN):
    B, T, D = u_BTD.shape
    N, n = decay_DN.shape[1], T // size
    power_CDN = powers(decay_DN, size + 1)
    kernel_CD = 2 * jnp.sum((weight_DN * power_CDN[:size]).real, axis=-1)
    y_BTD = short_spans(u_BTD, kernel_CD, segments_BT)
    into_BGCD, out_BGC = u_BTD.reshape(B, n, size, D), None
    if segments_BT is not None:
        s_BGC = segments_BT.reshape(B, n, size)
        last_BG = s_BGC[:, :, -1]
        before_BG = jnp.concatenate([before_B[:, None], last_BG[:, :-1]], axis=1)
        into_BGCD = jnp.where((s_BGC == last_BG[..., None])[..., None], into_BGCD, 0)
        keep_GB = (last_BG == before_BG).T
        out_BGC = s_BGC == before_BG[..., None]
    else:
        keep_GB = jnp.ones((n, B), bool)
    made_GBDN = _complex(
        jnp.einsum("bgcd,cdn->gbdn", into_BGCD, _real(power_CDN[size - 1 :: -1])), N
    )

    def step(x_BDN, now):
        made_BDN, keep_B = now
        after_BDN = jnp.where(keep_B[:, None, None], power_CDN[size] * x_BDN, 0) + made_BDN
        return after_BDN, x_BDN

    if n == 1:  # a position of decoding: no loop to set up
        state_BDN, entry_BDN = step(state_BDN, (made_GBDN[0], keep_GB[0]))
        entry_GBDN = entry_BDN[None]
    else:
        state_BDN, entry_GBDN = jax.lax.scan(step, state_BDN, (made_GBDN, keep_GB))
    read_CDN = weight_DN * power_CDN[1:]
    # 2 Re(w x) as a product of reals: (w_re, -w_im) . (x_re, x_im)
    y_BGCD = 2 * jnp.einsum("gbdn,cdn->bgcd", _real(entry_GBDN), _real(read_CDN.conj()))
    if out_BGC is not None:
        y_BGCD = jnp.where(out_BGC[..., None], y_BGCD, 0)
    return y_BTD + y_BGCD.reshape(B, T, D), state_BDN


def _start(u_BTD: jax.Array, decay_DN: jax.Array) -> jax.Array:
    return jnp.zeros((u_BTD.shape[0], *decay_DN.shape), decay_DN.dtype)


def _real(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x.real, x.imag], axis=-1)


def _complex(x: jax.Array, n: int) -> jax.Array:
    return jax.lax.complex(x[..., :n], x[..., n:])
