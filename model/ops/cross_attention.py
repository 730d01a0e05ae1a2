"""What is attention to another sequence? The fast form beside its naive twin.

Query t sees the keys of its own segment: of the source that belongs to its target. Key-value head j
serves query heads j*G .. j*G + G-1, with G = H / J. Scores and softmax are float32.
"""

import jax
import jax.numpy as jnp

from model.ops.attention import MASKED, attend_cache


def naive_cross_attention(
    q_BTHK: jax.Array, k_BSJK: jax.Array, v_BSJK: jax.Array, seen_BTS: jax.Array, *, scale: float
) -> jax.Array:
    """All T x S scores of every head, those that `seen_BTS` leaves out masked; 0 where a query sees
    no key.
    """
    G = q_BTHK.shape[2] // k_BSJK.shape[2]
    k_BSHK, v_BSHK = (jnp.repeat(x, G, axis=2) for x in (k_BSJK, v_BSJK))
    score_BHTS = scale * jnp.einsum(
        "bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=jnp.float32
    )
    weight_BHTS = jax.nn.softmax(jnp.where(seen_BTS[:, None], score_BHTS, MASKED), axis=-1)
    weight_BHTS = jnp.where(seen_BTS[:, None], weight_BHTS, 0.0)
    return jnp.einsum("bhts,bshk->bthk", weight_BHTS.astype(v_BSHK.dtype), v_BSHK)


def cross_attention(
    q_BTHK: jax.Array, k_BSJK: jax.Array, v_BSJK: jax.Array, seen_BTS: jax.Array, *, scale: float
) -> jax.Array:
    """The same with the query heads of a key-value head as rows of one product."""
    y_BTHK = attend_cache(q_BTHK, k_BSJK, v_BSJK, seen_BTS, scale=scale)
    return jnp.where(jnp.any(seen_BTS, axis=-1)[..., None, None], y_BTHK, 0)
