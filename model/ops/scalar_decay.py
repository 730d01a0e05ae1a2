"""What is a linear recurrence whose state decays by one number a head? Chunked, beside its scan.

S_t = exp(a_t) S_(t-1) + k_t v_t^T and y_t = q_t^T S_t, from S = 0 at the start of each document.
Keys and queries come in J groups: group j serves value heads j*G .. j*G + G-1, with G = H / J.
Basic linear attention (a = 0), RetNet, Lightning and Mamba-2 (SSD; Dao and Gu 2024) are this sum.
Decays, states and sums over positions are float32 or wider whatever the compute type.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from model.ops.attention import MASKED
from model.ops.chunks import carried, documents, sums, wide
from model.ops.over_devices import over_devices
from parallelism.sequence import SCALAR_DECAY, Scheme


def naive_scalar_decay(
    q_BTJK: jax.Array,
    k_BTJK: jax.Array,
    v_BTHM: jax.Array,
    decay_BTH: jax.Array,
    segments_BT: jax.Array | None,
    *,
    state_BHKM: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The recurrence itself, one position after the other."""
    B, T, H, _ = v_BTHM.shape
    float_ = partial(jnp.asarray, dtype=wide(q_BTJK.dtype))
    q_BTHK, k_BTHK = (float_(jnp.repeat(x, H // x.shape[2], axis=2)) for x in (q_BTJK, k_BTJK))
    state_BHKM = empty_state(q_BTJK, v_BTHM) if state_BHKM is None else float_(state_BHKM)
    goes_on_BT = jnp.ones((B, T), bool)
    if segments_BT is not None:
        goes_on_BT = goes_on_BT.at[:, 1:].set(segments_BT[:, 1:] == segments_BT[:, :-1])

    def step(state_BHKM, now):
        q_BHK, k_BHK, v_BHM, decay_BH, goes_on_B = now
        kept_BHKM = jnp.where(goes_on_B[:, None, None, None], state_BHKM, 0)
        new_BHKM = k_BHK[..., None] * v_BHM[:, :, None]
        state_BHKM = jnp.exp(decay_BH)[..., None, None] * kept_BHKM + new_BHKM
        return state_BHKM, jnp.einsum("bhk,bhkm->bhm", q_BHK, state_BHKM)

    decay_BTH = jnp.broadcast_to(float_(decay_BTH), (B, T, H))
    over_time = (q_BTHK, k_BTHK, float_(v_BTHM), decay_BTH, goes_on_BT)
    state_BHKM, y_TBHM = jax.lax.scan(
        step, state_BHKM, jax.tree.map(lambda x: x.swapaxes(0, 1), over_time)
    )
    return y_TBHM.swapaxes(0, 1), state_BHKM


def scalar_decay(
    q_BTJK: jax.Array,
    k_BTJK: jax.Array,
    v_BTHM: jax.Array,
    decay_BTH: jax.Array,
    segments_BT: jax.Array | None,
    *,
    chunk: int,
    state_BHKM: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """y (B, T, H, M) and the state after the last position, both in float32 or wider.

    `decay_BTH` is the logarithm a <= 0; its B and H may be 1. Inside a chunk all pairs of positions
    meet in one product; between chunks the state goes on. `state_BHKM` is of the first position's
    document.
    """
    B, T, J, K = q_BTJK.shape
    H, M = v_BTHM.shape[2:]
    c = min(chunk, T)
    n, short = -(-T // c), -T % c
    dtype, float_ = v_BTHM.dtype, wide(q_BTJK.dtype)

    def chunked(x: jax.Array, *, heads: int, mode: Any = "constant") -> jax.Array:
        """(B, T, heads, ...) -> (B, n, J, heads / J, c, ...), the last chunk filled up."""
        x = jnp.pad(x, ((0, 0), (0, short), *((0, 0),) * (x.ndim - 2)), mode=mode)
        groups = (J, heads // J) if heads > 1 else (1, 1)
        x = x.reshape(x.shape[0], n, c, *groups, *x.shape[3:])
        return jnp.moveaxis(x, 2, 4)

    # filled positions: no decay, no key, and the last document
    q_BnJtK, k_BnJtK = (chunked(x, heads=J)[:, :, :, 0] for x in (q_BTJK, k_BTJK))
    v_BnJGtM = chunked(v_BTHM, heads=H)
    seen = documents(segments_BT, n=n, c=c, short=short).over(2)
    decay_BnJGt1 = chunked(decay_BTH.astype(float_), heads=decay_BTH.shape[2])[..., None]
    sum_BnJGt = sums(decay_BnJGt1, seen.within).at((..., 0))
    total_BnJG1 = sum_BnJGt.at((..., slice(-1, None)))

    between_BnJGts = sum_BnJGt.at((..., None)) - sum_BnJGt.at((..., None, slice(None)))
    between_BnJGts = jnp.exp(jnp.where(seen.within, between_BnJGts, MASKED))  # masked before exp
    score_BnJts = product("bnjtk,bnjsk->bnjts", q_BnJtK, k_BnJtK, float_)
    weight_BnJGts = (score_BnJts[:, :, :, None] * between_BnJGts).astype(dtype)
    y_BnJGtM = product("bnjgts,bnjgsm->bnjgtm", weight_BnJGts, v_BnJGtM, float_)

    # what each chunk adds to the state at its end
    rest_BnJGt = jnp.exp(jnp.where(seen.leaving, total_BnJG1 - sum_BnJGt, MASKED))
    faded_BnJGtM = (rest_BnJGt[..., None] * v_BnJGtM).astype(dtype)
    added_BnJGKM = product("bnjtk,bnjgtm->bnjgkm", k_BnJtK, faded_BnJGtM, float_)
    fade_BnJG11 = jnp.where(seen.kept, jnp.exp(total_BnJG1.whole), 0)[..., None]

    first = state_BHKM
    if first is None:
        first = empty_state(q_BTJK, v_BTHM)
    first_BJGKM = first.astype(float_).reshape(B, J, H // J, K, M)
    if n == 1 and state_BHKM is None:
        last_BJGKM = added_BnJGKM[:, 0]
    else:
        before_BnJGKM, last_BJGKM = carried(first_BJGKM, fade_BnJG11, added_BnJGKM)
        read_BnJGtM = product("bnjtk,bnjgkm->bnjgtm", q_BnJtK, before_BnJGKM.astype(dtype), float_)
        since_BnJGt = jnp.where(seen.entering, jnp.exp(sum_BnJGt.whole), 0)
        y_BnJGtM = y_BnJGtM + since_BnJGt[..., None] * read_BnJGtM
    y_BTHM = jnp.moveaxis(y_BnJGtM, 4, 2).reshape(B, n * c, H, M)[:, :T]
    return y_BTHM, last_BJGKM.reshape(B, H, K, M)


def form(
    *, naive: bool, chunk: int, sequence: Scheme | None = None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The form that a context asks for, under one signature; through the scheme by which devices
    share a sequence, where they do.
    """
    op = naive_scalar_decay if naive else partial(scalar_decay, chunk=chunk)
    return over_devices(op, sequence, form=SCALAR_DECAY)


def empty_state(q_BTJK: jax.Array, v_BTHM: jax.Array) -> jax.Array:
    """The state of no position."""
    B, _, H, M = v_BTHM.shape
    return jnp.zeros((B, H, q_BTJK.shape[3], M), wide(q_BTJK.dtype))


def flops(
    *,
    groups: int,
    heads: int,
    key: int,
    value: int,
    chunk: int,
    seq_len: int,
    causal: bool,
    decays: int,
) -> float:
    """Forward FLOPs per token of the chunked form: sums of `decays` decays in two parts, pairs of
    positions inside a chunk, products with the state.

    Half of the pairs inside a chunk are in the future; `causal` leaves them out.
    """
    c = min(chunk, seq_len)
    inside = 2.0 * c * (groups * key + heads * value) + 4.0 * c * decays
    states = 4.0 * heads * key * value if c < seq_len else 0.0
    return (inside / 2 if causal else inside) + states


def product(form: str, a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    return jnp.einsum(form, a, b, preferred_element_type=dtype)
