"""What does a run know by now? Its spec, and its parameters at the newest checkpoint."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from model.decoder import Model, build
from parallelism.errors import InputError
from train.checkpoint import read_params
from train.find import find_run
from train.programs import use_cache
from train.spec import RunSpec, from_dict


@dataclass(frozen=True)
class Newest:
    run_id: str
    spec: RunSpec
    step: int
    model: Model
    params: dict[str, jax.Array]


def spec_of(run: str, *, root: Path) -> tuple[Any, RunSpec]:
    """A run as it was found, and its spec; raises InputError."""
    found = find_run(run, root)
    return found, from_dict(found.spec, source=str(found.path / "spec.json"))


def newest(run: str, *, root: Path) -> Newest:
    """The parameters of a run; raises InputError where there are none that can be read."""
    found, spec = spec_of(run, root=root)
    if (found.path.parent / ".cache").is_dir():
        use_cache(found.path.parent / ".cache")
    model = build(spec.model)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        path: jax.ShapeDtypeStruct(d.shape, np.float32, sharding=one)
        for path, d in model.declarations.items()
    }
    read = read_params(
        found.path / "ckpt", abstract, say=lambda text: print(text, file=sys.stderr, flush=True)
    )
    if read is None:
        raise InputError(
            "RUN",
            found.run_id,
            f"has no checkpoint that can be read ({found.status}); "
            "train it further with ladder train",
        )
    step, params = read
    return Newest(found.run_id, spec, step, model, params)
