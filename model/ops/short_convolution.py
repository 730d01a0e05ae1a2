"""What is a short causal convolution over documents, whole or in pieces? One filter per channel.

A few taps beside a linear recurrence stand in for the local comparisons that it lacks (Mamba, H3,
DeltaNet).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from parallelism.place import positions_are_shared


def short_convolution(
    x_BTC: jax.Array,
    weight_WC: jax.Array,
    segments_BT: jax.Array | None,
    *,
    state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """y_t = sum over w of weight_w x_(t-w), over positions of t's own document; and the last W - 1
    inputs, the `state` of a call that continues this one.

    Tap 0 is the position's own. C may be several dims, the same in x and weight. `state` holds
    inputs of the first position's document; None is a start, which zeros are as well.
    """
    W, T = weight_WC.shape[0], x_BTC.shape[1]
    held = empty_taps(x_BTC, taps=W) if state is None else state.astype(x_BTC.dtype)
    past_BSC = jnp.concatenate([held, x_BTC], axis=1)  # position t is entry t + W - 1
    handed_on = state is None and positions_are_shared()
    # a product and its sum in float32, whatever the compute type
    y_BTC = x_BTC * weight_WC[0]
    for w in range(1, W):
        if handed_on:
            shifted_BTC = later(x_BTC, w)
        else:
            shifted_BTC = jax.lax.slice_in_dim(past_BSC, W - 1 - w, W - 1 - w + T, axis=1)
        term_BTC = shifted_BTC * weight_WC[w]
        if segments_BT is not None:
            if handed_on:  # what is before the first position is zero in any document
                before_BT = later(segments_BT, w)
            else:
                before_BT = jnp.pad(segments_BT, ((0, 0), (w, 0)), mode="edge")[:, :T]
            same_BT = segments_BT == before_BT
            term_BTC = jnp.where(_over(same_BT, term_BTC), term_BTC, 0)
        y_BTC = y_BTC + term_BTC
    after = past_BSC[:, T:]
    if segments_BT is not None:  # of the last position's document
        own_BS = jnp.pad(segments_BT, ((0, 0), (W - 1, 0)), mode="edge")[:, T:]
        after = jnp.where(_over(own_BS == segments_BT[:, -1:], after), after, 0)
    return y_BTC.astype(x_BTC.dtype), after if state is None else after.astype(state.dtype)


def empty_taps(x_BTC: jax.Array, *, taps: int) -> jax.Array:
    """The state before any position."""
    return jnp.zeros((x_BTC.shape[0], taps - 1, *x_BTC.shape[2:]), x_BTC.dtype)


def naive_short_convolution(
    x_BTC: jax.Array, weight_WC: jax.Array, segments_BT: jax.Array | None
) -> jax.Array:
    """The same as a scan over positions that remembers the last W inputs of the document."""
    W = weight_WC.shape[0]
    starts_BT = jnp.zeros(x_BTC.shape[:2], bool)
    if segments_BT is not None:
        starts_BT = starts_BT.at[:, 1:].set(segments_BT[:, 1:] != segments_BT[:, :-1])

    def step(held_BWC, now):
        x_BC, starts_B = now
        held_BWC = jnp.where(_over(starts_B, held_BWC), 0, held_BWC)
        held_BWC = jnp.concatenate([x_BC[:, None], held_BWC[:, :-1]], axis=1)
        y_BC = jnp.sum(held_BWC * weight_WC, axis=1)
        return held_BWC, y_BC.astype(x_BC.dtype)

    first_BWC = jnp.zeros((x_BTC.shape[0], W, *x_BTC.shape[2:]), x_BTC.dtype)
    _, y_TBC = jax.lax.scan(step, first_BWC, (x_BTC.swapaxes(0, 1), starts_BT.T))
    return y_TBC.swapaxes(0, 1)


def later(x_BT: jax.Array, by: int) -> jax.Array:
    """(B, T, ...): x of so many positions before, zero where there is none. A device hands on its
    last positions; where more are put ahead of a row than it loses, XLA moves whole rows. Where no
    positions are shared it needs more memory on CPU, 6 % of a hybrid's step.
    """
    return _later(x_BT, by)  # pyright: ignore[reportReturnType]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _later(x_BT: jax.Array, by: int) -> jax.Array:
    return _moved(x_BT, by)


# By hand: the transpose of a pad is one of negative size, with which XLA drops the shift of an
# array that every device holds where the result is shared (jaxlib 0.10.2).
_later.defvjp(
    lambda x_BT, by: (_moved(x_BT, by), None),
    lambda by, _, dy_BT: (_moved(dy_BT, -by),),
)


def _moved(x_BT: jax.Array, by: int) -> jax.Array:
    """Cut off on one side and filled up with zeros on the other, in two operations."""
    T = x_BT.shape[1]
    if abs(by) >= T:
        return jnp.zeros_like(x_BT)
    kept = jax.lax.slice_in_dim(x_BT, max(-by, 0), T - max(by, 0), axis=1)
    sides = [(max(by, 0), max(-by, 0), 0) if d == 1 else (0, 0, 0) for d in range(x_BT.ndim)]
    return jax.lax.pad(kept, np.zeros((), x_BT.dtype), sides)


def _over(flag: jax.Array, like: jax.Array) -> jax.Array:
    """`flag` with dims of 1 for the trailing ones of `like`."""
    return flag.reshape(*flag.shape, *(1 for _ in range(like.ndim - flag.ndim)))
