"""Where does a run begin that begins from another? The run it names, whether it fits, what is taken
from it: parameters, and the place in the data. Everything is checked before anything is compiled.
"""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from model.decoder import Model, build
from parallelism.errors import InputError
from train import grow, recycle, upcycle
from train.carry import carry_shapes
from train.checkpoint import read_params
from train.data.pipeline import Data
from train.find import find_run
from train.paths import differences
from train.record import DONE, RunDir
from train.spec import RunSpec, from_dict
from train.step import State, initial_state


@dataclass(frozen=True)
class Origin:
    """The run that another begins from, and what went into it and into those that it began from."""

    run: str
    tokens: int
    flops: float  # causal_attn
    rows: int  # where the new run's data begins: rows of its order that are behind it
    data: str | None  # fingerprint of the text in which those rows are

    def onward(self, data: Data) -> Data:
        """The data from the first row that no run before has read."""
        if self.data is not None and self.data != data.fingerprint:
            raise InputError(
                "data.sources",
                f"the corpus changed since {self.run} ended ({self.data} then, "
                f"{data.fingerprint} now)",
                "restore the files, or write start.data=fresh",
            )
        return replace(data, first=self.rows)

    def record(self) -> dict[str, Any]:
        return asdict(self)


def origin(spec: RunSpec, run: RunDir) -> Origin | None:
    """What `spec.start` names, None for a run from scratch; raises InputError where it does not
    fit. A run that has begun remembers it, and goes on where its origin is gone.
    """
    if spec.start is None:
        return None
    if (run.path / "spec.json").exists() and (kept := run.read().env.get("start")) is not None:
        return Origin(**kept)
    base = find_base(spec, run.path.parent)
    made = from_dict(base.spec, source=str(base.path / "spec.json"))
    before = base.env.get("start") or {}
    on = spec.start.data == "continue"
    rows = before.get("rows", 0) + made.steps * made.sequences_per_batch
    flops = base.counts["flops_per_token"]["causal_attn"] * made.tokens
    return Origin(
        run=base.run_id,
        tokens=made.tokens + before.get("tokens", 0),
        flops=flops + before.get("flops", 0.0),
        rows=rows if on else 0,
        data=base.env["data"]["fingerprint"] if on else None,
    )


def find_base(spec: RunSpec, root: Path) -> Any:
    """The finished run that `spec.start` names, which `spec` can begin from; raises InputError."""
    start = spec.start
    assert start is not None
    try:
        base = find_run(start.run if Path(start.run).is_dir() else start.run_id, root)
    except InputError as error:
        raise InputError("start.run", start.run, error.instead) from None
    made = from_dict(base.spec, source=str(base.path / "spec.json"))
    if made.run_id != start.run_id:
        raise InputError("start.run", start.run, f"holds run {made.run_id}; write that folder's id")
    if base.status != DONE:
        raise InputError("start.run", start.run, f"is {base.status}; train it to its end first")
    checks = {"grow": grow.check, "recycle": recycle.check, "upcycle": upcycle.check}
    checks[start.kind](made.model, spec.model, run=start.run_id)
    if start.data == "continue" and (other := _other_order(made, spec)) is not None:
        path, there, here = other
        raise InputError(
            path,
            here,
            f"the run that it begins from has {there}, so the data cannot go on where that stood; "
            "write that, or start.data=fresh",
        )
    return base


def _other_order(a: RunSpec, b: RunSpec) -> tuple[str, Any, Any] | None:
    """(path, there, here) of the first field by which rows come in another order."""
    found = differences(a, b)
    paths = [path for path in found if path == "seed" or path.startswith("data.")]
    return (paths[0], *found[paths[0]]) if paths else None


def first_state(spec: RunSpec, model: Model, *, root: Path) -> State:
    """The state before the first step, as host arrays: parameters from the origin, all else new."""
    carry = carry_shapes(spec, model)
    if spec.start is None:
        return initial_state(model, spec.seed, carry=carry)
    base = find_base(spec, root)
    made = from_dict(base.spec)
    old = build(made.model)
    # every process holds the whole value, as of the state of a run from scratch
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = {
        path: jax.ShapeDtypeStruct(d.shape, np.float32, sharding=one)
        for path, d in old.declarations.items()
    }
    read = read_params(
        RunDir(base.path).checkpoints,
        abstract,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    if read is None or read[0] != made.steps:
        what = "no checkpoint that can be read" if read is None else f"step {read[0]} only"
        instead = f"has {what}, and {made.steps} is its last; train it again"
        raise InputError("start.run", spec.start.run, instead)
    params = {path: np.asarray(value) for path, value in read[1].items()}
    if spec.start.kind == "grow":
        params = grow.grown(params, model)
    elif spec.start.kind == "upcycle":
        params = upcycle.upcycled(params, made.model, spec.model)
    else:
        params = {**model.initialise(spec.seed), **params}
    return initial_state(model, spec.seed, params=params, frozen=recycle.frozen(spec), carry=carry)
