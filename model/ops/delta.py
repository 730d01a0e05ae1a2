"""What is the gated delta rule? Chunks of positions solved at once, beside the plain recurrence.

Of each head, S is a memory (K, M) that a key writes to by what it got wrong:

    S <- e^g S,    S <- S + beta k (v - S^T k)^T,    y = S^T q

(Schlag et al. 2021; in chunks Yang et al. 2024, arXiv 2406.06484; gated 2412.06464.) In a chunk the
corrections u = beta (v - S^T k) depend on each other through a unit triangular system, so they come
from its inverse and the memory before the chunk: the WY form. A run of equal numbers in
`segments_BT` is a document; the memory starts anew with each. Decays, the inverse and the memory
are float32 at least. Shapes inside: N chunks of C positions (I and J where two are paired).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # an exponent masked after exp would give NaN gradients


def naive_delta_rule(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHM: jax.Array,
    beta_BTH: jax.Array,
    gate_BTH: jax.Array | None,
    segments_BT: jax.Array | None,
    *,
    state_BHKM: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The recurrence, one position at a time; the memory after the last one comes along."""
    wide = accumulator(v_BTHM.dtype)
    if gate_BTH is None:
        gate_BTH = jnp.zeros_like(beta_BTH)

    def step(S_BHKM: jax.Array, at: Any):
        q_BHK, k_BHK, v_BHM, beta_BH, gate_BH, first_B = at
        S_BHKM = jnp.where(first_B[:, None, None, None], 0.0, S_BHKM)
        S_BHKM = S_BHKM * jnp.exp(gate_BH)[..., None, None]
        wrong_BHM = v_BHM - jnp.einsum("bhk,bhkm->bhm", k_BHK, S_BHKM)
        S_BHKM = S_BHKM + jnp.einsum("bhk,bhm->bhkm", k_BHK, beta_BH[..., None] * wrong_BHM)
        return S_BHKM, jnp.einsum("bhk,bhkm->bhm", q_BHK, S_BHKM)

    arrays = (q_BTHK, k_BTHK, v_BTHM, beta_BTH, gate_BTH)
    along_T = [jnp.moveaxis(x.astype(wide), 1, 0) for x in arrays]
    begins_TB = jnp.moveaxis(begins(segments_BT, v_BTHM.shape[:2]), 1, 0)
    start = fresh(state_BHKM, q_BTHK, v_BTHM)
    S_BHKM, y_TBHM = jax.lax.scan(step, start, (*along_T, begins_TB))
    return jnp.moveaxis(y_TBHM, 0, 1).astype(v_BTHM.dtype), S_BHKM


