"""What is one training step? Pure functions of (state, hyper, batch); nothing here compiles or
talks to a mesh.

State is a dict of arrays: `params` and `opt` (flat by path, float32), `step`, `window` (sums since
the last log point, so that a resumed ledger equals an uninterrupted one) and `bad` (1-based
first step with a non-finite loss or gradient; 0 while there is none); where data.carry_state is set
`carry` too, what the rows of the last batch remember (train/carry.py).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from model.block import of_parts
from model.context import Constrain, Context, unplaced
from model.decoder import Model
from parallelism.expert import Exchange
from parallelism.kernels import Kernel
from parallelism.pipeline import Pipeline
from parallelism.sequence import Scheme
from train.carry import Carry, entering, leaving, nothing
from train.objectives import next_token, normaliser
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
    residual: Constrain = unplaced,
    exchange: Exchange | None = None,
    pipeline: Pipeline | None = None,
    sequence: Scheme | None = None,
    kernel: Kernel | None = None,
    filled: bool = False,
    layers: str,
    remat: str,
    remat_chunk: int | None = None,
    dtype: Any,
    isolate: bool,
    objective: Callable[[jax.Array, Batch], Any] = next_token,
    over_positions: bool = True,
    progress: jax.Array | None = None,
    apart: bool = False,
) -> Any:
    """The objective of a batch, which is summed nats and their normaliser for a start (each of one
    number a part), then the layers' aux.

    With a `sequence` scheme the batch is laid out in its order; `filled` where rows end with places
    that are no text. `progress` is the fraction of the run that is done, None for the model as it
    will be used. What the rows remember of earlier ones is the batch's `carry`, and what they leave
    is that of aux.
    `over_positions`: what the objective gives are sums over positions, so that `stream` may take
    logits a few of them at a time. `apart`: the batch is a part of one, and in place of aux come
    the sums that `Model.settled` makes it of when all parts are there.
    """
    inputs_BT = batch[model.spec.inputs]
    segments_BT = batch["segments_BT"] if isolate else None
    T = inputs_BT.shape[1]
    if filled and segments_BT is None:  # two documents: the text, and what is none
        segments_BT = jnp.minimum(batch["segments_BT"], 0)
    positions_T = jnp.arange(T) if sequence is None else sequence.positions(T)
    if sequence is not None and segments_BT is not None:
        segments_BT = sequence.gathered(segments_BT)  # once, for all layers
    positions_BT = jnp.broadcast_to(positions_T, inputs_BT.shape)
    ctx = Context(
        positions_BT=positions_BT,
        segments_BT=segments_BT,
        prefix_BT=batch.get("prefix_BT"),
        source_BS=batch.get("source_BS"),
        source_segments_BS=batch.get("source_segments_BS"),
        constrain=constrain,
        residual=residual,
        exchange=exchange,
        pipeline=pipeline,
        sequence=sequence,
        kernel=kernel,
        layers=layers,
        remat=remat,
        remat_chunk=remat_chunk,
        progress=progress,
        apart=apart,
    )
    if "carry" in batch:
        held = entering(batch["carry"], ctx.segments_BT)
        logits_BTV, aux, held = model.go_on(params, inputs_BT, held, ctx, dtype=dtype)
        aux = {**aux, "carry": leaving(held)}
    elif remat == "stream" and over_positions:
        along = {name: array for name, array in batch.items() if name.endswith("_BT")}
        module = model.module(params)
        sums, aux = module.sums(inputs_BT, ctx, objective, along, dtype=dtype)
        return *sums, aux
    else:
        logits_BTV, aux = model(params, inputs_BT, ctx, dtype=dtype)
    return *objective(logits_BTV, batch), aux


def initial_state(
    model: Model,
    seed: int,
    *,
    params: Mapping[str, np.ndarray] | None = None,
    frozen: frozenset[str] = frozenset(),
    carry: Carry = None,
) -> State:
    """State before the first step, as host arrays; from `params` where there are some already.
    Parameters at `frozen` paths are never changed, so nothing is kept for them.
    """
    values = model.initialise(seed) if params is None else params
    return _state(model, values, np.zeros, frozen=frozen, carry=nothing(carry))


def abstract_state(
    model: Model, *, frozen: frozenset[str] = frozenset(), carry: Carry = None
) -> State:
    """The shape and type of every leaf of the state."""
    params = {p: jax.ShapeDtypeStruct(d.shape, np.float32) for p, d in model.declarations.items()}
    return _state(model, params, jax.ShapeDtypeStruct, frozen=frozen, carry=carry)


def empty_window(model: Model) -> dict[str, np.ndarray]:
    return {name: np.zeros((), np.float32) for name in (*WINDOW, *model.aux)}


def _state(
    model: Model,
    params: Mapping[str, Any],
    zeros: Callable[[tuple[int, ...], Any], Any],
    *,
    frozen: frozenset[str],
    carry: Carry,
) -> State:
    def moments() -> dict[str, Any]:
        trained = {path: value for path, value in params.items() if path not in frozen}
        return {path: zeros(value.shape, np.float32) for path, value in trained.items()}

    # the structure of optax.chain(clip, scale_by_adam, decay and scale); train/optimizer.py
    adam = optax.ScaleByAdamState(count=zeros((), np.int32), mu=moments(), nu=moments())
    return {
        "params": dict(params),
        "opt": (optax.EmptyState(), adam, optax.EmptyState()),
        "step": zeros((), np.int32),
        "window": {name: zeros((), np.float32) for name in (*WINDOW, *model.aux)},
        "bad": zeros((), np.int32),
        **({} if carry is None else {"carry": carry}),
    }


def train_step(
    model: Model,
    loss: Callable[..., Any],
    *,
    accumulate: int,
    frozen: frozenset[str] = frozenset(),
    normaliser: Callable[[Batch], jax.Array] = normaliser,
) -> Callable[[State, Hyper, Batch], tuple[State, jax.Array]]:
    """The step as a function to (state, mean loss); `loss(params, batch, progress=)` gives summed
    nats, weights and aux of a (micro-)batch.

    What is differentiated is the mean loss and the layers' own losses at their weights; what is
    returned and recorded is the mean loss alone.
    """
    trained = {path: d for path, d in model.declarations.items() if path not in frozen}
    buffers = {path: d.update for path, d in trained.items() if d.update is not None}

    def gradients(whole: Mapping[str, jax.Array], batch: Batch, hyper: Hyper, progress: jax.Array):
        held = {path: whole[path] for path in frozen}
        params = {path: whole[path] for path in trained}
        # the mean is over the whole batch, so micro-batches weigh by their tokens
        total = jnp.maximum(normaliser(batch), 1.0)

        def own(aux: Mapping[str, jax.Array]) -> jax.Array:
            """The layers' own losses at their weights."""
            losses = {k.removeprefix("loss/"): v for k, v in aux.items() if k.startswith("loss/")}
            return sum((hyper[f"penalty/{k}"] * v for k, v in losses.items()), start=jnp.zeros(()))

        def objective(params: Mapping[str, jax.Array], batch: Batch):
            nats, _, aux = loss({**held, **params}, batch, progress=progress)
            after = aux.pop("carry", None)
            value = jnp.mean(nats / total)  # over the parts of the loss
            return value + own(aux), ((value, aux), after)

        if accumulate == 1:
            grads, (seen, after) = jax.grad(objective, has_aux=True)(params, batch)
            return (grads, seen), after

        def split(x: jax.Array) -> jax.Array:
            # strided, so that every micro-batch lies on all replicas
            return jnp.swapaxes(x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 0, 1)

        micro = jax.tree.map(split, dict(batch))

        def join(x: jax.Array) -> jax.Array:
            return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])

        def part(params: Mapping[str, jax.Array], batch: Batch):
            """The share of a micro-batch in the loss, its sums, and what its rows remember."""
            nats, _, sums = loss({**held, **params}, batch, progress=progress, apart=True)
            after = sums.pop("carry", None)
            sums = of_parts(sums, field="execution.accumulate", given=accumulate)
            return jnp.mean(nats / total), sums, after

        # Losses of layers are of the whole batch, and not sums over micro-batches (the balance of
        # experts is a product of two means). So a pass ahead gives every sum that they are made of,
        # and the gradient of each is what pulls at it in the pass of its micro-batch.
        def settled(sums_M: Any):
            source_BS = batch.get("source_BS")
            aux = model.settled(
                sums_M,
                positions=batch[model.spec.inputs].shape[1],
                source=0 if source_BS is None else source_BS.shape[1],
            )
            return own(aux), aux

        sums_M, pulls_M, aux = {}, {}, {}
        if jax.eval_shape(lambda one: part(params, one)[1], jax.tree.map(lambda x: x[0], micro)):
            sums_M = jax.lax.map(lambda one: part(params, one)[1], micro)
            _, pull, aux = jax.vjp(settled, sums_M, has_aux=True)
            (pulls_M,) = pull(jnp.ones(()))

        def pulled(params: Mapping[str, jax.Array], batch: Batch, pulls: Any):
            value, sums, after = part(params, batch)
            losses = jax.tree.map(lambda pull, one: jnp.sum(pull * one), pulls, sums)
            return sum(jax.tree.leaves(losses), start=value), (value, after)

        def body(total: Any, one: tuple[Batch, Any]):
            grads, (value, after) = jax.grad(pulled, has_aux=True)(params, *one)
            return jax.tree.map(jnp.add, total, (grads, value)), after

        zero = jax.tree.map(jnp.zeros_like, params), jnp.zeros(())
        (grads, value), after = jax.lax.scan(body, zero, (micro, pulls_M))
        return (grads, (value, aux)), jax.tree.map(join, after)

    def step(state: State, hyper: Hyper, batch: Batch) -> tuple[State, jax.Array]:
        progress = state["step"].astype(jnp.float32) / hyper["steps"]
        carried = {"carry": state["carry"]} if "carry" in state else {}
        (grads, (value, aux)), after = gradients(
            state["params"], {**batch, **carried}, hyper, progress
        )
        rate = learning_rate(state["step"], hyper)
        optimizer = adamw(hyper, model.declarations, learning_rate=rate)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        old = {path: state["params"][path] for path in trained}
        params: dict[str, jax.Array] = {**state["params"], **optax.apply_updates(old, updates)}  # pyright: ignore[reportGeneralTypeIssues]
        for path, update in buffers.items():
            params[path] = update(params[path], aux[f"buffer/{path}"])
        norm = optax.tree.norm(grads)
        fine = jnp.isfinite(value) & jnp.isfinite(norm)
        seen = {"loss": value, "grad_norm": norm, "count": 1.0, **{k: aux[k] for k in model.aux}}
        return {
            "params": params,
            "opt": opt,
            "step": state["step"] + 1,
            "window": {name: total + seen[name] for name, total in state["window"].items()},
            "bad": jnp.where((state["bad"] == 0) & ~fine, state["step"] + 1, state["bad"]),
            **({"carry": after} if carried else {}),
        }, value

    return step
