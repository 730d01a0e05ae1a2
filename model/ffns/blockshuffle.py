"""Feed-forward layer of Monarch products (Dao et al. 2022; Wei et al. 2024): a block diagonal, a
shuffle, a block diagonal, a shuffle. min(n, m) (n + m) / b parameters for n m, with b blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Literal

import jax
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import structured
from model.ops.structured import block_shuffle_matrix, shuffle, unshuffle
from model.param import Declare
from model.structured import FeedForward, Part, StructuredSpec
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(StructuredSpec):
    kind: Literal["blockshuffle"] = "blockshuffle"  # pyright: ignore[reportIncompatibleVariableOverride]
    blocks: int = Field(default=2, ge=1)  # 2 is the paper's 63 % of a GELU layer, 4 its 32 %

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        """R is the width between the factors of one block."""
        width, (hidden,) = shared["D"], super().sizes(shared).values()
        inner = structured.block_width(self.blocks, width, "d_model")
        outer = structured.block_width(self.blocks, hidden, "hidden width")
        return {"F": hidden, "G": self.blocks, "R": min(inner, outer), "K": inner, "M": outer}


@plain_dataclass(frozen=True)
class OrthogonalParts(Part):
    """Every block with singular values of 1."""

    blocks: int

    def factors(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        G, inner = self.blocks, min(self.n, self.m) // self.blocks
        first_GKR = structured.orthogonal_blocks(rng, (G, self.n // G, inner))
        second_GRM = structured.orthogonal_blocks(rng, (G, inner, self.m // G))
        return first_GKR, second_GRM

    def matrix(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return block_shuffle_matrix(first, second)


class Product(structured.Product):
    matrix = staticmethod(block_shuffle_matrix)

    def __init__(self, spec: Spec, declare: Declare, n: str, m: str):
        role = structured.role_of(m)

        def part(name: Literal["first", "second", "guide"]) -> OrthogonalParts:
            sizes = declare.sizes
            return OrthogonalParts(name, sizes[n], sizes[m], m == "D", sizes["G"])

        block_n, block_m = structured.BLOCK_OF[n], structured.BLOCK_OF[m]
        self.first = declare.matrix(
            "first", f"G {block_n} R", batch="G", contract=block_n, init=part("first")
        )
        self.second = declare.matrix(
            "second", f"G R {block_m}", batch="G", contract="R", role=role, init=part("second")
        )
        self.guide = structured.declare_guide(
            spec, declare, f"{n} {m}", role=role, init=part("guide")
        )

    def factored(self, x: jax.Array) -> jax.Array:
        middle = shuffle(structured.block_product(x, self.first)).reshape(*x.shape[:-1], -1)
        return unshuffle(structured.block_product(middle, self.second))


class Layer(FeedForward):
    def __init__(self, spec: Spec, declare: Declare):
        super().__init__(spec, declare, Product)


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: none that count."""
    return 0.0
