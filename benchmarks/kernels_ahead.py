"""Does a training step with an attention kernel compile for a chip that is not here, and in how
much memory?

    python -m benchmarks.kernels_ahead tpu v5e:2x2
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python -m benchmarks.kernels_ahead cuda h100_sxm.txtpb

The chip's own compiler is needed and the chip is not: of jax 0.10.2, `libtpu==0.0.42.*` (with
TPU_SKIP_MDS_QUERY=1 outside Google Cloud), or `jax-cuda12-plugin`, `jax-cuda12-pjrt` and
`nvidia-cudnn-cu12`, with a description of the GPU out of XLA's sources
(xla/backends/gpu/target_config/specs). Each step is compiled with the kernel and in the plain form;
figures are the compiler's own. Nothing runs: speed is for benchmarks.mixers on the chip.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from model import archs
from model.decoder import build
from parallelism.axes import MESH_AXES
from parallelism.errors import InputError
from parallelism.kernels import CUDA, PLAIN, TPU, Chip
from parallelism.place import batch_sharding, replicated
from train.paths import put
from train.programs import abstract_batch, state_shardings, traced
from train.schedule import hyper
from train.spec import RunSpec
from train.step import abstract_state

KERNELS = {CUDA: "cudnn", TPU: "pallas"}
TOKENS = 16_384  # of a batch
CASES: dict[str, dict[str, Any]] = {
    "2048": {"data.seq_len": 2048},
    "2048, one document": {"data.seq_len": 2048, "data.isolate_documents": False},
    "8192": {"data.seq_len": 8192},
    "2048, data 2 x tensor 2": {
        "data.seq_len": 2048,
        "execution.mesh.data": 2,
        "execution.mesh.tensor": 2,
    },
    "2048, fsdp 2 x tensor 2, remat": {
        "data.seq_len": 2048,
        "execution.mesh.fsdp": 2,
        "execution.mesh.tensor": 2,
        "execution.remat": "full",
    },
}


def devices(platform: str, of: str) -> list[Any]:
    """Four devices that only programs are compiled for."""
    if platform == TPU:
        return topologies.get_topology_desc(platform=platform, topology_name=of).devices
    described = Path(of).read_text()
    found = topologies.get_topology_desc(
        "gpu", platform=platform, topology="1x4x1", target_config=described
    )
    return found.devices


def compiled(spec: RunSpec, chip: Chip, found: list[Any]) -> dict[str, Any]:
    """Bytes of one device, calls to the kernel, and seconds to compile."""
    sizes = spec.execution.mesh.sizes
    grid = np.asarray(found[: spec.execution.mesh.n_devices]).reshape(tuple(sizes.values()))
    mesh = Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    model = build(spec.model)
    state = abstract_state(model)
    shardings, whole = state_shardings(model, state, mesh), replicated(mesh)
    numbers = {k: jax.ShapeDtypeStruct((), v.dtype) for k, v in hyper(spec).items()}
    step = jax.jit(
        traced(spec, model, mesh, chip=chip)[0],
        in_shardings=(shardings, whole, batch_sharding(mesh)),
        out_shardings=(shardings, whole),
        donate_argnums=0,
    )
    begun = time.perf_counter()
    made = step.trace(state, numbers, abstract_batch(spec)).lower(
        lowering_platforms=(chip.platform,)
    )
    made = made.compile()
    text, memory = str(made.as_text()), made.memory_analysis()
    assert memory is not None, "this compiler does not count memory"
    return {
        "temporary": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "calls": text.count('target="tpu_custom_call"') + text.count('target="__cudnn$fmha'),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n\n")[0])
    parser.add_argument("platform", choices=KERNELS)
    parser.add_argument("of", help="a TPU topology such as v5e:2x2, or a GPU's description")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--cases", default=";".join(CASES), help="names, divided by semicolons")
    given = parser.parse_args()
    found = devices(given.platform, given.of)
    kind, capability = found[0].device_kind, None
    if given.platform == CUDA:
        capability = (8, 0) if "A100" in kind else (9, 0)
    chip = Chip(given.platform, kind, capability)
    base = put(
        RunSpec(model=archs.build("dense", given.width)),
        {"model.n_layers": given.layers, "model.repeat.0.mixer.d_head": 64},
    )
    for name in given.cases.split(";"):
        for attention in (KERNELS[given.platform], PLAIN):
            sizes = {"budget.batch_tokens": TOKENS, "execution.attention": attention}
            row: dict[str, Any] = {"chip": kind, "case": name, "attention": attention}
            try:
                row |= compiled(put(base, sizes | CASES[name]), chip, found)
            except (InputError, jax.errors.JaxRuntimeError) as error:
                row["absent"] = str(error).partition("\n")[0]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
