"""What is h_t = f_t h_{t-1} + u_t, channel by channel, over documents? The parallel scan beside its
naive twin.

Give float32 (or float64): products of many f below 1 need the digits. A document's first position
takes f = 0, so nothing passes between documents; the row's first position continues from `start`.
"""

import jax
import jax.numpy as jnp


def linear_recurrence(
    f_BTHK: jax.Array,
    u_BTHK: jax.Array,
    segments_BT: jax.Array | None = None,
    *,
    start_BHK: jax.Array | None = None,
) -> jax.Array:
    """All h_t in log2 T parallel sweeps."""
    if segments_BT is not None:
        f_BTHK = jnp.where(_begins(segments_BT)[:, :, None, None], 0.0, f_BTHK)
    if start_BHK is not None:
        u_BTHK = u_BTHK.at[:, 0].add(f_BTHK[:, 0] * start_BHK)
    return _scanned(f_BTHK, u_BTHK)


def naive_linear_recurrence(
    f_BTHK: jax.Array,
    u_BTHK: jax.Array,
    segments_BT: jax.Array | None = None,
    *,
    start_BHK: jax.Array | None = None,
) -> jax.Array:
    """All h_t, one position after another."""
    none_BT = jnp.zeros(f_BTHK.shape[:2], bool)
    begins_BT = none_BT if segments_BT is None else _begins(segments_BT)
    h_BHK = jnp.zeros_like(u_BTHK[:, 0]) if start_BHK is None else start_BHK

    def step(h_BHK, inputs):
        f_BHK, u_BHK, begins_B = inputs
        h_BHK = jnp.where(begins_B[:, None, None], 0.0, h_BHK)
        h_BHK = f_BHK * h_BHK + u_BHK
        return h_BHK, h_BHK

    by_time = tuple(x.swapaxes(0, 1) for x in (f_BTHK, u_BTHK, begins_BT))
    return jax.lax.scan(step, h_BHK, by_time)[1].swapaxes(0, 1)


def _begins(segments_BT: jax.Array) -> jax.Array:
    """Is a position the first of a document that begins inside the row?"""
    return jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)))


def _compose(early, late):
    """h -> f h + u, first as `early` says and then as `late` does."""
    return early[0] * late[0], late[0] * early[1] + late[1]


def _sweeps(f_BTHK: jax.Array, u_BTHK: jax.Array) -> jax.Array:
    return jax.lax.associative_scan(_compose, (f_BTHK, u_BTHK), axis=1)[1]


def _forward(f_BTHK, u_BTHK):
    h_BTHK = _sweeps(f_BTHK, u_BTHK)
    return h_BTHK, (f_BTHK, h_BTHK)


# The gradient of a linear recurrence is one too, backwards in time: two arrays are kept for it,
# where autodiff of the parallel scan keeps two for each of its log2 T sweeps.
def _backward(residuals, dh_BTHK):
    f_BTHK, h_BTHK = residuals
    ahead = ((0, 0), (0, 1), (0, 0), (0, 0))
    later_BTHK = jnp.pad(f_BTHK[:, 1:], ahead)
    scanned = jax.lax.associative_scan(_compose, (later_BTHK, dh_BTHK), axis=1, reverse=True)
    du_BTHK = scanned[1]
    before_BTHK = jnp.pad(h_BTHK[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    return du_BTHK * before_BTHK, du_BTHK


_scanned = jax.custom_vjp(_sweeps)
_scanned.defvjp(_forward, _backward)
