"""How does a feed-forward layer work whose matrices are products of small factors?

What LowRank, BlockShuffle and BlockDense share (Wei et al. 2024): the knobs, the layer around the
products, and self-guided training: a dense weight beside each product, equal to it at the start,
whose share of the output goes from 1 to 0 while the factors take over.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.chunked import PointwiseFfn
from model.context import Context
from model.inits import Init, Orthogonal, Place
from model.param import Declare, Parameter, block_linear, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class StructuredSpec(LayerSpec):
    """Abstract: the knobs that do not depend on the structure.

    `guided` is the fraction of the run in which the dense guide takes part; 0 is without one, and
    the paper's ablation has 0.5. It costs the dense layer's products for that fraction.
    """

    activation: Literal["gelu", "swiglu"] = "gelu"
    ratio: float = Field(default=4.0, gt=0)  # hidden width over d_model
    multiple_of: int = Field(default=8, ge=1)  # the hidden width is rounded to a multiple of this
    bias: bool = False
    guided: float = Field(default=0.0, ge=0, le=1)
    guide_schedule: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self):
        if self.bias and self.activation == "swiglu":
            raise ValueError("bias goes with gelu; write false, since swiglu has none here")

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        return {"F": rounded(self.ratio * shared["D"], self.multiple_of)}


@dataclass(frozen=True, kw_only=True, config=SPEC)
class RankedSpec(StructuredSpec):
    """Abstract: with a rank, which must say how it follows the width, since the learning rate of
    the factor after it does: `rank` is a number that stays, `rank_ratio` a fraction of d_model
    that grows (the default, at the kind's own fraction).
    """

    rank: int | None = Field(default=None, ge=1)
    rank_ratio: float | None = Field(default=None, gt=0)
    rank_multiple_of: int = Field(default=4, ge=1)  # rank_ratio x d_model is rounded to this

    def __post_init__(self):
        super().__post_init__()
        if self.rank is not None and self.rank_ratio is not None:
            raise ValueError(
                "rank is a number at every width and rank_ratio a fraction of d_model; write one "
                "of the two"
            )

    @property
    def own_ratio(self) -> float:
        """What rank_ratio is where neither it nor a rank is given."""
        raise NotImplementedError

    def rank_at(self, d_model: int, hidden: int) -> int:
        ratio = self.own_ratio if self.rank_ratio is None else self.rank_ratio
        rank = self.rank or rounded(ratio * d_model, self.rank_multiple_of)
        least = min(d_model, hidden)
        if rank > least:
            raise ValueError(
                f"rank {rank} is above {least}, the lesser of d_model {d_model} and hidden width "
                f"{hidden}, and more than that adds nothing; write at most {least}"
            )
        return rank


BLOCK_OF = {"D": "K", "F": "M"}  # the letter of one block's share of a width


def rounded(size: float, multiple_of: int) -> int:
    return max(1, round(size / multiple_of)) * multiple_of


def block_width(blocks: int, width: int, what: str) -> int:
    if width % blocks:
        raise ValueError(
            f"blocks {blocks} does not divide {what} {width}; write a divisor of {width}, or a "
            f"{what} that is a multiple of {blocks}"
        )
    return width // blocks


class Product(nnx.Module):
    """Abstract: x (..., n) to (..., m) by two factors; `guide` is the dense (n, m) beside them."""

    first: Parameter
    second: Parameter
    guide: Parameter | None

    def factored(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    @staticmethod
    def matrix(first: Any, second: Any, /) -> Any:
        """The (n, m) matrix that the factors of one layer stand for."""
        raise NotImplementedError

    def __call__(self, x: jax.Array, *, share: jax.Array | None, naive: bool) -> jax.Array:
        """`share` is the guide's of the output; None leaves the guide out of the program."""
        if naive:
            y = x @ self.matrix(self.first[...], self.second[...]).astype(x.dtype)
        else:
            y = self.factored(x)
        if share is None or self.guide is None:
            return y
        guided = linear(x, self.guide).astype(jnp.float32)
        return (share * guided + (1 - share) * y.astype(jnp.float32)).astype(x.dtype)


def block_product(x: jax.Array, weight: Parameter) -> jax.Array:
    """x (..., G K) by a block-diagonal weight (G, K, R), as (..., G, R)."""
    return block_linear(x.reshape(*x.shape[:-1], *weight.decl.shape[-3:-1]), weight)


@plain_dataclass(frozen=True)
class Part(Init):
    """Abstract: `first`, `second` or `guide` of one product (n, m), all parts of one draw.

    The product starts with the spread of a dense matrix of its role, as the paper starts it.
    """

    part: Literal["first", "second", "guide"]
    n: int
    m: int
    residual: bool  # writes to the stream, as scaling.RESIDUAL

    def factors(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def matrix(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def stream(self, path: str) -> str:
        return path.rpartition(".")[0]

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...], place: Place):
        first, second = self.factors(rng)
        if self.residual:  # half of the factor in each, so that neither learns faster
            root = (2 * place.n_layers) ** -0.25
            first, second = first * root, second * root
        whole = self.matrix(first, second) if self.part == "guide" else None
        value = {"first": first, "second": second, "guide": whole}[self.part]
        assert value is not None
        return value.reshape(shape)


def orthogonal_blocks(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Blocks whose singular values are all 1: the law of U V' of a normal draw's own SVD."""
    return np.stack([Orthogonal()(rng, shape[1:], Place(0, 1)) for _ in range(shape[0])])


def declare_guide(spec: StructuredSpec, declare: Declare, dims: str, *, role: str, init: Part):
    """None without guidance. Its products count for the fraction of the run that makes them."""
    if not spec.guided:
        return None
    contract = dims.split()[0]
    return declare.matrix(
        "guide", dims, contract=contract, role=role, init=init, matmuls=spec.guided
    )


def guide_share(spec: StructuredSpec, progress: jax.Array) -> jax.Array:
    done = jnp.clip(progress / spec.guided, 0.0, 1.0)
    return 0.5 * (1 + jnp.cos(math.pi * done)) if spec.guide_schedule == "cosine" else 1 - done


class FeedForward(PointwiseFfn):
    """out(gelu(up x)), or out(silu(gate x) * (up x)), of products."""

    def __init__(self, spec: StructuredSpec, declare: Declare, product: Any):
        self.spec = spec
        gated = spec.activation == "swiglu"
        self.gate = product(spec, declare.within("gate"), "D", "F") if gated else None
        self.up = product(spec, declare.within("up"), "D", "F")
        self.out = product(spec, declare.within("out"), "F", "D")
        if spec.bias:
            self.up_bias = declare.vector("up_bias", "F", init="zeros")
            self.out_bias = declare.vector("out_bias", "D", init="zeros")

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        def run(x_BTD: jax.Array, share: jax.Array | None) -> jax.Array:
            h_BTF = self.up(x_BTD, share=share, naive=ctx.naive)
            if self.spec.bias:
                h_BTF = h_BTF + self.up_bias[...].astype(h_BTF.dtype)
            if self.gate is None:
                h_BTF = jax.nn.gelu(h_BTF, approximate=True)
            else:
                h_BTF = jax.nn.silu(self.gate(x_BTD, share=share, naive=ctx.naive)) * h_BTF
            y_BTD = self.out(h_BTF, share=share, naive=ctx.naive)
            return y_BTD + self.out_bias[...].astype(y_BTD.dtype) if self.spec.bias else y_BTD

        if not self.spec.guided or ctx.progress is None:
            return run(x_BTD, None), {}
        share = guide_share(self.spec, ctx.progress)
        # a branch, so that the guide's products stop when its share has reached 0
        y_BTD = jax.lax.cond(
            ctx.progress < self.spec.guided,
            lambda x_BTD: run(x_BTD, share),
            lambda x_BTD: run(x_BTD, None),
            x_BTD,
        )
        return y_BTD, {}


def role_of(dims: str) -> str:
    """What comes back to the stream's width writes to it."""
    return scaling.RESIDUAL if dims.endswith("D") else scaling.HIDDEN
