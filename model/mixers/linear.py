"""Basic linear attention: y_t = sum over s <= t of (f(q_t) . f(k_s)) v_s, with a choice of f.

Katharopoulos et al. 2020, as in Linear-MoE's basic layer: a norm over each head's output stands in
for the softmax's denominator, which is a choice (`denominator`), as are features divided by their
sum and an output gate. Differs from it: learned feature maps are each head's own, as in their
papers.
"""

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.context import Context, State
from model.inits import Init
from model.ops import scalar_decay
from model.ops.feature_map import KINDS, Kind, features
from model.ops.norm import rmsnorm
from model.param import Declare, Parameter, block_linear, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC

SMALL, SMALLER = 1e-4, 1e-10  # beside a sum of features, and beside the denominator (FLA's values)


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["linear"] = "linear"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=32, ge=1)
    feature_map: Kind = "elu1"
    dpfp_shifts: int = Field(default=4, ge=1)  # nu of DPFP: its state is 2 nu times as large
    unit_features: bool = False  # features of a position divided by their sum
    denominator: bool = False  # the sum of the weights; the head norm makes up for its absence
    head_norm: bool = True
    gate: bool = False  # silu of a projection, on the output
    chunk: int = Field(default=64, ge=1, le=512)

    def __post_init__(self):
        positive = [name for name, f in KINDS.items() if f.positive]
        for name in ("denominator", "unit_features"):
            if getattr(self, name) and self.feature_map not in positive:
                raise ValueError(
                    f"{name} sums features, and those of {self.feature_map} may be negative; write "
                    f"{name}=false, or a feature_map of {', '.join(positive)}"
                )

    @property
    def carries(self) -> bool:
        return True

    @property
    def sequence_form(self) -> str:
        return "scalar_decay"

    def recurrence(self, sizes: Mapping[str, int]) -> tuple[int, int, int]:
        return sizes["H"], sizes["X"], sizes["M"] + self.denominator

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        width = shared["D"]
        if width % self.d_head:
            raise ValueError(
                f"d_head {self.d_head} does not divide d_model {width}; write a divisor of {width}"
            )
        shifts = self.dpfp_shifts if self.feature_map == "dpfp" else 1
        wider = KINDS[self.feature_map].widening * shifts
        K = self.d_head
        return {"H": width // K, "K": K, "M": K, "X": wider * K}


class Identity(Init):
    """The same channel out: a learned map starts where there is none (Hedgehog)."""

    def __call__(self, rng, shape, place):
        return np.broadcast_to(np.eye(shape[-1]), shape)


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.q = declare.matrix("q", "D H K", contract="D")
        self.k = declare.matrix("k", "D H K", contract="D")
        self.v = declare.matrix("v", "D H M", contract="D")
        self.gate = declare.matrix("gate", "D H M", contract="D") if spec.gate else None
        self.gain = declare.vector("gain", "M", init="ones") if spec.head_norm else None
        self.out = declare.matrix("out", "H M D", contract="H M", role=scaling.RESIDUAL)
        self.q_map, self.q_bias = _learned(spec, declare, "q")
        self.k_map, self.k_bias = _learned(spec, declare, "k")
        self.scale = scaling.attention_scale(declare.rule, per_head=declare.sizes["K"])
        self.state = (declare.sizes["H"], declare.sizes["X"], declare.sizes["M"] + spec.denominator)

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self._mix(x_BTD, ctx, None)[0], {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        return {"state_BHXM": jnp.zeros((rows, *self.state), jnp.float32)}

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        y_BTD, state_BHXM = self._mix(x_BTD, ctx, state["state_BHXM"])
        return y_BTD, {"state_BHXM": state_BHXM}, {}

    def _mix(self, x_BTD: jax.Array, ctx: Context, state_BHXM: jax.Array | None):
        spec = self.spec
        q_BTHX = self._features(linear(x_BTD, self.q), self.q_map, self.q_bias)
        k_BTHX = self._features(linear(x_BTD, self.k), self.k_map, self.k_bias)
        v_BTHM = linear(x_BTD, self.v)
        if spec.denominator:  # a value of ones sums the weights
            v_BTHM = jnp.pad(v_BTHM, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
        y_BTHM, state_BHXM = scalar_decay.form(
            naive=ctx.naive, chunk=spec.chunk, sequence=ctx.sequence
        )(
            q_BTHX * jnp.asarray(self.scale, q_BTHX.dtype),
            k_BTHX,
            v_BTHM,
            jnp.zeros((1, x_BTD.shape[1], 1)),
            ctx.segments_BT,
            state_BHKM=state_BHXM,
        )
        if spec.denominator:
            y_BTHM = y_BTHM[..., :-1] / (y_BTHM[..., -1:] + SMALLER)
        if self.gain is not None:
            y_BTHM = rmsnorm(y_BTHM, self.gain[...])
        y_BTHM = y_BTHM.astype(x_BTD.dtype)
        if self.gate is not None:
            y_BTHM = y_BTHM * jax.nn.silu(linear(x_BTD, self.gate))
        return linear(y_BTHM, self.out), state_BHXM

    def _features(self, x_BTHK: jax.Array, maps: nnx.List, biases: nnx.List) -> jax.Array:
        mapped = [block_linear(x_BTHK, weight) for weight in maps]
        for i, bias in enumerate(biases):
            mapped[i] = mapped[i] + bias[...].astype(x_BTHK.dtype)
        spec = self.spec
        f_BTHX = features(x_BTHK, tuple(mapped), kind=spec.feature_map, shifts=spec.dpfp_shifts)
        if not spec.unit_features:
            return f_BTHX
        total_BTH1 = jnp.sum(f_BTHX, axis=-1, keepdims=True, dtype=jnp.float32)
        return (f_BTHX / (total_BTH1 + SMALL)).astype(f_BTHX.dtype)


def _learned(spec: Spec, declare: Declare, name: str) -> tuple[nnx.List, nnx.List]:
    """Matrices and biases of a learned feature map, one for each head."""
    wanted = KINDS[spec.feature_map]
    init = Identity() if spec.feature_map == "hedgehog" else "normal"
    maps: list[Parameter] = []
    biases: list[Parameter] = []
    for i in range(wanted.matrices):
        maps.append(declare.matrix(f"{name}_map_{i}", "H K K", batch="H", contract="K", init=init))
        if wanted.bias:
            biases.append(declare.vector(f"{name}_map_{i}_bias", "H K", init="zeros"))
    return nnx.List(maps), nnx.List(biases)


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: pairs within a chunk, and the state."""
    return scalar_decay.flops(
        groups=sizes["H"],
        heads=sizes["H"],
        key=sizes["X"],
        value=sizes["M"] + spec.denominator,
        chunk=spec.chunk,
        seq_len=seq_len,
        causal=causal,
        decays=1,
    )


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence: `per_token` of context, and `fixed`."""
    return {"per_token": 0, "fixed": sizes["H"] * sizes["X"] * (sizes["M"] + spec.denominator)}
