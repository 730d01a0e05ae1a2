"""How do tokens reach experts that other devices hold? Exactly, whatever the router says.

A device of the expert axis holds E / W of the experts. The W devices of a group gather their tokens
(with their choices and weights), each lets its own experts work on all of them, and the outputs are
summed and scattered back. Nothing is dropped and every size is static.

Why not an all-to-all of tokens: its buffers must hold the worst router, which sends every token of
a device to one other. Then a device sends t rows to each of W - 1 others: as many bytes as the
gather, after a sort. Buffers for less than t either drop, or need to be repeated. A ragged exchange
would send min(K, W) / W of it (`ragged_all_to_all` is not implemented on CPU).

Bytes that one device sends for t tokens of its own, both ways, with s bytes a number: the formula
is `wire_bytes`. Shards of an expert's matrices on the fsdp axis are gathered here too, and their
gradients summed and scattered.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from parallelism.axes import RUN
from parallelism.place import partition
from parallelism.rules import ACTIVATIONS, PARAMETERS, RESIDUALS

ROWS, TIME = ACTIVATIONS["batch"], ACTIVATIONS["time"]

# (x (T, D), experts (T, K) of those here or their number for none of them, weights (T, K), the
# experts' matrices) -> (T, D)
Compute = Callable[[jax.Array, jax.Array, jax.Array, Sequence[jax.Array]], jax.Array]


@dataclass(frozen=True)
class Exchange:
    """The exchange on a mesh; `residuals` says how what comes out lies, as in rules.RESIDUALS."""

    mesh: Mesh
    residuals: str = "whole"

    @property
    def ways(self) -> int:
        return self.mesh.shape["expert"]

    def _axes(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those that the mesh has more than one device along: others would be sums of one."""
        return tuple(a for a in names if self.mesh.shape[a] > 1)

    def __call__(
        self,
        x_BTD: jax.Array,
        experts_BTK: jax.Array,
        weights_BTK: jax.Array,
        matrices: Sequence[jax.Array],
        *,
        dims: Sequence[tuple[str, ...]],
        n_experts: int,
        compute: Compute,
    ) -> jax.Array:
        """(B, T, D): every token through the experts that it chose. A choice of `n_experts` or more
        is of none. `dims` names those of each of the matrices, all of which lead with E.
        """
        placed = [
            partition(d, m.shape, rules=PARAMETERS, mesh=self.mesh.shape, what="experts")
            for d, m in zip(dims, matrices, strict=True)
        ]
        rows, time, tensor = (self._axes(names) for names in (ROWS, TIME, ("tensor",)))
        tokens = PartitionSpec(rows, time, None)
        out = PartitionSpec(rows, self._axes(RESIDUALS[self.residuals]["time"]), None)
        here, scattered = n_experts // self.ways, self.residuals == "sharded" and bool(tensor)

        def one(x_BTD, experts_BTK, weights_BTK, *matrices):
            # said here, so that gradients are summed over devices here, once, and not within what
            # the devices compute, where each goes its own way
            whole = [
                _varying(_whole(m, spec), (*rows, *time, *tensor), but=spec)
                for m, spec in zip(matrices, placed, strict=True)
            ]
            x_BTD, experts_BTK, weights_BTK = (
                _varying(a, tensor) for a in (x_BTD, experts_BTK, weights_BTK)
            )
            if self.ways > 1:
                x_BTD, experts_BTK, weights_BTK = (
                    jax.lax.all_gather(a, "expert", axis=0, tiled=True)
                    for a in (x_BTD, experts_BTK, weights_BTK)
                )
                local_BTK = experts_BTK - here * jax.lax.axis_index("expert")
                experts_BTK = jnp.where((local_BTK >= 0) & (local_BTK < here), local_BTK, here)
            x_TD, experts_TK, weights_TK = (
                a.reshape(-1, a.shape[-1]) for a in (x_BTD, experts_BTK, weights_BTK)
            )
            y_BTD = compute(x_TD, experts_TK, weights_TK, whole).reshape(x_BTD.shape)
            if self.ways > 1:
                y_BTD = jax.lax.psum_scatter(y_BTD, "expert", scatter_dimension=0, tiled=True)
            if scattered:
                return jax.lax.psum_scatter(y_BTD, "tensor", scatter_dimension=1, tiled=True)
            return jax.lax.psum(y_BTD, tensor) if tensor else y_BTD

        return jax.shard_map(
            one,
            mesh=self.mesh,
            in_specs=(tokens, tokens, tokens, *placed),
            out_specs=out,
            # jax 0.10 cannot map over one that is checked; unchecked, gradients of outputs are
            # summed over tensor once more
            check_vma=self.mesh.shape["pipeline"] == self.mesh.shape[RUN] == 1,
        )(x_BTD, experts_BTK, weights_BTK, *matrices)

    def kept(self, experts_BTK: jax.Array, *, n_experts: int, capacity: int) -> jax.Array:
        """Which choices are among the first `capacity` of their expert in the whole batch, counted
        by position, then by row. Devices tell each other how often they chose each expert at each
        position, 4 E bytes a position; no token moves.
        """
        tokens = PartitionSpec(ROWS, TIME, None)

        def one(experts_BTK):
            hit_BTE = jnp.sum(
                experts_BTK[..., None] == jnp.arange(n_experts), axis=2, dtype=jnp.int32
            )
            each_WTE = jax.lax.all_gather(jnp.sum(hit_BTE, axis=0), ROWS)
            all_TE = jnp.sum(each_WTE, axis=0)
            parts_WE = jax.lax.all_gather(jnp.sum(all_TE, axis=0), TIME)
            before_E = _before(parts_WE)[jax.lax.axis_index(TIME)]
            before_TE = before_E + _before(all_TE)
            before_TE = before_TE + _before(each_WTE)[jax.lax.axis_index(ROWS)]
            before_BTE = before_TE + _before(hit_BTE)
            return jnp.take_along_axis(before_BTE, experts_BTK, axis=-1) < capacity

        return jax.shard_map(one, mesh=self.mesh, in_specs=tokens, out_specs=tokens)(experts_BTK)


