"""States of linear recurrences from every device, once a layer (LASP-2; Sun et al. 2025).

Each device says how the state after its positions follows from that before them. One all-gather
brings these to all, of which each makes the state before its own positions; the gradient goes back
in one reduce-scatter. Both have the size of the states, whatever the length of the sequence. The
softmax layers of a hybrid gather keys and values (LASP-2H).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from parallelism.recurrence import Arrays, Recurrence, onward
from parallelism.sequence import (
    AXIS,
    CHANNEL_DECAY,
    DELTA,
    SCALAR_DECAY,
    SOFTMAX,
    Recurrent,
    Softmax,
    Traffic,
    all_gather,
)


@dataclass(frozen=True)
class Scheme(all_gather.Scheme):
    forms: ClassVar[frozenset[str]] = frozenset({SOFTMAX, SCALAR_DECAY, CHANNEL_DECAY, DELTA})

    def recurrent(
        self, form: str, local: Recurrence, arrays: Arrays, segments_BT: jax.Array | None
    ) -> jax.Array:
        tensor = self.mesh.shape["tensor"]
        divide = all(a.shape[2] % tensor == 0 for a in arrays.values() if a.shape[2] > 1)

        def spec(a: jax.Array) -> PartitionSpec:
            rows = self.batch_axes if a.shape[0] > 1 else None
            heads = self.head_axes if divide and a.shape[2] > 1 else None
            return PartitionSpec(rows, AXIS, heads)

        marks = {} if segments_BT is None else {"segments_BT": segments_BT}
        many = max(arrays.values(), key=lambda a: a.shape[0] * a.shape[2])
        in_specs = ({name: spec(a) for name, a in arrays.items()}, self.marks_spec())
        return self.manual(lambda *own: self._own(local, *own), in_specs, spec(many))(arrays, marks)

    def _own(self, local: Recurrence, arrays: Arrays, marks: Mapping[str, jax.Array]) -> jax.Array:
        """y of a device's own positions."""
        rank, segments_BT = jax.lax.axis_index(AXIS), None
        goes_on_B = jnp.ones((1,), bool)  # whether the first position's document began before it
        if marks:
            every_BT = marks["segments_BT"]
            each = every_BT.shape[1] // self.ways
            segments_BT = jax.lax.dynamic_slice_in_dim(every_BT, rank * each, each, axis=1)
            last_B = every_BT[:, jnp.maximum(rank * each - 1, 0)]
            goes_on_B = segments_BT[:, 0] == last_B
        a, state_BHKM = local.transfer(arrays, segments_BT)
        a = jnp.where(goes_on_B.reshape(-1, *(1,) * (a.ndim - 1)), a, 0)
        lead = state_BHKM.shape[:2]
        said = jnp.concatenate([state_BHKM.reshape(*lead, -1), a.reshape(*lead, -1)], axis=-1)
        width = state_BHKM[0, 0].size
        before_BHKM = jnp.zeros_like(state_BHKM)
        for block, one in enumerate(jax.lax.all_gather(said, AXIS)[: self.ways - 1]):
            of, to = one[..., :width], one[..., width:]
            after_BHKM = onward(to.reshape(a.shape), before_BHKM) + of.reshape(state_BHKM.shape)
            before_BHKM = jnp.where(block < rank, after_BHKM, before_BHKM)
        entering_BHKM = jnp.where(goes_on_B[:, None, None, None], before_BHKM, 0)
        return local.run(arrays, segments_BT, entering_BHKM)[0]

    def traffic(self, layer: Softmax | Recurrent) -> Traffic:
        if isinstance(layer, Softmax):
            return super().traffic(layer)
        rows = layer.rows // math.prod(self.mesh.shape[a] for a in self.batch_axes)
        heads = layer.heads // math.prod(self.mesh.shape[a] for a in self.heads(layer.heads))
        transfer = {SCALAR_DECAY: 1, CHANNEL_DECAY: layer.key, DELTA: layer.key**2}[layer.form]
        others = (self.ways - 1) * rows * heads * (layer.key * layer.value + transfer) * layer.wide
        return Traffic(others, others)
