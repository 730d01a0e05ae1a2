"""What is the norm of a residual stream? Reductions in float32 whatever the compute type."""

import jax
import jax.numpy as jnp

EPSILON = 1e-6  # LLaMA-family value


def rmsnorm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """x / rms(x) over the last dim, times gain (Zhang and Sennrich 2019)."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + EPSILON)
    return (y * gain).astype(x.dtype)


def layernorm(x: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """(x - mean) / sd over the last dim, times gain, plus bias (Ba et al. 2016)."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + EPSILON)
    return (y * gain + bias).astype(x.dtype)
