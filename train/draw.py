"""How is the next token drawn, and which programs draw it?

The prompt is read in one call; then tokens are drawn in one compiled loop, which the host leaves
every `STREAM` tokens to show them. Temperature, candidates and seed are data of that loop. A row's
draws depend on the seed, the row and the position alone.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.decoder import Model
from parallelism.errors import InputError

STREAM = 16  # tokens between two looks of the host: often enough to read along (guess)
COLDEST = 1e-3  # logits divided by less overflow
NEVER = -1e30  # a logit that no draw reaches; -inf would turn a row of them into NaN


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How tokens are drawn: temperature 0 takes the likeliest; None narrows nothing.

    In this order: temperature, the `top_k` likeliest, then of those the fewest whose probabilities
    add up to `top_p` (Holtzman et al. 2020).
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self):
        heat = self.temperature
        if not (heat == 0 or COLDEST <= heat < math.inf):
            raise InputError("--temperature", heat, f"write 0 (greedy), or {COLDEST} or more")
        if self.top_k is not None and self.top_k < 1:
            raise InputError("--top-k", self.top_k, "write at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError("--top-p", self.top_p, "write a probability above 0, at most 1")
        if not 0 <= self.seed < 2**31:
            raise InputError("--seed", self.seed, "write a whole number from 0 to 2147483647")


@dataclasses.dataclass(frozen=True)
class Programs:
    """Compiled for one length of prompt and number of rows."""

    prefill: Callable[..., Any]  # (params, prompt_BT, source_BS or None) -> (state, last token)
    # (params, state, token_B, ended_B, limit, knobs) -> the same three, tokens drawn, piece_BC
    stream: Callable[..., Any]


def programs(
    model: Model,
    params: Any,
    *,
    given: int,
    tokens: int,
    rows: int,
    ids: int,
    end: int,
    dtype: Any,
    source: int | None = None,
) -> Programs:
    """Compile what draws up to `tokens` after `given` in each row; `ids` are spelled by the
    tokeniser, and `end` ends a document. `source` is the length of what an encoder reads."""
    legal_V = jnp.arange(model.spec.vocab) < ids
    room = given + tokens

    def prefill(params: Any, prompt_BT: jax.Array, source_BS: jax.Array | None):
        if source_BS is None:
            state = model.start(rows, length=room, dtype=dtype)
        else:
            state = model.read(params, source_BS, length=room, dtype=dtype)
        if given > 1:  # the last token of the prompt is the first that the loop reads
            _, state = model.extend(params, prompt_BT[:, :-1], state, dtype=dtype)
        return state, prompt_BT[:, -1]

    def stream(params: Any, state: Any, token_B: Any, ended_B: Any, limit: Any, knobs: Any):
        def more(carry: Any) -> jax.Array:
            return (carry[0] < limit) & ~jnp.all(carry[3])

        def one(carry: Any) -> Any:
            i, state, token_B, ended_B, piece_BC = carry
            logits_BTV, state = model.extend(params, token_B[:, None], state, dtype=dtype)
            # ids above the tokeniser's are in no training text and spell nothing
            logits_BV = jnp.where(legal_V, logits_BTV[:, 0], NEVER)
            token_B = drawn(logits_BV, state["position"], knobs)
            token_B = jnp.where(ended_B, end, token_B)
            ended_B = ended_B | (token_B == end)
            piece_BC = jax.lax.dynamic_update_slice(piece_BC, token_B[:, None], (0, i))
            return i + 1, state, token_B, ended_B, piece_BC

        empty_BC = jnp.zeros((rows, STREAM), jnp.int32)
        first = (jnp.int32(0), state, token_B, ended_B, empty_BC)
        i, state, token_B, ended_B, piece_BC = jax.lax.while_loop(more, one, first)
        return state, token_B, ended_B, i, piece_BC

    prompt_BT = jax.ShapeDtypeStruct((rows, given), jnp.int32)
    source_BS = None if source is None else jax.ShapeDtypeStruct((rows, source), jnp.int32)
    filling = jax.jit(prefill).lower(params, prompt_BT, source_BS)
    state, token_B = jax.eval_shape(prefill, params, prompt_BT, source_BS)
    ended_B = jax.ShapeDtypeStruct((rows,), bool)
    limit = jax.ShapeDtypeStruct((), jnp.int32)
    knobs = jax.eval_shape(partial(knobs_of, Drawing()))
    streaming = jax.jit(stream, donate_argnums=1).lower(
        params, state, token_B, ended_B, limit, knobs
    )
    return Programs(filling.compile(), streaming.compile())


def drawn(logits_BV: jax.Array, position: jax.Array, knobs: dict[str, jax.Array]) -> jax.Array:
    """One id a row, of the row's own stream of random numbers."""
    kept_BV = narrowed(
        logits_BV, temperature=knobs["temperature"], top_k=knobs["top_k"], top_p=knobs["top_p"]
    )
    key = jax.random.fold_in(jax.random.key(knobs["seed"], impl="threefry2x32"), position)
    keys_B = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(logits_BV)))
    return jax.vmap(jax.random.categorical)(keys_B, kept_BV).astype(jnp.int32)


def narrowed(
    logits_BV: jax.Array, *, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> jax.Array:
    """Logits (B, V) to draw from: divided by the temperature, NEVER where a token is left out.

    Equal logits rank by id, so `top_k` keeps exactly k. Temperature 0 keeps the first of the
    likeliest.
    """
    greedy = temperature == 0
    logits_BV = logits_BV / jnp.where(greedy, 1.0, temperature)
    order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
    ranked_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    rank_V = jnp.arange(logits_BV.shape[-1])
    ranked_BV = jnp.where(rank_V < jnp.where(greedy, 1, top_k), ranked_BV, NEVER)
    share_BV = jax.nn.softmax(ranked_BV, axis=-1)
    before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
    # rounding may bring the sum to 1 before the last token: top_p = 1 must leave none out
    kept_BV = (before_BV < top_p) | (top_p >= 1) | (rank_V == 0)
    ranked_BV = jnp.where(kept_BV, ranked_BV, NEVER)
    place_BV = jnp.argsort(order_BV, axis=-1)
    return jnp.take_along_axis(ranked_BV, place_BV, axis=-1)


def knobs_of(drawing: Drawing) -> dict[str, jax.Array]:
    everything = np.iinfo(np.int32).max
    return {
        "temperature": jnp.float32(drawing.temperature),
        "top_k": jnp.int32(everything if drawing.top_k is None else min(drawing.top_k, everything)),
        "top_p": jnp.float32(1.0 if drawing.top_p is None else drawing.top_p),
        "seed": jnp.int32(drawing.seed),
    }
