"""How does a model's memory go from one batch to the next? Row b of a step goes on from row b of
the step before (data.order contiguous), from what the model remembers there, through which no
gradient flows: truncated backpropagation through time.

The memory is part of the train state, float32, rows first in every leaf, so that rows are cut among
devices and micro-batches alike. A row whose first position begins a document begins with none.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.decoder import DecodeState, Model
from train.spec import RunSpec

Carry = Any  # the blocks' memories under first, repeat, last, or None where nothing is carried


def carry_shapes(spec: RunSpec, model: Model) -> Carry:
    """Shapes of what the rows of a batch remember; None where nothing is carried."""
    if not spec.data.carry_state:
        return None
    start = partial(model.start, spec.sequences_per_batch, length=1, dtype=jnp.float32)
    return jax.eval_shape(lambda: leaving(start()))


def nothing(carry: Carry) -> Carry:
    """The memory of no position, as host arrays: zeros in every layer that carries."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), carry)


def entering(carry: Carry, segments_BT: jax.Array | None) -> DecodeState:
    """What a batch goes on from: nothing of another document, and nothing to differentiate."""
    if segments_BT is not None:
        # rows in contiguous order number documents from 1 where one begins with the row
        begins_B = segments_BT[:, 0] > 0
        carry = jax.tree.map(lambda x: jnp.where(_over(begins_B, x), 0, x), carry)
    state = _swapped(jax.lax.stop_gradient(carry))
    return {"position": jnp.zeros((), jnp.int32), **state}


def leaving(state: DecodeState) -> Carry:
    """What the next batch goes on from."""
    return _swapped({name: held for name, held in state.items() if name != "position"})


def _swapped(state: Any) -> Any:
    """The decoder has layers first in the memories of its repeated blocks: rows first, or back."""
    return {**state, "repeat": jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), state["repeat"])}


def _over(flag_B: jax.Array, like: jax.Array) -> jax.Array:
    return flag_B.reshape(-1, *(1,) * (like.ndim - 1))
