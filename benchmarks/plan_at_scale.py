"""How far can a 70B-class run be planned on one CPU machine, without the devices?

    python benchmarks/plan_at_scale.py [--devices 64,512,4096] [--layers 80] [--compile]

For each number of devices: the estimate of the cost model on an abstract mesh (no device), then in
a process of its own with so many host devices the lowering of the step, and with --compile XLA's
own partitioning and buffers. Seconds and peak resident memory of each; one JSON object a line.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

MESHES = {
    8: (1, 8, 1),
    64: (1, 64, 1),
    128: (2, 64, 1),
    256: (1, 256, 1),
    512: (8, 64, 1),
    1024: (16, 64, 1),
}
SEVENTY = {
    "model.d_model": 8192,
    "model.vocab": 128_000,
    "data.seq_len": 4096,
    "budget.batch_tokens": 4096 * 4096,
    "execution.remat": "full",
    "execution.layers": "scan",
    "execution.compute_dtype": "bfloat16",
}


def spec(devices: int, layers: int) -> Any:
    from model.archs import build
    from train.paths import put
    from train.spec import RunSpec

    data, fsdp, tensor = MESHES.get(devices, (devices // 512, 64, 8))
    mesh = {"data": data, "fsdp": fsdp, "tensor": tensor}
    changes = {**SEVENTY, "model.n_layers": layers}
    changes |= {f"execution.mesh.{axis}": n for axis, n in mesh.items()}
    return put(RunSpec(model=build("dense", 8192)), changes)


def measured(stage: str, devices: int, layers: int) -> dict[str, Any]:
    """In this process."""
    begun = time.perf_counter()
    run = spec(devices, layers)
    out: dict[str, Any] = {"stage": stage, "devices": devices, "layers": layers}
    if stage == "estimate":
        from model.count import count
        from parallelism.accelerators import find
        from parallelism.cost import to_json
        from train.estimate import estimate

        chip = find("h100")
        out |= to_json(estimate(run, chip=chip), chip)
        out["parameters"] = count(run.model, seq_len=run.data.seq_len).params["total"]
    else:
        import jax

        from model.decoder import build
        from parallelism.mesh import make_mesh
        from parallelism.place import batch_sharding, replicated
        from train.programs import abstract_batch, state_shardings, traced
        from train.schedule import hyper
        from train.step import abstract_state

        mesh, model = make_mesh(run.execution.mesh), build(run.model)
        state = abstract_state(model)
        shardings, whole = state_shardings(model, state, mesh), replicated(mesh)
        step, _ = traced(run, model, mesh)
        numbers = {k: jax.ShapeDtypeStruct((), v.dtype) for k, v in hyper(run).items()}
        lowered = jax.jit(
            step,
            in_shardings=(shardings, whole, batch_sharding(mesh)),
            out_shardings=(shardings, whole),
            donate_argnums=0,
        ).lower(state, numbers, abstract_batch(run))
        if stage == "compile":
            memory = lowered.compile().memory_analysis()
            assert memory is not None
            out |= {"argument_bytes": memory.argument_size_in_bytes}
            out |= {"temporary_bytes": memory.temp_size_in_bytes}
    out["stage_seconds"] = round(time.perf_counter() - begun, 1)
    out["resident_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    return out


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    asked.add_argument("--devices", default="64,512,4096")
    asked.add_argument("--layers", type=int, default=80)
    asked.add_argument("--compile", action="store_true")
    asked.add_argument("--timeout", type=int, default=300, metavar="SECONDS")
    asked.add_argument("--stage")  # a child of this program
    args = asked.parse_args()
    counts = [int(n) for n in args.devices.split(",")]
    if args.stage:
        print(json.dumps(measured(args.stage, counts[0], args.layers)))
        return
    for n in counts:
        for stage in ("estimate", "lower", *(["compile"] if args.compile else [])):
            flags = f"--xla_force_host_platform_device_count={n if stage != 'estimate' else 1}"
            flags += " --xla_backend_optimization_level=0"
            command = [sys.executable, __file__, "--stage", stage, "--devices", str(n)]
            try:
                done = subprocess.run(
                    [*command, "--layers", str(args.layers)],
                    env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
                    capture_output=True,
                    text=True,
                    timeout=args.timeout,
                )
                said = done.stdout.splitlines()[-1:] or [done.stderr.strip()[-300:]]
            except subprocess.TimeoutExpired:
                said = [json.dumps({"stage": stage, "devices": n, "over_seconds": args.timeout})]
            print(said[0], flush=True)


if __name__ == "__main__":
    main()
