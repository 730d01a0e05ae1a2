"""How is a layer put to the Pallas kernel for TPU that JAX keeps? Splash attention: causal or
windowed, documents by number, grouped queries; it skips tiles that nothing is seen in.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)

from parallelism import kernels
from parallelism.kernels import Asked, Chip, band_refusal

LANES = 128  # tiles are whole multiples of a TPU's vector registers
TILE = 512  # guess, as MaxText has it; a length takes the largest part of it that divides it


@dataclass(frozen=True)
class Kernel(kernels.Kernel):
    tile: int = TILE  # positions at most
    interpret: bool = False  # tests run the kernel on CPU, step by step

    @classmethod
    def refusal(cls, layer: Asked, chip: Chip) -> str | None:
        if chip.platform != kernels.TPU:
            return f"is written for TPU, and this is {chip}"
        if layer.length % LANES:
            return (
                f"needs rows of a multiple of {LANES} positions, and those of {layer.what} have "
                f"{layer.length}"
            )
        if layer.later:
            return f"is causal, and in {layer.what} here some positions see later ones"
        if layer.ahead:
            return f"has as many keys as queries, and {layer.what} has {layer.ahead} learned more"
        return band_refusal(layer)

    def local(
        self,
        q_BTHK: jax.Array,
        k_BSJK: jax.Array,
        v_BSJK: jax.Array,
        segments_BT: jax.Array | None,
        prefix_BT: jax.Array | None,
        *,
        scale: float,
        window: int | None,
    ) -> jax.Array:
        T, H = q_BTHK.shape[1:3]
        assert prefix_BT is None and k_BSJK.shape[1] == T, "refused"
        mask = (
            masks.CausalMask((T, T))
            if window is None
            else masks.LocalMask((T, T), (window - 1, 0), offset=0)
        )
        run: Any = splash.make_splash_mha(
            mask=masks.MultiHeadMask([mask] * H),
            block_sizes=_tiles(T, most=self.tile),
            head_shards=1,  # a device has all positions of its own heads
            q_seq_shards=1,
            interpret=self.interpret,
        )
        q_BHTK, k_BJSK, v_BJSK = (x.swapaxes(1, 2) for x in (q_BTHK, k_BSJK, v_BSJK))
        documents = None
        if segments_BT is not None:
            documents = splash.SegmentIds(q=segments_BT, kv=segments_BT)
        # the kernel knows no scale
        q_BHTK = q_BHTK * jnp.asarray(scale, q_BHTK.dtype)
        y_BHTK = jax.vmap(run)(q_BHTK, k_BJSK, v_BJSK, documents)
        return y_BHTK.swapaxes(1, 2)


def _tiles(length: int, *, most: int) -> splash.BlockSizes:
    side = next(n for n in (512, 256, LANES) if n <= most and length % n == 0)
    return splash.BlockSizes(
        block_q=side,
        block_kv=side,
        block_kv_compute=side,
        block_q_dkv=side,
        block_kv_dkv=side,
        block_kv_dkv_compute=side,
        block_q_dq=side,
        block_kv_dq=side,
    )
