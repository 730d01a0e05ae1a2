"""How does a model that sees both ways go on with a text? All its places are hidden at first, and
one after another is drawn, in an order of its own in each row.

That is the reverse of masked diffusion in as many steps as there are places, so that no two tokens
are drawn without seeing each other. At temperature 0 the next place is the one that the model is
surest of, and it takes its likeliest token there.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from model.context import Context
from model.decoder import Model
from train.draw import NEVER, Drawing, drawn, knobs_of


def program(
    model: Model, params: Any, *, given: int, tokens: int, rows: int, ids: int, dtype: Any
) -> Any:
    """Compiled (params, prompt_BT, knobs) -> the `tokens` ids after `given` in each row; `ids` are
    spelled by the tokeniser.
    """
    legal_V = jnp.arange(model.spec.vocab) < ids
    hidden = model.spec.vocab  # the id of a hidden token, the first beyond the vocabulary

    def fill(params: Any, prompt_BT: jax.Array, knobs: dict[str, jax.Array]) -> jax.Array:
        length = given + tokens
        positions_BT = jnp.broadcast_to(jnp.arange(length), (rows, length))
        ctx = Context(positions_BT=positions_BT, segments_BT=None)
        # the draws of step 0 order the places, those of the steps from 1 on are tokens
        key = jax.random.fold_in(jax.random.key(knobs["seed"], impl="threefry2x32"), 0)
        keys_B = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows))
        order_BT = jax.vmap(lambda k: jax.random.uniform(k, (length,)))(keys_B)

        def one(step: jax.Array, tokens_BT: jax.Array) -> jax.Array:
            logits_BTV, _ = model(params, tokens_BT, ctx, dtype=dtype)
            logits_BTV = jnp.where(legal_V, logits_BTV, NEVER)
            sure_BT = jnp.max(jax.nn.log_softmax(logits_BTV), axis=-1)
            rank_BT = jnp.where(knobs["temperature"] == 0, sure_BT, order_BT)
            rank_BT = jnp.where(tokens_BT == hidden, rank_BT, NEVER)
            place_B = jnp.argmax(rank_BT, axis=-1)
            row_B = jnp.arange(rows)
            token_B = drawn(logits_BTV[row_B, place_B], step + 1, knobs)
            return tokens_BT.at[row_B, place_B].set(token_B)

        hidden_BT = jnp.full((rows, tokens), hidden, jnp.int32)
        whole_BT = jnp.concatenate([prompt_BT, hidden_BT], axis=1)
        return jax.lax.fori_loop(0, tokens, one, whole_BT)[:, given:]

    prompt_BT = jax.ShapeDtypeStruct((rows, given), jnp.int32)
    knobs = jax.eval_shape(partial(knobs_of, Drawing()))
    return jax.jit(fill).lower(params, prompt_BT, knobs).compile()
