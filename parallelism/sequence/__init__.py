"""How do devices share one sequence? A scheme is one file here, found by its name.

A scheme says in which order positions are laid out over the `sequence` axis of the mesh, computes
what crosses positions, value and gradient, as if there were one device, and counts the bytes that
it puts on the wire. Layers reach it as `Context.sequence`, and never see the mesh.

Everything runs in fully manual `jax.shard_map` over the whole mesh: rows lie where the rules put a
batch, heads on `tensor` where they divide, positions on `sequence`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from parallelism.axes import MeshSpec
from parallelism.blockwise import contiguous
from parallelism.errors import InputError, nearest
from parallelism.recurrence import Recurrence
from parallelism.rules import ACTIVATIONS

AXIS = "sequence"  # of the mesh

# What a mixer can ask of a scheme: LayerSpec.sequence_form
# recurrences by how their state decays: by one number a head, one a channel, a matrix
SOFTMAX, SCALAR_DECAY, CHANNEL_DECAY, DELTA = "softmax", "scalar_decay", "channel_decay", "delta"


class Band(Protocol):
    """What a query sees at most, beside causality: model.ops.banded_attention.Reach is one."""

    @property
    def lookback(self) -> int:
        """How far before a query its band can begin."""
        ...

    @property
    def block(self) -> int:
        """Bands begin at whole blocks of so many positions of a document."""
        ...

    @property
    def sinks(self) -> int:
        """First positions of a query's document that it sees wherever its band begins."""
        ...

    def sees(self, query: Any, key: Any, begin: Any) -> Any:
        """Does position `query`, of a document that begins at `begin`, see position `key`?"""
        ...


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """One softmax attention layer, of which the bytes are asked: sizes of the whole batch and all
    heads, `item` bytes an element of queries, keys and values, `wide` of sums and softmax.
    """

    rows: int
    length: int
    heads: int
    kv_heads: int
    per_head: int
    item: int = 4
    wide: int = 4
    band: Band | None = None
    ahead: int = 0  # learned keys that all positions see
    causal: bool = True


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """One recurrent layer: `state` numbers are carried from one position to the next, by row."""

    form: str
    rows: int
    length: int
    heads: int
    key: int
    value: int
    item: int = 4
    wide: int = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes that one device sends for one layer."""

    forward: int
    backward: int

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.forward + other.forward, self.backward + other.backward)


@dataclass(frozen=True)
class Scheme:
    """Abstract. `forms` are those that it computes; a mixer of another form is refused."""

    mesh: Mesh | AbstractMesh  # abstract where bytes alone are asked

    forms: ClassVar[frozenset[str]] = frozenset({SOFTMAX})
    parts: ClassVar[int] = 1  # runs of positions that a device holds: its length is a multiple
    permutes: ClassVar[bool] = False  # whether neighbours in the array are not those in the text

    @property
    def ways(self) -> int:
        return self.mesh.shape[AXIS]

    # (block, index, blocks=, length=) -> the position that a place of a device's block holds
    place: ClassVar[Callable[..., Any]] = staticmethod(contiguous)

    @classmethod
    def order(cls, length: int, *, ways: int) -> np.ndarray:
        """The position that each place of a laid-out sequence holds, (length,), a multiple of
        `ways` x `parts`.
        """
        each = length // ways
        block, index = np.arange(ways)[:, None], np.arange(each)
        return np.asarray(cls.place(block, index, blocks=ways, length=each)).reshape(-1)

    def positions(self, length: int) -> jax.Array:
        """The same as the program computes it."""
        each, place_T = length // self.ways, jnp.arange(length)
        return self.place(place_T // each, place_T % each, blocks=self.ways, length=each)

    def gathered(self, mark_BT: jax.Array) -> jax.Array:
        """A mark of every place, whole on each device of its row."""
        return jax.lax.with_sharding_constraint(
            mark_BT, NamedSharding(self.mesh, self.marks_spec())
        )

    @classmethod
    def check_heads(cls, heads: int, kv_heads: int, *, mesh: MeshSpec, what: str) -> None:
        """Raises InputError where it cannot divide the heads of a softmax layer."""

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
        """Attention of every position to what it may see, in the layout of `order`: (B, T, H, K).

        Causal, but for the positions of `prefix_BT`, which see one another; inside a document of
        `segments_BT`. `ahead`: keys and values (B, S, J, K) that all see.
        """
        raise NotImplementedError

    def recurrent(
        self,
        form: str,
        local: Recurrence,
        arrays: Mapping[str, jax.Array],
        segments_BT: jax.Array | None,
    ) -> jax.Array:
        """y (B, T, H, M) of a recurrence over all positions, from what `local` makes of a device's
        own. Every array is (B, T, H, ...), of which B and H may be 1.
        """
        raise NotImplementedError

    def traffic(self, layer: Softmax | Recurrent) -> Traffic:
        """Bytes on the wire of one layer by formula; `segments` come on top, once a step."""
        raise NotImplementedError

    def share(self, layer: Softmax) -> tuple[int, int, int]:
        """Rows, heads and key-value heads of one device, before a scheme moves any."""
        across = _size(self.mesh, self.heads(layer.kv_heads))
        rows = layer.rows // _size(self.mesh, self.batch_axes)
        return rows, layer.heads // across, layer.kv_heads // across

    def heads(self, kv_heads: int) -> tuple[str, ...]:
        """Mesh axes of the heads: none where key-value heads do not divide."""
        return self.head_axes if kv_heads % _size(self.mesh, self.head_axes) == 0 else ()

    @property
    def batch_axes(self) -> tuple[str, ...]:
        return ACTIVATIONS["batch"]

    @property
    def head_axes(self) -> tuple[str, ...]:
        return ACTIVATIONS["heads"]

    def manual(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        """`function` of a device's own parts, as a function of whole arrays."""
        # masks depend on the device's index, which replication checks do not follow
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def marks_spec(self) -> PartitionSpec:
        """Of (B, T) marks that every device of a row holds whole: segments and prefixes."""
        return PartitionSpec(self.batch_axes, None)


def _size(mesh: Mesh | AbstractMesh, axes: tuple[str, ...]) -> int:
    return int(np.prod([mesh.shape[axis] for axis in axes], dtype=np.int64))


NONE, AUTO = "none", "auto"  # the compiler places the collectives; the rule below


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def resolve(name: str) -> type[Scheme]:
    """The scheme of a name; raises InputError with what to write instead."""
    if name not in names():
        known = [*names(), NONE, AUTO]
        raise InputError("execution.sequence", name, nearest(name, known))
    module: ModuleType = importlib.import_module(f"{__name__}.{name}")
    return module.Scheme
