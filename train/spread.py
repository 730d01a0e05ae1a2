"""How do host arrays get onto the mesh, from one process or from many?"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from parallelism.place import batch_sharding
from train.scheme import laid_out, laid_out_length
from train.spec import RunSpec


def spread(state: Any, shardings: Any) -> Any:
    """Host arrays onto the mesh; every process holds the whole value and places its own shards."""
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, lambda index, x=x: x[index]),
        state,
        shardings,
    )


def placer(
    mesh: Mesh, spec: RunSpec
) -> tuple[Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]], dict[str, int]]:
    """(this process's rows of a batch -> the global batch on the mesh, which rows those are).

    The order is that of the run's sequence scheme. A process reads only its own rows where its
    devices hold exactly those; on a mesh whose replicas span processes every process reads the
    whole batch and places the shards it holds.
    """
    place, share = _placer(mesh, spec)
    return lambda batch: place(laid_out(spec, batch)), share


def _placer(mesh: Mesh, spec: RunSpec):
    sharding = batch_sharding(mesh)
    shape = (spec.sequences_per_batch, laid_out_length(spec))
    processes, index = jax.process_count(), jax.process_index()
    if processes == 1:
        return lambda batch: jax.device_put(dict(batch), sharding), {}
    indices = sharding.addressable_devices_indices_map(shape).values()
    held = {index[0].indices(shape[0])[:2] for index in indices if index is not None}
    low, high = min(a for a, _ in held), max(b for _, b in held)
    size = shape[0] // processes
    if shape[0] % processes == 0 and (low, high) == (index * size, (index + 1) * size):

        def local(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
            make = jax.make_array_from_process_local_data
            return {k: make(sharding, v, (shape[0], *v.shape[1:])) for k, v in batch.items()}

        return local, {"process_index": index, "process_count": processes}

    def whole(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        return spread(dict(batch), {k: sharding for k in batch})

    return whole, {}
