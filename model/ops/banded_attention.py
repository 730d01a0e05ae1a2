"""What is softmax attention of queries that see a band and the first keys of their document? Blocks
of queries against their band, beside the naive twin with its T x T mask.

Work and memory of the fast form are linear in T. Decoding holds the keys that the next query can
still see: the document's first ones and the band, in the order of time.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.context import State
from model.ops.attention import MASKED, attend_cache, attention

QUERY_BLOCKS = 8  # most static blocks where the band covers everything: compile time grows in them


@dataclass(frozen=True)
class Reach:
    """A query sees its own block of positions and the `blocks` - 1 before, as far as they are
    earlier than itself, and the first `sinks` positions; all counted from its document's start.

    Blocks of one position make a sliding window of `blocks`.
    """

    blocks: int
    block: int = 1
    sinks: int = 0

    @property
    def lookback(self) -> int:
        """How far before itself the band of a query can begin."""
        return self.blocks * self.block - 1

    @property
    def held(self) -> int:
        """Keys to remember for decoding."""
        return self.sinks + self.lookback

    def sees(self, query: Any, key: Any, begin: Any) -> Any:
        """Does position `query`, of a document that begins at `begin`, see position `key`?"""
        q, k = query - begin, key - begin
        near = q // self.block - k // self.block < self.blocks
        return (k >= 0) & (k <= q) & (near | (k < self.sinks))

    def computed(self, seq_len: int, *, chunk: int) -> float:
        """Keys that each query is multiplied with in the fast form."""
        if self.lookback >= seq_len - 1:
            return seq_len
        chunk = min(chunk, seq_len)
        n, past, sinks = _layout(self, seq_len, chunk)
        return n * chunk * (sinks + past + chunk) / seq_len

    def seen(self, seq_len: int) -> float:
        """Keys that a query sees, on average over a row of one document; half of itself counts, as
        in the causal half of T x T scores.
        """
        t = np.arange(seq_len)
        low = np.maximum((t // self.block - self.blocks + 1) * self.block, 0)
        return float(np.mean(t + 0.5 - low + np.minimum(self.sinks, low)))


def naive_banded_attention(
    q_BTHK: jax.Array,
    k_BTJK: jax.Array,
    v_BTJK: jax.Array,
    segments_BT: jax.Array | None,
    *,
    reach: Reach,
    scale: float,
) -> jax.Array:
    """All T x T scores under the mask, written out."""
    t = jnp.arange(q_BTHK.shape[1])
    begin_BT = _begins(segments_BT, q_BTHK)
    seen_BTS = reach.sees(t[None, :, None], t[None, None, :], begin_BT[:, :, None])
    return attend_cache(q_BTHK, k_BTJK, v_BTJK, seen_BTS, scale=scale)


def banded_attention(
    q_BTHK: jax.Array,
    k_BTJK: jax.Array,
    v_BTJK: jax.Array,
    segments_BT: jax.Array | None,
    *,
    reach: Reach,
    scale: float,
    chunk: int,
) -> jax.Array:
    """The same in blocks of `chunk` queries, each against the keys that any of them can see."""
    T = q_BTHK.shape[1]
    if reach.lookback >= T - 1:
        blocks = min(-(-T // chunk), QUERY_BLOCKS)
        return attention(q_BTHK, k_BTJK, v_BTJK, segments_BT, scale=scale, blocks=blocks)
    chunk = min(chunk, T)
    n, past, sinks = _layout(reach, T, chunk)
    begin_BT = _begins(segments_BT, q_BTHK)
    # of the document that the band's first key is of: one that begins later has its first keys in
    # the band itself
    low_n = jnp.maximum(jnp.arange(n) * chunk - past, 0)
    sink_BnS = begin_BT[:, low_n, None] + jnp.arange(sinks)
    index_BnS = jnp.minimum(sink_BnS, T - 1)
    ahead = ((0, 0), (past, 0), (0, 0), (0, 0))
    return _attend(
        q_BTHK,
        jnp.pad(k_BTJK, ahead),
        jnp.pad(v_BTJK, ahead),
        sinks=(_taken(k_BTJK, index_BnS), _taken(v_BTJK, index_BnS), sink_BnS),
        begin_BT=begin_BT,
        first=0,
        reach=reach,
        scale=scale,
        chunk=chunk,
    )


def start_band(rows: int, kv_heads: int, width: int, *, reach: Reach, dtype: Any) -> State:
    """What decoding remembers of no position: `sinks` first keys, then the band's, oldest first."""
    shape = (rows, reach.held, kv_heads, width)
    return {"k_BSJK": jnp.zeros(shape, dtype), "v_BSJK": jnp.zeros(shape, dtype)}


def extend_band(
    q_BTHK: jax.Array,
    k_BTJK: jax.Array,
    v_BTJK: jax.Array,
    state: State,
    *,
    first: jax.Array,
    reach: Reach,
    scale: float,
    chunk: int,
) -> tuple[jax.Array, State]:
    """T queries at positions `first` and on, after what `state` holds; and the state after them."""
    T, sinks = q_BTHK.shape[1], reach.sinks
    sink_S = jnp.arange(sinks)
    new_S = jnp.clip(sink_S - first, 0, T - 1)
    is_new_S11 = ((sink_S >= first) & (sink_S < first + T))[:, None, None]

    def joined(held_BSJK, new_BTJK):
        new_BTJK = new_BTJK.astype(held_BSJK.dtype)
        sink_BSJK = jnp.where(is_new_S11, new_BTJK[:, new_S], held_BSJK[:, :sinks])
        return sink_BSJK, jnp.concatenate([held_BSJK[:, sinks:], new_BTJK], axis=1)

    (sink_k, k_BSJK), (sink_v, v_BSJK) = (
        joined(state["k_BSJK"], k_BTJK),
        joined(state["v_BSJK"], v_BTJK),
    )
    y_BTHK = _attend(
        q_BTHK,
        k_BSJK,
        v_BSJK,
        sinks=(sink_k[:, None], sink_v[:, None], sink_S[None, None]),
        begin_BT=jnp.zeros((1, T), jnp.int32),
        first=first,
        reach=reach,
        scale=scale,
        chunk=min(chunk, T),
    )
    return y_BTHK, {
        "k_BSJK": jnp.concatenate([sink_k, k_BSJK[:, T:]], axis=1),
        "v_BSJK": jnp.concatenate([sink_v, v_BSJK[:, T:]], axis=1),
    }


