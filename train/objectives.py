"""What is minimised, and measured? Functions of (logits, batch) to sums over the batch."""

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


def scored(
    logits_BTV: jax.Array, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`next_token`, and the weights of the targets that the model would say: those whose logit lies
    above every other, so that a model that tells nothing apart is never right.
    """
    nats, weights = next_token(logits_BTV, batch)
    target_BT1 = jnp.take_along_axis(logits_BTV, batch["targets_BT"][..., None], axis=-1)
    right_BT = jnp.sum(logits_BTV >= target_BT1, axis=-1) == 1
    return nats, weights, jnp.sum(jnp.where(right_BT, batch["weights_BT"], 0.0))
