"""How do rotary positions enter? By rotating pairs of channels (Su et al. 2021; half-split layout
of LLaMA).
"""

import jax
import jax.numpy as jnp


def rotary(x_BTHK: jax.Array, positions_BT: jax.Array, *, theta: float) -> jax.Array:
    """Rotate the pairs (k, k + K/2) by position x theta^(-2k/K); angles in float32. K is even."""
    half = x_BTHK.shape[-1] // 2
    rate_K = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1K = positions_BT[:, :, None, None].astype(jnp.float32) * rate_K
    cos, sin = jnp.cos(angle_BT1K), jnp.sin(angle_BT1K)
    a, b = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHK.dtype)
