"""Mixture of experts: a router sends each token to K of E SwiGLU experts, beside shared ones
(Shazeer et al. 2017; fine-grained and shared experts: DeepSeekMoE; dropless: MegaBlocks, OLMoE).
"""

from collections.abc import Mapping
from typing import Literal

import jax
from pydantic.dataclasses import dataclass

from model.chunked import Aux
from model.context import Context
from model.param import Declare
from model.routed import Experts, RoutedFfn, RoutedSpec, Router, Shared
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(RoutedSpec):
    kind: Literal["moe"] = "moe"  # pyright: ignore[reportIncompatibleVariableOverride]


class Layer(RoutedFfn):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.router = Router(spec, declare.within("router"))
        self.experts = Experts(spec, declare.within("experts"))
        self.shared = Shared(spec, declare.within("shared")) if spec.shared else None

    def part(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, Aux]:
        return self.routed(x_BTD, self.router, ctx)

    def aux(self, sums: Aux, *, positions: int) -> Aux:
        return self.router.aux(sums, positions=positions)


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: none that count (the empty slots of
    padded blocks and of a capacity are execution, not the model).
    """
    return 0.0
