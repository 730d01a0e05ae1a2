"""Multi-query associative recall: pairs of a key and a value, then every key asked for once.

Arora et al. 2023 (Zoology, arXiv 2312.04927): keys and values are drawn without repetition from
disjoint sets; queries come at distances of a power law with exponent `power - 1`, which puts most
of them close to the pairs. Differs from theirs: the answer follows its query, as text would have
it, where theirs has a filler there; fillers are one token of their own, where theirs are random by
default; and the vocabulary is 64 ids, where theirs is 8192.
Guessing among the values of the row is right once in `pairs`.
"""

from typing import Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from parallelism.axes import SPEC
from train.data.task import TaskSpec, fractions

FILLER = 0


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(TaskSpec):
    kind: Literal["recall"] = "recall"  # pyright: ignore[reportIncompatibleVariableOverride]
    pairs: int = Field(default=8, ge=1)
    keys: int = Field(default=32, ge=1)  # different ones there are
    values: int = Field(default=32, ge=1)
    power: float = Field(default=0.01, gt=0)  # 1: queries spread evenly

    def __post_init__(self):
        if self.pairs > min(self.keys, self.values):
            raise ValueError(
                f"{self.pairs} pairs of {self.keys} keys and {self.values} values; write pairs "
                f"of at most {min(self.keys, self.values)}"
            )

    @property
    def n_vocab(self) -> int:
        return 1 + self.keys + self.values

    def check(self, seq_len: int) -> None:
        if self._places(seq_len) < self.pairs:
            raise ValueError(
                f"data.seq_len {seq_len} has no room for {self.pairs} pairs and their queries; "
                f"write at least {4 * self.pairs - 1}, or fewer pairs"
            )

    def _places(self, seq_len: int) -> int:
        """Where a query and its answer can stand, two tokens each, after the pairs."""
        return (seq_len + 1 - 2 * self.pairs) // 2

    def n_bits(self, seq_len: int) -> int:
        return self.keys + self.values + self._places(seq_len)

    def make(
        self, bits_BN: np.ndarray, *, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        B, n = len(bits_BN), self.pairs
        keys_BN, values_BN, places_BN = np.split(
            bits_BN, [self.keys, self.keys + self.values], axis=1
        )
        # the first n of a random order are a draw without repetition
        keys_BP = 1 + np.argsort(keys_BN, axis=1)[:, :n]
        values_BP = 1 + self.keys + np.argsort(values_BN, axis=1)[:, :n]
        # the largest of log weight + Gumbel noise are a weighted draw without repetition
        noise_BN = -np.log(-np.log(fractions(places_BN)))
        weight_N = (self.power - 1) * np.log1p(np.arange(places_BN.shape[1]))
        query_BP = 2 * n + 2 * np.argsort(-(weight_N + noise_BN), axis=1)[:, :n]
        row_BW = np.full((B, seq_len + 1), FILLER, np.int64)
        row_BW[:, 0 : 2 * n : 2] = keys_BP
        row_BW[:, 1 : 2 * n : 2] = values_BP
        np.put_along_axis(row_BW, query_BP, keys_BP, axis=1)
        np.put_along_axis(row_BW, query_BP + 1, values_BP, axis=1)
        weights_BT = np.zeros((B, seq_len))
        np.put_along_axis(weights_BT, query_BP, 1.0, axis=1)
        return row_BW[:, :-1], row_BW[:, 1:], weights_BT
