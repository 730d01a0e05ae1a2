"""What does this machine offer to workers? Cores, and an accelerator or none; jax is not started.

A parent that starts jax would hold the accelerator that its workers need.
"""

import importlib.util
import os
import pkgutil
import subprocess
import sys

# glibc maps and unmaps XLA's temporary buffers at every step; kept in one arena instead, a CPU step
# takes 20 to 30 % less for up to twice the resident memory (measured, two cores, jax 0.10.2)
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_ARENA_MAX": "1",
}


def cores() -> list[int]:
    """The cores this process may use."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: what jax would choose here."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked:
        return {"cuda": "gpu", "rocm": "gpu"}.get(asked.split(",")[0], asked.split(",")[0])
    if not _has_plugin():
        return "cpu"
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    return done.stdout.split()[-1] if done.returncode == 0 and done.stdout.split() else "cpu"


def shares(workers: int) -> list[list[int]]:
    """Cores of each worker: disjoint while there are enough, else all of them to each."""
    available = cores()
    if workers > len(available):
        return [available] * workers
    return [available[i::workers] for i in range(workers)]


def _has_plugin() -> bool:
    if importlib.util.find_spec("libtpu") is not None:
        return True
    spec = importlib.util.find_spec("jax_plugins")
    places = list(spec.submodule_search_locations or []) if spec else []
    return any(True for _ in pkgutil.iter_modules(places))
