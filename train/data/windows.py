"""How do series of real numbers become rows of a fixed length, and which of them are held out?

A row is T + 1 numbers of one series: T inputs and the targets one place on. Of a held-out row the
first half is context: what is asked of the model lies in the second (train/objectives/forecast.py),
so a held-out row may begin with numbers that were trained on, and is never asked for one of them.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as frozen

from parallelism.axes import SPEC
from parallelism.errors import InputError
from train.data.split import held_out, identity_hash


class Windows(NamedTuple):
    """Rows of real numbers: values_BW (B, T + 1) float64, and known_BW, False where a number is
    missing (it is NaN then) or the row is padding.
    """

    values_BW: np.ndarray
    known_BW: np.ndarray


def context_of(seq_len: int) -> int:
    """How many numbers a held-out row gives before it asks."""
    return seq_len // 2


@frozen(frozen=True, kw_only=True, config=SPEC)
class ValueSource:
    """Abstract: a source of series, by its own knobs."""

    kind: str
    weight: float = Field(default=1.0, gt=0)  # share of rows in a mixture, relative to the others

    gives: ClassVar[str] = "values"

    def check(self, seq_len: int) -> None:
        """Raises ValueError, with what to write instead, for a length that cannot be filled."""

    def open(self, *, seq_len: int, validation: float, field: str) -> "Opened":
        """Both sides; raises InputError, which names `field` or a file."""
        raise NotImplementedError


@dataclass(frozen=True)
class Opened:
    """What a source serves."""

    train: Any
    held_out: Any
    fingerprint: str
    missing: bool  # whether a number is, or can be, missing
    n_vocab: int = 0


@dataclass(frozen=True)
class Series:
    """One series in the order of time: numbers (n,) float64, NaN where one is missing."""

    name: str
    values_N: np.ndarray

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(np.ascontiguousarray(self.values_N, "<f8").tobytes()).digest()


@dataclass(frozen=True)
class WindowRows:
    """One side: row r is the seq_len + 1 numbers of series which_R[r] from start_R[r] on."""

    series: tuple[np.ndarray, ...]
    which_R: np.ndarray
    start_R: np.ndarray
    seq_len: int
    n_tokens: int  # numbers of this side
    text_bytes: None = None  # no text

    @property
    def n_rows(self) -> int:
        return len(self.start_R)

    @property
    def n_documents(self) -> int:
        return len(np.unique(self.which_R))

    @property
    def n_predicted(self) -> int:
        raise NotImplementedError("numbers have no text bytes to share among them")

    def read(self, rows_B: np.ndarray) -> Windows:
        """The rows with these numbers, in their order."""
        width = self.seq_len + 1
        cut = zip(self.which_R[rows_B].tolist(), self.start_R[rows_B].tolist(), strict=True)
        values_BW = np.stack([self.series[i][start : start + width] for i, start in cut])
        return Windows(values_BW, np.isfinite(values_BW))


def split(
    series: Sequence[Series], *, by: str, seq_len: int, stride: int, validation: float, field: str
) -> tuple[WindowRows, WindowRows]:
    """Training and held-out rows. By `time`: the last share of each series is held out, and no row
    that is trained on reaches into it. By `series`: whole series are, by their numbers' hash.
    """
    width, context = seq_len + 1, context_of(seq_len)
    asked = width - context  # numbers that a held-out row asks for
    train, held = _Side(seq_len), _Side(seq_len)
    mask_N = np.zeros(len(series), bool)
    if by == "series":
        hashes_N = np.array([identity_hash(s.digest) for s in series], np.uint64)
        if len(np.unique(hashes_N)) < 2:
            raise InputError(
                f"{field}.split", "series", "there are no two different series; write time"
            )
        (mask_N,) = held_out([hashes_N], share=validation, fields=[field])
    for i, one in enumerate(series):
        n = len(one.values_N)
        after = max(asked, round(validation * n)) if by == "time" else n if mask_N[i] else 0
        if n < shortest(by=by, seq_len=seq_len) or 0 < n - after < width:
            need = max(shortest(by=by, seq_len=seq_len), math.ceil(width / (1 - validation)))
            raise InputError(
                field,
                f"{one.name} has {n} numbers",
                f"windows of both sides need {need}; write a shorter data.seq_len, or "
                f"shorter=leave_out in the source",
            )
        if after < n:
            train.take(i, first=0, stop=n - after, stride=stride, kept=n - after)
        if after:
            held.take(i, first=max(0, n - after - context), stop=n, stride=asked, kept=after)
    arrays = tuple(s.values_N for s in series)
    return train.rows(arrays), held.rows(arrays)


def shortest(*, by: str, seq_len: int) -> int:
    """Numbers of the shortest series that has a row on each side that it is on."""
    width = seq_len + 1
    return width if by == "series" else 2 * width - context_of(seq_len)


class _Side:
    """Rows of one side as they are found."""

    def __init__(self, seq_len: int):
        self.width, self.kept = seq_len + 1, 0
        self.which: list[np.ndarray] = []
        self.start: list[np.ndarray] = []

    def take(self, i: int, *, first: int, stop: int, stride: int, kept: int) -> None:
        """Every whole row of series i from `first` up to `stop`; `kept` numbers are of the side."""
        starts = np.arange(first, stop - self.width + 1, stride)
        self.which.append(np.full(len(starts), i))
        self.start.append(starts)
        self.kept += kept

    def rows(self, series: tuple[np.ndarray, ...]) -> WindowRows:
        return WindowRows(
            series=series,
            which_R=np.concatenate(self.which),
            start_R=np.concatenate(self.start),
            seq_len=self.width - 1,
            n_tokens=self.kept,
        )
