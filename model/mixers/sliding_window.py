"""Softmax attention to the last `window` positions and to the first `sinks` of the document.

Windows: Beltagy et al. 2020 (Longformer), Jiang et al. 2023 (Mistral); sinks: Xiao et al. 2023
(StreamingLLM), here trained with, and with rotary positions as they are in the text rather than in
the cache. Sinks are those of the query's own document. Training costs time and memory linear in the
length; decoding holds `sinks` + `window` - 1 keys and values however long the text is.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
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
class Spec(HeadsSpec):
    kind: Literal["sliding_window"] = "sliding_window"  # pyright: ignore[reportIncompatibleVariableOverride]
    window: int = Field(default=256, ge=1)  # positions seen, a query's own among them
    sinks: int = Field(default=4, ge=0)  # StreamingLLM's number
    chunk: int = Field(default=128, ge=1)  # queries of a block; changes the order of sums only

    @property
    def sequence_form(self) -> str:
        return "softmax"

    def attentions(self, sizes: Mapping[str, int]) -> tuple[tuple[int, int, Any], ...]:
        return ((sizes["H"], sizes["J"], self.reach),)

    @property
    def reach(self) -> Reach:
        return Reach(blocks=self.window, sinks=self.sinks)


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.heads = Heads(spec, declare)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        form = naive_banded_attention
        if not ctx.naive:
            form = partial(banded_attention, chunk=self.spec.chunk)
        q_BTHK, k_BTJK, v_BTJK = self.heads(x_BTD, ctx)
        elsewhere = ctx.sequence or ctx.kernel
        if elsewhere is not None:
            y_BTHK = elsewhere.softmax(
                q_BTHK,
                k_BTJK,
                v_BTJK,
                ctx.segments_BT,
                scale=self.heads.scale,
                band=self.spec.reach,
            )
            return self.heads.back(y_BTHK), {}
        y_BTHK = form(
            q_BTHK,
            k_BTJK,
            v_BTJK,
            ctx.segments_BT,
            reach=self.spec.reach,
            scale=self.heads.scale,
        )
        return self.heads.back(y_BTHK), {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        J, K = self.heads.k.decl.shape[-2:]
        return start_band(rows, J, K, reach=self.spec.reach, dtype=dtype)

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        y_BTHK, state = extend_band(
            *self.heads(x_BTD, ctx),
            state,
            first=ctx.positions_BT[0, 0],
            reach=self.spec.reach,
            scale=self.heads.scale,
            chunk=self.spec.chunk,
        )
        return self.heads.back(y_BTHK), state, {}


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: scores and weighted values of the keys
    that a query sees, or of those that its block is multiplied with.
    """
    reach = spec.reach
    keys = reach.seen(seq_len) if causal else reach.computed(seq_len, chunk=spec.chunk)
    return 4.0 * keys * sizes["H"] * sizes["K"]


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: the band and the sinks, however long it is."""
    return {"per_token": 0, "fixed": 2 * spec.reach.held * sizes["J"] * sizes["K"]}
