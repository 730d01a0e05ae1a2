"""Every later number of a series from those before it, at several horizons (Time-MoE, Shi et al.
2024, arXiv 2409.16040; the details are those of its official code).

The head of horizon h says, at each position, the h numbers after it. Its loss is the mean Huber
loss of all that it says and that is known; `loss/<set>` is the mean over heads. A number that is
missing, or lies beyond the row or in another document, is not asked for and has no gradient.

Rows are normalised one by one. In training by mean and deviation of the whole row (the official
code takes those of the whole series), so that a position's scale knows of later numbers; a held-out
row by those of its first half, and it is asked for its second half alone: nothing that is measured
has seen what it is asked for, as in a forecast.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from model.spec import ModelSpec
from parallelism.axes import SPEC
from train.data.windows import Windows, context_of
from train.objectives import Arrays, ObjectiveSpec, Sums
from train.spec import DataSpec

CONSTANT = 1e-9  # a deviation this far below the largest number is rounding: the row is constant


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(ObjectiveSpec):
    kind: Literal["forecast"] = "forecast"  # pyright: ignore[reportIncompatibleVariableOverride]
    delta: float = Field(default=2.0, gt=0)  # where the Huber loss turns from square to straight
    # Whose mean and deviation scale a training row; `context` asks for the second half alone.
    statistics: Literal["row", "context"] = "row"
    horizons: tuple[int, ...] = Field(default=(), exclude=True, repr=False)  # the model's

    unit: ClassVar[str] = "Huber loss of a normalised number"
    takes: ClassVar[tuple[str, ...]] = ("values",)
    reads_order: ClassVar[bool] = True

    def of(self, model: ModelSpec) -> ObjectiveSpec:
        horizons = () if model.series is None else model.series.horizons
        return replace(self, horizons=horizons)

    @property
    def data(self) -> DataSpec:
        return DataSpec(sources=({"kind": "seasonal"},))  # pyright: ignore[reportArgumentType]

    @property
    def batch(self) -> Mapping[str, Any]:
        return {
            "values_BT": np.float32,
            "targets_BT": np.float32,
            "segments_BT": np.int32,
            "weights_BT": np.float32,  # of targets: 1 where the number is known
            "asked_BT": np.float32,  # 1 for positions that are asked
        }

    @property
    def compiled(self) -> tuple[Any, ...]:
        return (self.delta,)

    @property
    def loss(self) -> Sums:
        return partial(_loss, horizons=self.horizons, delta=self.delta)

    @property
    def normaliser(self) -> Callable[[Mapping[str, jax.Array]], jax.Array]:
        return partial(_normaliser, horizons=self.horizons)

    @property
    def score(self) -> Sums:
        return partial(_score, horizons=self.horizons, delta=self.delta)

    def report(
        self, name: str, sums: Sequence[Any], *, bytes_per_token: float | None, answers: bool
    ) -> dict[str, float]:
        """`loss/<name>`, and by head `stat/<name>/huber_<h>`, `mse_<h>` and `mae_<h>`: means over
        the h numbers that it says, in units of the rows' deviations.
        """
        out: dict[str, float] = {}
        huber_H, weights_H, square_H, size_H = (np.asarray(s, np.float64) for s in sums)
        for i, h in enumerate(self.horizons):
            if weights_H[i]:  # else nothing of it is known: its numbers are missing
                out[f"stat/{name}/huber_{h}"] = float(huber_H[i] / weights_H[i])
                out[f"stat/{name}/mse_{h}"] = float(square_H[i] / weights_H[i])
                out[f"stat/{name}/mae_{h}"] = float(size_H[i] / weights_H[i])
        if weights_H.all():
            out[f"loss/{name}"] = float(np.mean(huber_H / weights_H))
        return out

    def blind(self, model: ModelSpec) -> float | None:
        """Of a forecast as spread as what comes, and independent of it: half of 1 + 1 at most."""
        return 1.0 if self.statistics == "row" else None

    def check(self, model: ModelSpec) -> None:
        if model.series is None:
            raise ValueError(
                f"objective {self.kind} asks for real values and the model says tokens; write "
                f"objective.kind=next_token, or start from the architecture time_moe"
            )
        super().check(model)

    def check_length(self, model: ModelSpec, seq_len: int) -> None:
        room = seq_len - context_of(seq_len) + 1
        if max(self.horizons) > room:
            raise ValueError(
                f"model.series.horizons has {max(self.horizons)}, and a held-out row of "
                f"data.seq_len {seq_len} asks for {room} numbers after its context; write a "
                f"data.seq_len of at least {2 * max(self.horizons) - 2}, or shorter horizons"
            )

    def prepare(self, batch: Windows, *, rows_B: np.ndarray, seed: int, vocab: int) -> Arrays:
        width = batch.values_BW.shape[1]
        whole = self.statistics == "row"
        return arrays(batch, by=width if whole else context_of(width - 1), every=whole)

    def held_out(
        self, batch: Windows, *, rows_B: np.ndarray, vocab: int
    ) -> Iterator[tuple[str, Arrays]]:
        yield "", arrays(batch, by=context_of(batch.values_BW.shape[1] - 1), every=False)


def arrays(rows: Windows, *, by: int, every: bool) -> Arrays:
    """A batch of rows scaled by their first `by` numbers, and asked at `every` position or at those
    that have seen these.
    """
    mean_B1, deviation_B1 = statistics(rows.values_BW[:, :by], rows.known_BW[:, :by])
    scaled_BW = normalised(rows.values_BW, mean_B1, deviation_B1).astype(np.float32)
    known_BT = rows.known_BW[:, 1:]
    asked_BT = np.ones(known_BT.shape, np.float32)
    if not every:
        asked_BT[:, : by - 1] = 0
    return {
        "values_BT": np.where(rows.known_BW, scaled_BW, np.float32(np.nan))[:, :-1],
        "targets_BT": np.where(known_BT, scaled_BW[:, 1:], np.float32(0)),  # weight 0, no matter
        "segments_BT": np.zeros(known_BT.shape, np.int32),
        "weights_BT": known_BT.astype(np.float32),
        "asked_BT": asked_BT,
    }


def statistics(values_BN: np.ndarray, known_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (B, 1) of the known numbers, float64. A constant row, which has
    none, is left as large as it is, and one of which nothing is known as it stands.
    """
    held_BN = np.where(known_BN, values_BN, 0.0)
    n_B1 = np.maximum(known_BN.sum(axis=1, keepdims=True), 1)
    mean_B1 = held_BN.sum(axis=1, keepdims=True) / n_B1
    off_BN = np.where(known_BN, values_BN - mean_B1, 0.0)
    deviation_B1 = np.sqrt((off_BN**2).sum(axis=1, keepdims=True) / n_B1)
    constant_B1 = deviation_B1 <= CONSTANT * np.abs(held_BN).max(axis=1, keepdims=True)
    return mean_B1, np.where(constant_B1, 1.0, deviation_B1)


