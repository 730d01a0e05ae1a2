"""How is a residual block wired? Pre-norm: x + mixer(norm(x)), the same with a layer that reads an
encoder's source, then x + ffn(norm(x)).

A block may lack some. Decoding runs the same wiring with `extend`, which the mixer answers from
what it remembers of the positions before.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.chunked import ChunkedFfn, Sums
from model.context import Context, State
from model.ops.norm import layernorm, rmsnorm
from model.param import Declare
from model.spec import BlockSpec, LayerSpec, resolve
from parallelism.errors import InputError

CROSS = "cross/"  # what a block remembers of a source, apart from what its mixer does
SUMS = "sums/"  # before a block's path: what its aux is made of, when all rows of the batch are in


class Norm(nnx.Module):
    def __init__(self, kind: str, declare: Declare):
        self.gain = declare.vector("gain", "D", init="ones")
        self.bias = declare.vector("bias", "D", init="zeros") if kind == "layernorm" else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        if self.bias is None:
            return rmsnorm(x_BTD, self.gain[...])
        return layernorm(x_BTD, self.gain[...], self.bias[...])


class Block(nnx.Module):
    def __init__(self, spec: BlockSpec, declare: Declare, *, norm: str):
        mixes, feeds = spec.mixer is not None, spec.ffn is not None
        self.mixer_norm = Norm(norm, declare.within("mixer_norm")) if mixes else None
        self.mixer = _layer("mixers", "mixer", spec.mixer, declare) if mixes else None
        reads = spec.cross is not None
        self.cross_norm = Norm(norm, declare.within("cross_norm")) if reads else None
        self.cross = _layer("mixers", "cross", spec.cross, declare) if reads else None
        self.ffn_norm = Norm(norm, declare.within("ffn_norm")) if feeds else None
        self.ffn = _layer("ffns", "ffn", spec.ffn, declare) if feeds else None
        self.ffn_replaces = feeds and spec.ffn.replaces_stream
        self.sums = f"{SUMS}{'.'.join(declare.path)}"

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        x_BTD, aux = self.mix(x_BTD, ctx)
        return self.feed_forward(x_BTD, ctx, aux)

    def mix(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        """All that comes before the feed-forward layer."""
        aux: dict[str, jax.Array] = {}
        if self.mixer is not None and self.mixer_norm is not None:
            y_BTD, own = self.mixer(ctx.constrain(self.mixer_norm(x_BTD), "B T D"), ctx)
            aux = counted(own)
            x_BTD = ctx.residual(x_BTD + y_BTD, "B T D")
        if self.cross is not None and self.cross_norm is not None:
            y_BTD, own = self.cross(ctx.constrain(self.cross_norm(x_BTD), "B T D"), ctx)
            aux = add_aux(aux, counted(own))
            x_BTD = ctx.residual(x_BTD + y_BTD, "B T D")
        return x_BTD, aux

    def said(self, sums: Sums, ctx: Context, *, positions: int) -> dict[str, Any]:
        """aux of the feed-forward layer's sums by row, or the sums where rows are yet to come."""
        if ctx.apart:
            return {self.sums: sums} if jax.tree.leaves(sums) else {}
        return self.settled({self.sums: sums}, positions=positions)

    def settled(self, aux: Mapping[str, Any], *, positions: int) -> dict[str, jax.Array]:
        """aux of the whole batch, of the sums by row that `aux` has of this block."""
        if not isinstance(self.ffn, ChunkedFfn) or self.sums not in aux:
            return {}
        return counted(self.ffn.aux(aux[self.sums], positions=positions))

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        """What the block remembers of no position, with room for `length` of them."""
        return {} if self.mixer is None else self.mixer.start(rows, length=length, dtype=dtype)

    def read(self, ctx: Context, *, dtype: Any) -> State:
        """What it remembers of a source besides."""
        held = {} if self.cross is None else self.cross.read(ctx, dtype=dtype)
        return {f"{CROSS}{name}": value for name, value in held.items()}

    def extend(
        self, x_BTD: jax.Array, state: State, ctx: Context
    ) -> tuple[jax.Array, State, dict[str, jax.Array]]:
        """The next T positions after those in `state`."""
        aux: dict[str, jax.Array] = {}
        far = {k: v for k, v in state.items() if k.startswith(CROSS)}
        state = {k: v for k, v in state.items() if k not in far}
        if self.mixer is not None and self.mixer_norm is not None:
            y_BTD, state, own = self.mixer.extend(self.mixer_norm(x_BTD), state, ctx)
            aux = counted(own)
            x_BTD = ctx.constrain(x_BTD + y_BTD, "B T D")
        if self.cross is not None and self.cross_norm is not None:
            held = {k.removeprefix(CROSS): v for k, v in far.items()}
            y_BTD, _, _ = self.cross.extend(self.cross_norm(x_BTD), held, ctx)
            x_BTD = ctx.constrain(x_BTD + y_BTD, "B T D")
        x_BTD, aux = self.feed_forward(x_BTD, ctx, aux)
        return x_BTD, state | far, aux

    def feed_forward(self, x_BTD: jax.Array, ctx: Context, aux: dict[str, jax.Array]):
        if self.ffn is None or self.ffn_norm is None:
            return x_BTD, aux
        inside_BTD = ctx.constrain(self.ffn_norm(x_BTD), "B T D")
        if isinstance(self.ffn, ChunkedFfn) and self.ffn.by_rows:
            y_BTD, sums = self.ffn.part(inside_BTD, ctx)
            own = self.said(sums, ctx, positions=x_BTD.shape[1])
        else:
            y_BTD, own = self.ffn(inside_BTD, ctx)
            own = counted(own)
        x_BTD = y_BTD if self.ffn_replaces else x_BTD + y_BTD
        return ctx.residual(x_BTD, "B T D"), add_aux(aux, own)


