"""How is softmax attention computed by a kernel that keeps no scores? A kernel is one file here,
found by its name.

Kernels are kept in other libraries: a file here says how a layer of this project is put to one,
and which layers and chips it cannot take. What a kernel computes is that of the plain form
(model/ops/attention.py, banded_attention.py), which stays the reference. Layers reach it as
`Context.kernel`, with the question that they put to a sequence scheme.

On a mesh it runs in fully manual `jax.shard_map`: rows lie where the rules put a batch, heads on
`tensor` where they divide, and a device has the whole sequence of its rows.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from parallelism.errors import InputError, nearest
from parallelism.rules import ACTIVATIONS
from parallelism.sequence import Band

PLAIN, AUTO = "plain", "auto"  # no kernel; the first that can be
CUDA, TPU = "cuda", "tpu"


@dataclass(frozen=True)
class Chip:
    """What a program is compiled for: `platform` is cpu, cuda, rocm or tpu."""

    platform: str
    kind: str
    capability: tuple[int, int] | None = None  # of an NVIDIA GPU: its instruction set

    def __str__(self) -> str:
        return f"{self.kind} ({self.platform})" if self.kind != self.platform else self.kind


def here() -> Chip:
    """The chip of this program's devices."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        return Chip(device.platform, device.device_kind)
    if CUDA not in device.client.platform_version:
        return Chip("rocm", device.device_kind)
    major, minor = device.compute_capability.split(".")
    return Chip(CUDA, device.device_kind, (int(major), int(minor)))


# NVIDIA's own: the compute capability of the chips that parallelism/accelerators.py names
CAPABILITIES = {"a100": (8, 0), "h100": (9, 0), "h200": (9, 0), "b200": (10, 0), "gb200": (10, 0)}


def named(kind: str) -> Chip:
    """The chip of an accelerator's name; one that has no kernel where the name is not known."""
    if kind in CAPABILITIES:
        return Chip(CUDA, kind, CAPABILITIES[kind])
    return Chip(TPU if kind.startswith("tpu_") else "unknown", kind)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One softmax attention layer that a kernel is asked about."""

    what: str  # the kind of the mixer
    length: int  # positions of a row
    per_head: int
    dtype: str  # of queries, keys and values
    documents: bool = True  # positions see their own document alone
    later: bool = False  # some see positions that come later: an encoder, a prefix
    ahead: int = 0  # learned keys that all see
    mapped: bool = False  # by vmap: over the stages of a pipeline, or over runs of a stack
    band: Band | None = None

    @property
    def window(self) -> Band | None:
        """The band where it leaves anything out."""
        whole = self.band is None or self.band.lookback >= self.length - 1
        return None if whole else self.band


@dataclass(frozen=True)
class Kernel:
    """Abstract. `local` is of one device, `refusal` says in words why a layer cannot be, `absent`
    why the kernel cannot be called from this program, whatever the layer.
    """

    mesh: Mesh | AbstractMesh

    @classmethod
    def refusal(cls, layer: Asked, chip: Chip) -> str | None:
        raise NotImplementedError

    @classmethod
    def absent(cls, chip: Chip) -> str | None:
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
        """y (B, T, H, K). `window`: positions seen, a query's own among them; S - T keys in front
        are seen by all.
        """
        raise NotImplementedError

    def softmax(
        self,
        q_BTHK: jax.Array,
        k_BTJK: jax.Array,
        v_BTJK: jax.Array,
        segments_BT: jax.Array | None,
        *,
        scale: float,
        prefix_BT: jax.Array | None = None,
        ahead: tuple[jax.Array, jax.Array] | None = None,
        band: Band | None = None,
    ) -> jax.Array:
        """As `parallelism.sequence.Scheme.softmax`: (B, T, H, K)."""
        window = None
        if band is not None:
            prefix_BT = None  # bands are of causal layers
            window = band.lookback + 1 if band.lookback < q_BTHK.shape[1] - 1 else None
        k_BSJK, v_BSJK = k_BTJK, v_BTJK
        if ahead is not None:
            k_BSJK, v_BSJK = (
                jnp.concatenate(pair, axis=1) for pair in zip(ahead, (k_BTJK, v_BTJK), strict=True)
            )
        local = partial(self.local, scale=scale, window=window)
        if self.mesh.size > 1:
            rows = ACTIVATIONS["batch"]
            tokens = PartitionSpec(rows, None, self._heads(k_BTJK.shape[2]), None)
            marks = PartitionSpec(rows, None)
            # what is inside a kernel, replication checks do not follow
            local = jax.shard_map(
                local,
                mesh=self.mesh,
                in_specs=(tokens, tokens, tokens, marks, marks),
                out_specs=tokens,
                check_vma=False,
            )
        return local(q_BTHK, k_BSJK, v_BSJK, segments_BT, prefix_BT)

    def _heads(self, kv_heads: int) -> tuple[str, ...]:
        """Mesh axes of the heads: none where key-value heads do not divide."""
        axes = ACTIVATIONS["heads"]
        ways = int(np.prod([self.mesh.shape[axis] for axis in axes]))
        return axes if kv_heads % ways == 0 else ()


def band_refusal(layer: Asked) -> str | None:
    """Why a layer's band is no window that kernels know, if it is none."""
    band = layer.window
    if band is None:
        return None
    if band.sinks:
        return f"{layer.what} keeps {band.sinks} first positions in sight, a kernel's window none"
    if band.block > 1:
        return f"{layer.what} sees whole blocks of {band.block}, a kernel's window slides by one"
    return None


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def resolve(name: str) -> type[Kernel]:
    """The kernel of a name; raises InputError with what to write instead."""
    if name not in names():
        known = [*names(), PLAIN, AUTO]
        raise InputError("execution.attention", name, nearest(name, known))
    module: ModuleType = importlib.import_module(f"{__name__}.{name}")
    return module.Kernel