def normalised(values: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return (values - mean) / deviation


def restored(scaled: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """The numbers that `normalised` made these of."""
    return scaled * deviation + mean


def _mask(batch: Mapping[str, jax.Array], h: int) -> tuple[jax.Array, jax.Array]:
    """For a head of horizon h, of each position the h numbers after it: where in the row their
    targets are (T, h), and their weights (B, T, h).
    """
    T = batch["weights_BT"].shape[1]
    at_Th = jnp.arange(T)[:, None] + jnp.arange(h)
    inside_Th, at_Th = at_Th < T, jnp.minimum(at_Th, T - 1)
    same_BTh = batch["segments_BT"][:, at_Th] == batch["segments_BT"][:, :, None]
    weights_BTh = batch["weights_BT"][:, at_Th] * batch["asked_BT"][:, :, None]
    return at_Th, jnp.where(inside_Th & same_BTh, weights_BTh, 0.0)


def _heads(
    forecasts_BTO: jax.Array, batch: Mapping[str, jax.Array], horizons: tuple[int, ...]
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """By head: what it says less what came (B, T, h), and the weights of that."""
    begin = 0
    for h in horizons:
        at_Th, weights_BTh = _mask(batch, h)
        said_BTh = forecasts_BTO[:, :, begin : begin + h]
        yield said_BTh - batch["targets_BT"][:, at_Th], weights_BTh
        begin += h


def huber(error: jax.Array, *, delta: float) -> jax.Array:
    """e^2 / 2 up to |e| = delta, and its tangent beyond (Huber 1964)."""
    size = jnp.abs(error)
    return jnp.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta))


def _loss(
    forecasts_BTO: jax.Array,
    batch: Mapping[str, jax.Array],
    *,
    horizons: tuple[int, ...],
    delta: float,
) -> tuple[jax.Array, jax.Array]:
    sums, weights = [], []
    for error_BTh, weights_BTh in _heads(forecasts_BTO, batch, horizons):
        sums.append(jnp.sum(huber(error_BTh, delta=delta) * weights_BTh))
        weights.append(jnp.sum(weights_BTh))
    return jnp.stack(sums), jnp.stack(weights)


def _normaliser(batch: Mapping[str, jax.Array], *, horizons: tuple[int, ...]) -> jax.Array:
    return jnp.stack([jnp.sum(_mask(batch, h)[1]) for h in horizons])


def _score(
    forecasts_BTO: jax.Array,
    batch: Mapping[str, jax.Array],
    *,
    horizons: tuple[int, ...],
    delta: float,
) -> tuple[jax.Array, ...]:
    squares, sizes = [], []
    for error_BTh, weights_BTh in _heads(forecasts_BTO, batch, horizons):
        squares.append(jnp.sum(error_BTh**2 * weights_BTh))
        sizes.append(jnp.sum(jnp.abs(error_BTh) * weights_BTh))
    hubers, weights = _loss(forecasts_BTO, batch, horizons=horizons, delta=delta)
    return hubers, weights, jnp.stack(squares), jnp.stack(sizes)
