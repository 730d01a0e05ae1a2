"""What is the recurrence of a diagonal plus a matrix of rank one? RWKV-7's, in chunks and plain.

Of each head, S is a memory (K, M), and every channel of the keys has a decay of its own:

    S <- diag(e^decay) S + b (a^T S) + k v^T,    y = r^T S

(Peng et al. 2025, arXiv 2503.14456, where the memory is written transposed.) In a chunk the rows
x = a^T S depend on each other through a unit triangular system, as in the delta rule, whose helpers
this file shares.

The decay between two positions, e^(G_i - G_j), splits into a factor for each so that pairs are
matrix products. That takes a bound on the decay: no step may decay by more than e^-FASTEST, and
the factors are kept in the middle of the float range by half the chunk's bound.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from model.ops import delta

FASTEST = math.exp(-0.5)  # RWKV-7: decay = -e^-1/2 sigmoid(.), so a step keeps over 0.545
LARGEST_CHUNK = 128  # the factors of a pair that is masked reach e^(chunk * FASTEST): 5e33


def naive_dplr(
    r_BTHK: jax.Array,
    decay_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHM: jax.Array,
    a_BTHK: jax.Array,
    b_BTHK: jax.Array,
    segments_BT: jax.Array | None,
    *,
    state_BHKM: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The recurrence, one position at a time; the memory after the last one comes along."""
    wide = delta.accumulator(v_BTHM.dtype)

    def step(S_BHKM: jax.Array, at: Any):
        r_BHK, decay_BHK, k_BHK, v_BHM, a_BHK, b_BHK, first_B = at
        S_BHKM = jnp.where(first_B[:, None, None, None], 0.0, S_BHKM)
        x_BHM = jnp.einsum("bhk,bhkm->bhm", a_BHK, S_BHKM)
        S_BHKM = S_BHKM * jnp.exp(decay_BHK)[..., None]
        S_BHKM = S_BHKM + b_BHK[..., None] * x_BHM[..., None, :]
        S_BHKM = S_BHKM + k_BHK[..., None] * v_BHM[..., None, :]
        return S_BHKM, jnp.einsum("bhk,bhkm->bhm", r_BHK, S_BHKM)

    arrays = (r_BTHK, decay_BTHK, k_BTHK, v_BTHM, a_BTHK, b_BTHK)
    along_T = [jnp.moveaxis(x.astype(wide), 1, 0) for x in arrays]
    begins_TB = jnp.moveaxis(delta.begins(segments_BT, v_BTHM.shape[:2]), 1, 0)
    start = delta.fresh(state_BHKM, k_BTHK, v_BTHM)
    S_BHKM, y_TBHM = jax.lax.scan(step, start, (*along_T, begins_TB))
    return jnp.moveaxis(y_TBHM, 0, 1).astype(v_BTHM.dtype), S_BHKM


