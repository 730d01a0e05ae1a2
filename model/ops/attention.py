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
    G = H // J
    # heads before positions once, here: products batched over leading dims need no copies of the
    # scores, and the query heads of a key-value head are rows of one product
    q_BJGTK = (q_BTHK * jnp.asarray(scale, q_BTHK.dtype)).reshape(B, T, J, G, K)
    q_BJGTK = q_BJGTK.transpose(0, 2, 3, 1, 4)
    k_BJTK, v_BJTK = k_BTJK.swapaxes(1, 2), v_BTJK.swapaxes(1, 2)
    edges = [T * i // blocks for i in range(blocks + 1)]
    out = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        if low == high:
            continue
        rows = high - low
        q, k, v = q_BJGTK[:, :, :, low:high], k_BJTK[:, :, :high], v_BJTK[:, :, :high]
        score = jnp.einsum(
            "bjrk,bjsk->bjrs",
            q.reshape(B, J, G * rows, K),
            k,
            preferred_element_type=jnp.float32,
        ).reshape(B, J, G, rows, high)
        seen_BTS = (jnp.arange(low, high)[:, None] >= jnp.arange(high)[None])[None]
        if segments_BT is not None:
            seen_BTS = seen_BTS & (segments_BT[:, low:high, None] == segments_BT[:, None, :high])
        score = jnp.where(seen_BTS[:, None, None], score, MASKED)
        weight = jnp.exp(score - jax.lax.stop_gradient(jnp.max(score, axis=-1, keepdims=True)))
        y = jnp.einsum(
            "bjrs,bjsk->bjrk",
            weight.astype(v.dtype).reshape(B, J, G * rows, high),
            v,
            preferred_element_type=jnp.float32,
        ).reshape(B, J, G, rows, K)
        # the softmax's division on K values a row instead of `high`: one pass over scores less
        out.append((y / jnp.sum(weight, axis=-1, keepdims=True)).astype(v.dtype))
    y_BJGTK = jnp.concatenate(out, axis=3)
    return y_BJGTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)
