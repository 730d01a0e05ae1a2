"""What is one training step? Pure functions of (state, hyper, batch); nothing here compiles or
talks to a mesh.

State is a dict of arrays: `params` and `opt` (flat by path, float32), `step`, `window` (sums since
the last log point, so that a resumed ledger equals an uninterrupted one) and `bad` (1-based
first step with a non-finite loss or gradient; 0 while there is none).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from model.context import Constrain, Context
from model.decoder import Model
from train.objectives import next_token
from train.optimizer import adamw
from train.schedule import Hyper, learning_rate

State = dict[str, Any]
Batch = Mapping[str, jax.Array]
WINDOW = ("loss", "grad_norm", "count")


def forward(
    model: Model,
    params: Mapping[str, jax.Array],
    batch: Batch,
    *,
    constrain: Constrain,
    layers: str,
    remat: str,
    dtype: Any,
    isolate: bool,
) -> tuple[jax.Array, jax.Array]:
    """Summed nats and summed weights of a batch."""
    tokens_BT = batch["tokens_BT"]
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    ctx = Context(
        positions_BT=positions_BT,
        segments_BT=batch["segments_BT"] if isolate else None,
        constrain=constrain,
        layers=layers,
        remat=remat,
    )
    logits_BTV, _ = model(params, tokens_BT, ctx, dtype=dtype)
    return next_token(logits_BTV, batch)


def initial_state(model: Model, seed: int) -> State:
    """State before the first step, as host arrays."""
    return _state(model.initialise(seed), lambda shape, dtype: np.zeros(shape, dtype))


def abstract_state(model: Model) -> State:
    """The shape and type of every leaf of the state."""
    params = {p: jax.ShapeDtypeStruct(d.shape, np.float32) for p, d in model.declarations.items()}
    return _state(params, jax.ShapeDtypeStruct)


def empty_window() -> dict[str, np.ndarray]:
    return {name: np.zeros((), np.float32) for name in WINDOW}


def _state(params: Mapping[str, Any], zeros: Callable[[tuple[int, ...], Any], Any]) -> State:
    def moments() -> dict[str, Any]:
        return {path: zeros(value.shape, np.float32) for path, value in params.items()}

    # the structure of optax.chain(clip, scale_by_adam, decay and scale); train/optimizer.py
    adam = optax.ScaleByAdamState(count=zeros((), np.int32), mu=moments(), nu=moments())
    return {
        "params": dict(params),
        "opt": (optax.EmptyState(), adam, optax.EmptyState()),
        "step": zeros((), np.int32),
        "window": {name: zeros((), np.float32) for name in WINDOW},
        "bad": zeros((), np.int32),
    }


def train_step(
    model: Model, loss: Callable[..., tuple[jax.Array, jax.Array]], *, accumulate: int
) -> Callable[[State, Hyper, Batch], tuple[State, jax.Array]]:
    """The step as a function to (state, mean loss); `loss(params, batch)` sums nats and weights of
    a (micro-)batch.
    """

    def gradients(params: Mapping[str, jax.Array], batch: Batch):
        # the mean is over the whole batch, so micro-batches weigh by their tokens
        total = jnp.maximum(jnp.sum(batch["weights_BT"]), 1.0)
        value_and_grad = jax.value_and_grad(lambda p, b: loss(p, b)[0] / total)
        if accumulate == 1:
            return value_and_grad(params, batch)

        def split(x: jax.Array) -> jax.Array:
            # strided, so that every micro-batch lies on all replicas
            return jnp.swapaxes(x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 0, 1)

        def body(carry, micro):
            value, grads = value_and_grad(params, micro)
            return jax.tree.map(jnp.add, carry, (value, grads)), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, dict(params)))
        return jax.lax.scan(body, zero, jax.tree.map(split, dict(batch)))[0]

    def step(state: State, hyper: Hyper, batch: Batch) -> tuple[State, jax.Array]:
        value, grads = gradients(state["params"], batch)
        rate = learning_rate(state["step"], hyper)
        optimizer = adamw(hyper, model.declarations, learning_rate=rate)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        norm = optax.tree.norm(grads)
        fine = jnp.isfinite(value) & jnp.isfinite(norm)
        window = state["window"]
        return {
            "params": optax.apply_updates(state["params"], updates),
            "opt": opt,
            "step": state["step"] + 1,
            "window": {
                "loss": window["loss"] + value,
                "grad_norm": window["grad_norm"] + norm,
                "count": window["count"] + 1,
            },
            "bad": jnp.where((state["bad"] == 0) & ~fine, state["step"] + 1, state["bad"]),
        }, value

    return step
