"""Do activations change by the same amount at every width? The coordinate check of a
parametrisation.

Train a few large steps at several widths and regress log mean |change from initialisation| on log
width (Yang et al. 2022, appendix D.1). Under muP the slopes of the residual stream and of the
logits are flat; under the standard parametrisation they grow (measured for a plain decoder with
Adam: +0.44 and +1.20). Changes are measured, not values: values are flat at initialisation in both.

The gradient of few tokens is partly noise, which activations do not align with: what an update
changes by that share falls as width^-1/2 under muP, and bends slopes downwards. So a falling slope
is asked for again with more `rows` (deltanet: -0.134 on 8 rows, -0.032 on 32, +0.011 on 128).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.context import Context, unplaced
from model.decoder import build
from model.spec import ModelSpec
from train.data.pipeline import open_data
from train.objectives import Arrays
from train.paths import put
from train.schedule import hyper
from train.spec import BudgetSpec, OptimSpec, RunSpec, ScheduleSpec
from train.step import forward, initial_state, train_step

FLAT = 0.1  # |slope| below this is flat, with a large learning rate (guess)
COORDINATES = ("stream", "logits")
ROWS = 8  # sequences of the batch that is trained on: enough for every named architecture but one


@dataclass(frozen=True)
class Check:
    arch: str
    parametrisation: str
    widths: tuple[int, ...]
    changes: dict[str, list[float]]  # mean |change| by coordinate, one a width
    slopes: dict[str, float]
    steps: int
    rows: int  # of the batch
    seeds: int
    lr: float
    uncovered: tuple[str, ...] = ()  # parameters for which the parametrisation has no rule

    @property
    def flat(self) -> bool:
        return all(abs(slope) < FLAT for slope in self.slopes.values())

    def to_json(self) -> dict[str, Any]:
        lists = {"widths": list(self.widths), "uncovered": list(self.uncovered)}
        return {**self.__dict__, **lists, "flat": self.flat, "threshold": FLAT}

    def text(self) -> str:
        head = "width  " + "  ".join(f"{name:>10}" for name in COORDINATES)
        rows = [
            f"{w:5}  " + "  ".join(f"{self.changes[name][i]:10.4f}" for name in COORDINATES)
            for i, w in enumerate(self.widths)
        ]
        slopes = "slope  " + "  ".join(f"{self.slopes[name]:+10.3f}" for name in COORDINATES)
        names = ", ".join(self.uncovered)
        verdict = (
            "flat" if self.flat else "NOT flat: hyper-parameters will not transfer across width"
        )
        return "\n".join(
            [
                f"{self.arch}, {self.parametrisation}: mean |change| after {self.steps} Adam "
                f"steps at lr {self.lr} on {self.rows} rows, {self.seeds} seeds",
                head,
                *rows,
                slopes,
                f"{verdict} (|slope| < {FLAT})",
                *([f"not covered by {self.parametrisation}: {names}"] if self.uncovered else []),
            ]
        )


def coordinate_check(
    spec: RunSpec,
    *,
    cache: Path,
    widths: Sequence[int],
    lr: float = 0.01,
    steps: int = 5,
    rows: int = ROWS,
    seeds: int = 2,
) -> Check:
    """Slopes of the change of stream and logits against width, at the depth and on the text of
    `spec`.
    """
    objective, vocab = spec.objective, spec.model.vocab
    data = open_data(
        spec.data,
        seed=0,
        sequences_per_batch=rows,
        cache=cache,
        vocab=vocab,
        reserved=objective.reserved,
    )
    batches = [
        objective.prepare(
            data.batch(seed), rows_B=np.arange(rows) + seed * rows, seed=0, vocab=vocab
        )
        for seed in range(seeds)
    ]
    changes: dict[str, list[float]] = {name: [] for name in COORDINATES}
    models = [put(spec, {"model.d_model": width}).model for width in widths]  # all, or an error
    for model in models:
        per_seed = _changes(model, spec, batches, lr=lr, steps=steps)
        for i, name in enumerate(COORDINATES):
            changes[name].append(float(np.mean([c[i] for c in per_seed])))
    slopes = {
        name: float(np.polyfit(np.log(widths), np.log(changes[name]), 1)[0]) for name in COORDINATES
    }
    return Check(
        arch=spec.model.arch,
        parametrisation=spec.model.parametrisation.kind,
        widths=tuple(widths),
        changes=changes,
        slopes=slopes,
        steps=steps,
        rows=rows,
        seeds=seeds,
        lr=lr,
        uncovered=tuple(
            path for path, d in build(models[0]).declarations.items() if not d.scaling.covered
        ),
    )


def _changes(
    spec: ModelSpec, like: RunSpec, batches: list[Arrays], *, lr: float, steps: int
) -> list[tuple[float, float]]:
    """Mean |change| of (stream, logits) over `steps` updates on one batch of real text, for each
    seed's batch.

    The same batch every step: the check is about the size of changes, and memorising makes them
    aligned.
    """
    rows, seq_len = batches[0][spec.inputs].shape
    run = RunSpec(
        model=spec,
        objective=like.objective,
        optim=OptimSpec(lr=lr, weight_decay=0.0),
        schedule=ScheduleSpec(kind="constant", warmup=0.0),
        data=like.data,
        budget=BudgetSpec(tokens=steps * rows * seq_len, batch_tokens=rows * seq_len),
    )
    model = build(spec)
    loss = partial(
        forward,
        model,
        constrain=unplaced,
        layers="scan",
        remat="none",
        dtype=jnp.float32,
        isolate=True,
        objective=like.objective.loss,
    )

    @jax.jit
    def coordinates(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        positions_BT = jnp.broadcast_to(jnp.arange(seq_len), (rows, seq_len))
        ctx = Context(
            positions_BT=positions_BT,
            segments_BT=batch["segments_BT"],
            prefix_BT=batch.get("prefix_BT"),
            source_BS=batch.get("source_BS"),
            source_segments_BS=batch.get("source_segments_BS"),
        )
        module = model.module(params)
        stream, _ = module.stream(batch[spec.inputs], ctx, dtype=jnp.float32)
        return stream, module.said(stream, ctx)

    normaliser = like.objective.normaliser
    step = jax.jit(train_step(model, loss, accumulate=1, normaliser=normaliser))
    numbers, out = hyper(run), []
    for seed, batch in enumerate(batches):
        state = jax.tree.map(jnp.asarray, initial_state(model, seed))
        before = coordinates(state["params"], batch)
        for _ in range(steps):
            state, _ = step(state, numbers, batch)
        after = coordinates(state["params"], batch)
        pairs = zip(after, before, strict=True)
        stream, logits = (float(jnp.mean(jnp.abs(a - b))) for a, b in pairs)
        out.append((stream, logits))
    return out
