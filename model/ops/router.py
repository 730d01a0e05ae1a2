"""Which experts does a token go to, and how even is that? Scores, choice, and the losses and the
bias that keep the load even. Everything in float32: a choice in bfloat16 has ties that decide.
"""

from functools import partial

import jax
import jax.numpy as jnp

from model.param import Update

FLOOR = 1e-7  # under a sum of sigmoids, which may all vanish (OLMo-core adds it to each)


def scores(logits_BTE: jax.Array, *, kind: str) -> jax.Array:
    """Softmax over experts, or each expert's own sigmoid (DeepSeek-V3)."""
    logits_BTE = logits_BTE.astype(jnp.float32)
    if kind == "softmax":
        return jax.nn.softmax(logits_BTE, axis=-1)
    return jax.nn.sigmoid(logits_BTE)


def choose(
    scores_BTE: jax.Array, *, chosen: int, bias_E: jax.Array | None, renormalise: bool
) -> tuple[jax.Array, jax.Array]:
    """Experts (B, T, K) of the highest score + bias, and their weights: the scores, without bias.

    Of equal ones the lower number wins, on every platform.
    """
    ranked_BTE = scores_BTE if bias_E is None else scores_BTE + bias_E
    _, experts_BTK = jax.lax.top_k(jax.lax.stop_gradient(ranked_BTE), chosen)
    weights_BTK = jnp.take_along_axis(scores_BTE, experts_BTK, axis=-1)
    if renormalise:
        weights_BTK = weights_BTK / (jnp.sum(weights_BTK, axis=-1, keepdims=True) + FLOOR)
    return experts_BTK, weights_BTK


def counts(experts_BTK: jax.Array, *, n_experts: int) -> jax.Array:
    """(B, E): how often a row chose an expert, int32."""
    hit_BTKE = experts_BTK[..., None] == jnp.arange(n_experts)
    return jnp.sum(hit_BTKE, axis=(1, 2), dtype=jnp.int32)


def shares(scores_BTE: jax.Array) -> jax.Array:
    """Each score in the sum of its token's."""
    return scores_BTE / (jnp.sum(scores_BTE, axis=-1, keepdims=True) + FLOOR)


def balance_loss(p_BE: jax.Array, counts_BE: jax.Array, *, over: str) -> jax.Array:
    """E sum_e f_e p_e: f_e the share of all choices that fell on e, p_e the mean over a row of its
    `shares`. 1 when even, E / K when K experts take everything with all the score.

    This is the normalisation of OLMo-core and Megatron; that of Mixtral and Time-MoE is K times as
    large, and DeepSeek's per sequence is this one. `over` rows: the mean of each row's own.
    """
    f_BE = counts_BE.astype(jnp.float32)
    f_BE = f_BE / jnp.sum(f_BE, axis=-1, keepdims=True)
    if over == "batch":  # rows are equally long, so that a mean over rows is one over tokens
        p_BE, f_BE = jnp.mean(p_BE, axis=0, keepdims=True), jnp.mean(f_BE, axis=0, keepdims=True)
    return p_BE.shape[-1] * jnp.mean(jnp.sum(f_BE * p_BE, axis=-1))


def z_squares(logits_BTE: jax.Array) -> jax.Array:
    """Squares of log sum exp, whose mean is the z-loss: keeps logits where float32 tells them apart
    (ST-MoE).
    """
    return jax.nn.logsumexp(logits_BTE.astype(jnp.float32), axis=-1) ** 2


def towards_even(rate: float) -> Update:
    """Loss-free balance (Wang et al. 2024): after a step the bias of an expert that was chosen less
    often than the mean rises by `rate`, that of one chosen more often falls.
    """
    return partial(_moved, rate)


def _moved(rate: float, bias_E: jax.Array, counts_E: jax.Array) -> jax.Array:
    mean = jnp.mean(counts_E, axis=-1, keepdims=True)
    return bias_E + rate * jnp.sign(mean - counts_E)