def delta_rule(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHM: jax.Array,
    beta_BTH: jax.Array,
    gate_BTH: jax.Array | None,
    segments_BT: jax.Array | None,
    *,
    chunk: int,
    state_BHKM: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The same in chunks. `gate_BTH` is the logarithm of the decay, None where nothing decays."""
    T, dtype = v_BTHM.shape[1], v_BTHM.dtype
    wide, size = accumulator(dtype), min(chunk, T)
    q, k, v = (chunked(x, size) for x in (q_BTHK, k_BTHK, v_BTHM))
    beta_NBHC = chunked(beta_BTH.astype(wide), size)
    seen = sight(segments_BT, T, size, wide)
    if gate_BTH is None:
        total_NBHC = jnp.zeros_like(beta_NBHC)
    else:
        gate_NBHC1 = chunked(gate_BTH.astype(wide), size)[..., None]
        total_NBHC = decays(seen, gate_NBHC1)[..., 0]
    apart_NBHIJ = total_NBHC[..., :, None] - total_NBHC[..., None, :]
    decay_NBHIJ = jnp.exp(jnp.where(seen.pairs[..., None, :, :], apart_NBHIJ, MASKED))
    since_NBHC1 = (jnp.exp(total_NBHC) * seen.carried[..., None, :])[..., None]
    left_NBHC = total_NBHC[..., -1:] - total_NBHC
    left_NBHC1 = jnp.exp(jnp.where(seen.kept[..., None, :], left_NBHC, MASKED))[..., None]

    product = products(wide)
    alike_NBHIJ = product("nbhik,nbhjk->nbhij", k, k) * decay_NBHIJ * beta_NBHC[..., None]
    earlier_IJ = jnp.tril(jnp.ones((size, size), bool), -1)
    solve = unit_triangular_inverse(jnp.where(earlier_IJ, alike_NBHIJ, 0.0)).astype(dtype)
    u_NBHCM = product("nbhij,nbhjm->nbhim", solve, (v * beta_NBHC[..., None]).astype(dtype))
    w_NBHCK = product(
        "nbhij,nbhjk->nbhik", solve, (k * beta_NBHC[..., None] * since_NBHC1).astype(dtype)
    ).astype(dtype)
    score_NBHIJ = (product("nbhik,nbhjk->nbhij", q, k) * decay_NBHIJ).astype(dtype)
    q, k = (q * since_NBHC1).astype(dtype), (k * left_NBHC1).astype(dtype)

    def step(S_BHKM: jax.Array, at: Any):
        q_BHCK, k_BHCK, u_BHCM, w_BHCK, score_BHIJ, whole_BH1 = at
        S = S_BHKM.astype(dtype)
        u = (u_BHCM - product("bhck,bhkm->bhcm", w_BHCK, S)).astype(dtype)
        y_BHCM = product("bhck,bhkm->bhcm", q_BHCK, S) + product("bhij,bhjm->bhim", score_BHIJ, u)
        S_BHKM = S_BHKM * whole_BH1[..., None] + product("bhck,bhcm->bhkm", k_BHCK, u)
        return S_BHKM, y_BHCM.astype(dtype)

    start = fresh(state_BHKM, q_BTHK, v_BTHM)
    parts = (q, k, u_NBHCM, w_NBHCK, score_NBHIJ, since_NBHC1[..., -1, :])
    S_BHKM, y_NBHCM = carried_along(step, start, parts)
    return joined(y_NBHCM, T), S_BHKM


def flops(*, chunk: int, keys: int, values: int) -> float:
    """Forward FLOPs of the chunked form per token and head: its matrix products."""
    pairs = 2 * chunk * (3 * keys + 2 * values)  # k.k, q.k, the inverse on k and v, scores on u
    return pairs + 6 * keys * values + inverse_flops(chunk)


# -- what the chunked recurrences share ------------------------------------------------------------


class Sight(NamedTuple):
    """Which positions of a chunk see which: `pairs` (..., C, C) itself and earlier ones of its
    document; `carried` (..., C) 1 where the memory before the chunk is of its document; `kept`
    (..., C) whether its document is the one that the chunk ends in.
    """

    pairs: jax.Array
    carried: jax.Array
    kept: jax.Array


def sight(segments_BT: jax.Array | None, T: int, size: int, dtype: Any) -> Sight:
    past_CC = jnp.tril(jnp.ones((size, size), bool))
    if segments_BT is None:
        return Sight(past_CC, jnp.ones(size, dtype), jnp.ones(size, bool))
    run_BT = jnp.cumsum(begins(segments_BT, segments_BT.shape), axis=1)
    run_NBC = chunked(run_BT, size, mode="edge")
    last_NB1 = run_NBC[:, :, -1:]
    before_NB1 = jnp.concatenate([run_NBC[:1, :, :1], last_NB1[:-1]])
    pairs_NBCC = past_CC & (run_NBC[..., :, None] == run_NBC[..., None, :])
    return Sight(pairs_NBCC, (run_NBC == before_NB1).astype(dtype), run_NBC == last_NB1)


def decays(seen: Sight, gate_NBHCK: jax.Array) -> jax.Array:
    """Sum of the log decays since the document or the chunk began, each position's own included.

    A product with the mask and not a running sum: the gradient of a running sum reaches across
    documents with what rounding leaves of terms that cancel.
    """
    pairs = seen.pairs[..., None, :, :].astype(gate_NBHCK.dtype)
    return jnp.einsum("...ij,...jk->...ik", pairs, gate_NBHCK, precision="highest")


def begins(segments_BT: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    """(B, T): whether a document begins here that does not go on from before the first position."""
    if segments_BT is None:
        return jnp.zeros(shape, bool)
    changes_BT = segments_BT[:, 1:] != segments_BT[:, :-1]
    return jnp.pad(changes_BT, ((0, 0), (1, 0)))


def chunked(x_BTH: jax.Array, size: int, *, mode: str = "constant") -> jax.Array:
    """(B, T, H, ...) -> (N, B, H, C, ...), padded at the end; without H where x has none."""
    B, T = x_BTH.shape[:2]
    x = jnp.pad(x_BTH, ((0, 0), (0, -T % size), *((0, 0),) * (x_BTH.ndim - 2)), mode=mode)
    x = jnp.moveaxis(x.reshape(B, -1, size, *x.shape[2:]), 1, 0)
    return x if x_BTH.ndim == 2 else jnp.swapaxes(x, 2, 3)


def carried_along(step: Callable[..., Any], start: jax.Array, parts: Any):
    """A scan over chunks, which a single one (a decoding step) does without."""
    if jax.tree.leaves(parts)[0].shape[0] > 1:
        return jax.lax.scan(step, start, parts)
    after, y = step(start, jax.tree.map(lambda x: x[0], parts))
    return after, y[None]


def joined(y_NBHCM: jax.Array, T: int) -> jax.Array:
    """The way back from `chunked`."""
    N, B, H, C, M = y_NBHCM.shape
    return y_NBHCM.transpose(1, 0, 3, 2, 4).reshape(B, N * C, H, M)[:, :T]


def accumulator(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def products(dtype: Any) -> Callable[..., jax.Array]:
    def product(subscripts: str, *operands: jax.Array) -> jax.Array:
        return jnp.einsum(subscripts, *operands, preferred_element_type=dtype)

    return product


def fresh(state_BHKM: jax.Array | None, k_BTHK: jax.Array, v_BTHM: jax.Array) -> jax.Array:
    """The memory to start from."""
    wide = accumulator(v_BTHM.dtype)
    if state_BHKM is not None:
        return state_BHKM.astype(wide)
    B, _, H, K = k_BTHK.shape
    return jnp.zeros((B, H, K, v_BTHM.shape[-1]), wide)


@jax.custom_vjp
def unit_triangular_inverse(a_CC: jax.Array) -> jax.Array:
    """(I + a)^-1 of strictly lower triangular a (..., C, C), by halves.

    Every number on the way is an entry of the answer or of one product of two blocks of it, so
    equal keys do no harm; the product (I - a)(I + a^2)(I + a^4).. loses all digits on them.
    """
    return _inverse(a_CC)


def _inverse(a_CC: jax.Array) -> jax.Array:
    size = a_CC.shape[-1]
    if size <= 2:
        return jnp.eye(size, dtype=a_CC.dtype) - a_CC
    half = _power_of_two(size) // 2
    if size < 2 * half:
        extra = 2 * half - size
        padded = jnp.pad(a_CC, (*((0, 0),) * (a_CC.ndim - 2), (0, extra), (0, extra)))
        return _inverse(padded)[..., :size, :size]
    halves = jnp.stack([a_CC[..., :half, :half], a_CC[..., half:, half:]])
    upper, lower = _inverse(halves)
    low = a_CC[..., half:, :half]
    corner = -_exact(_exact(lower, low), upper)
    top = jnp.concatenate([upper, jnp.zeros_like(upper)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([corner, lower], axis=-1)], axis=-2)


def _forward(a_CC: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse_CC = _inverse(a_CC)
    return inverse_CC, inverse_CC


def _backward(inverse_CC: jax.Array, d_CC: jax.Array) -> tuple[jax.Array]:
    transposed = jnp.swapaxes(inverse_CC, -1, -2)
    return (-jnp.tril(_exact(_exact(transposed, d_CC), transposed), -1),)


# two products for the gradient, where following the halves back takes twice the time on CPU
unit_triangular_inverse.defvjp(_forward, _backward)


def _exact(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def inverse_flops(chunk: int) -> float:
    """Per token: two products of half the size for each pair of halves that are larger than 1."""
    size = _power_of_two(chunk)
    return sum(2 * (half**2) * size for half in _halvings(size) if half > 1) / chunk


def _halvings(size: int) -> list[int]:
    return [size >> i for i in range(1, size.bit_length()) if size >> i]