def exchange(mesh: Mesh, *, residuals: str) -> Exchange | None:
    """None on one device, or one a run, where the tokens are at hand."""
    return None if mesh.size == mesh.shape[RUN] else Exchange(mesh, residuals)


def _before(x: jax.Array) -> jax.Array:
    """Sums over what is ahead on the leading axis."""
    return jnp.cumsum(x, axis=0) - x


def _varying(x: jax.Array, axes: tuple[str, ...], *, but: PartitionSpec | tuple = ()) -> jax.Array:
    """The same array, for devices along `axes` to use differently; along `but` it differs."""
    missing = tuple(a for a in axes if a not in but)
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _whole(matrix: jax.Array, spec: PartitionSpec) -> jax.Array:
    """A matrix of experts of which every device lacks no part but other experts and, of F, what
    the tensor axis shards.
    """
    for axis, names in enumerate(spec):
        if names == "fsdp":
            matrix = jax.lax.all_gather(matrix, "fsdp", axis=axis, tiled=True)
    return matrix


def wire_bytes(
    *, tokens: int, d_model: int, chosen: int, ways: int, number_bytes: int
) -> dict[str, float]:
    """Sent along the expert axis by one device with `tokens` of its own: in a forward pass tokens,
    choices and weights are gathered and outputs scattered; the backward pass gathers gradients of
    outputs, and scatters those of tokens and of weights.
    """
    rows = (ways - 1) * tokens
    forward = rows * (2 * d_model * number_bytes + chosen * (4 + 4))
    backward = rows * (2 * d_model * number_bytes + chosen * 4)
    return {"forward": float(forward), "backward": float(backward)}
