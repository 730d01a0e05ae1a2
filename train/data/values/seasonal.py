"""Generated series: a level, a season of several sines, a straight trend, and normal noise.

Each row is a series of its own with its own period, shape, level and scale, drawn from the row's
number. What can be forecast is all but the noise: no forecast of a number has a mean square error
below noise^2, in units of the season's own spread, and one that repeats the last season has twice
that, and the square of the trend of a period more. Every number here is a guess at what is useful.
"""

import hashlib
import json
from dataclasses import dataclass as plain
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from parallelism.axes import SPEC
from train.data.task import HELD_OUT, N_ROWS, TRAIN, fractions, uniform_bits
from train.data.windows import Opened, ValueSource, Windows


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(ValueSource):
    kind: Literal["seasonal"] = "seasonal"  # pyright: ignore[reportIncompatibleVariableOverride]
    periods: tuple[Annotated[int, Field(ge=2)], ...] = Field(default=(8, 12, 24), min_length=1)
    harmonics: int = Field(default=3, ge=1)  # sines of a season: of period, period / 2, ...
    trend: float = Field(default=1.0, ge=0)  # largest rise or fall over a row
    noise: float = Field(default=0.2, ge=0)  # standard deviation
    missing: float = Field(default=0.0, ge=0, lt=1)  # share of numbers that are not there

    def check(self, seq_len: int) -> None:
        if max(self.periods) > seq_len // 2:
            raise ValueError(
                f"a period of {max(self.periods)} does not fit in the context, half of "
                f"data.seq_len {seq_len}; write a longer data.seq_len, or periods of at most "
                f"{seq_len // 2}"
            )

    def open(self, *, seq_len: int, validation: float, field: str) -> Opened:
        tree = TypeAdapter(type(self)).dump_python(self, mode="json")
        del tree["weight"]
        return Opened(
            train=Rows(self, seq_len, TRAIN),
            held_out=Rows(self, seq_len, HELD_OUT),
            fingerprint=hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest(),
            missing=self.missing > 0,
        )

    def make(self, bits_BN: np.ndarray, *, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers (B, width) with NaN where one is missing, what of them is no noise (B, width),
        and periods (B,).
        """
        u_BN = fractions(bits_BN)
        k = self.harmonics
        main_BN, size_BK, phase_BK, a_BW, b_BW, c_BW = np.split(
            u_BN, np.cumsum([4, k, k, width, width]), axis=1
        )
        period_B = np.array(self.periods)[(main_BN[:, 0] * len(self.periods)).astype(int)]
        t_W = np.arange(width)
        turns_BKW = np.arange(1, k + 1)[:, None] * t_W / period_B[:, None, None]
        waves_BKW = size_BK[:, :, None] * np.sin(2 * np.pi * (turns_BKW + phase_BK[:, :, None]))
        season_BW = waves_BKW.sum(axis=1) * np.sqrt(2 / np.sum(size_BK**2, axis=1))[:, None]
        rise_B1 = self.trend * (2 * main_BN[:, 1:2] - 1)
        smooth_BW = season_BW + rise_B1 * t_W / (width - 1)
        noise_BW = np.sqrt(-2 * np.log(a_BW)) * np.cos(2 * np.pi * b_BW)  # Box and Muller 1958
        level_B1, scale_B1 = 20 * main_BN[:, 2:3] - 10, 10 ** (2 * main_BN[:, 3:4] - 1)
        smooth_BW, noise_BW = scale_B1 * (level_B1 + smooth_BW), scale_B1 * self.noise * noise_BW
        values_BW = np.where(c_BW < self.missing, np.nan, smooth_BW + noise_BW)
        return values_BW, smooth_BW, period_B


@plain(frozen=True)
class Rows:
    """One side: rows by number, without end in practice."""

    spec: Spec
    seq_len: int
    side: str
    text_bytes: None = None

    @property
    def n_rows(self) -> int:
        return N_ROWS[self.side]

    @property
    def n_documents(self) -> int:
        return self.n_rows

    @property
    def n_tokens(self) -> int:
        return self.n_rows * (self.seq_len + 1)

    @property
    def n_predicted(self) -> int:
        raise NotImplementedError("numbers have no text bytes to share among them")

    def bits(self, rows_B: np.ndarray) -> np.ndarray:
        n = 4 + 2 * self.spec.harmonics + 3 * (self.seq_len + 1)
        return uniform_bits(f"{self.spec.kind} {self.side}", rows_B, n)

    def read(self, rows_B: np.ndarray) -> Windows:
        """The rows with these numbers, in their order."""
        values_BW, _, _ = self.spec.make(self.bits(rows_B), width=self.seq_len + 1)
        return Windows(values_BW, np.isfinite(values_BW))
