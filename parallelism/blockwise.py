"""What does a block of queries get from a block of keys, and how are such parts joined?

Softmax attention cut into blocks of a laid-out sequence. A part is what a block of queries gets
from some keys alone: `y` and the logarithm `lse` of the softmax's denominator. Parts join exactly;
the backward pass needs `lse` of all keys and nothing else of the other parts. Scores, sums and
gradients that are summed are float32 or wider.

Heads come first: q (B, J, G, T, K), G query heads to each key-value head; k, v (B, J, S, K).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MASKED = -1e30  # finite: -inf - (-inf) is NaN

Marks = Mapping[str, jax.Array]  # (B, whole T) integers or booleans of every place, by name
Part = tuple[jax.Array, jax.Array]  # y (B, J, G, T, K), lse (B, J, G, T)
Pair = tuple[jax.Array, jax.Array]  # keys and values (B, J, S, K)
Grads = tuple[jax.Array, jax.Array, jax.Array]  # of queries, keys, values


def wide(dtype: Any) -> Any:
    return jnp.promote_types(jnp.float32, dtype)


def attend(
    q_BJGTK: jax.Array,
    k_BJSK: jax.Array,
    v_BJSK: jax.Array,
    seen_BTS: jax.Array | None,
    *,
    scale: float,
) -> Part:
    """The part of these keys; 0 and MASKED for a query that sees none of them."""
    score_BJGTS = scale * product("bjgtk,bjsk->bjgts", q_BJGTK, k_BJSK)
    peak_BJGT1 = jnp.max(where(seen_BTS, score_BJGTS, MASKED), axis=-1, keepdims=True)
    weight_BJGTS = where(seen_BTS, jnp.exp(jnp.minimum(score_BJGTS - peak_BJGT1, 0.0)), 0.0)
    total_BJGT1 = jnp.sum(weight_BJGTS, axis=-1, keepdims=True)
    some_BJGT1 = total_BJGT1 > 0
    total_BJGT1 = jnp.where(some_BJGT1, total_BJGT1, 1.0)
    y_BJGTK = product("bjgts,bjsk->bjgtk", weight_BJGTS.astype(v_BJSK.dtype), v_BJSK)
    lse_BJGT1 = jnp.where(some_BJGT1, peak_BJGT1 + jnp.log(total_BJGT1), MASKED)
    return y_BJGTK / total_BJGT1, lse_BJGT1[..., 0]


def join(a: Part, b: Part) -> Part:
    """The part of both sets of keys. No exponential of a positive number, so no overflow."""
    (y_BJGTK, lse_BJGT), (other_BJGTK, more_BJGT) = a, b
    share_BJGT1 = jax.nn.sigmoid(more_BJGT - lse_BJGT)[..., None]
    return (
        y_BJGTK - share_BJGT1 * (y_BJGTK - other_BJGTK),
        jnp.logaddexp(lse_BJGT, more_BJGT),
    )


def nothing(q_BJGTK: jax.Array) -> Part:
    """The part of no keys."""
    kind = wide(q_BJGTK.dtype)
    return jnp.zeros(q_BJGTK.shape, kind), jnp.full(q_BJGTK.shape[:-1], MASKED, kind)


def attend_backward(
    q_BJGTK: jax.Array,
    k_BJSK: jax.Array,
    v_BJSK: jax.Array,
    seen_BTS: jax.Array | None,
    *,
    scale: float,
    lse: jax.Array,
    dy: jax.Array,
    dlse: jax.Array,
) -> Grads:
    """Gradients through these keys, where `lse` is of all keys and `dlse` the sum of y x dy;
    `dy` (B, J, G, T, K), `lse` and `dlse` (B, J, G, T).
    """
    dtype = q_BJGTK.dtype
    score_BJGTS = scale * product("bjgtk,bjsk->bjgts", q_BJGTK, k_BJSK)
    # a score that is not seen may lie above lse: it must not overflow before it is dropped
    weight_BJGTS = where(seen_BTS, jnp.exp(jnp.minimum(score_BJGTS - lse[..., None], 0.0)), 0.0)
    dweight_BJGTS = product("bjgtk,bjsk->bjgts", dy, v_BJSK)
    dscore_BJGTS = (scale * weight_BJGTS * (dweight_BJGTS - dlse[..., None])).astype(dtype)
    return (
        product("bjgts,bjsk->bjgtk", dscore_BJGTS, k_BJSK),
        product("bjgts,bjgtk->bjsk", dscore_BJGTS, q_BJGTK),
        product("bjgts,bjgtk->bjsk", weight_BJGTS.astype(dtype), dy),
    )


def contiguous(block: Any, index: Any, *, blocks: int, length: int) -> Any:
    """The position that place `index` of a block of `length` holds, where blocks are runs."""
    return block * length + index


@dataclass(frozen=True)
class Sight:
    """Who sees whom, by block of a laid-out sequence: `blocks` blocks of `length` places, of which
    `place` tells the positions; each in two halves that are skipped by themselves.

    With `sinks_apart` the first positions of documents are left to someone else wherever they are
    not in a block that is visited for its band.
    """

    blocks: int
    length: int
    scale: float
    place: Callable[..., Any] = contiguous
    band: Any | None = None  # a parallelism.sequence.Band
    causal: bool = True
    sinks_apart: bool = False

    @property
    def halves(self) -> list[tuple[int, int]]:
        middle = -(-self.length // 2)
        return [(a, b) for a, b in ((0, middle), (middle, self.length)) if a < b]

    def positions(self, block: Any, index: Any) -> Any:
        return self.place(block, index, blocks=self.blocks, length=self.length)

    @property
    def order(self) -> np.ndarray:
        """The position of every place, (blocks x length,)."""
        block, index = np.arange(self.blocks)[:, None], np.arange(self.length)
        return np.asarray(self.positions(block, index)).reshape(-1)

    def seen(self, marks: Marks, query: Any, q: tuple[int, int], key: Any, k: tuple[int, int]):
        """(B or 1, T, S): places `q` of block `query` against places `k` of block `key`."""
        query_T = self.positions(query, jnp.arange(*q))
        key_S = self.positions(key, jnp.arange(*k))

        def pair(name: str) -> tuple[jax.Array, jax.Array]:
            mark = marks[name].reshape(marks[name].shape[0], self.blocks, self.length)
            return mark[:, query, q[0] : q[1], None], mark[:, key, None, k[0] : k[1]]

        if self.band is not None:
            begin = pair("begin")[0] if "begin" in marks else jnp.zeros((1, 1, 1), jnp.int32)
            return self.band.sees(query_T[None, :, None], key_S[None, None], begin)
        seen_BTS = (query_T[:, None] >= key_S)[None]
        if "prefix" in marks:
            ours, theirs = pair("prefix")
            seen_BTS = seen_BTS | (ours & theirs)
        if "segments" in marks:
            ours, theirs = pair("segments")
            seen_BTS = seen_BTS & (ours == theirs)
        return seen_BTS

    def marks(self, segments_BT: jax.Array | None, prefix_BT: jax.Array | None) -> dict[str, Any]:
        """What `seen` reads of every place of the sequence."""
        found: dict[str, Any] = {"segments": segments_BT, "prefix": prefix_BT}
        if self.band is not None:
            found = {"begin": None if segments_BT is None else self._begins(segments_BT)}
        return {name: mark for name, mark in found.items() if mark is not None}

    def _begins(self, segments_BT: jax.Array) -> jax.Array:
        """Where the document of every place begins in the text, whatever the layout."""
        order = self.order
        text_BT = segments_BT[:, np.argsort(order)]
        new_BT = jnp.pad(text_BT[:, 1:] != text_BT[:, :-1], ((0, 0), (1, 0)))
        begin_BT = jax.lax.cummax(jnp.where(new_BT, jnp.arange(len(order)), 0), axis=1)
        return begin_BT[:, order]

    def visit(
        self, part: Part, q: jax.Array, held: Pair, marks: Marks, query: Any, key: Any
    ) -> Part:
        """`part` of a block of queries, joined with that of a block of keys; halves of which none
        is seen are not computed.
        """
        (y, lse), (k, v) = part, held
        out = []
        for i, (low, high) in enumerate(self.halves):
            mine = (y[..., low:high, :], lse[..., low:high])
            for j, (first, last) in enumerate(self.halves):

                def more(mine: Part, low=low, high=high, first=first, last=last) -> Part:
                    seen = self.seen(marks, query, (low, high), key, (first, last))
                    new = attend(
                        q[..., low:high, :],
                        k[..., first:last, :],
                        v[..., first:last, :],
                        seen,
                        scale=self.scale,
                    )
                    return join(mine, new)

                mine = self._if_any(query, i, key, j, more, mine)
            out.append(mine)
        return (
            jnp.concatenate([y for y, _ in out], axis=-2),
            jnp.concatenate([lse for _, lse in out], axis=-1),
        )

    def visit_backward(
        self,
        q: jax.Array,
        held: Pair,
        marks: Marks,
        query: Any,
        key: Any,
        *,
        lse: jax.Array,
        dy: jax.Array,
        dlse: jax.Array,
    ) -> Grads:
        """Gradients, float32 or wider, of a block of queries through a block of keys."""
        k, v = held
        kind = wide(q.dtype)
        grads = tuple(jnp.zeros(x.shape, kind) for x in (q, k, v))
        for i, (low, high) in enumerate(self.halves):
            for j, (first, last) in enumerate(self.halves):

                def more(grads: Grads, low=low, high=high, first=first, last=last) -> Grads:
                    seen = self.seen(marks, query, (low, high), key, (first, last))
                    found = attend_backward(
                        q[..., low:high, :],
                        k[..., first:last, :],
                        v[..., first:last, :],
                        seen,
                        scale=self.scale,
                        lse=lse[..., low:high],
                        dy=dy[..., low:high, :],
                        dlse=dlse[..., low:high],
                    )
                    ends = ((low, high), (first, last), (first, last))
                    return tuple(
                        g.at[..., a:b, :].add(x)
                        for g, x, (a, b) in zip(grads, found, ends, strict=True)
                    )  # pyright: ignore[reportReturnType]

                grads = self._if_any(query, i, key, j, more, grads)
        return grads  # pyright: ignore[reportReturnType]

    def visit_all(self, part: Part, q: jax.Array, held: Pair, marks: Marks, query: Any) -> Part:
        """`part` joined with that of every block of keys, which are all here: (B, J, T, K)."""

        def step(part: Part, one: Any):
            key, held = one
            return self.visit(part, q, held, marks, query, key), None

        return jax.lax.scan(step, part, (jnp.arange(self.blocks), self.by_block(held)))[0]

    def visit_all_backward(
        self, q: jax.Array, held: Pair, marks: Marks, query: Any, **every: jax.Array
    ) -> Grads:
        """Gradients of a block of queries, and of all keys by block: (block, B, J, S, K)."""

        def step(dq: jax.Array, one: Any):
            key, held = one
            found = self.visit_backward(q, held, marks, query, key, **every)
            return dq + found[0], found[1:]

        zero = jnp.zeros(q.shape, wide(q.dtype))
        dq, (dk, dv) = jax.lax.scan(step, zero, (jnp.arange(self.blocks), self.by_block(held)))
        return dq, dk, dv

    def by_block(self, arrays: Any) -> Any:
        """(..., T, K) -> (block, ..., T of a block, K)."""

        def one(x: jax.Array) -> jax.Array:
            x = x.reshape(*x.shape[:-2], self.blocks, self.length, x.shape[-1])
            return jnp.moveaxis(x, -3, 0)

        return jax.tree.map(one, arrays)

    def whole(self, x: jax.Array) -> jax.Array:
        """(block, ..., T of a block, K) -> (..., T, K)."""
        x = jnp.moveaxis(x, 0, -3)
        return x.reshape(*x.shape[:-3], -1, x.shape[-1])

    def _if_any(self, query: Any, i: int, key: Any, j: int, more: Any, held: Any) -> Any:
        """`more(held)` where any query of the half sees any key of the other, `held` elsewhere."""
        if query is key:  # a block against itself: the same halves on every device
            own = some(self)[np.arange(self.blocks), i, np.arange(self.blocks), j]
            if own.all() or not own.any():
                return more(held) if own.all() else held
        table = some(self)[:, i, :, j]
        if table.all() or not table.any():
            return more(held) if table.all() else held
        return jax.lax.cond(jnp.asarray(table)[query, key], more, lambda held: held, held)


@lru_cache(maxsize=256)
def some(sight: Sight) -> np.ndarray:
    """Whether any query of a half sees any key of another, documents aside: (block, half) of
    queries by (block, half) of keys.
    """
    blocks, halves = sight.blocks, sight.halves
    order = sight.order.reshape(blocks, sight.length)
    sets = [np.sort(order[i, a:b]) for i in range(blocks) for a, b in halves]
    found = np.ones((len(sets), len(sets)), bool)
    if sight.causal:
        found = np.array([[q[-1] >= k[0] for k in sets] for q in sets])
    shape = (blocks, len(halves), blocks, len(halves))
    band = sight.band
    if band is not None and (sight.sinks_apart or not band.sinks):
        near = np.array([[_near(q, k, band.lookback) for k in sets] for q in sets]).reshape(shape)
        if sight.sinks_apart:  # a block that is visited at all may hold first positions
            near = near.any(axis=(1, 3), keepdims=True)
        return found.reshape(shape) & near
    return found.reshape(shape)


def _near(queries: np.ndarray, keys: np.ndarray, lookback: int) -> bool:
    """Whether a band reaches from any query back to any key; both in order."""
    before = np.searchsorted(keys, queries, side="right")  # keys no later than each query
    near = queries - keys[np.maximum(before - 1, 0)] <= lookback
    return bool(np.any(near & (before > 0)))


def heads_first(q_BTHK: jax.Array, k_BTJK: jax.Array, v_BTJK: jax.Array) -> Grads:
    B, T, H, K = q_BTHK.shape
    J = k_BTJK.shape[2]
    q_BTJGK = q_BTHK.reshape(B, T, J, H // J, K)
    return q_BTJGK.transpose(0, 2, 3, 1, 4), k_BTJK.swapaxes(1, 2), v_BTJK.swapaxes(1, 2)


def queries_back(y_BJGTK: jax.Array, dtype: Any) -> jax.Array:
    B, J, G, T, K = y_BJGTK.shape
    return y_BJGTK.transpose(0, 3, 1, 2, 4).reshape(B, T, J * G, K).astype(dtype)


def keys_back(k_BJSK: jax.Array, dtype: Any) -> jax.Array:
    return k_BJSK.swapaxes(1, 2).astype(dtype)


def where(seen_BTS: jax.Array | None, x_BJGTS: jax.Array, other: float) -> jax.Array:
    return x_BJGTS if seen_BTS is None else jnp.where(seen_BTS[:, None, None], x_BJGTS, other)


def product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    kind = wide(jnp.promote_types(a.dtype, b.dtype))
    return jnp.einsum(formula, a, b, preferred_element_type=kind)
