"""How is a layer put to cuDNN's flash attention? Through `jax.nn.dot_product_attention`.

Causality and windows are arguments of the kernel, which skips what they leave out. Documents,
prefixes and learned keys are a mask, (rows, 1, T, S), which the kernel takes as a bias of the
compute type: no array of all heads is made, but this one is, and one of its gradient. cuDNN could
pack documents instead; JAX does not offer that here, and it wants to know their number beforehand.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as fused

from parallelism import kernels
from parallelism.kernels import Asked, Chip, band_refusal

AMPERE, HOPPER = (8, 0), (9, 0)


@dataclass(frozen=True)
class Kernel(kernels.Kernel):
    implementation: Literal["cudnn", "xla"] = "cudnn"  # xla: the same question, for tests on CPU

    @classmethod
    def refusal(cls, layer: Asked, chip: Chip) -> str | None:
        """The conditions are those of `check_is_flash_attention` and `check_layout` in jax 0.10.2
        and 0.12; of the chip's generation, cuDNN's support matrix.
        """
        if chip.platform != kernels.CUDA or chip.capability is None:
            return f"needs an NVIDIA GPU, and this is {chip}"
        if chip.capability < AMPERE:
            return f"needs a GPU of compute capability 8.0, and {chip.kind} is of an earlier one"
        if layer.dtype not in ("bfloat16", "float16"):
            return f"computes in bfloat16 and not in {layer.dtype} (execution.compute_dtype)"
        widest = 256 if chip.capability >= HOPPER else 128
        if layer.per_head % 8 or layer.per_head > widest:
            return (
                f"needs heads whose width is a multiple of 8 up to {widest} on {chip.kind}, and "
                f"those of {layer.what} have d_head {layer.per_head}"
            )
        masked = layer.documents or layer.later or layer.ahead
        if masked and (layer.length % 2 or layer.ahead % 2):
            keys = layer.length + layer.ahead
            return (
                f"trains under a mask with even lengths only, and {layer.what} has {layer.length} "
                f"positions and {keys} keys"
            )
        if masked and layer.mapped:  # its rule for vmap takes a mask of every head alone
            return (
                "under a mask (data.isolate_documents, prefixes) is not mapped by jax, as stages "
                "of a pipeline and stacked runs are"
            )
        return band_refusal(layer)

    @classmethod
    def absent(cls, chip: Chip) -> str | None:
        try:
            version = fused.check_cudnn_version()
        except RuntimeError as error:
            return f"is not installed beside jax: {error}"
        if chip.capability == (10, 3) and version < 91100:
            return f"needs version 9.11 on {chip.kind}, and {version} is installed"
        return None

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
        T = q_BTHK.shape[1]
        ahead = k_BSJK.shape[1] - T
        causal = prefix_BT is None and not ahead  # then the kernel sees to it
        seen_BTS = jnp.ones((1, T, T), bool) if causal else jnp.tril(jnp.ones((1, T, T), bool))
        if prefix_BT is not None:
            seen_BTS = seen_BTS | (prefix_BT[:, :, None] & prefix_BT[:, None, :])
        if segments_BT is not None:
            seen_BTS = seen_BTS & (segments_BT[:, :, None] == segments_BT[:, None, :])
        seen_BTS = jnp.pad(seen_BTS, ((0, 0), (0, 0), (ahead, 0)), constant_values=True)
        masked = not causal or segments_BT is not None
        return jax.nn.dot_product_attention(
            q_BTHK,
            k_BSJK,
            v_BSJK,
            mask=seen_BTS[:, None] if masked else None,
            scale=scale,
            is_causal=causal,
            local_window_size=None if window is None else (window - 1, 0),
            implementation=self.implementation,
        )
