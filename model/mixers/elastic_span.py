"""Mixture of sparse attention: every key-value head has its own span (MoA, Fu et al. 2024).

A head's rule is span(N) = alpha + beta x N. In blocks of `block` positions, a query sees its own
block and those before it, int(alpha // block + beta x N / block) of them and at least one, and the
first `global_blocks` of its document. N is `context`: the length for which the spans are meant. It
is fixed by the spec rather than read from a batch, so that a prefix is treated as in the whole and
decoding needs no length; a plan found at several lengths is used at one by writing that length.

Heads of one span are computed together on their band, so work follows the spans. Differs from the
published method: trained with from the start; the query heads of a key-value head share its rule,
so that decoding keeps of each head what its span needs. `model/elastic_plan.py` finds rules.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model.attention_heads import Heads, HeadsSpec
from model.context import Context, State
from model.ops.banded_attention import (
    Reach,
    banded_attention,
    extend_band,
    naive_banded_attention,
    start_band,
)
from model.param import Declare
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Rule:
    """span(N) = alpha + beta N, in positions; alpha may be negative."""

    alpha: float = 0.0
    beta: float = Field(default=0.0, ge=0, le=1)

    def blocks(self, length: int, *, block: int) -> int:
        """Blocks of the band at a length, a query's own among them."""
        return max(int(self.alpha // block + self.beta * length / block), 1)


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(HeadsSpec):
    kind: Literal["elastic_span"] = "elastic_span"  # pyright: ignore[reportIncompatibleVariableOverride]
    rules: tuple[Rule, ...] = Field(default=(Rule(beta=1.0),), min_length=1)  # repeated over heads
    context: int = Field(default=1024, ge=1)
    block: int = Field(default=64, ge=1)
    global_blocks: int = Field(default=1, ge=0)
    chunk: int = Field(default=128, ge=1)  # queries of a block; changes the order of sums only

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        sizes = super().sizes(shared)
        if sizes["J"] % len(self.rules):
            raise ValueError(
                f"{len(self.rules)} rules do not divide the {sizes['J']} key-value heads; write "
                f"one for all, one for each, or a divisor of {sizes['J']} of them"
            )
        return sizes

    def groups(self, kv_heads: int) -> dict[Reach, list[int]]:
        """Key-value heads by what they see, widest first."""
        found: dict[Reach, list[int]] = {}
        for head in range(kv_heads):
            blocks = self.rules[head % len(self.rules)].blocks(self.context, block=self.block)
            reach = Reach(blocks=blocks, block=self.block, sinks=self.global_blocks * self.block)
            found.setdefault(reach, []).append(head)
        return dict(sorted(found.items(), key=lambda item: -item[0].blocks))

    @property
    def sequence_form(self) -> str:
        return "softmax"

    def attentions(self, sizes: Mapping[str, int]) -> tuple[tuple[int, int, Any], ...]:
        groups = self.groups(sizes["J"]).items()
        return tuple((len(j) * self.queries_per_kv, len(j), reach) for reach, j in groups)


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.heads = Heads(spec, declare)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        form = naive_banded_attention
        if not ctx.naive:
            form = partial(banded_attention, chunk=self.spec.chunk)
        shared = ctx.sequence or ctx.kernel
        q_BTHK, k_BTJK, v_BTJK = self.heads(x_BTD, ctx)
        out = []
        for reach, kv_heads in self._groups:
            q, k, v = self._of(kv_heads, q_BTHK, k_BTJK, v_BTJK)
            if shared is None:
                y = form(q, k, v, ctx.segments_BT, reach=reach, scale=self.heads.scale)
            else:
                scale = self.heads.scale
                y = shared.softmax(q, k, v, ctx.segments_BT, band=reach, scale=scale)
            out.append(y)
        return self.heads.back(self._together(out)), {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        state, K = {}, self.heads.k.decl.shape[-1]
        for i, (reach, kv_heads) in enumerate(self._groups):
            band = start_band(rows, len(kv_heads), K, reach=reach, dtype=dtype)
            state |= {f"{name}_{i}": x for name, x in band.items()}
        return state

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        q_BTHK, k_BTJK, v_BTJK = self.heads(x_BTD, ctx)
        out, after = [], {}
        for i, (reach, kv_heads) in enumerate(self._groups):
            y_BTHK, band = extend_band(
                *self._of(kv_heads, q_BTHK, k_BTJK, v_BTJK),
                {name: state[f"{name}_{i}"] for name in ("k_BSJK", "v_BSJK")},
                first=ctx.positions_BT[0, 0],
                reach=reach,
                scale=self.heads.scale,
                chunk=self.spec.chunk,
            )
            out.append(y_BTHK)
            after |= {f"{name}_{i}": x for name, x in band.items()}
        return self.heads.back(self._together(out)), after, {}

    @property
    def _groups(self) -> list[tuple[Reach, list[int]]]:
        return list(self.spec.groups(self.heads.k.decl.shape[-2]).items())

    def _queries(self, kv_heads: list[int]) -> np.ndarray:
        """The query heads of some key-value heads."""
        share = self.spec.queries_per_kv
        return (np.asarray(kv_heads)[:, None] * share + np.arange(share)).reshape(-1)

    def _of(self, kv_heads: list[int], q_BTHK: jax.Array, k_BTJK: jax.Array, v_BTJK: jax.Array):
        if len(self._groups) == 1:
            return q_BTHK, k_BTJK, v_BTJK
        some = np.asarray(kv_heads)
        return q_BTHK[:, :, self._queries(kv_heads)], k_BTJK[:, :, some], v_BTJK[:, :, some]

    def _together(self, out: list[jax.Array]) -> jax.Array:
        """Outputs of the groups, back in the order of heads."""
        if len(out) == 1:
            return out[0]
        order = np.concatenate([self._queries(kv_heads) for _, kv_heads in self._groups])
        return jnp.concatenate(out, axis=2)[:, :, np.argsort(order)]


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: scores and weighted values of the keys
    that the queries of each head see, or of those that their block is multiplied with.
    """
    keys = math.fsum(
        len(kv_heads) * (r.seen(seq_len) if causal else r.computed(seq_len, chunk=spec.chunk))
        for r, kv_heads in spec.groups(sizes["J"]).items()
    )
    return 4.0 * keys * (sizes["H"] // sizes["J"]) * sizes["K"]


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: of each head what its span needs."""
    held = sum(len(kv_heads) * reach.held for reach, kv_heads in spec.groups(sizes["J"]).items())
    return {"per_token": 0, "fixed": 2 * held * sizes["K"]}
