"""Which devices does a run use, and in what arrangement? MeshSpec -> jax Mesh; multi-process
start-up.
"""

import os

import jax
import numpy as np
from jax._src import distributed
from jax.sharding import AxisType, Mesh

from parallelism.axes import MESH_AXES, MeshSpec
from parallelism.errors import InputError
from parallelism.processes import JOIN_SECONDS, Carries, Roll, agree, call_roll


def make_mesh(spec: MeshSpec) -> Mesh:
    """The mesh of a spec over all processes' devices; raises InputError when there are too few."""
    devices = jax.devices()
    if spec.n_devices > len(devices):
        axis = max(spec.sizes, key=lambda name: spec.sizes[name])
        raise InputError(
            f"execution.mesh.{axis}",
            spec.sizes[axis],
            f"the mesh needs {spec.n_devices} devices and there are {len(devices)} "
            f"({devices[0].platform}); write sizes "
            f"whose product is at most {len(devices)}",
        )
    if jax.process_count() > 1 and spec.n_devices != len(devices):
        raise InputError(
            "execution.mesh",
            spec.n_devices,
            f"with {jax.process_count()} processes every device takes part; write sizes whose "
            f"product is {len(devices)}",
        )
    shape = tuple(spec.sizes.values())
    # Auto axes: jit decides layouts between our constraints (make_mesh's own default is Explicit)
    if spec.n_devices == len(devices):
        return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))
    grid = np.asarray(devices[: spec.n_devices]).reshape(shape)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(shape))


def start_processes(
    carries: Carries | None = None, *, join_seconds: float = JOIN_SECONDS
) -> Roll | None:
    """Join the other processes of this program before any device is touched.

    Clusters that JAX knows (Slurm, Open MPI, Kubernetes, TPU pods) need nothing; elsewhere the
    standard variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who.
    `carries` is what must be the same in all (hashes by name). Raises InputError in every process
    where one is missing or differs. The roll that comes back watches over the others.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if given and len(given) < len(names):
        missing = ", ".join(name for name in names if name not in given)
        raise InputError("--distributed", ", ".join(given), f"set {missing} too")
    for name in names[1:]:
        if name in given and not given[name].strip().isdigit():
            raise InputError(name, given[name], "write a whole number")
    carries = carries or {}
    roll = None
    # CPU processes talk through gloo; the setting means nothing to accelerators
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if given:
            address, processes, index = given[names[0]], int(given[names[1]]), int(given[names[2]])
            roll = call_roll(
                address, processes=processes, index=index, carries=carries, seconds=join_seconds
            )
            roll.watch()
            jax.distributed.initialize(
                coordinator_address=address, num_processes=processes, process_id=index
            )
        else:
            jax.distributed.initialize(initialization_timeout=int(join_seconds))
            agree(
                distributed.global_state.client,
                processes=jax.process_count(),
                index=jax.process_index(),
                carries=carries,
                seconds=join_seconds,
            )
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        raise InputError(
            "--distributed",
            str(error).splitlines()[0],
            f"start under a cluster manager that JAX detects, or set {', '.join(names)}",
        ) from None
    return roll
