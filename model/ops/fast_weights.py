"""What does a small network read that is trained, while it reads, on the keys and values before?
Chunks in closed form, beside the naive twin that asks autodiff for every step.

f(x) = (silu(x W0) * (x W2)) W1 for each head. A chunk of positions is read with the weights before
it, then these take one step down -<f(k), v> over the chunk, and each output's incoming weights are
brought back to their first norm. Chunks are counted from the row's start. A chunk in which a
document begins steps from the initial weights on the keys of its last document alone, and the
positions of documents that begin inside it read with the initial weights: nothing passes between
documents. Weights, steps and what is read are float32 whatever the type of queries and keys.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model.ops.newton_schulz import orthogonalised

TINY = 1e-12  # beside a squared norm: its root has no slope at zero

Weights = tuple[jax.Array, jax.Array, jax.Array]  # (..., G, N, F), (..., G, F, N), (..., G, N, F)


class Read(NamedTuple):
    """What positions say to the network: rates Y are the step size of each matrix at each key; the
    mean of a chunk's gates is how much of the step before it is taken again.
    """

    q_BGTN: jax.Array
    k_BGTN: jax.Array
    v_BGTN: jax.Array
    rates_BGTY: jax.Array
    gate_BGT1: jax.Array


class Fast(NamedTuple):
    """The network between two chunks: weights, and the last step before its orthogonalisation."""

    weights: Weights
    before: Weights


class Partial(NamedTuple):
    """Fast weights inside a chunk: sums of the step that its end will take."""

    fast: Fast
    sums: Weights
    gates_BG1: jax.Array


def apply(weights: Weights, x: jax.Array) -> jax.Array:
    """f(x) for x (..., C, N)."""
    w0, w1, w2 = weights
    gated = jax.nn.silu(_dot(x, w0, x.dtype)) * _dot(x, w2, x.dtype)
    return _dot(gated, w1, x.dtype)


def step_sums(weights: Weights, k: jax.Array, v: jax.Array, rates: jax.Array) -> Weights:
    """Sum over positions of rate x gradient of <f(k), v>, for each matrix."""
    w0, w1, w2 = weights
    h, u = _dot(k, w0, k.dtype), _dot(k, w2, k.dtype)
    gate = jax.nn.sigmoid(h)
    silu = h * gate
    da = _dot(v, w1.swapaxes(-1, -2), k.dtype)
    dh, du = da * u * gate * (1 + h * (1 - gate)), da * silu

    def summed(x, y, y_rates):
        return _dot((x * y_rates).swapaxes(-1, -2), y, k.dtype)

    r0, r1, r2 = (rates[..., i : i + 1] for i in range(3))
    return summed(k, dh, r0), summed(silu * u, v, r1), summed(k, du, r2)


def norms(weights: Weights) -> Weights:
    """Of each output's incoming weights."""
    w0, w1, w2 = (jnp.sqrt(jnp.sum(w * w, axis=-2, keepdims=True) + TINY) for w in weights)
    return w0, w1, w2


def stepped(
    fast: Fast, sums: Weights, momentum_BG1: jax.Array, sizes: Weights, *, muon: bool
) -> Fast:
    """After the chunk whose `sums` these are; `sizes` are the norms to keep."""
    m = momentum_BG1[..., None]
    step = tuple(s + m * b for s, b in zip(sums, fast.before, strict=True))
    taken = tuple(orthogonalised(s) for s in step) if muon else step
    moved = tuple(w + s for w, s in zip(fast.weights, taken, strict=True))
    kept = zip(moved, sizes, norms(three(moved)), strict=True)
    return Fast(three(w * (size / norm) for w, size, norm in kept), three(step))


def begun(initial: Weights, rows: int) -> Fast:
    """Initial weights (G, ...) for each row, and no step before."""
    weights = three(jnp.broadcast_to(w, (rows, *w.shape)) for w in initial)
    return Fast(weights, three(jnp.zeros_like(w) for w in weights))