def _layout(reach: Reach, T: int, chunk: int) -> tuple[int, int, int]:
    """Blocks of queries, keys before each block, and sinks beside those (none where every band
    begins at the row's start).
    """
    n = -(-T // chunk)
    past = min(reach.lookback, (n - 1) * chunk)
    return n, past, reach.sinks if past < (n - 1) * chunk else 0


def _begins(segments_BT: jax.Array | None, q_BTHK: jax.Array) -> jax.Array:
    """Where each position's document begins: (B, T), or (1, T) where rows are one document."""
    T = q_BTHK.shape[1]
    if segments_BT is None:
        return jnp.zeros((1, T), jnp.int32)
    changed_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)))
    return jax.lax.cummax(jnp.where(changed_BT, jnp.arange(T), 0), axis=1)


def _taken(x_BTJK: jax.Array, index_BnS: jax.Array) -> jax.Array:
    """Keys at positions that differ between rows and blocks; (B, n, S, J, K)."""
    B, n, S = x_BTJK.shape[0], *index_BnS.shape[1:]
    index_BS = jnp.broadcast_to(index_BnS, (B, n, S)).reshape(B, n * S)
    taken = jnp.take_along_axis(x_BTJK, index_BS[:, :, None, None], axis=1)
    return taken.reshape(B, n, S, *x_BTJK.shape[2:])


def _bands(x_BSJK: jax.Array, *, chunk: int, past: int, n: int) -> jax.Array:
    """(B, n, past + chunk, J, K): for each block of positions, `past` before it and itself.

    As shifted copies, not as a gather: its gradient is then a sum of shifts, no scatter.
    """
    B, _, J, K = x_BSJK.shape
    m = -(-past // chunk)
    x_BSJK = jnp.pad(x_BSJK, ((0, 0), (m * chunk - past, 0), (0, 0), (0, 0)))
    blocks = x_BSJK.reshape(B, m + n, chunk, J, K)
    bands = jnp.concatenate([blocks[:, j : j + n] for j in range(m + 1)], axis=2)
    return bands[:, :, m * chunk - past :]


def _attend(
    q_BTHK: jax.Array,
    k_BSJK: jax.Array,
    v_BSJK: jax.Array,
    *,
    sinks: tuple[jax.Array, jax.Array, jax.Array],
    begin_BT: jax.Array,
    first: jax.Array | int,
    reach: Reach,
    scale: float,
    chunk: int,
) -> jax.Array:
    """Queries at `first` and on; the keys end where they do. `sinks`: keys, values (B, n or 1, S,
    J, K) and their positions.
    """
    B, T, H, K = q_BTHK.shape
    J, past = k_BSJK.shape[2], k_BSJK.shape[1] - T
    n = -(-T // chunk)
    rest = n * chunk - T
    q_BTHK, k_BSJK, v_BSJK = (
        jnp.pad(x, ((0, 0), (0, rest), (0, 0), (0, 0))) for x in (q_BTHK, k_BSJK, v_BSJK)
    )
    begin_BnC1 = jnp.pad(begin_BT, ((0, 0), (0, rest))).reshape(-1, n, chunk, 1)
    query_nC1 = first + jnp.arange(n * chunk).reshape(n, chunk, 1)
    key_n1S = query_nC1[:, :1] - past + jnp.arange(past + chunk)
    sink_k, sink_v, sink_BnS = sinks
    sink_Bn1S = sink_BnS[:, :, None]
    near_BnCS = reach.sees(query_nC1, key_n1S, begin_BnC1)
    # a sink inside the band is counted there
    far_BnCS = reach.sees(query_nC1, sink_Bn1S, begin_BnC1) & (sink_Bn1S < key_n1S[:, :, :1])
    rows = max(near_BnCS.shape[0], far_BnCS.shape[0])
    seen_BnCS = jnp.concatenate(
        [jnp.broadcast_to(s, (rows, *s.shape[1:])) for s in (far_BnCS, near_BnCS)], axis=-1
    )

    def keys(sink, x_BSJK):
        sink = jnp.broadcast_to(sink, (B, n, *sink.shape[2:]))
        return jnp.concatenate([sink, _bands(x_BSJK, chunk=chunk, past=past, n=n)], axis=2)

    k_BnSJK, v_BnSJK = keys(sink_k, k_BSJK), keys(sink_v, v_BSJK)
    q_BnCJGK = q_BTHK.reshape(B, n, chunk, J, H // J, K)
    score = scale * jnp.einsum(
        "bncjgk,bnsjk->bnjgcs", q_BnCJGK, k_BnSJK, preferred_element_type=jnp.float32
    )
    weight = jax.nn.softmax(jnp.where(seen_BnCS[:, :, None, None], score, MASKED), axis=-1)
    y_BnCJGK = jnp.einsum(
        "bnjgcs,bnsjk->bncjgk",
        weight.astype(v_BnSJK.dtype),
        v_BnSJK,
        preferred_element_type=jnp.float32,
    )
    return y_BnCJGK.astype(q_BTHK.dtype).reshape(B, n * chunk, H, K)[:, :T]
