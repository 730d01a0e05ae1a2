"""What do layers of experts share? Knobs, the router with its losses and its bias, the experts, the
shared expert; a pass of tokens through them.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.chunked import Aux, ChunkedFfn
from model.context import Context
from model.ops import experts as ops
from model.ops import router as routing
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC
from parallelism.expert import Exchange


@dataclass(frozen=True, kw_only=True, config=SPEC)
class RoutedSpec(LayerSpec):
    """Abstract: SwiGLU experts of which a token takes `chosen`, and shared ones that it always
    takes.
    """

    experts: int = Field(default=8, ge=2)
    chosen: int = Field(default=2, ge=1)  # experts of a token, at each routing
    shared: int = Field(default=0, ge=0)  # experts that every token takes, beside those
    shared_gate: bool = False  # the shared output times a sigmoid of the token (Qwen, Time-MoE)
    ratio: float = Field(default=4 / 3, gt=0)  # hidden width of one expert over d_model
    multiple_of: int = Field(default=8, ge=1)  # that width is rounded to a multiple of this
    scores: Literal["softmax", "sigmoid"] = "softmax"
    renormalise: bool = False  # weights of the chosen sum to 1
    routed_scale: float = Field(default=1.0, gt=0)  # times the routed output (DeepSeek)
    balance_weight: float = Field(default=0.01, ge=0)  # OLMoE; summed over layers
    balance_over: Literal["batch", "rows"] = "batch"
    z_weight: float = Field(default=0.001, ge=0)  # OLMoE
    bias_rate: float | None = Field(default=None, gt=0)  # of loss-free balance; None: no bias
    capacity: float | None = Field(default=None, gt=0)  # over an even share; None: dropless
    product: Literal["padded", "ragged"] = "padded"  # of dropless experts
    block: int | None = Field(default=None, ge=1)  # slots of a padded block; None: by the load

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        if self.chosen > self.experts:
            raise ValueError(
                f"chosen {self.chosen} is more than the {self.experts} experts; write at most "
                f"{self.experts}"
            )
        if self.chosen == 1 and self.renormalise:
            raise ValueError(
                "chosen 1 with renormalise has weight 1 whatever the router says, so nothing "
                "trains the router; write renormalise false"
            )
        if self.shared_gate and not self.shared:
            raise ValueError("shared_gate gates shared experts; write shared 1 or more")
        if self.capacity is not None and (self.block or self.product != "padded"):
            raise ValueError(
                "capacity has its own slots; leave block and product out, or write capacity null"
            )
        width = max(1, round(self.ratio * shared["D"] / self.multiple_of)) * self.multiple_of
        own = {"E": self.experts, "F": width}
        return {**own, "G": self.shared} if self.shared else own

    @property
    def reads_order(self) -> bool:
        return self.capacity is not None

    @property
    def penalties(self) -> Mapping[str, str]:
        return {"balance": "balance_weight", "router_z": "z_weight"}


class Router(nnx.Module):
    def __init__(self, spec: RoutedSpec, declare: Declare, *, calls: int = 1):
        self.spec = spec
        self.weight = declare.matrix(
            "weight", "D E", contract="D", role=scaling.ROUTER, matmuls=float(calls)
        )
        self.bias = (
            None
            if spec.bias_rate is None
            else declare.buffer(
                "bias", "E", init="zeros", update=routing.towards_even(spec.bias_rate)
            )
        )

    def __call__(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, Aux]:
        """Experts and weights (B, T, K), and the sums over positions that aux is made of."""
        spec = self.spec
        # not in bfloat16, nor in what a GPU makes of float32 products unless asked
        with jax.default_matmul_precision("highest"):
            logits_BTE = linear(x_BTD.astype(jnp.float32), self.weight)
        scores_BTE = routing.scores(logits_BTE, kind=spec.scores)
        experts_BTK, weights_BTK = routing.choose(
            scores_BTE,
            chosen=spec.chosen,
            bias_E=None if self.bias is None else jax.lax.stop_gradient(self.bias[...]),
            renormalise=spec.renormalise,
        )
        counts_BE = routing.counts(experts_BTK, n_experts=spec.experts)
        sums = {
            "shares_BE": jnp.sum(routing.shares(scores_BTE), axis=1),
            "counts_BE": counts_BE.astype(jnp.float32),
            "z_squares_B": jnp.sum(routing.z_squares(logits_BTE), axis=1),
        }
        return experts_BTK, spec.routed_scale * weights_BTK, sums

    def aux(self, sums: Aux, *, positions: int) -> Aux:
        """Of one routing of every position; of capacity, what it dropped."""
        counts_E = jnp.sum(sums["counts_BE"], axis=0)
        p_BE, over = sums["shares_BE"] / positions, self.spec.balance_over
        aux = {
            "loss/balance": routing.balance_loss(p_BE, sums["counts_BE"], over=over),
            "loss/router_z": jnp.mean(sums["z_squares_B"]) / positions,
            "stat/expert_load": jnp.max(counts_E) / jnp.mean(counts_E),
        }
        if self.bias is not None:
            aux[f"buffer/{self.bias.decl.path}"] = counts_E
        if "dropped" in sums:
            aux["stat/dropped"] = sums["dropped"]
        return aux


class Experts(nnx.Module):
    def __init__(self, spec: RoutedSpec, declare: Declare, *, calls: int = 1):
        self.spec = spec
        share = calls * spec.chosen / spec.experts
        self.gate = declare.matrix("gate", "E D F", batch="E", contract="D", matmuls=share)
        self.up = declare.matrix("up", "E D F", batch="E", contract="D", matmuls=share)
        self.out = declare.matrix(
            "out", "E F D", batch="E", contract="F", role=scaling.RESIDUAL, matmuls=share
        )

    def __call__(
        self, x_BTD: jax.Array, experts_BTK: jax.Array, weights_BTK: jax.Array, ctx: Context
    ) -> tuple[jax.Array, Aux]:
        spec, (B, T, D), naive = self.spec, x_BTD.shape, ctx.naive
        if ctx.exchange is not None and not naive:
            return self._exchanged(x_BTD, experts_BTK, weights_BTK, ctx.exchange)
        weights = ops.Weights(self.gate[...], self.up[...], self.out[...])
        if spec.capacity is not None:
            y_BTD, dropped = self._limited(x_BTD, experts_BTK, weights_BTK, weights, naive=naive)
            return y_BTD, {"dropped": dropped}
        x_TD, experts_TK, weights_TK = (
            a.reshape(B * T, -1) for a in (x_BTD, experts_BTK, weights_BTK)
        )
        if naive:
            y_TD = ops.every_expert(x_TD, experts_TK, weights_TK, weights)
        elif spec.product == "ragged":
            y_TD = ops.ragged(x_TD, experts_TK, weights_TK, weights)
        else:
            y_TD = ops.padded(x_TD, experts_TK, weights_TK, weights, block=spec.block)
        return y_TD.reshape(B, T, D), {}

    def _exchanged(
        self,
        x_BTD: jax.Array,
        experts_BTK: jax.Array,
        weights_BTK: jax.Array,
        exchange: Exchange,
    ) -> tuple[jax.Array, Aux]:
        """The same where devices have rows, positions, experts or their widths of their own."""
        spec, (B, T, _) = self.spec, x_BTD.shape
        more: Aux = {}
        if spec.capacity is not None:
            slots = ops.slots_per_expert(
                spec.capacity, tokens=T * B, chosen=spec.chosen, n_experts=spec.experts
            )
            kept_BTK = exchange.kept(experts_BTK, n_experts=spec.experts, capacity=slots)
            experts_BTK = jnp.where(kept_BTK, experts_BTK, spec.experts)
            more["dropped"] = jnp.mean(~kept_BTK, dtype=jnp.float32)

        def compute(x_TD, experts_TK, weights_TK, matrices) -> jax.Array:
            weights, shares = ops.Weights(*matrices), exchange.ways
            if spec.product == "ragged":
                return ops.ragged(x_TD, experts_TK, weights_TK, weights)
            return ops.padded(
                x_TD, experts_TK, weights_TK, weights, block=spec.block, shares=shares
            )

        matrices = (self.gate, self.up, self.out)
        y_BTD = exchange(
            x_BTD,
            experts_BTK,
            weights_BTK,
            [m[...] for m in matrices],
            dims=[tuple(d for d in m.decl.dims if d != "Z") for m in matrices],
            n_experts=spec.experts,
            compute=compute,
        )
        return y_BTD, more

    def _limited(
        self,
        x_BTD: jax.Array,
        experts_BTK: jax.Array,
        weights_BTK: jax.Array,
        weights: ops.Weights,
        *,
        naive: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """The output, and the share of choices that were dropped.

        Slots go by position, then by row: what comes later takes no slot from what was earlier, of
        whatever row. Rows do compete at one position, and more tokens have more slots.
        """
        B, T, D = x_BTD.shape
        x_TD, experts_TK, weights_TK = (
            jnp.swapaxes(a, 0, 1).reshape(T * B, -1) for a in (x_BTD, experts_BTK, weights_BTK)
        )
        factor, K, E = self.spec.capacity or 1.0, self.spec.chosen, self.spec.experts
        slots = ops.slots_per_expert(factor, tokens=T * B, chosen=K, n_experts=E)
        if naive:
            kept_TK = ops.within_capacity(experts_TK, n_experts=E, capacity=slots)
            y_TD = ops.every_expert(x_TD, experts_TK, weights_TK * kept_TK, weights)
            dropped = jnp.sum(~kept_TK)
        else:
            y_TD, dropped = ops.limited(x_TD, experts_TK, weights_TK, weights, capacity=slots)
        return jnp.swapaxes(y_TD.reshape(T, B, D), 0, 1), dropped / (T * B * K)


class Shared(nnx.Module):
    """SwiGLU experts that every token takes: one of G times the width."""

    def __init__(self, spec: RoutedSpec, declare: Declare, *, calls: int = 1):
        n = float(calls)
        self.gate = declare.matrix("gate", "D G F", contract="D", matmuls=n)
        self.up = declare.matrix("up", "D G F", contract="D", matmuls=n)
        self.out = declare.matrix("out", "G F D", contract="G F", role=scaling.RESIDUAL, matmuls=n)
        self.open = (
            declare.matrix("open", "D", contract="D", role=scaling.ROUTER, matmuls=n)
            if spec.shared_gate
            else None
        )

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        h_BTGF = jax.nn.silu(linear(x_BTD, self.gate)) * linear(x_BTD, self.up)
        y_BTD = linear(h_BTGF, self.out)
        if self.open is None:
            return y_BTD
        return y_BTD * jax.nn.sigmoid(linear(x_BTD, self.open))[..., None]


class RoutedFfn(ChunkedFfn):
    """Abstract: a layer of one pool of experts. With a capacity positions compete for slots, and
    an exchange moves those of all devices at once: then it runs over all of them.
    """

    spec: RoutedSpec
    experts: Experts
    shared: Shared | None

    @property
    def by_rows(self) -> bool:
        return self.spec.capacity is None

    def in_chunks(self, ctx: Context) -> bool:
        return self.spec.capacity is None and ctx.exchange is None

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, Aux]:
        y_BTD, sums = self.part(x_BTD, ctx)
        return y_BTD, self.aux(sums, positions=x_BTD.shape[1])

    def routed(self, x_BTD: jax.Array, router: Router, ctx: Context) -> tuple[jax.Array, Aux]:
        """The weighted experts that the router chose, and the shared ones; sums over positions."""
        experts_BTK, weights_BTK, sums = router(x_BTD)
        y_BTD, more = self.experts(x_BTD, experts_BTK, weights_BTK, ctx)
        if self.shared is not None:
            y_BTD = y_BTD + self.shared(x_BTD)
        return y_BTD, sums | more