def fast_weights(
    initial: Weights,
    read: Read,
    segments_BT: jax.Array | None,
    *,
    every: int,
    muon: bool,
    unroll: bool = False,
) -> jax.Array:
    """f of every query, (B, G, T, N), with the weights that its chunk of `every` begins with."""
    B, G, T, N = read.q_BGTN.shape
    start = begun(initial, B)
    n = -(-T // every)
    if n == 1:
        return apply(start.weights, read.q_BGTN)
    rest = n * every - T

    def chunks(x_BGTX):
        x_BGTX = jnp.pad(x_BGTX, ((0, 0), (0, 0), (0, rest), (0, 0)))
        return jnp.moveaxis(x_BGTX.reshape(B, G, n, every, -1), 2, 0)

    # the last chunk is read and moves nothing
    *earlier, last = jnp.split(chunks(read.q_BGTN), [n - 1])
    keys = Read(*(chunks(x)[:-1] for x in read))
    fresh_nB, live_nBC, old_BT = _documents(segments_BT, read, n=n, every=every)
    sizes = norms(start.weights)

    def one(fast: Fast, inputs):
        chunk, fresh_B, live_BC = inputs
        y_BGCN = apply(fast.weights, chunk.q_BGTN)
        if segments_BT is not None:
            fast = _where(fresh_B, start, fast)
            rates_BGCY = jnp.where(live_BC[:, None, :, None], chunk.rates_BGTY, 0.0)
            chunk = chunk._replace(rates_BGTY=rates_BGCY)
        sums = step_sums(fast.weights, chunk.k_BGTN, chunk.v_BGTN, chunk.rates_BGTY)
        momentum_BG1 = jnp.mean(chunk.gate_BGT1, axis=2)
        return stepped(fast, sums, momentum_BG1, sizes, muon=muon), y_BGCN

    by_chunk = (keys, fresh_nB, live_nBC)
    if unroll:
        fast, out = start, []
        for i in range(n - 1):
            fast, y_BGCN = one(fast, jax.tree.map(lambda x, i=i: x[i], by_chunk))
            out.append(y_BGCN)
        y_nBGCN = jnp.stack(out)
    else:
        fast, y_nBGCN = jax.lax.scan(one, start, by_chunk)
    y_nBGCN = jnp.concatenate([y_nBGCN, apply(fast.weights, last[0])[None]])
    y_BGTN = jnp.moveaxis(y_nBGCN, 0, 2).reshape(B, G, n * every, N)[:, :, :T]
    if old_BT is None:
        return y_BGTN
    return jnp.where(old_BT[:, None, :, None], y_BGTN, apply(start.weights, read.q_BGTN))


def naive_fast_weights(
    initial: Weights, read: Read, segments_BT: jax.Array | None, *, every: int, muon: bool
) -> jax.Array:
    """The same, a chunk after another: the step is autodiff's gradient of -<f(k), v>."""
    B, _, T, _ = read.q_BGTN.shape
    segments_BT = jnp.zeros((B, T), jnp.int32) if segments_BT is None else segments_BT
    start = fast = begun(initial, B)
    sizes, out = norms(start.weights), []
    for low in range(0, T, every):
        chunk = Read(*(x[:, :, low : low + every] for x in read))
        inside_BC = segments_BT[:, low : low + every]
        before_B, last_B = segments_BT[:, max(low - 1, 0)], inside_BC[:, -1]
        old_BC, live_BC = inside_BC == before_B[:, None], inside_BC == last_B[:, None]
        y, y0 = apply(fast.weights, chunk.q_BGTN), apply(start.weights, chunk.q_BGTN)
        out.append(jnp.where(old_BC[:, None, :, None], y, y0))
        fast = _where(last_B != before_B, start, fast)

        def disagreement(w, i: int, fast=fast, chunk=chunk, live_BC=live_BC):
            weights = three((*fast.weights[:i], w, *fast.weights[i + 1 :]))
            each_BGC = jnp.sum(apply(weights, chunk.k_BGTN) * chunk.v_BGTN, axis=-1)
            rated_BGC = chunk.rates_BGTY[..., i] * each_BGC
            return -jnp.sum(jnp.where(live_BC[:, None], rated_BGC, 0.0))

        down = three(-jax.grad(disagreement)(fast.weights[i], i) for i in range(3))
        momentum_BG1 = jnp.mean(chunk.gate_BGT1, axis=2)
        fast = stepped(fast, down, momentum_BG1, sizes, muon=muon)
    return jnp.concatenate(out, axis=2)


def extend_fast_weights(
    initial: Weights, read: Read, held: Partial, *, first: jax.Array, every: int, muon: bool
) -> tuple[jax.Array, Partial]:
    """f of T queries at positions `first` and on, and what is held after them.

    Works through the chunks that the T positions can touch; each sees the slice of them that can be
    its own, and takes its step if its last position is among them.
    """
    T = read.q_BGTN.shape[2]
    length = min(every, T)
    n = 1 if T == 1 else -(-(T - 1) // every) + 1
    sizes = norms(begun(initial, read.q_BGTN.shape[0]).weights)
    y_BGTN = jnp.zeros_like(
        apply(held.fast.weights, read.q_BGTN[:, :, :1]), shape=read.q_BGTN.shape
    )

    def one(carry, j):
        (fast, sums, gates_BG1), y_BGTN = carry
        low = jnp.clip(j * every - first % every, 0, T - length)
        part = Read(*(jax.lax.dynamic_slice_in_dim(x, low, length, axis=2) for x in read))
        own_C1 = ((first + low + jnp.arange(length)) // every == first // every + j)[:, None]
        was = jax.lax.dynamic_slice_in_dim(y_BGTN, low, length, axis=2)
        y_BGCN = jnp.where(own_C1, apply(fast.weights, part.q_BGTN), was)
        y_BGTN = jax.lax.dynamic_update_slice_in_dim(y_BGTN, y_BGCN, low, axis=2)
        rates_BGCY = jnp.where(own_C1, part.rates_BGTY, 0.0)
        more = step_sums(fast.weights, part.k_BGTN, part.v_BGTN, rates_BGCY)
        sums = three(s + m for s, m in zip(sums, more, strict=True))
        gates_BG1 = gates_BG1 + jnp.sum(jnp.where(own_C1, part.gate_BGT1, 0.0), axis=2)

        def step(fast, sums, gates_BG1):
            fast = stepped(fast, sums, gates_BG1 / every, sizes, muon=muon)
            return Partial(fast, three(0.0 * s for s in sums), 0.0 * gates_BG1)

        full = (first // every + j + 1) * every <= first + T
        return (jax.lax.cond(full, step, Partial, fast, sums, gates_BG1), y_BGTN), None

    (held, y_BGTN), _ = jax.lax.scan(one, (held, y_BGTN), jnp.arange(n))
    return y_BGTN, held


def _documents(segments_BT: jax.Array | None, read: Read, *, n: int, every: int):
    """Of each chunk but the last: does it hold a document's beginning, and which positions are of
    its last document? Of each position: was its document there before its chunk?
    """
    B, _, T, _ = read.q_BGTN.shape
    if segments_BT is None:
        return jnp.zeros((n - 1, B), bool), jnp.ones((n - 1, B, every), bool), None
    ends_Bn = segments_BT[:, every - 1 : (n - 1) * every : every]
    before_Bn = jnp.concatenate([segments_BT[:, :1], ends_Bn], axis=1)
    live_BnC = segments_BT[:, : (n - 1) * every].reshape(B, n - 1, every) == ends_Bn[..., None]
    old_BT = segments_BT == jnp.repeat(before_Bn, every, axis=1)[:, :T]
    return (ends_Bn != before_Bn[:, :-1]).T, live_BnC.swapaxes(0, 1), old_BT


def _where(choose_B: jax.Array, a: Fast, b: Fast) -> Fast:
    return jax.tree.map(lambda x, y: jnp.where(choose_B[:, None, None, None], x, y), a, b)


def _dot(x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
    """Operands in `dtype`, sums and result in float32 (float64 where that is given)."""
    wide = jnp.promote_types(dtype, jnp.float32)
    return jnp.matmul(x.astype(dtype), y.astype(dtype), preferred_element_type=wide)


def three(items: Any) -> Weights:
    """One for each matrix."""
    a, b, c = items
    return a, b, c
