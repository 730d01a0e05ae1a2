"""Translation between made-up languages: words of random letters, and what a rule makes of each.

`reversal` says the letters from the last to the first, `sort` in the order of the alphabet,
`cipher` each replaced by the letter that always stands for it. Ids are bytes, so that
`ladder sample` reads and says words. Rows hold as many pairs as fit; source and target of a pair
are of one length. Guessing letters is right once in `letters`.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from parallelism.axes import SPEC
from train.data.rows import PADDING, Pairs
from train.data.task import TaskSpec, uniform_bits

FIRST, END = ord("a"), 255  # ids of the first letter, and of the end of a text


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(TaskSpec):
    kind: Literal["translation"] = "translation"  # pyright: ignore[reportIncompatibleVariableOverride]
    rule: Literal["reversal", "sort", "cipher"] = "reversal"
    letters: int = Field(default=26, ge=2, le=26)
    shortest: int = Field(default=4, ge=1)  # letters of a word
    longest: int = Field(default=12, ge=1)

    gives: ClassVar[str] = "pairs"
    spells: ClassVar[bool] = True

    def __post_init__(self):
        if self.shortest > self.longest:
            raise ValueError(
                f"words of {self.shortest} letters and more, and of {self.longest} at most; write "
                f"longest of at least {self.shortest}"
            )

    @property
    def n_vocab(self) -> int:
        return END + 1

    def check(self, seq_len: int) -> None:
        if seq_len < self.longest + 1:
            raise ValueError(
                f"data.seq_len or data.source_len {seq_len} has no room for {self.longest} letters "
                f"and their end; write at least {self.longest + 1}, or a smaller longest"
            )

    def n_bits(self, seq_len: int) -> int:
        return seq_len // (self.shortest + 1) + seq_len

    def rows(self, bits_BN: np.ndarray, *, seq_len: int, source_len: int) -> Pairs:
        n = min(seq_len, source_len)  # what a row holds of either side
        words, span = seq_len // (self.shortest + 1), self.longest - self.shortest + 1
        # remainders of 64 bits are even to one part in 10^17
        lengths_BP = 1 + self.shortest + (bits_BN[:, :words] % np.uint64(span)).astype(np.int64)
        ends_BP = np.cumsum(lengths_BP, axis=1)
        letter_BT = (bits_BN[:, words : words + n] % np.uint64(self.letters)).astype(np.int64)
        # which word each place is of: as many as have ended
        opens_BT = np.zeros((len(bits_BN), n + 1), np.int64)
        np.put_along_axis(opens_BT, np.minimum(ends_BP, n), 1, axis=1)
        word_BT = np.cumsum(opens_BT[:, :n], axis=1)
        known_BT = np.minimum(word_BT, words - 1)  # places beyond the last are in no word
        end_BT = np.take_along_axis(ends_BP, known_BT, axis=1)
        start_BT = end_BT - np.take_along_axis(lengths_BP, known_BT, axis=1)
        at_1T = np.arange(n)[None]
        whole_BT = (end_BT <= n) & (at_1T < end_BT)
        last_BT = at_1T == end_BT - 1
        source_BT = np.where(last_BT, self.letters, letter_BT)
        target_BT = self._said(source_BT, word_BT, start_BT, end_BT)
        before_BT = np.roll(target_BT, 1, axis=1)
        before_BT = np.where(at_1T == start_BT, self.letters, before_BT)

        def placed(x_BT: np.ndarray, length: int) -> np.ndarray:
            ids_BT = np.where(whole_BT & (x_BT < self.letters), FIRST + x_BT, END).astype(np.int32)
            return np.pad(ids_BT, ((0, 0), (0, length - n)), constant_values=END)

        def segments(length: int) -> np.ndarray:
            of_BT = np.where(whole_BT, word_BT, PADDING)
            return np.pad(of_BT, ((0, 0), (0, length - n)), constant_values=PADDING).astype(
                np.int32
            )

        segments_BT = segments(seq_len)
        return Pairs(
            tokens_BT=placed(before_BT, seq_len),
            targets_BT=placed(target_BT, seq_len),
            segments_BT=segments_BT,
            weights_BT=(segments_BT != PADDING).astype(np.float32),
            source_BS=placed(source_BT, source_len),
            source_segments_BS=segments(source_len),
        )

    def _said(
        self, source_BT: np.ndarray, word_BT: np.ndarray, start_BT: np.ndarray, end_BT: np.ndarray
    ) -> np.ndarray:
        """Targets, of letters by number and `letters` for an end, each word in its own place."""
        if self.rule == "cipher":
            (order_L,) = uniform_bits("cipher", np.zeros(1), self.letters).argsort(axis=1)
            return np.append(order_L, self.letters)[source_BT]
        if self.rule == "sort":  # ends are above every letter, and words stay apart
            key_BT = np.sort(word_BT * (self.letters + 1) + source_BT, axis=1)
            return key_BT % (self.letters + 1)
        n = source_BT.shape[1]
        at_BT = np.broadcast_to(np.arange(n), source_BT.shape)
        back_BT = np.where(at_BT == end_BT - 1, at_BT, start_BT + end_BT - 2 - at_BT)
        return np.take_along_axis(source_BT, np.clip(back_BT, 0, n - 1), axis=1)
