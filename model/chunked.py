"""What does a layer say of itself so that a block can run a few positions at a time?

A feed-forward layer that is a `ChunkedFfn`, and a mixer that is a `ChunkedMixer`. Any other layer
is exact too: it runs over all positions at once and is made anew as a whole in the backward pass.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from model.context import Context

Sums = Any  # a tree of float32 arrays (B, ...), of each row the sums over positions
Aux = dict[str, jax.Array]


class ChunkedFfn(nnx.Module):
    """Abstract: what comes out at a position is made of what goes in there. Its aux is made of sums
    over positions, so that it is of the whole batch however the positions were cut.
    """

    def in_chunks(self, ctx: Context) -> bool:
        """False where, as it stands, positions do depend on each other."""
        return True

    @property
    def by_rows(self) -> bool:
        """False where, as it is set, rows of the batch depend on each other."""
        return True

    def part(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, Sums]:
        """Of some positions, or of some rows: y (B, T, D) and their sums."""
        raise NotImplementedError

    def aux(self, sums: Sums, *, positions: int) -> Aux:
        """Of the sums over all positions of a row."""
        raise NotImplementedError


class PointwiseFfn(ChunkedFfn):
    """Abstract: one without aux."""

    def part(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, Sums]:
        return self(x_BTD, ctx)[0], {}

    def aux(self, sums: Sums, *, positions: int) -> Aux:
        return {}


class ChunkedMixer(nnx.Module):
    """Abstract: queries of some positions meet keys and values of all that they see. No aux."""

    def keys(self, x_BTD: jax.Array, ctx: Context) -> Mapping[str, jax.Array]:
        """Of all positions, once: arrays with positions on axis 1."""
        raise NotImplementedError

    def part(
        self,
        x_BTD: jax.Array,
        keys: Mapping[str, jax.Array],
        seen_BTS: jax.Array,
        ctx: Context,
    ) -> jax.Array:
        """y (B, T, D) of some positions, which see the keys that `seen_BTS` names."""
        raise NotImplementedError
