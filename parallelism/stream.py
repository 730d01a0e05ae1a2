"""How is a layer differentiated a few positions at a time? Exactly, keeping its input alone.

StreamBP (Luo et al. 2025). What a chunk of positions needs of the others (keys and values) is made
once; then chunks run one after the other, in the forward pass and again in the backward, where each
is made anew, differentiated and forgotten. Gradients of what was made once add up over the chunks
and go through one derivative at the end, where the official code makes keys and values anew for
every chunk. Sums over positions (of losses, of loads) are sums over chunks, and whatever is made
of the sums is made outside: nothing is a mean of means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

# Chunks of one run see the keys up to the run's end, so their work is (1 + 1/RUNS) / 2 of all T^2
# scores. Every run is a program of its own: more would save less than they take to compile.
RUNS = 8
# Chunks of a run, at least: one alone is no loop to the compiler, and runs that are no loops it may
# order so that what all of them make is held at once (XLA's CPU compiler does, past any barrier).
LOOP = 2


@dataclass(frozen=True)
class Run:
    """`number` chunks of `size` positions from `start` on, which see what is before `end`."""

    start: int
    number: int
    size: int
    end: int

    @property
    def lows(self) -> jax.Array:
        return self.start + self.size * jnp.arange(self.number, dtype=jnp.int32)


Plan = tuple[Run, ...]


def plan(length: int, *, chunk: int | None, grows: bool) -> Plan:
    """Chunks of all positions, the last one as long as what is left. None is a sixteenth of them.

    `grows` where a chunk sees no later position: then the keys are cut behind it.
    """
    size = min(-(-length // (RUNS * LOOP)) if chunk is None else chunk, length)
    whole = length // size
    runs = max(1, min(RUNS, whole // LOOP)) if grows else 1
    edges = [whole * i // runs * size for i in range(runs + 1)]
    made = [
        Run(low, (high - low) // size, size, high if grows else length)
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    if length > edges[-1]:
        made.append(Run(edges[-1], 1, length - edges[-1], length))
    return tuple(made)


def seen_share(made: Plan) -> float:
    """The positions that a chunk meets, on average over positions, as a share of all."""
    length = made[-1].start + made[-1].number * made[-1].size
    return sum(run.number * run.size * run.end for run in made) / length**2


def streamed(
    ahead: Callable[[Any, Any, jax.Array], tuple[Any, Any, Any]],
    part: Callable[..., tuple[Any, Any]],
    made: Plan,
) -> Callable[[Any, Any, jax.Array], tuple[Any, Any, Any]]:
    """(params, fixed, x) -> (y, aux, sums) in chunks of axis 1, differentiable in params and x.

    `ahead(params, fixed, x)` gives keys that any chunk may see, what is of each position alone, and
    aux. `part(params, fixed, x, own, keys, low=, run=)` gives y of the chunk at `low` and its sums;
    its `keys` end where the run's do. All leaves have positions on axis 1, but those of params,
    fixed, aux and sums. y may be None.
    """

    def forward(params: Any, fixed: Any, x: jax.Array):
        keys, own, aux = ahead(params, fixed, x)

        def at(run: Run, inputs: Any, low: Any):
            params, x, own, keys = inputs
            rows = _rows((x, own), low, run)
            return part(params, fixed, *rows, _until(keys, run), low=low, run=run)

        def step(run: Run, inputs: Any, carry: Any, low: jax.Array):
            (y, sums), (y_rows, more) = carry, at(run, inputs, low)
            return (_written(y, y_rows, low), jax.tree.map(jnp.add, sums, more)), None

        inputs = params, x, own, keys
        y, sums = jax.eval_shape(lambda: at(made[0], inputs, made[0].start))
        y = jax.tree.map(lambda a: jnp.zeros((a.shape[0], x.shape[1], *a.shape[2:]), a.dtype), y)
        carry = y, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), sums)
        for run in made:
            carry, _ = jax.lax.scan(partial(step, run, inputs), carry, run.lows + _nothing(x))
        y, sums = carry
        return y, aux, sums

    def backward(residuals: Any, cotangents: Any):
        # without the barrier the compiler finds the forward pass's own numbers equal to these, and
        # keeps them instead
        residuals, (dy, daux, dsums) = jax.lax.optimization_barrier((residuals, cotangents))
        # places that hang on an array, here and above: what is made of them alone (masks) would
        # else be made ahead, of all chunks at once, where a scan over layers is differentiated
        lows = [run.lows + _nothing(dy, dsums) for run in made]
        params, fixed, x = residuals
        (keys, own, _), pull = jax.vjp(lambda params, x: ahead(params, fixed, x), params, x)

        def step(run: Run, inputs: Any, carry: Any, low: jax.Array):
            (params, x, own, keys, dy), (dparams, dx, down, dkeys) = inputs, carry

            def again(params: Any, x_rows: Any, own_rows: Any, keys: Any):
                return part(params, fixed, x_rows, own_rows, keys, low=low, run=run)

            _, pull = jax.vjp(again, params, *_rows((x, own), low, run), _until(keys, run))
            more, dx_rows, down_rows, dkeys_rows = pull((_rows(dy, low, run), dsums))
            dkeys = jax.tree.map(lambda a, b: a + b.astype(a.dtype), dkeys, dkeys_rows)
            dparams = jax.tree.map(jnp.add, dparams, more)
            dx, down = _written(dx, dx_rows, low), _written(down, down_rows, low)
            return (dparams, dx, down, dkeys), None

        inputs, dkeys = (params, x, own, keys, dy), jax.tree.map(_wide_zeros, keys)
        carry = *jax.tree.map(jnp.zeros_like, (params, x, own)), dkeys
        for run, low in zip(made, lows, strict=True):
            *rest, dkeys = carry
            carry = *rest, _until(dkeys, run)
            (*rest, met), _ = jax.lax.scan(partial(step, run, inputs), carry, low)
            carry = *rest, _written(dkeys, met, 0)
        dparams, dx, down, dkeys = carry
        dkeys = jax.tree.map(lambda d, a: d.astype(a.dtype), dkeys, keys)
        more, dx_ahead = pull((dkeys, down, daux))
        return jax.tree.map(jnp.add, dparams, more), None, dx + dx_ahead

    run = jax.custom_vjp(forward)
    run.defvjp(lambda *args: (forward(*args), args), backward)
    return run


def _nothing(*trees: Any) -> jax.Array:
    """A zero that is not known before the arrays are."""
    return jax.tree.leaves(trees)[0].reshape(-1)[:1].astype(jnp.int32) & 0


def _rows(tree: Any, low: Any, run: Run) -> Any:
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, low, run.size, axis=1), tree)


def _until(tree: Any, run: Run) -> Any:
    return jax.tree.map(lambda a: a[:, : run.end], tree)


def _written(tree: Any, rows: Any, low: Any) -> Any:
    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(a, b.astype(a.dtype), low, axis=1)

    return jax.tree.map(one, tree, rows)


def _wide_zeros(a: jax.Array) -> jax.Array:
    """To add gradients of many chunks up in."""
    return jnp.zeros(a.shape, jnp.promote_types(a.dtype, jnp.float32))
