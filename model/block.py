"""How is a residual block wired? Pre-norm: x + mixer(norm(x)), then x + ffn(norm(x))."""

from collections.abc import Mapping

import jax
from flax import nnx

from model.context import Context
from model.ops.norm import layernorm, rmsnorm
from model.param import Declare
from model.spec import BlockSpec, LayerSpec, base_sizes, resolve


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
        self.mixer_norm = Norm(norm, declare.within("mixer_norm"))
        self.mixer = _layer("mixers", "mixer", spec.mixer, declare)
        self.ffn_norm = Norm(norm, declare.within("ffn_norm"))
        self.ffn = _layer("ffns", "ffn", spec.ffn, declare)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        y_BTD, aux = self.mixer(self.mixer_norm(x_BTD), ctx)
        x_BTD = ctx.constrain(x_BTD + y_BTD, "B T D")
        y_BTD, more = self.ffn(self.ffn_norm(x_BTD), ctx)
        return ctx.constrain(x_BTD + y_BTD, "B T D"), add_aux(aux, more)


def add_aux(a: Mapping[str, jax.Array], b: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Sum of `loss/` and `stat/` entries by key."""
    return {k: a[k] + b[k] if k in a and k in b else (a[k] if k in a else b[k]) for k in {**a, **b}}


def _layer(room: str, name: str, spec: LayerSpec, declare: Declare) -> nnx.Module:
    multiple = declare.sizes["D"] / declare.base["D"]
    base = base_sizes(spec, declare.sizes, width_multiple=multiple)
    local = declare.within(name, sizes=spec.sizes(declare.sizes), base=base)
    return resolve(spec.kind, room=room).Layer(spec, local)
