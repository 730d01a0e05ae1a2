"""How do host arrays get onto the mesh, from one process or from many?"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from parallelism.place import batch_sharding
from train.data.rows import Batch
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
) -> tuple[Callable[[Batch], dict[str, jax.Array]], dict[str, int]]:
    """(this process's rows of a batch -> the global batch on the mesh, which rows those are).

    A process reads only its own rows where its devices hold exactly those; on a mesh whose replicas
    span processes every process reads the whole batch and places the shards it holds.
    """
    sharding = batch_sharding(mesh)
    shape = (spec.sequences_per_batch, spec.data.seq_len)
    processes, index = jax.process_count(), jax.process_index()
    if processes == 1:
        return lambda batch: jax.device_put(batch._asdict(), sharding), {}
    indices = sharding.addressable_devices_indices_map(shape).values()
    held = {index[0].indices(shape[0])[:2] for index in indices if index is not None}
    low, high = min(a for a, _ in held), max(b for _, b in held)
    size = shape[0] // processes
    if shape[0] % processes == 0 and (low, high) == (index * size, (index + 1) * size):

        def local(batch: Batch) -> dict[str, jax.Array]:
            make = jax.make_array_from_process_local_data
            return {k: make(sharding, v, shape) for k, v in batch._asdict().items()}

        return local, {"process_index": index, "process_count": processes}

    def whole(batch: Batch) -> dict[str, jax.Array]:
        return spread(batch._asdict(), {k: sharding for k in batch._asdict()})

    return whole, {}
