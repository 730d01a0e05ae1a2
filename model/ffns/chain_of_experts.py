"""Chain-of-Experts (Wang et al. 2025): C passes through one pool of experts, the next on what the
last made of the token, each with a router of its own.

With h_0 = norm(x) and MoE_t the pass of router t:

| `residual` | pass | the block's output |
|---|---|---|
| `prenorm_inner` | h_t = h_{t-1} + MoE_t(h_{t-1}) | x + (h_C - h_0) |
| `official_inner` | the same | h_C: no x; what the official code does with inner residuals |
| `upcycled` | h_t = h_0 + w_t MoE_t(h_{t-1}) | x + MoE_C(h_{C-1}), w starts from zero |

One pass of `prenorm_inner` is a mixture of experts in a pre-norm block; one of `official_inner` is
not, since the stream starts again from its norm. `upcycled` is how the official scripts make a
chain of a trained mixture: while w is zero and the routers equal, it is the mixture. Their w is one
number, ours one a channel. Shared experts run once a pass: C (K + shared) expert calls a token.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model.chunked import Aux
from model.context import Context
from model.param import Declare
from model.routed import Experts, RoutedFfn, RoutedSpec, Router, Shared
from parallelism.axes import SPEC

OUTPUTS = {
    "prenorm_inner": "x + (h_C - h_0)",
    "official_inner": "h_C, in place of the stream",
    "upcycled": "x + MoE_C(h_{C-1})",
}


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(RoutedSpec):
    kind: Literal["chain_of_experts"] = "chain_of_experts"  # pyright: ignore[reportIncompatibleVariableOverride]
    passes: int = Field(default=2, ge=1, le=64)
    residual: Literal["prenorm_inner", "official_inner", "upcycled"] = "prenorm_inner"
    routers: Literal["each", "one"] = "each"  # one: every pass asks the same router

    @property
    def note(self) -> str:
        shared = "one shared by all passes" if self.routers == "one" else "one a pass"
        return (
            f"passes {self.passes}, residual {self.residual}, the block's output "
            f"{OUTPUTS[self.residual]}; routers {self.routers}: {shared}"
        )

    @property
    def replaces_stream(self) -> bool:
        return self.residual == "official_inner"


class Layer(RoutedFfn):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec, self.passes, self.residual = spec, spec.passes, spec.residual
        if spec.routers == "each":
            scopes = [(f"router_{t}", 1) for t in range(spec.passes)]
        else:
            scopes = [("router", spec.passes)]
        self.routers = nnx.List([Router(spec, declare.within(s), calls=n) for s, n in scopes])
        self.experts = Experts(spec, declare.within("experts"), calls=spec.passes)
        self.shared = (
            Shared(spec, declare.within("shared"), calls=spec.passes) if spec.shared else None
        )
        mixes = range(spec.passes - 1) if spec.residual == "upcycled" else ()
        self.mixes = nnx.List([declare.vector(f"mix_{t}", "D", init="zeros") for t in mixes])

    def part(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, list[Aux]]:
        n, h_BTD, sum_BTD = self.passes, x_BTD, jnp.zeros_like(x_BTD)
        passes: list[Aux] = []
        for t in range(n):
            y_BTD, sums = self.routed(h_BTD, self._router(t), ctx)
            passes.append(sums)
            if self.residual == "upcycled":
                sum_BTD = y_BTD
                if t < n - 1:
                    h_BTD = x_BTD + self.mixes[t][...].astype(x_BTD.dtype) * y_BTD
            else:
                sum_BTD = sum_BTD + y_BTD
                h_BTD = h_BTD + y_BTD
        return h_BTD if self.spec.replaces_stream else sum_BTD, passes

    def aux(self, sums: list[Aux], *, positions: int) -> Aux:
        made = [self._router(t).aux(one, positions=positions) for t, one in enumerate(sums)]
        return _over_passes(made)

    def _router(self, t: int) -> Router:
        return self.routers[t if len(self.routers) > 1 else 0]


def _over_passes(passes: list[Aux]) -> Aux:
    """Losses and counts summed, as over layers; statistics averaged."""
    out: Aux = {}
    for key in {key: None for aux in passes for key in aux}:
        seen = [aux[key] for aux in passes if key in aux]
        total = sum(seen[1:], start=seen[0])
        out[key] = total / len(seen) if key.startswith("stat/") else total
    return out


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: none that count."""
    return 0.0