def of_parts(aux: Mapping[str, Any], *, field: str, given: int) -> dict[str, Any]:
    """What layers gave of a part of the batch, refused unless sums by row: aux of the whole batch
    cannot be made of anything else. `field` is what cuts the batch.
    """
    if own := sorted(key for key in aux if not key.startswith(SUMS)):
        raise InputError(
            field,
            given,
            f"a layer gives {', '.join(own)} of the whole batch, and this runs parts of it; write "
            "1, or make the layer a ChunkedFfn (model/chunked.py)",
        )
    return dict(aux)


def counted(aux: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Statistics with the number of layers that gave them, so that their mean can be taken."""
    return {k: jnp.stack([v, 1.0]) if k.startswith("stat/") else v for k, v in aux.items()}


def add_aux(a: Mapping[str, jax.Array], b: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Sum of entries by key: `loss/` of the layers' own losses, `stat/` pairs (sum, number)."""
    return {k: a[k] + b[k] if k in a and k in b else (a[k] if k in a else b[k]) for k in {**a, **b}}


def _layer(room: str, name: str, spec: LayerSpec, declare: Declare) -> Any:
    multiple = declare.sizes["D"] / declare.base["D"]
    base = base_sizes(spec, declare.sizes, width_multiple=multiple)
    local = declare.within(name, sizes=spec.sizes(declare.sizes), base=base)
    return resolve(spec.kind, room=room).Layer(spec, local)


def base_sizes(
    layer: LayerSpec, shared: Mapping[str, float], *, width_multiple: float
) -> dict[str, float]:
    """Sizes of a layer's axes in the base model, from how they grow with the width.

    An axis that doubles with d_model is divided by the width multiple, one that does not grow
    stays. So the rounding of a size (to whole heads, to a multiple of 8) stays out of the learning
    rates, and the base width need not be one that could be built.
    """
    whole = {letter: int(size) for letter, size in shared.items()}
    own = layer.sizes(whole)
    doubled = layer.sizes({**whole, "D": 2 * whole["D"]})
    return {
        letter: size / width_multiple ** round(math.log2(doubled[letter] / size))
        for letter, size in own.items()
    }
