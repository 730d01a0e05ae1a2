"""Feed-forward layer of low-rank products U(Vx) (Wei et al. 2024): R (n + m) parameters for n m.

Starts as the best approximation, of that rank, to a dense draw.
"""

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Literal

import jax
import numpy as np
from pydantic.dataclasses import dataclass

from model import structured
from model.ops.structured import low_rank_matrix
from model.param import Declare, linear
from model.structured import FeedForward, Part, RankedSpec
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(RankedSpec):
    kind: Literal["lowrank"] = "lowrank"  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def own_ratio(self) -> float:
        return 0.5  # the paper's 63 % of a GELU layer's parameters; 0.25 is its 32 %

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        (hidden,) = super().sizes(shared).values()
        return {"F": hidden, "R": self.rank_at(shared["D"], hidden)}


@plain_dataclass(frozen=True)
class BestApproximation(Part):
    """The dense normal draw's first `rank` singular triples, singular values shared evenly."""

    rank: int

    def factors(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        whole_DF = rng.standard_normal((self.n, self.m)) * self.n**-0.5
        # eigenvectors of the smaller Gram matrix: a tenth of the time of an SVD of 512 by 2048, and
        # exact where the product is a projection of the draw
        wide = self.n <= self.m
        squares, vectors = np.linalg.eigh(whole_DF @ whole_DF.T if wide else whole_DF.T @ whole_DF)
        root_R = squares[-self.rank :] ** 0.25
        vectors = vectors[:, -self.rank :]
        if wide:
            return vectors * root_R, (vectors.T @ whole_DF) / root_R[:, None]
        return whole_DF @ vectors / root_R, root_R[:, None] * vectors.T

    def matrix(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return low_rank_matrix(first, second)


class Product(structured.Product):
    matrix = staticmethod(low_rank_matrix)

    def __init__(self, spec: Spec, declare: Declare, n: str, m: str):
        role = structured.role_of(m)

        def part(name: Literal["first", "second", "guide"]) -> BestApproximation:
            sizes = declare.sizes
            return BestApproximation(name, sizes[n], sizes[m], m == "D", sizes["R"])

        self.first = declare.matrix("first", f"{n} R", contract=n, init=part("first"))
        self.second = declare.matrix(
            "second", f"R {m}", contract="R", role=role, init=part("second")
        )
        self.guide = structured.declare_guide(
            spec, declare, f"{n} {m}", role=role, init=part("guide")
        )

    def factored(self, x: jax.Array) -> jax.Array:
        return linear(linear(x, self.first), self.second)


class Layer(FeedForward):
    def __init__(self, spec: Spec, declare: Declare):
        super().__init__(spec, declare, Product)


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: none that count."""
    return 0.0
