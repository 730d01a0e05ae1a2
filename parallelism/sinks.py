"""How does a ring that stops early reach the first positions of a document? They are fetched.

A device has visited every block from some position `low` on. Its queries whose document begins
before that see the document's first keys too, `sinks` of them in every row: one reduce-scatter in
which a device gives what it holds of what each other one asks for, and zeros.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from parallelism.blockwise import Marks, Pair, Sight

AXIS = "sequence"


@dataclass(frozen=True)
class Sinks:
    """On one device; `hops` other blocks were visited."""

    sight: Sight
    hops: int

    def low(self, rank: jax.Array) -> jax.Array:
        """The first position that was visited."""
        return jnp.maximum(rank - self.hops, 0) * self.sight.length

    def wanted(self, marks: Marks, low: jax.Array, rows: int) -> jax.Array:
        """(B, S): the positions of the first keys of the document of position `low`."""
        begin_B1 = jnp.zeros((rows, 1), jnp.int32)
        if "begin" in marks:
            begin_B1 = jnp.take(marks["begin"], low, axis=1)[:, None]
        assert self.sight.band is not None
        return begin_B1 + jnp.arange(self.sight.band.sinks)

    def fetch(self, held: Pair, marks: Marks) -> Pair:
        """Keys and values (B, J, S, K) of those positions, zeros where they were visited."""
        given = self._given(held, marks)
        k_BJSK, v_BJSK = (jax.lax.psum_scatter(x, AXIS, scatter_dimension=0) for x in given)
        return k_BJSK, v_BJSK

    def give_back(self, grads: Pair, held: Pair, marks: Marks) -> Pair:
        """Gradients of a device's own keys and values from those of what was fetched."""
        every = tuple(jax.lax.all_gather(x, AXIS) for x in grads)
        like = tuple(jax.ShapeDtypeStruct(x.shape, every[0].dtype) for x in held)
        (own,) = jax.linear_transpose(lambda held: self._given(held, marks), like)(every)
        return own

    def seen(self, marks: Marks, rank: jax.Array, rows: int) -> jax.Array:
        """(B, T, S): whether queries of this device see what was fetched."""
        sight, low = self.sight, self.low(rank)
        assert sight.band is not None
        query_T = sight.positions(rank, jnp.arange(sight.length))
        key_BS = self.wanted(marks, low, rows)
        begin_BT1 = jnp.zeros((rows, 1, 1), jnp.int32)
        if "begin" in marks:
            begin_BT = marks["begin"].reshape(rows, sight.blocks, sight.length)[:, rank]
            begin_BT1 = begin_BT[:, :, None]
        key_B1S = key_BS[:, None]
        return sight.band.sees(query_T[None, :, None], key_B1S, begin_BT1) & (key_B1S < low)

    def _given(self, held: Pair, marks: Marks) -> Pair:
        """What this device holds of what each asks for: (device, B, J, S, K)."""
        rank, length, rows = jax.lax.axis_index(AXIS), self.sight.length, held[0].shape[0]

        def asked(other: jax.Array):
            low = self.low(other)
            at_BS = self.wanted(marks, low, rows)
            here_BS = (at_BS < low) & (at_BS // length == rank)
            index_BJSK = (at_BS - rank * length).clip(0, length - 1)[:, None, :, None]

            def one(x_BJSK: jax.Array) -> jax.Array:
                taken_BJSK = jnp.take_along_axis(x_BJSK, index_BJSK, axis=2)
                return jnp.where(here_BS[:, None, :, None], taken_BJSK, 0)

            return one(held[0]), one(held[1])

        return jax.vmap(asked)(jnp.arange(self.sight.blocks))
