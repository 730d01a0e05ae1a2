"""On what was a run made? Commit, dirty diff, versions, host: what a reviewer asks of a figure."""

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """As JSON; the loop adds the devices."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *args], cwd=here, capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    versions = {}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "commit": git("rev-parse", "HEAD"),
        "diff": git("diff", "HEAD"),
        "python": sys.version.split()[0],
        "versions": versions,
        "host": platform.node(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
    }


def carries(spec: str) -> dict[str, str]:
    """What processes that train one run must have in common, by name; `spec` is the run's JSON."""
    here = Path(__file__).resolve().parents[1]
    code = hashlib.sha256()
    for room in ("parallelism", "model", "train"):
        for path in sorted((here / room).rglob("*.py")):
            code.update(str(path.relative_to(here)).encode() + path.read_bytes())
    return {
        "spec": hashlib.sha256(spec.encode()).hexdigest()[:12],
        "code": code.hexdigest()[:12],
        "jax": metadata.version("jax"),
    }
