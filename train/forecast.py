"""What comes after the numbers of a file? A run's forecast, greedy over its horizons.

The context is scaled by its own mean and deviation, and read in one call. Then the head of the
longest horizon that does not pass the end says the next numbers, they are read in turn, and so on
(Time-MoE's official code): each number is said once, and what is said depends on what was said.
"""

import csv
import io
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.decoder import Model
from parallelism.errors import InputError
from train.data.values.series import Spec as Files
from train.data.values.series import read
from train.newest import newest, spec_of
from train.objectives.forecast import normalised, restored, statistics
from train.programs import resolved_execution


@dataclass(frozen=True)
class Forecast:
    """`series`: the next numbers of each series of the file, in its units."""

    run_id: str
    step: int
    prompt: str
    schedule: tuple[int, ...]  # horizons of the heads, in the order of their use
    series: dict[str, tuple[float, ...]]
    context: dict[str, int]  # numbers of each that were read
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """A table as CSV, a column a series and a row a step, then what is to be said of it."""
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["step", *self.series])
        for i, row in enumerate(zip(*self.series.values(), strict=True), start=1):
            table.writerow([i, *(f"{value:.6g}" for value in row)])
        heads = ", ".join(map(str, self.schedule[:8])) + (", ..." if self.schedule[8:] else "")
        said = f"-- {self.run_id} at step {self.step}: heads {heads}; {self.seconds:.1f} s"
        return out.getvalue() + "\n".join([said, *(f"note: {note}" for note in self.notes)])


def is_forecaster(run: str, *, root: Path) -> bool:
    return spec_of(run, root=root)[1].model.series is not None


def forecast(
    run: str, prompt: str, *, root: Path, tokens: int, time_column: str | None = None
) -> Forecast:
    """The next `tokens` numbers of every series of the file `prompt`; raises InputError."""
    if tokens < 1:
        raise InputError("--tokens", tokens, "write at least 1")
    if not Path(prompt).expanduser().is_file():
        instead = "this run forecasts real numbers; write a .csv, .parquet or .npy file of them"
        raise InputError("--prompt", prompt, instead)
    began = time.perf_counter()
    trained = newest(run, root=root)
    spec = trained.spec
    length = spec.data.seq_len
    like = next((s for s in spec.data.sources if isinstance(s, Files)), None)
    source = Files(path=prompt) if like is None else replace(like, path=prompt)
    if time_column is not None:
        source = replace(source, time=time_column)
    dtype = jnp.dtype(resolved_execution(spec)["compute_dtype"])
    series, context, notes = {}, {}, []
    for one in read(source, field="--prompt"):
        held_1N = one.values_N[None, -length:]
        if not np.isfinite(held_1N).any():
            said = f"{one.name} has no known number among the last {held_1N.shape[1]}"
            raise InputError("--prompt", said, "write a series that has one")
        ahead_1H = ahead(trained.model, trained.params, held_1N, horizon=tokens, dtype=dtype)
        series[one.name], context[one.name] = tuple(ahead_1H[0].tolist()), held_1N.shape[1]
    if any(n + tokens > length for n in context.values()):
        notes.append(f"context and forecast go beyond the {length} that the run was trained with")
    if any(n == length for n in context.values()):
        notes.append(f"of a longer series the last {length} numbers are read")
    assert spec.model.series is not None
    return Forecast(
        run_id=trained.run_id,
        step=trained.step,
        prompt=prompt,
        schedule=tuple(h for h, _ in schedule(tokens, spec.model.series.horizons)),
        series=series,
        context=context,
        seconds=time.perf_counter() - began,
        notes=tuple(notes),
    )


def schedule(horizon: int, horizons: tuple[int, ...]) -> list[tuple[int, int]]:
    """(horizon of the head, how many of its numbers are taken), one after another, which make up
    `horizon`: the longest head that does not pass the end, or the shortest, cut.
    """
    out, left = [], horizon
    while left:
        head = max((h for h in horizons if h <= left), default=horizons[0])
        out.append((head, min(head, left)))
        left -= out[-1][1]
    return out


def ahead(
    model: Model, params: Any, values_BT: np.ndarray, *, horizon: int, dtype: Any
) -> np.ndarray:
    """The `horizon` numbers (B, horizon) float64 after each row of values, NaN where missing."""
    assert model.spec.series is not None
    horizons = model.spec.series.horizons
    begins = dict(zip(horizons, np.cumsum([0, *horizons[:-1]]).tolist(), strict=True))
    mean_B1, deviation_B1 = statistics(values_BT, np.isfinite(values_BT))
    read_BT = normalised(values_BT, mean_B1, deviation_B1).astype(np.float32)
    # a round number of places: forecasts of nearly the same length share their programs
    room = -(-(values_BT.shape[1] + horizon) // ROOM) * ROOM
    state, said = model.start(len(values_BT), length=room, dtype=dtype), []
    for head, taken in schedule(horizon, horizons):
        forecasts_BO, state = _extend(model, dtype)(params, read_BT, state)
        begin = begins[head]
        said.append(forecasts_BO[:, begin : begin + taken])
        read_BT = said[-1]
    scaled_BH = np.concatenate([np.asarray(s, np.float64) for s in said], axis=1)
    return restored(scaled_BH, mean_B1, deviation_B1)


ROOM = 64  # places of a memory are a multiple of this (guess)


@lru_cache(maxsize=8)
def _extend(model: Model, dtype: Any) -> Any:
    def last(params: Any, values_BT: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        forecasts_BTO, state = model.extend(params, values_BT, state, dtype=dtype)
        return forecasts_BTO[:, -1], state

    return jax.jit(last)
