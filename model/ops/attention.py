"""What is causal softmax attention over documents? The fast form beside its naive twin.

Key-value head j serves query heads j*G .. j*G + G-1, with G = H / J. Scores and softmax are
float32. Where there are more keys than queries, those ahead of the first query's own are a learned
prefix, which every query sees whatever its document.
"""

from functools import partial

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
    prefix_BT: jax.Array | None = None,
) -> jax.Array:
    """All T x T scores, masked to earlier positions of the same document, and among positions of
    the prefix to any of it.
    """
    H, J, T = q_BTHK.shape[2], k_BTJK.shape[2], q_BTHK.shape[1]
    k_BTHK, v_BTHK = (jnp.repeat(x, H // J, axis=2) for x in (k_BTJK, v_BTJK))
    score_BHTS = scale * jnp.einsum(
        "bthk,bshk->bhts", q_BTHK, k_BTHK, preferred_element_type=jnp.float32
    )
    seen_BTS = jnp.tril(jnp.ones((T, T), bool))[None]
    if prefix_BT is not None:
        seen_BTS = seen_BTS | (prefix_BT[:, :, None] & prefix_BT[:, None, :])
    if segments_BT is not None:
        seen_BTS = seen_BTS & (segments_BT[:, :, None] == segments_BT[:, None, :])
    seen_BTS = _with_ahead(seen_BTS, k_BTJK.shape[1] - T)
    weight_BHTS = jax.nn.softmax(jnp.where(seen_BTS[:, None], score_BHTS, MASKED), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weight_BHTS.astype(v_BTHK.dtype), v_BTHK)


def attend_cache(
    q_BTHK: jax.Array,
    k_BSJK: jax.Array,
    v_BSJK: jax.Array,
    seen_BTS: jax.Array,
    *,
    scale: float,
    ahead: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """T queries on S remembered keys, each query on those that `seen_BTS` names; a query sees at
    least one. `ahead` are a prefix's keys and values (B, S', J, K), seen by all.
    """
    B, T, H, K = q_BTHK.shape
    J = k_BSJK.shape[2]
    q_BTJGK = q_BTHK.reshape(B, T, J, H // J, K)
    score_BJGTS = scale * _product("btjgk,bsjk->bjgts", q_BTJGK, k_BSJK)
    score_BJGTS = jnp.where(seen_BTS[:, None, None], score_BJGTS, MASKED)
    parts = [(score_BJGTS, v_BSJK)]
    if ahead is not None:  # the scores are joined, not the keys: those would copy all that is held
        parts = [(scale * _product("btjgk,bsjk->bjgts", q_BTJGK, ahead[0]), ahead[1]), *parts]
    weight_BJGTS = jax.nn.softmax(jnp.concatenate([score for score, _ in parts], axis=-1), axis=-1)
    edges = [part.shape[-1] for part, _ in parts]
    y = [
        _product("bjgts,bsjk->btjgk", weight.astype(v.dtype), v)
        for weight, (_, v) in zip(jax.lax.split(weight_BJGTS, edges, axis=4), parts, strict=True)
    ]
    y_BTJGK = sum(y[1:], y[0])
    return y_BTJGK.reshape(B, T, H, K).astype(q_BTHK.dtype)


def attention(
    q_BTHK: jax.Array,
    k_BTJK: jax.Array,
    v_BTJK: jax.Array,
    segments_BT: jax.Array | None,
    *,
    scale: float,
    blocks: int,
    prefix_BT: jax.Array | None = None,
) -> jax.Array:
    """The same in static blocks of queries that skip the scores above the diagonal block.

    Work falls from T^2 to T^2 (blocks + 1) / (2 blocks). With a prefix nothing can be skipped.
    """
    B, T, H, K = q_BTHK.shape
    J = k_BTJK.shape[2]
    # heads before positions once, here: the products then need no copies of the scores
    q_BJGTK = (q_BTHK * jnp.asarray(scale, q_BTHK.dtype)).reshape(B, T, J, H // J, K)
    y_BJGTK = _differentiable(
        blocks,
        q_BJGTK.transpose(0, 2, 3, 1, 4),
        k_BTJK.swapaxes(1, 2),
        v_BTJK.swapaxes(1, 2),
        segments_BT,
        prefix_BT,
    )
    return y_BJGTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def _heads_first(
    blocks: int,
    q_BJGTK: jax.Array,
    k_BJSK: jax.Array,
    v_BJSK: jax.Array,
    segments_BT: jax.Array | None,
    prefix_BT: jax.Array | None,
) -> jax.Array:
    return _forward(blocks, q_BJGTK, k_BJSK, v_BJSK, segments_BT, prefix_BT)[0]


def _forward(blocks, q_BJGTK, k_BJSK, v_BJSK, segments_BT, prefix_BT):
    B, J, G, T, K = q_BJGTK.shape
    ahead = k_BJSK.shape[2] - T
    out, kept = [], []
    for low, high in _edges(T, blocks):
        last = high if prefix_BT is None else T
        k, v = k_BJSK[:, :, : ahead + last], v_BJSK[:, :, : ahead + last]
        score_BJRS = _product("bjrk,bjsk->bjrs", _rows(q_BJGTK, low, high), k)
        seen_BTS = (jnp.arange(low, high)[:, None] >= jnp.arange(last)[None])[None]
        if prefix_BT is not None:
            seen_BTS = seen_BTS | (prefix_BT[:, low:high, None] & prefix_BT[:, None, :])
        if segments_BT is not None:
            seen_BTS = seen_BTS & (segments_BT[:, low:high, None] == segments_BT[:, None, :last])
        seen_BTS = _with_ahead(seen_BTS, ahead)
        score_BJGTS = score_BJRS.reshape(B, J, G, high - low, ahead + last)
        score_BJRS = jnp.where(seen_BTS[:, None, None], score_BJGTS, MASKED).reshape(
            score_BJRS.shape
        )
        weight_BJRS = jnp.exp(score_BJRS - jnp.max(score_BJRS, axis=-1, keepdims=True))
        total_BJR1 = jnp.sum(weight_BJRS, axis=-1, keepdims=True)
        # the softmax's division on K values a row instead of `high`: one pass over scores less
        y_BJRK = _product("bjrs,bjsk->bjrk", weight_BJRS.astype(v.dtype), v) / total_BJR1
        out.append(y_BJRK.astype(v.dtype).reshape(B, J, G, high - low, K))
        kept.append((weight_BJRS, total_BJR1))
    y_BJGTK = jnp.concatenate(out, axis=3)
    return y_BJGTK, (q_BJGTK, k_BJSK, v_BJSK, y_BJGTK, kept)


def _backward(blocks, residuals, dy_BJGTK):
    q_BJGTK, k_BJSK, v_BJSK, y_BJGTK, kept = residuals
    T, dtype = q_BJGTK.shape[3], q_BJGTK.dtype
    dq, dk, dv = [], [], []
    for (low, high), (weight_BJRS, total_BJR1) in zip(_edges(T, blocks), kept, strict=True):
        last = weight_BJRS.shape[-1]
        k, v = k_BJSK[:, :, :last], v_BJSK[:, :, :last]
        q_BJRK, y_BJRK = _rows(q_BJGTK, low, high), _rows(y_BJGTK, low, high)
        dy_BJRK = _rows(dy_BJGTK, low, high) / total_BJR1
        dweight_BJRS = _product("bjrk,bjsk->bjrs", dy_BJRK.astype(dtype), v)
        # softmax: the sum of weight x dweight over keys equals that of y x dy over channels
        shift_BJR1 = jnp.sum(dy_BJRK * y_BJRK, axis=-1, keepdims=True)
        dscore_BJRS = (weight_BJRS * (dweight_BJRS - shift_BJR1)).astype(dtype)
        dq_BJRK = _product("bjrs,bjsk->bjrk", dscore_BJRS, k)
        dq.append(dq_BJRK.reshape(q_BJGTK[:, :, :, low:high].shape).astype(dtype))
        later = ((0, 0), (0, 0), (0, 0), (0, k_BJSK.shape[2] - last))
        dk_BJKS = _product("bjrk,bjrs->bjks", q_BJRK, dscore_BJRS)
        dv_BJKS = _product("bjrk,bjrs->bjks", dy_BJRK.astype(dtype), weight_BJRS.astype(dtype))
        dk.append(jnp.pad(dk_BJKS, later))
        dv.append(jnp.pad(dv_BJKS, later))
    dk_BJSK, dv_BJSK = (sum(d[1:], d[0]).swapaxes(2, 3).astype(dtype) for d in (dk, dv))
    return jnp.concatenate(dq, axis=3), dk_BJSK, dv_BJSK, None, None


# The gradient is written out for two products: contracted over rows, they are asked for as (K, S),
# wide in S. As autodiff writes them, (S, K), they take two to three times as long on CPU.
_differentiable = jax.custom_vjp(_heads_first, nondiff_argnums=(0,))
_differentiable.defvjp(_forward, _backward)


def _with_ahead(seen_BTS: jax.Array, ahead: int) -> jax.Array:
    """Who sees whom with the keys of a prefix in front, which all see."""
    if not ahead:
        return seen_BTS
    return jnp.pad(seen_BTS, ((0, 0), (0, 0), (ahead, 0)), constant_values=True)


def _edges(T: int, blocks: int) -> list[tuple[int, int]]:
    edges = [T * i // blocks for i in range(blocks + 1)]
    return [(low, high) for low, high in zip(edges[:-1], edges[1:], strict=True) if low < high]


def _rows(x_BJGTK: jax.Array, low: int, high: int) -> jax.Array:
    """Query heads of a key-value head as rows of one product: (B, J, G * (high - low), K)."""
    B, J, G, _, K = x_BJGTK.shape
    return x_BJGTK[:, :, :, low:high].reshape(B, J, G * (high - low), K)


_product = partial(jnp.einsum, preferred_element_type=jnp.float32)
