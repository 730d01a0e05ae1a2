"""Does a run on generated series forecast better than their last value and their last season?

    python -m benchmarks.forecast_baselines RUN --root runs

Held-out rows of the run's `seasonal` source: the first half is context, the second is forecast by
the run's greedy schedule, from the context alone. Mean square and mean absolute errors over all
numbers of the second half, in deviations of the context; `noise` is the error of a forecast that
knows all but the noise. The last season repeats with its true period, which the run is not told.
"""

import argparse
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from train.data.task import HELD_OUT
from train.data.values import seasonal
from train.data.windows import context_of
from train.forecast import ahead
from train.newest import newest
from train.objectives.forecast import statistics


def measured(run: str, *, root: Path, rows: int) -> dict[str, object]:
    trained = newest(run, root=root)
    spec = trained.spec
    (source,) = spec.data.sources
    width, context = spec.data.seq_len + 1, context_of(spec.data.seq_len)
    bits_BN = seasonal.Rows(source, spec.data.seq_len, HELD_OUT).bits(np.arange(rows))
    values_BW, smooth_BW, period_B = source.make(bits_BN, width=width)
    held_BC, came_BH = values_BW[:, :context], values_BW[:, context:]
    _, deviation_B1 = statistics(held_BC, np.isfinite(held_BC))
    steps_H = np.arange(came_BH.shape[1])
    back_BH = context - period_B[:, None] + steps_H % period_B[:, None]
    told = {
        "run": ahead(
            trained.model, trained.params, held_BC, horizon=len(steps_H), dtype=jnp.float32
        ),
        "last value": np.broadcast_to(held_BC[:, -1:], came_BH.shape),
        "last season": np.take_along_axis(held_BC, back_BH, axis=1),
        "mean of the context": np.broadcast_to(
            np.nanmean(held_BC, axis=1, keepdims=True), came_BH.shape
        ),
        "noise": smooth_BW[:, context:],
    }
    errors = {name: (said_BH - came_BH) / deviation_B1 for name, said_BH in told.items()}
    return {
        "run_id": trained.run_id,
        "step": trained.step,
        "rows": rows,
        "horizon": len(steps_H),
        "mse": {name: float(np.nanmean(e**2)) for name, e in errors.items()},
        "mae": {name: float(np.nanmean(np.abs(e))) for name, e in errors.items()},
        "mse of the first 8": {
            name: float(np.nanmean(e[:, :8] ** 2)) for name, e in errors.items()
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--root", type=Path, default=Path("runs"))
    parser.add_argument("--rows", type=int, default=512)
    given = parser.parse_args()
    print(json.dumps(measured(given.run, root=given.root, rows=given.rows), indent=2))
