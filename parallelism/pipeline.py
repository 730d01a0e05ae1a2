"""How do layers that lie on several devices work at once? Parts of the batch follow one another.

The repeated units are cut into stages, one a device of the pipeline axis. In one turn every stage
runs on one part (microbatch), then hands it to the next: the stages are one leading axis that is
sharded over the pipeline axis and mapped over, and handing on is a roll of that axis, a permute
between neighbours. M parts are through S stages after M + S - 1 turns, so that a device works in
M of them: the share (S - 1) / (M + S - 1) is lost (GPipe, Huang et al. 2019).

With `rounds` a device holds as many shorter stages, S apart (circular, Narayanan et al. 2021): the
parts come by v times, in v M + S - 1 turns of 1 / v of the work, and the share lost is
(S - 1) / (v M + S - 1). For it the parameters are moved to where their stages are, once a step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parallelism.rules import ACTIVATIONS

AXIS = "pipeline"
FREE = PartitionSpec.UNCONSTRAINED

# (parameters of some units, stacked; what moves; what is held) -> (what moves, sums: a tree of
# arrays (units, rows, ...))
Run = Callable[[Any, Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Pipeline:
    mesh: Mesh
    microbatches: int
    rounds: int = 1

    @property
    def stages(self) -> int:
        return self.mesh.shape[AXIS]

    @property
    def turns(self) -> int:
        return self.rounds * self.microbatches + self.stages - 1

    def __call__(
        self, run: Run, params_Z: Any, moving: Any, held: Any, *, together: int = 1
    ) -> tuple[Any, Any]:
        """`run` over all units. `moving` is what each unit makes new, and `held` what it reads:
        trees of arrays (rows, ...), of which `together` rows in a row stay in one part. Gives what
        moves out of the last unit, and sums (units, rows, ...).
        """
        S, M, v = self.stages, self.microbatches, self.rounds
        params = jax.tree.map(self._staged, params_Z)
        parts_M, held_M = (
            jax.tree.map(lambda a: self._parts(a, together), tree) for tree in (moving, held)
        )

        def stage(params_v: Any, turn: jax.Array, moving: Any) -> tuple[Any, Any]:
            # before its first part and after its last a stage repeats one: real numbers, unread
            turn = jnp.clip(turn, 0, v * M - 1)
            return run(_own(params_v, turn // M), moving, _at(held_M, turn % M))

        every = jax.vmap(stage, in_axes=(1, 0, 0), spmd_axis_name=AXIS)
        first_S = jnp.arange(S) == 0

        def one_turn(carry: Any, turn: jax.Array):
            moving_S, queue = carry
            out_S, sums_S = every(params, turn - jnp.arange(S), moving_S)
            next_S = jax.tree.map(lambda a: jnp.roll(a, 1, axis=0), out_S)
            if v > 1:  # what comes round waits until all parts have entered
                next_S, queue = _through(next_S, queue, turn)
            enters_S = first_S & (turn + 1 < M)
            fresh_S = _at(entering_MS, jnp.minimum(turn + 1, M - 1))
            next_S = jax.tree.map(lambda f, n: _where(enters_S, f, n), fresh_S, next_S)
            return (next_S, queue), (out_S, sums_S)

        # on the first stage alone, so that their gradients are summed over stages once
        entering_MS = jax.tree.map(
            lambda a: jax.vmap(lambda a: _where(first_S, a[None], 0))(a), parts_M
        )
        start_S = jax.tree.map(lambda a: jnp.broadcast_to(a[0], (S, *a.shape[1:])), parts_M)
        queue = None
        if v > 1 and M > S:
            queue = jax.tree.map(lambda a: jnp.zeros((M - S, *a.shape), a.dtype), start_S)
        _, (out_USX, sums_USX) = jax.lax.scan(one_turn, (start_S, queue), jnp.arange(self.turns))
        last_S = jnp.arange(S) == S - 1
        # not a slice: its transpose sends every turn to the last stage
        out = jax.tree.map(
            lambda a: jnp.sum(jax.vmap(lambda a: _where(last_S, a, 0))(a[-M:]), axis=1), out_USX
        )
        out = jax.tree.map(lambda a: self._joined(a, together), out)
        return out, jax.tree.map(lambda a: self._collected(a, together), sums_USX)

    def _staged(self, param: jax.Array) -> jax.Array:
        """(rounds, stages, units of a stage, ...)."""
        S, v = self.stages, self.rounds
        param = param.reshape(v, S, param.shape[0] // (v * S), *param.shape[1:])
        return self._lies(param, PartitionSpec(None, AXIS, *[FREE] * (param.ndim - 2)))

    def _parts(self, x: jax.Array, together: int) -> jax.Array:
        """(parts, rows of a part, ...); strided, so that every part lies on all replicas."""
        M, rest = self.microbatches, x.shape[1:]
        x = x.reshape(x.shape[0] // (M * together), M, together, *rest)
        x = jnp.swapaxes(x, 0, 1).reshape(M, -1, *rest)
        spec = PartitionSpec(None, ACTIVATIONS["batch"], *[FREE] * len(rest))
        return self._lies(x, spec)

    def _joined(self, x_M: jax.Array, together: int) -> jax.Array:
        """`_parts` undone."""
        M, rows, *rest = x_M.shape
        x = x_M.reshape(M, rows // together, together, *rest)
        x = jnp.swapaxes(x, 0, 1).reshape(M * rows, *rest)
        return self._lies(x, PartitionSpec(ACTIVATIONS["batch"], *[FREE] * len(rest)))

    def _collected(self, sums_U: jax.Array, together: int) -> jax.Array:
        """(units, rows, ...) of (turns, stages, units of a stage, rows of a part, ...)."""
        S, M, v = self.stages, self.microbatches, self.rounds

        def of_stage(sums_U: jax.Array, begin: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(sums_U, begin, v * M)

        sums = jax.vmap(of_stage, in_axes=(1, 0), spmd_axis_name=AXIS)(sums_U, jnp.arange(S))
        _, _, units, rows, *rest = sums.shape
        sums = sums.reshape(S, v, M, units, rows // together, together, *rest)
        sums = jnp.moveaxis(sums, (1, 0, 3, 4, 2), (0, 1, 2, 3, 4))
        return sums.reshape(v * S * units, M * rows, *rest)

    def _lies(self, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


def pipeline(mesh: Mesh, *, microbatches: int, rounds: int) -> Pipeline | None:
    """None where one device holds every layer."""
    return None if mesh.shape[AXIS] == 1 else Pipeline(mesh, microbatches, rounds)


def _at(tree: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), tree)


def _own(params_v: Any, round: jax.Array) -> Any:
    """Of a stage's rounds, the parameters of one. The only one is no choice: what is the same in
    every turn is kept for the backward pass once, what is chosen once a turn."""
    if jax.tree.leaves(params_v)[0].shape[0] == 1:
        return jax.tree.map(lambda a: a[0], params_v)
    return _at(params_v, round)


def _through(next_S: Any, queue: Any, turn: jax.Array) -> tuple[Any, Any]:
    """What the first stage was handed M - S turns ago in place of what it is handed now."""
    if queue is None:
        return next_S, None
    place = turn % jax.tree.leaves(queue)[0].shape[0]
    waited_S = _at(queue, place)
    queue = jax.tree.map(
        lambda q, n: jax.lax.dynamic_update_index_in_dim(q, n, place, 0), queue, next_S
    )

    S = jax.tree.leaves(next_S)[0].shape[0]
    return jax.tree.map(lambda w, n: _where(jnp.arange(S) == 0, w, n), waited_S, next_S), queue


def _where(at_S: jax.Array, a_S: jax.Array, b_S: Any) -> jax.Array:
    """a on some stages, b on the others."""
    return jnp.where(at_S.reshape(-1, *[1] * (a_S.ndim - 1)), a_S, b_S)


def wire_bytes(pipeline: Pipeline, *, part_bytes: int) -> float:
    """Sent along the pipeline axis by one device in a forward pass, where a part of what moves has
    `part_bytes` on it: a permute a turn, and what leaves the last stage summed over stages, as
    layers after the pipeline see it on all of them. Without sums of layers, which are small.
    """
    S, M = pipeline.stages, pipeline.microbatches
    return pipeline.turns * part_bytes + 2 * (S - 1) / S * M * part_bytes
