"""LaCT: fast weights trained by large chunks while reading, beside a sliding window (Zhang et al.
2025, "Test-Time Training Done Right"; the layer of REFINE).

One set of queries, keys and values feeds two branches that are added: softmax attention over the
last `window` positions, and a small gated network per fast head, whose weights take one step down
-<f(k), v> after every `update_every` positions. `update_every` is part of the architecture: it
changes what is computed. Documents: chunks are counted from the row's start; where a document
begins inside one, the chunk's step starts from the initial weights and uses the keys of its last
document alone, and the documents that begin inside it read the initial weights until it ends.

Differs from the published layer: fast weights are float32 throughout, Muon included; f(q) is scaled
by the fast head's width before its norm, so that the norm's epsilon stays small in wide models; the
window's scores take the parametrisation's scale. Decoding keeps the window, the fast weights, the
step before, and the sums of the step that the current chunk will take: it does not grow.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import Field
from pydantic.dataclasses import dataclass

from model import scaling
from model.context import Context, State
from model.inits import Normal
from model.ops import fast_weights as ops
from model.ops.banded_attention import (
    Reach,
    banded_attention,
    extend_band,
    naive_banded_attention,
    start_band,
)
from model.ops.newton_schulz import NEWTON_SCHULZ
from model.ops.norm import rmsnorm
from model.ops.rotary import rotary
from model.param import Declare, linear
from model.spec import LayerSpec
from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(LayerSpec):
    kind: Literal["lact"] = "lact"  # pyright: ignore[reportIncompatibleVariableOverride]
    d_head: int = Field(default=64, ge=2, multiple_of=2)  # of the window's heads
    d_fast: int = Field(default=256, ge=1)  # of the fast heads; LaCT has four of them
    update_every: int = Field(default=2048, ge=1)  # positions of a step
    window: int = Field(default=2048, ge=1)
    hidden_ratio: float = Field(default=1.0, gt=0)  # hidden width of the fast network over d_fast
    rank: int | None = Field(default=32, ge=1)  # of the start of W0 and W2; None: they are full
    rate: float = Field(default=1e-3, gt=0)  # step size of a key where its projection is zero
    momentum: bool = True
    muon: bool = False  # orthogonalise each step
    rotary_theta: float = Field(default=10_000.0, gt=0)
    chunk: int = Field(default=256, ge=1)  # queries of a block of the window; order of sums only

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        width = shared["D"]
        for name in ("d_head", "d_fast"):
            if width % getattr(self, name):
                raise ValueError(
                    f"{name} {getattr(self, name)} does not divide d_model {width}; write a "
                    f"divisor of {width}"
                )
        sizes = {"H": width // self.d_head, "K": self.d_head}
        hidden = max(1, round(self.d_fast * self.hidden_ratio))
        sizes |= {"G": width // self.d_fast, "N": self.d_fast, "F": hidden}
        return sizes if self.rank is None else {**sizes, "R": self.rank}


class Layer(nnx.Module):
    def __init__(self, spec: Spec, declare: Declare):
        self.spec = spec
        self.q = declare.matrix("q", "D H K", contract="D")
        self.k = declare.matrix("k", "D H K", contract="D")
        self.v = declare.matrix("v", "D H K", contract="D")
        self.out = declare.matrix("out", "H K D", contract="H K", role=scaling.RESIDUAL)
        self.q_gain = declare.vector("q_gain", "H K", init="ones")
        self.k_gain = declare.vector("k_gain", "H K", init="ones")
        self.q_scale = declare.vector("q_scale", "H K", init="ones")
        self.k_scale = declare.vector("k_scale", "H K", init="ones")
        self.q_offset = declare.vector("q_offset", "H K", init="zeros")
        self.k_offset = declare.vector("k_offset", "H K", init="zeros")
        N, F = declare.sizes["N"], declare.sizes["F"]
        # products with them are not per token alone: they are counted in extra_flops
        matrix = partial(declare.matrix, matmuls=0.0)
        if spec.rank is None:
            self.w0 = matrix("w0", "G N F", batch="G", contract="N")
            self.w2 = matrix("w2", "G N F", batch="G", contract="N")
        else:
            # half of a normal matrix's spread for each factor, beside half the identity: LaCT
            half_N, half_R = Normal(0.5 * N**-0.5), Normal(0.5 * spec.rank**-0.5)
            self.w0_in = matrix("w0_in", "G N R", batch="G", contract="N", init=half_N)
            self.w0_out = matrix("w0_out", "G R F", batch="G", contract="R", init=half_R)
            self.w2_in = matrix("w2_in", "G N R", batch="G", contract="N", init=half_N)
            self.w2_out = matrix("w2_out", "G R F", batch="G", contract="R", init=half_R)
        self.w1 = matrix("w1", "G F N", batch="G", contract="F")
        self.rates = nnx.List([declare.matrix(f"rate_{i}", "D G", contract="D") for i in range(3)])
        self.rate_biases = nnx.List(
            [declare.vector(f"rate_bias_{i}", "G", init="zeros") for i in range(3)]
        )
        if spec.momentum:
            self.momentum = declare.matrix("momentum", "D G", contract="D")
            self.momentum_bias = declare.vector("momentum_bias", "G", init="zeros")
        self.scale = declare.matrix("scale", "D G", contract="D")
        self.scale_bias = declare.vector("scale_bias", "G", init="zeros")
        self.norm_gain = declare.vector("norm_gain", "N", init="ones")
        self.score = scaling.attention_scale(declare.rule, per_head=declare.sizes["K"])
        self.fast_width, self.fast_hidden = N, F

    def __call__(self, x_BTD: jax.Array, ctx: Context) -> tuple[jax.Array, dict[str, jax.Array]]:
        (q, k, v), read = self._read(x_BTD, ctx)
        more = {"every": self.spec.update_every, "muon": self.spec.muon}
        reach = Reach(blocks=self.spec.window)
        if ctx.naive:
            near = naive_banded_attention(q, k, v, ctx.segments_BT, reach=reach, scale=self.score)
            far = ops.naive_fast_weights(self._initial(), read, ctx.segments_BT, **more)
        else:
            near = banded_attention(
                q, k, v, ctx.segments_BT, reach=reach, scale=self.score, chunk=self.spec.chunk
            )
            unroll = ctx.layers == "unroll"
            far = ops.fast_weights(self._initial(), read, ctx.segments_BT, **more, unroll=unroll)
        return self._out(x_BTD, near, far), {}

    def start(self, rows: int, *, length: int, dtype: Any) -> State:
        G, N, F = self.w1.decl.shape[-3], self.fast_width, self.fast_hidden
        shapes = ((rows, G, N, F), (rows, G, F, N), (rows, G, N, F))
        held = {f"{what}_{i}": jnp.zeros(shapes[i]) for what in self._held for i in range(3)}
        if self.spec.momentum:
            held["gates_BG1"] = jnp.zeros((rows, G, 1))
        H, K = self.k.decl.shape[-2:]
        window = start_band(rows, H, K, reach=Reach(blocks=self.spec.window), dtype=dtype)
        return {**window, **held}

    def extend(self, x_BTD: jax.Array, state: State, ctx: Context):
        spec, first = self.spec, ctx.positions_BT[0, 0]
        (q, k, v), read = self._read(x_BTD, ctx)
        near, band = extend_band(
            q,
            k,
            v,
            {name: state[name] for name in ("k_BSJK", "v_BSJK")},
            first=first,
            reach=Reach(blocks=spec.window),
            scale=self.score,
            chunk=spec.chunk,
        )
        initial = self._initial()
        start = ops.begun(initial, x_BTD.shape[0])
        held = {what: ops.three(state[f"{what}_{i}"] for i in range(3)) for what in self._held}
        # what is remembered of no position is made without the parameters, so the weights it begins
        # with come in here
        weights = jax.tree.map(
            lambda new, old: jnp.where(first == 0, new, old), start.weights, held["weights"]
        )
        part = ops.Partial(
            ops.Fast(weights, held.get("before", start.before)),
            held["sums"],
            state.get("gates_BG1", jnp.zeros((x_BTD.shape[0], start.weights[0].shape[1], 1))),
        )
        far, part = ops.extend_fast_weights(
            initial, read, part, first=first, every=spec.update_every, muon=spec.muon
        )
        after = {"weights": part.fast.weights, "before": part.fast.before, "sums": part.sums}
        state = {f"{what}_{i}": after[what][i] for what in self._held for i in range(3)} | band
        if spec.momentum:
            state["gates_BG1"] = part.gates_BG1
        return self._out(x_BTD, near, far), state, {}

    @property
    def _held(self) -> tuple[str, ...]:
        return ("weights", "before", "sums") if self.spec.momentum else ("weights", "sums")

    def _initial(self) -> ops.Weights:
        w1 = self.w1[...]
        if self.spec.rank is None:
            return self.w0[...], w1, self.w2[...]
        half = 0.5 * jnp.eye(self.fast_width, self.fast_hidden)
        w0 = self.w0_in[...] @ self.w0_out[...] + half
        return w0, w1, self.w2_in[...] @ self.w2_out[...] + half

    def _read(self, x_BTD: jax.Array, ctx: Context):
        """Queries, keys and values of the window, and what the same say to the fast weights."""
        dtype = x_BTD.dtype
        turned = partial(rotary, positions_BT=ctx.positions_BT, theta=self.spec.rotary_theta)
        v_BTHK = linear(x_BTD, self.v)

        def normed(weight, gain):
            y_BTHK = linear(x_BTD, weight)
            flat_BTD = y_BTHK.reshape(x_BTD.shape)
            return rmsnorm(flat_BTD, gain[...].reshape(-1)).reshape(y_BTHK.shape)

        def heads(y_BTHK):
            """By fast heads, before positions."""
            y_BTGN = y_BTHK.reshape(*x_BTD.shape[:2], -1, self.fast_width)
            return y_BTGN.swapaxes(1, 2)

        def key(y_BTHK, scale, offset):
            y_BTHK = jax.nn.silu(y_BTHK * scale[...].astype(dtype) + offset[...].astype(dtype))
            y_BTGN = y_BTHK.reshape(*x_BTD.shape[:2], -1, self.fast_width).astype(jnp.float32)
            square_BTG1 = jnp.sum(y_BTGN * y_BTGN, axis=-1, keepdims=True)
            unit_BTGN = (y_BTGN * jax.lax.rsqrt(square_BTG1 + ops.TINY)).astype(dtype)
            return heads(turned(unit_BTGN.reshape(y_BTHK.shape)))

        q_BTHK, k_BTHK = normed(self.q, self.q_gain), normed(self.k, self.k_gain)

        def gate(weight, bias):
            return (linear(x_BTD, weight, dtype=jnp.float32) + bias[...]).swapaxes(1, 2)

        inverse = math.log(math.expm1(self.spec.rate))  # of softplus
        rates = [
            jax.nn.softplus(gate(w, b) + inverse)
            for w, b in zip(self.rates, self.rate_biases, strict=True)
        ]
        gates_BGT = jnp.zeros_like(rates[0])
        if self.spec.momentum:
            gates_BGT = jax.nn.sigmoid(gate(self.momentum, self.momentum_bias))
        read = ops.Read(
            key(q_BTHK, self.q_scale, self.q_offset),
            key(k_BTHK, self.k_scale, self.k_offset),
            heads(jax.nn.silu(v_BTHK)),
            jnp.stack(rates, axis=-1),
            gates_BGT[..., None],
        )
        return (turned(q_BTHK), turned(k_BTHK), v_BTHK), read

    def _out(self, x_BTD: jax.Array, near_BTHK: jax.Array, far_BGTN: jax.Array) -> jax.Array:
        far_BGTN = rmsnorm(far_BGTN * self.fast_width, self.norm_gain[...])
        scale_BTG = linear(x_BTD, self.scale, dtype=jnp.float32) + self.scale_bias[...]
        far_BTGN = far_BGTN.swapaxes(1, 2) * jax.nn.silu(scale_BTG)[..., None]
        far_BTHK = far_BTGN.astype(x_BTD.dtype).reshape(near_BTHK.shape)
        return linear(near_BTHK + far_BTHK, self.out)


def extra_flops(spec: Spec, sizes: Mapping[str, int], *, seq_len: int, causal: bool) -> float:
    """Forward FLOPs per token outside parameter products: the window, three products to read, six
    to step where a chunk follows, and the steps' orthogonalisation. What is computed (`causal`
    False) reads a second time, with the initial weights, for documents that begin inside a chunk.
    """
    reach = Reach(blocks=spec.window)
    keys = reach.seen(seq_len) if causal else reach.computed(seq_len, chunk=spec.chunk)
    G, N, F = (sizes[letter] for letter in "GNF")
    chunks = -(-seq_len // spec.update_every)
    reads = 1 if causal or chunks == 1 else 2
    stepped = (chunks - 1) * spec.update_every / seq_len
    flops = 4.0 * keys * sizes["H"] * sizes["K"] + G * N * F * (6.0 * reads + 12.0 * stepped)
    if spec.muon:
        m, n = min(N, F), max(N, F)
        product = 2.0 * (2 * m * m * n + m**3)
        flops += 3 * len(NEWTON_SCHULZ) * product * G * (chunks - 1) / seq_len
    return flops


def decode_state(spec: Spec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Numbers kept for decoding one sequence, however long it is."""
    copies = 3 if spec.momentum else 2
    fast = sizes["G"] * (3 * copies * sizes["N"] * sizes["F"] + (1 if spec.momentum else 0))
    window = 2 * Reach(blocks=spec.window).held * sizes["H"] * sizes["K"]
    return {"per_token": 0, "fixed": fast + window}
