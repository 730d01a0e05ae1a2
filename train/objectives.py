"""What is minimised? Functions (logits, batch) -> summed nats and summed weights."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def next_token(
    logits_BTV: jax.Array, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the next token in nats, summed with the batch's weights, and the sum of the
    weights.

    Weights are 0 where the target lies in another document than the input, and on padding. float32
    throughout.
    """
    peak_BT1 = jax.lax.stop_gradient(jnp.max(logits_BTV, axis=-1, keepdims=True))
    shifted_BTV = logits_BTV - peak_BT1
    normaliser_BT = jnp.log(jnp.sum(jnp.exp(shifted_BTV), axis=-1))
    target_BT = jnp.take_along_axis(shifted_BTV, batch["targets_BT"][..., None], axis=-1)[..., 0]
    weights_BT = batch["weights_BT"]
    return jnp.sum((normaliser_BT - target_BT) * weights_BT), jnp.sum(weights_BT)
