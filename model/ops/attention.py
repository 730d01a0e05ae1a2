"""What is causal softmax attention over documents? The fast form beside its naive twin.

Key-value head j serves query heads j*G .. j*G + G-1, with G = H / J. Scores and softmax are
float32.
"""

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a row of -inf would give NaN gradients


def naive_attention(
    q_BTHK: jax.Array,
    k_BTJK: jax.Array,
    v_BTJK: jax.Array,
    segments_BT: jax.Array | None,
    *,
    scale: float,
) -> jax.Array:
    """All T x T scores, masked to earlier positions of the same document."""
    H, J, T = q_BTHK.shape[2], k_BTJK.shape[2], q_BTHK.shape[1]
    k_BTHK, v_BTHK = (jnp.repeat(x, H // J, axis=2) for x in (k_BTJK, v_BTJK))
    score_BHTS = scale * jnp.einsum(
        "bthk,bshk->bhts", q_BTHK, k_BTHK, preferred_element_type=jnp.float32
    )
    seen_BTS = jnp.tril(jnp.ones((T, T), bool))[None]
    if segments_BT is not None:
        seen_BTS = seen_BTS & (segments_BT[:, :, None] == segments_BT[:, None, :])
    weight_BHTS = jax.nn.softmax(jnp.where(seen_BTS[:, None], score_BHTS, MASKED), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weight_BHTS.astype(v_BTHK.dtype), v_BTHK)


def attention(
    q_BTHK: jax.Array,
    k_BTJK: jax.Array,
    v_BTJK: jax.Array,
    segments_BT: jax.Array | None,
    *,
    scale: float,
    blocks: int,
) -> jax.Array:
    """The same in static blocks of queries that skip the scores above the diagonal block.

    Work falls from T^2 to T^2 (blocks + 1) / (2 blocks).
    """
    B, T, H, K = q_BTHK.shape
    J = k_BTJK.shape[2]
    q_BTJGK = (q_BTHK * jnp.asarray(scale, q_BTHK.dtype)).reshape(B, T, J, H // J, K)
    edges = [T * i // blocks for i in range(blocks + 1)]
    out = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        if low == high:
            continue
        q, k, v = q_BTJGK[:, low:high], k_BTJK[:, :high], v_BTJK[:, :high]
        score = jnp.einsum("btjgk,bsjk->bjgts", q, k, preferred_element_type=jnp.float32)
        seen_BTS = (jnp.arange(low, high)[:, None] >= jnp.arange(high)[None])[None]
        if segments_BT is not None:
            seen_BTS = seen_BTS & (segments_BT[:, low:high, None] == segments_BT[:, None, :high])
        weight = jax.nn.softmax(jnp.where(seen_BTS[:, None, None], score, MASKED), axis=-1)
        out.append(jnp.einsum("bjgts,bsjk->btjgk", weight.astype(v.dtype), v))
    return jnp.concatenate(out, axis=1).reshape(B, T, H, K)
