"""How do tokens reach their experts and come back? SwiGLU experts, each token through K of them.

Tokens are sorted by expert into a buffer of slots. Dropless: each expert's tokens fill whole blocks
of slots, whose number is fixed by the sizes, and one batched product runs over the blocks (three
times faster on CPU than `ragged_dot`), or the slots have no padding and `ragged_dot` runs over
them. With a capacity each expert has as many slots, and what comes after they are full is dropped.

Here T counts the tokens of all rows, S slots, G blocks of them. Tokens and slots are each other's
inverse, so that both directions of both passes are gathers: XLA's scatter on CPU is serial.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

ROUNDS = 2  # an even share of tokens is gone through in as many (guess: skips most of the rest)


@dataclass(frozen=True)
class Weights:
    gate_EDF: jax.Array
    up_EDF: jax.Array
    out_EFD: jax.Array

    @property
    def n_experts(self) -> int:
        return self.gate_EDF.shape[0]


@dataclass(frozen=True)
class Layout:
    """`slot_TK` of each choice (the number of slots: it has none), `pair_S` the choice t K + k in
    each slot (the number of choices: it is empty).
    """

    slot_TK: jax.Array
    pair_S: jax.Array


def every_expert(
    x_TD: jax.Array, experts_TK: jax.Array, weights_TK: jax.Array, experts: Weights
) -> jax.Array:
    """Every expert on every token, summed with the weights of the chosen: the definition."""
    hit_TKE = jax.nn.one_hot(experts_TK, experts.n_experts, dtype=_wide(x_TD))
    weight_TE = jnp.einsum("tke,tk->te", hit_TKE, weights_TK)
    gate_ETF = jnp.einsum("td,edf->etf", x_TD, experts.gate_EDF.astype(x_TD.dtype))
    up_ETF = jnp.einsum("td,edf->etf", x_TD, experts.up_EDF.astype(x_TD.dtype))
    y_ETD = jnp.einsum(
        "etf,efd->etd", jax.nn.silu(gate_ETF) * up_ETF, experts.out_EFD.astype(x_TD.dtype)
    )
    y_TD = jnp.einsum("etd,te->td", y_ETD, weight_TE, preferred_element_type=_wide(y_ETD))
    return y_TD.astype(x_TD.dtype)


def padded(
    x_TD: jax.Array,
    experts_TK: jax.Array,
    weights_TK: jax.Array,
    experts: Weights,
    *,
    block: int | None = None,
    shares: int = 1,
) -> jax.Array:
    """Dropless: batched products over blocks of slots that belong to one expert each.

    `experts` may be one of several `shares` of them: a choice of their number or more is of another
    share's and adds nothing here. There must be slots for all tokens, so the blocks are gone
    through in rounds, of half an even share, and rounds in which no token is are skipped.
    """
    E, rounds = experts.n_experts, ROUNDS * shares if shares > 1 else 1
    block = block or default_block(experts_TK.size, n_experts=E * shares)
    layout, expert_G, used = blocks(experts_TK, n_experts=E, block=block, rounds=rounds)
    x_GSD = _dispatch(x_TD, layout).reshape(len(expert_G), block, -1)

    def products(x_GSD: jax.Array, expert_G: jax.Array) -> jax.Array:
        def of_block(w_EXY: jax.Array) -> jax.Array:
            # cast after the gather, so that the sum over an expert's blocks of its gradient is
            # float32
            return w_EXY[expert_G].astype(x_GSD.dtype)

        h_GSF = jax.nn.silu(_product(x_GSD, of_block(experts.gate_EDF)))
        h_GSF = h_GSF * _product(x_GSD, of_block(experts.up_EDF))
        return _product(h_GSF, of_block(experts.out_EFD))

    @jax.checkpoint  # else what is kept for the backward pass is of all rounds
    def round_(_: None, part: tuple[jax.Array, jax.Array, jax.Array]):
        x_GSD, expert_G, any_token = part
        y_GSD = jax.lax.cond(any_token, products, lambda x_GSD, _: 0 * x_GSD, x_GSD, expert_G)
        return None, y_GSD

    if rounds == 1:
        y_GSD = products(x_GSD, expert_G)
    else:
        n = len(expert_G) // rounds
        parts = (x_GSD, expert_G, jnp.arange(len(expert_G)) < used)
        x_RGSD, expert_RG, used_RG = (a.reshape(rounds, n, *a.shape[1:]) for a in parts)
        _, y_GSD = jax.lax.scan(round_, None, (x_RGSD, expert_RG, used_RG[:, 0]))
    return _combine(y_GSD.reshape(-1, x_TD.shape[1]), weights_TK, layout)


def ragged(
    x_TD: jax.Array, experts_TK: jax.Array, weights_TK: jax.Array, experts: Weights
) -> jax.Array:
    """Dropless: no padding; the compiler's own product over groups of rows."""
    order_S, begin_E, counts_E = _sorted(experts_TK, n_experts=experts.n_experts)
    slot_TK = _inverse(order_S).reshape(experts_TK.shape)
    # of choices of experts that are not here, which lie behind all others
    layout = Layout(
        slot_TK=jnp.where(experts_TK < experts.n_experts, slot_TK, order_S.size),
        pair_S=jnp.where(jnp.arange(order_S.size) < jnp.sum(counts_E), order_S, order_S.size),
    )
    x_SD = _dispatch(x_TD, layout)

    def product(x_SX: jax.Array, w_EXY: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(x_SX, w_EXY.astype(x_SX.dtype), counts_E)

    h_SF = jax.nn.silu(product(x_SD, experts.gate_EDF)) * product(x_SD, experts.up_EDF)
    return _combine(product(h_SF, experts.out_EFD), weights_TK, layout)


def limited(
    x_TD: jax.Array,
    experts_TK: jax.Array,
    weights_TK: jax.Array,
    experts: Weights,
    *,
    capacity: int,
) -> tuple[jax.Array, jax.Array]:
    """Each expert takes its first `capacity` choices in the order of tokens; the others add
    nothing. Also the number of those dropped.
    """
    E, D = experts.n_experts, x_TD.shape[1]
    order_S, begin_E, counts_E = _sorted(experts_TK, n_experts=E)
    rank_TK = (_inverse(order_S) - begin_E[experts_TK.reshape(-1)]).reshape(experts_TK.shape)
    slot_TK = jnp.where(rank_TK < capacity, experts_TK * capacity + rank_TK, E * capacity)
    pair_S = _filled(order_S, begin_E, counts_E, jnp.arange(E), rows=capacity, offset_G=None)
    layout = Layout(slot_TK=slot_TK, pair_S=pair_S)
    x_ESD = _dispatch(x_TD, layout).reshape(E, capacity, D)
    h_ESF = jax.nn.silu(_product(x_ESD, experts.gate_EDF.astype(x_TD.dtype)))
    h_ESF = h_ESF * _product(x_ESD, experts.up_EDF.astype(x_TD.dtype))
    y_ESD = _product(h_ESF, experts.out_EFD.astype(x_TD.dtype))
    dropped = jnp.sum(jnp.maximum(counts_E - capacity, 0))
    return _combine(y_ESD.reshape(-1, D), weights_TK, layout), dropped


def within_capacity(experts_TK: jax.Array, *, n_experts: int, capacity: int) -> jax.Array:
    """Which choices `limited` keeps, by counting those of the same expert that came before."""
    hit_PE = jax.nn.one_hot(experts_TK.reshape(-1), n_experts, dtype=jnp.int32)
    before_P = jnp.sum((jnp.cumsum(hit_PE, axis=0) - hit_PE) * hit_PE, axis=1)
    return (before_P < capacity).reshape(experts_TK.shape)


def slots_per_expert(factor: float, *, tokens: int, chosen: int, n_experts: int) -> int:
    """`factor` times an even share, rounded up; a token goes to an expert at most once."""
    return min(tokens, math.ceil(Fraction(str(factor)) * tokens * chosen / n_experts))


def default_block(choices: int, *, n_experts: int) -> int:
    """A power of two near a quarter of an even share, from 1 to 128.

    On average half a block of an expert is padding; each block holds a copy of an expert.
    """
    return 2 ** min(7, max(0, round(math.log2(max(1.0, choices / n_experts / 4)))))


def n_blocks(choices: int, *, n_experts: int, block: int) -> int:
    """The most that can be needed, however the choices fall."""
    used = min(choices, n_experts)
    return used + (choices - used) // block


def blocks(
    experts_TK: jax.Array, *, n_experts: int, block: int, rounds: int = 1
) -> tuple[Layout, jax.Array, jax.Array]:
    """Slots in blocks of one expert each, a whole number of blocks a round; the expert of each
    block; how many are in use, which come first. A choice of `n_experts` or more has no slot.
    """
    # a token goes to an expert at most once
    most = experts_TK.shape[0] * min(experts_TK.shape[1], n_experts)
    G = -(-n_blocks(most, n_experts=n_experts, block=block) // rounds) * rounds
    order_S, begin_E, counts_E = _sorted(experts_TK, n_experts=n_experts)
    end_E = jnp.cumsum(-(-counts_E // block))
    first_E = end_E - (-(-counts_E // block))
    expert_G = jnp.searchsorted(end_E, jnp.arange(G), side="right", method="compare_all")
    expert_G = jnp.minimum(expert_G, n_experts - 1)  # blocks left over: empty
    offset_G = (jnp.arange(G) - first_E[expert_G]) * block
    expert_P = experts_TK.reshape(-1)
    slot_P = first_E[expert_P] * block + _inverse(order_S) - begin_E[expert_P]
    slot_P = jnp.where(expert_P < n_experts, slot_P, G * block)
    pair_S = _filled(order_S, begin_E, counts_E, expert_G, rows=block, offset_G=offset_G)
    return Layout(slot_TK=slot_P.reshape(experts_TK.shape), pair_S=pair_S), expert_G, end_E[-1]


def _sorted(experts_TK: jax.Array, *, n_experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Choices by expert, in the order of tokens within one; where each expert begins; how many."""
    expert_P = experts_TK.reshape(-1)
    order_P = jnp.argsort(expert_P, stable=True)
    bound = jnp.searchsorted(expert_P[order_P], jnp.arange(n_experts + 1), method="compare_all")
    return order_P, bound[:-1], jnp.diff(bound)


def _inverse(order_P: jax.Array) -> jax.Array:
    return jnp.zeros_like(order_P).at[order_P].set(jnp.arange(order_P.size), unique_indices=True)


def _filled(
    order_P: jax.Array,
    begin_E: jax.Array,
    counts_E: jax.Array,
    expert_G: jax.Array,
    *,
    rows: int,
    offset_G: jax.Array | None,
) -> jax.Array:
    """The choice in each slot of blocks of `rows`, from the block's expert and its first row."""
    rank_GS = jnp.arange(rows) + (0 if offset_G is None else offset_G[:, None])
    rank_GS = jnp.broadcast_to(rank_GS, (expert_G.size, rows))
    at_GS = jnp.minimum(begin_E[expert_G][:, None] + rank_GS, order_P.size - 1)
    full_GS = (rank_GS >= 0) & (rank_GS < counts_E[expert_G][:, None])
    return jnp.where(full_GS, order_P[at_GS], order_P.size).reshape(-1)


def _wide(x: jax.Array) -> Any:
    """What is summed in: float32, or float64 where that comes in."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _product(x_GSX: jax.Array, w_GXY: jax.Array) -> jax.Array:
    return jnp.einsum("gsx,gxy->gsy", x_GSX, w_GXY)


def _dispatch(x_TD: jax.Array, layout: Layout) -> jax.Array:
    """Tokens into slots; an empty slot is zero."""
    token_S = layout.pair_S // layout.slot_TK.shape[1]
    return _gathered(x_TD, token_S, layout.slot_TK)


def _combine(y_SD: jax.Array, weights_TK: jax.Array, layout: Layout) -> jax.Array:
    """Slots back to tokens, summed with the weights; a choice without a slot is zero."""
    y_PD = _gathered(y_SD, layout.slot_TK.reshape(-1), layout.pair_S[:, None])
    y_TKD = y_PD.reshape(*weights_TK.shape, -1)
    y_TD = jnp.einsum("tkd,tk->td", y_TKD, weights_TK, preferred_element_type=_wide(y_TKD))
    return y_TD.astype(y_SD.dtype)


@jax.custom_vjp
def _gathered(x: jax.Array, index: jax.Array, back: jax.Array) -> jax.Array:
    """x[index], zero where the index is past the end; `back` (of x, n) says which results each row
    of x went to, so that the gradient is a gather too.
    """
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _gathered_forward(x: jax.Array, index: jax.Array, back: jax.Array):
    return _gathered(x, index, back), back


def _gathered_backward(back: jax.Array, g: jax.Array):
    each = jnp.take(g, back, axis=0, mode="fill", fill_value=0)
    return jnp.sum(each, axis=1, dtype=_wide(each)).astype(g.dtype), None, None


_gathered.defvjp(_gathered_forward, _gathered_backward)
