"""What is a linear recurrence whose state decays by one number a key channel? In chunks, beside its
scan.

S_t = diag(exp(a_t)) S_(t-1) + k_t v_t^T and y_t = q_t^T S_t, from S = 0 at the start of each
document: gated linear attention (Yang et al. 2024). Its weights inside a chunk, the sum over
channels of q_t exp(A_t - A_s) k_s with A the running sum of a, are no product of a factor of t and
one of s that both stay in range. So a chunk is cut into blocks: two blocks meet in a product whose
exponents start where the later one does, and are never positive; the pairs of one block are summed
channel by channel.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from model.ops.attention import MASKED
from model.ops.chunks import Documents, Sums, carried, documents, sums, wide
from model.ops.over_devices import over_devices
from model.ops.scalar_decay import empty_state, product
from parallelism.sequence import CHANNEL_DECAY, Scheme

BLOCK = 16  # the paper's secondary chunk


def naive_channel_decay(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHM: jax.Array,
    decay_BTHK: jax.Array,
    segments_BT: jax.Array | None,
    *,
    state_BHKM: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The recurrence itself, one position after the other."""
    float_ = partial(jnp.asarray, dtype=wide(q_BTHK.dtype))
    state_BHKM = empty_state(q_BTHK, v_BTHM) if state_BHKM is None else float_(state_BHKM)
    goes_on_BT = jnp.ones(q_BTHK.shape[:2], bool)
    if segments_BT is not None:
        goes_on_BT = goes_on_BT.at[:, 1:].set(segments_BT[:, 1:] == segments_BT[:, :-1])

    def step(state_BHKM, now):
        q_BHK, k_BHK, v_BHM, decay_BHK, goes_on_B = now
        kept_BHKM = jnp.where(goes_on_B[:, None, None, None], state_BHKM, 0)
        new_BHKM = k_BHK[..., None] * v_BHM[:, :, None]
        state_BHKM = jnp.exp(decay_BHK)[..., None] * kept_BHKM + new_BHKM
        return state_BHKM, jnp.einsum("bhk,bhkm->bhm", q_BHK, state_BHKM)

    over_time = (*map(float_, (q_BTHK, k_BTHK, v_BTHM, decay_BTHK)), goes_on_BT)
    state_BHKM, y_TBHM = jax.lax.scan(
        step, state_BHKM, jax.tree.map(lambda x: x.swapaxes(0, 1), over_time)
    )
    return y_TBHM.swapaxes(0, 1), state_BHKM