def dplr(
    r_BTHK: jax.Array,
    decay_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHM: jax.Array,
    a_BTHK: jax.Array,
    b_BTHK: jax.Array,
    segments_BT: jax.Array | None,
    *,
    chunk: int,
    state_BHKM: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The same in chunks; `decay_BTHK` lies between -FASTEST and 0."""
    T, dtype = v_BTHM.shape[1], v_BTHM.dtype
    wide, size = delta.accumulator(dtype), min(chunk, T)
    if size > LARGEST_CHUNK:
        raise ValueError(f"chunk {chunk} overflows; write at most {LARGEST_CHUNK}")
    r, k, v, a, b = (delta.chunked(x, size) for x in (r_BTHK, k_BTHK, v_BTHM, a_BTHK, b_BTHK))
    decay_NBHCK = delta.chunked(decay_BTHK.astype(wide), size)
    seen = delta.sight(segments_BT, T, size, wide)
    total_NBHCK = delta.decays(seen, decay_NBHCK)
    before_NBHCK = total_NBHCK - decay_NBHCK
    carried = seen.carried[..., None, :, None]
    left_NBHCK = total_NBHCK[..., -1:, :] - total_NBHCK
    left_NBHCK = jnp.exp(jnp.where(seen.kept[..., None, :, None], left_NBHCK, delta.MASKED))
    whole_NBHK = (jnp.exp(total_NBHCK) * carried)[..., -1, :]

    # every pair of a reader (a before its decay, r after it) and a writer (b, k), in one product
    product, middle = delta.products(wide), FASTEST * size / 2
    readers = [a * jnp.exp(before_NBHCK + middle), r * jnp.exp(total_NBHCK + middle)]
    writers = [x * jnp.exp(-total_NBHCK - middle) for x in (b, k)]
    pairs = product(
        "nbhik,nbhjk->nbhij",
        jnp.concatenate(readers, axis=-2).astype(dtype),
        jnp.concatenate(writers, axis=-2).astype(dtype),
    )
    pairs_NBHI2C = jnp.split(pairs, 2, axis=-2)
    (ab, ak), (rb, rk) = (jnp.split(x, 2, axis=-1) for x in pairs_NBHI2C)
    upto = seen.pairs[..., None, :, :]
    earlier = upto & jnp.tril(jnp.ones((size, size), bool), -1)
    ab, ak = (jnp.where(earlier, x, 0.0) for x in (ab, ak))
    rb, rk = (jnp.where(upto, x, 0.0).astype(dtype) for x in (rb, rk))

    solve = delta.unit_triangular_inverse(-ab).astype(dtype)
    given_NBHCM = product("nbhij,nbhjm->nbhim", ak.astype(dtype), v).astype(dtype)
    u_NBHCM = product("nbhij,nbhjm->nbhim", solve, given_NBHCM)
    a_NBHCK = (a * jnp.exp(before_NBHCK) * carried).astype(dtype)
    w_NBHCK = product("nbhij,nbhjk->nbhik", solve, a_NBHCK).astype(dtype)
    direct_NBHCM = product("nbhij,nbhjm->nbhim", rk, v)
    r_NBHCK = (r * jnp.exp(total_NBHCK) * carried).astype(dtype)
    b_NBHCK, k_NBHCK = ((x * left_NBHCK).astype(dtype) for x in (b, k))
    written_NBHKM = product("nbhck,nbhcm->nbhkm", k_NBHCK, v)

    def step(S_BHKM: jax.Array, at: Any):
        r_BHCK, b_BHCK, u_BHCM, w_BHCK, rb_BHIJ, direct_BHCM, written_BHKM, whole_BHK = at
        S = S_BHKM.astype(dtype)
        x = (u_BHCM + product("bhck,bhkm->bhcm", w_BHCK, S)).astype(dtype)
        y_BHCM = direct_BHCM + product("bhck,bhkm->bhcm", r_BHCK, S)
        y_BHCM = y_BHCM + product("bhij,bhjm->bhim", rb_BHIJ, x)
        S_BHKM = S_BHKM * whole_BHK[..., None] + written_BHKM
        return S_BHKM + product("bhck,bhcm->bhkm", b_BHCK, x), y_BHCM.astype(dtype)

    start = delta.fresh(state_BHKM, k_BTHK, v_BTHM)
    parts = (r_NBHCK, b_NBHCK, u_NBHCM, w_NBHCK, rb, direct_NBHCM, written_NBHKM, whole_NBHK)
    S_BHKM, y_NBHCM = delta.carried_along(step, start, parts)
    return delta.joined(y_NBHCM, T), S_BHKM


def flops(*, chunk: int, keys: int, values: int) -> float:
    """Forward FLOPs of the chunked form per token and head: its matrix products."""
    # four kinds of pairs, the inverse on a, the sums of decays; pairs on v twice, inverse, rows
    pairs = 2 * chunk * (6 * keys + 4 * values)
    return pairs + 8 * keys * values + delta.inverse_flops(chunk)
