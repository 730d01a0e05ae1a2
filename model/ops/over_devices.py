"""How is a linear recurrence computed where devices share its positions? By the sequence scheme,
which asks for what crosses devices: the transfer of the state over some positions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from model.ops.chunks import SMALLEST, wide
from parallelism.recurrence import Arrays, Recurrence
from parallelism.sequence import CHANNEL_DECAY, DELTA, SCALAR_DECAY, Scheme

# op(*arrays, segments_BT, state_BHKM=) -> y (B, T, H, M) and the state after the last position
Op = Callable[..., tuple[jax.Array, Any]]


def over_devices(op: Op, sequence: Scheme | None, *, form: str, values: int = 2) -> Op:
    """`op`, or the same through a scheme; it then gives no state. `values` is the place of v."""
    if sequence is None:
        return op

    def run(*given: jax.Array | None, state_BHKM: None = None) -> tuple[jax.Array, None]:
        *arrays, segments_BT = given
        named = {str(i): a for i, a in enumerate(arrays) if a is not None}

        def computed(own: Arrays, segments_BT: jax.Array | None, state_BHKM: Any):
            in_order = (own.get(str(i)) for i in range(len(arrays)))
            return op(*in_order, segments_BT, state_BHKM=state_BHKM)

        def transfer(own: Arrays, segments_BT: jax.Array | None) -> tuple[jax.Array, jax.Array]:
            if form == DELTA:
                return _by_identity(computed, own, segments_BT, values=str(values))
            _, state_BHKM = computed(own, segments_BT, None)
            decay = own[str(len(arrays) - 1)]
            return _faded(decay, segments_BT, state_BHKM.shape), state_BHKM

        assert form in (SCALAR_DECAY, CHANNEL_DECAY, DELTA)
        y_BTHM = sequence.recurrent(form, Recurrence(computed, transfer), named, segments_BT)
        return y_BTHM, None

    return run


def _faded(decay: jax.Array, segments_BT: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    """What is left of the state: (B, H), or (B, H, K) where every channel decays by itself."""
    decay = jnp.maximum(decay.astype(wide(decay.dtype)), SMALLEST)
    a = jnp.broadcast_to(jnp.exp(jnp.sum(decay, axis=1)), shape[: decay.ndim - 1])
    if segments_BT is None:
        return a
    one_B = jnp.all(segments_BT[:, 1:] == segments_BT[:, :-1], axis=1)
    return jnp.where(one_B.reshape(-1, *(1,) * (a.ndim - 1)), a, 0)


def _by_identity(
    computed: Callable[..., Any], own: Arrays, segments_BT: jax.Array | None, *, values: str
) -> tuple[jax.Array, jax.Array]:
    """In one pass: what becomes of a state of one, by K columns more that are written nothing."""
    v_BTHM, K = own[values], own["0"].shape[-1]
    B, _, H, M = v_BTHM.shape
    wider = jnp.pad(v_BTHM, ((0, 0), (0, 0), (0, 0), (0, K)))
    one_BHKM = jnp.broadcast_to(jnp.eye(K, M + K, M, dtype=wide(v_BTHM.dtype)), (B, H, K, M + K))
    _, after = computed({**own, values: wider}, segments_BT, one_BHKM)
    return after[..., M:], after[..., :M]