def channel_decay(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHM: jax.Array,
    decay_BTHK: jax.Array,
    segments_BT: jax.Array | None,
    *,
    chunk: int,
    state_BHKM: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """y (B, T, H, M) and the state after the last position, both in float32 or wider.

    `decay_BTHK` is the logarithm a <= 0; `state_BHKM` is of the first position's document.
    """
    B, T, H, _ = q_BTHK.shape
    block = min(BLOCK, chunk, T)
    c = -(-min(chunk, T) // block) * block
    n, short = -(-T // c), -T % c
    dtype, float_ = v_BTHM.dtype, wide(q_BTHK.dtype)

    def chunked(x_BTHK: jax.Array) -> jax.Array:
        """(B, n, H, c, K), the last chunk filled up: no decay, no key, the last document."""
        x_BTHK = jnp.pad(x_BTHK, ((0, 0), (0, short), (0, 0), (0, 0)))
        return x_BTHK.reshape(B, n, c, H, -1).swapaxes(2, 3)

    q_BnHtK, k_BnHtK, v_BnHtM = chunked(q_BTHK), chunked(k_BTHK), chunked(v_BTHM)
    seen = documents(segments_BT, n=n, c=c, short=short).over(1)
    sum_BnHtK = sums(chunked(decay_BTHK.astype(float_)), seen.within)
    total_BnH1K = sum_BnHtK.at((..., slice(-1, None), slice(None)))

    score_BnHts = _within_blocks(q_BnHtK, k_BnHtK, sum_BnHtK, seen, block=block)
    if c > block:
        score_BnHts = score_BnHts + _between_blocks(
            q_BnHtK, k_BnHtK, sum_BnHtK, seen, block=block, dtype=dtype
        )
    y_BnHtM = product("bnhts,bnhsm->bnhtm", score_BnHts.astype(dtype), v_BnHtM, float_)

    # what each chunk adds to the state at its end
    rest_BnHtK = jnp.exp(jnp.where(seen.leaving[..., None], total_BnH1K - sum_BnHtK, MASKED))
    faded_BnHtK = (rest_BnHtK * k_BnHtK).astype(dtype)
    added_BnHKM = product("bnhtk,bnhtm->bnhkm", faded_BnHtK, v_BnHtM, float_)
    if n == 1 and state_BHKM is None:
        last_BHKM = added_BnHKM[:, 0]
    else:
        first_BHKM = empty_state(q_BTHK, v_BTHM) if state_BHKM is None else state_BHKM
        fade_BnHK1 = jnp.where(seen.kept[..., None], jnp.exp(total_BnH1K.whole), 0).swapaxes(-1, -2)
        before_BnHKM, last_BHKM = carried(first_BHKM.astype(float_), fade_BnHK1, added_BnHKM)
        since_BnHtK = jnp.where(seen.entering[..., None], jnp.exp(sum_BnHtK.whole), 0)
        reads_BnHtK = (since_BnHtK * q_BnHtK).astype(dtype)
        y_BnHtM = y_BnHtM + product(
            "bnhtk,bnhkm->bnhtm", reads_BnHtK, before_BnHKM.astype(dtype), float_
        )
    y_BTHM = y_BnHtM.swapaxes(2, 3).reshape(B, n * c, H, -1)[:, :T]
    return y_BTHM, last_BHKM


def form(
    *, naive: bool, chunk: int, sequence: Scheme | None = None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The form that a context asks for, under one signature; through the scheme by which devices
    share a sequence, where they do.
    """
    op = naive_channel_decay if naive else partial(channel_decay, chunk=chunk)
    return over_devices(op, sequence, form=CHANNEL_DECAY)


def flops(*, heads: int, key: int, value: int, chunk: int, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token of the chunked form: sums of decays in two parts, pairs of positions
    inside a chunk, products with the state.

    Half of the pairs inside a chunk are in the future; `causal` leaves them out. The pairs of one
    block are two products and a sum a channel; their exponentials are not counted.
    """
    c = min(chunk, seq_len)
    block = min(BLOCK, c)
    decays = 4.0 * c * heads * key
    scores = (2.0 * c if c > block else 0.0) * heads * key + 3.0 * block * heads * key
    inside = decays + scores + 2.0 * c * heads * value
    states = 4.0 * heads * key * value if c < seq_len else 0.0
    return (inside / 2 if causal else inside) + states


def _between_blocks(
    q_BnHtK: jax.Array,
    k_BnHtK: jax.Array,
    sum_BnHtK: Sums,
    seen: Documents,
    *,
    block: int,
    dtype: Any,
) -> jax.Array:
    """Scores (B, n, H, c, c) of queries on keys of earlier blocks, 0 elsewhere. u counts blocks of
    queries, b the positions of one.
    """
    c = q_BnHtK.shape[-2]
    ends_u = jnp.arange(0, c, block) - 1  # the last position before each block
    met_us = jnp.arange(c) <= ends_u[:, None]  # of the first block, none
    ends_u = jnp.maximum(ends_u, 0)
    end_BnHuK = sum_BnHtK.at((..., ends_u, slice(None)))

    fade_BnHusK = end_BnHuK.at((..., None, slice(None))) - sum_BnHtK.at(
        (..., None, slice(None), slice(None))
    )
    met_BnHus1 = (seen.within[..., ends_u, :] & met_us)[..., None]
    faded_BnHusK = jnp.exp(jnp.where(met_BnHus1, fade_BnHusK, MASKED)) * k_BnHtK[..., None, :, :]

    since_BnHubK = jax.tree.map(partial(_blocks, block=block), sum_BnHtK) - end_BnHuK.at(
        (..., None, slice(None))
    )
    goes_on_BnHub1 = _blocks(seen.within, block=block)[..., jnp.arange(c // block), :, ends_u]
    goes_on_BnHub1 = jnp.moveaxis(goes_on_BnHub1, 0, -2)[..., None]
    reads_BnHubK = jnp.exp(jnp.where(goes_on_BnHub1, since_BnHubK, MASKED))
    reads_BnHubK = reads_BnHubK * _blocks(q_BnHtK, block=block)
    score_BnHubs = product(
        "...ubk,...usk->...ubs", reads_BnHubK.astype(dtype), faded_BnHusK.astype(dtype), wide(dtype)
    )
    return score_BnHubs.reshape(*q_BnHtK.shape[:-1], c)


def _within_blocks(
    q_BnHtK: jax.Array, k_BnHtK: jax.Array, sum_BnHtK: Sums, seen: Documents, *, block: int
) -> jax.Array:
    """Scores (B, n, H, c, c) of queries on keys of their own block, 0 elsewhere."""
    c = q_BnHtK.shape[-2]
    u = c // block
    pairs = seen.within.reshape(*seen.within.shape[:-2], u, block, u, block)
    met_BnHubb = jnp.moveaxis(pairs[..., jnp.arange(u), :, jnp.arange(u), :], 0, -3)
    float_ = wide(q_BnHtK.dtype)
    arrays = (q_BnHtK, k_BnHtK, sum_BnHtK.coarse, sum_BnHtK.rest)
    own = (_blocks(x.astype(float_), block=block) for x in arrays)
    score_BnHubb = _pairs(*own, met_BnHubb)
    own_block = jnp.eye(u, dtype=bool)[:, None, :, None]
    score = jnp.where(own_block, score_BnHubb[..., None, :], 0)
    return score.reshape(*q_BnHtK.shape[:-1], c)


def _blocks(x_BnHtK: jax.Array, *, block: int) -> jax.Array:
    """Positions, the last dim but one, as (blocks, positions of a block)."""
    return x_BnHtK.reshape(*x_BnHtK.shape[:-2], -1, block, x_BnHtK.shape[-1])


def _pair_scores(q_bK, k_bK, coarse_bK, rest_bK, met_bb):
    """Sum over channels of q_t exp(A_t - A_s) k_s, for the pairs that meet."""
    weight_bbK = _weights(coarse_bK, rest_bK, met_bb)
    return jnp.sum(q_bK[..., :, None, :] * k_bK[..., None, :, :] * weight_bbK, axis=-1)


def _pairs_forward(*arrays):
    return _pair_scores(*arrays), arrays


def _pairs_backward(arrays, dscore_bb):
    """Written out so that the weights, BLOCK numbers a channel, are made again and not kept."""
    q_bK, k_bK, coarse_bK, rest_bK, met_bb = arrays
    weight_bbK = dscore_bb[..., None] * _weights(coarse_bK, rest_bK, met_bb)
    dq_bK = jnp.sum(weight_bbK * k_bK[..., None, :, :], axis=-2)
    dk_bK = jnp.sum(weight_bbK * q_bK[..., :, None, :], axis=-3)
    dsum_bK = q_bK * dq_bK - k_bK * dk_bK
    return dq_bK, dk_bK, dsum_bK, dsum_bK, None


_pairs = jax.custom_vjp(_pair_scores)
_pairs.defvjp(_pairs_forward, _pairs_backward)


def _weights(coarse_bK: jax.Array, rest_bK: jax.Array, met_bb: jax.Array) -> jax.Array:
    own = Sums(coarse_bK, rest_bK)
    since_bbK = own.at((..., None, slice(None))) - own.at((..., None, slice(None), slice(None)))
    return jnp.exp(jnp.where(met_bb[..., None], since_bbK, MASKED))
