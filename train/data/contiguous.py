"""Which rows of text follow one another? Each row of a batch reads a stretch of its own from front
to back, and goes on where the row before it in the same place ended.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from parallelism.errors import InputError
from train.data.rows import Batch, Side


@dataclass(frozen=True)
class Contiguous:
    """Position in the run -> row number, endless: the rows are a ring, which the `width` rows of a
    batch enter at even distances and follow. The seed turns the ring.
    """

    n_rows: int
    width: int
    first: int

    def __getitem__(self, position: int) -> int:
        step, b = divmod(position, self.width)
        return (self.first + b * self.n_rows // self.width + step) % self.n_rows


def contiguous(side: Side, *, width: int, seed: int) -> Contiguous:
    if side.n_rows < width:
        raise InputError(
            "budget.batch_tokens",
            f"{width} rows that go on from step to step",
            f"the text has {side.n_rows} rows of data.seq_len {side.seq_len}; write at most "
            f"{side.n_rows * side.seq_len}",
        )
    turned = int(np.random.SeedSequence([seed, 0]).generate_state(1)[0]) % side.n_rows
    return Contiguous(n_rows=side.n_rows, width=width, first=turned)


def held_out_rows(n_rows: int, *, width: int, wanted: int) -> Iterator[np.ndarray]:
    """Row numbers (width,) of batch after batch: row b reads the b-th of `width` equal stretches in
    order, from its beginning on until about `wanted` rows are read in all; -1 where it has ended.
    """
    starts_B = np.arange(width) * n_rows // width
    ends_B = np.arange(1, width + 1) * n_rows // width
    for i in range(-(-min(wanted, n_rows) // width)):
        yield np.where(starts_B + i < ends_B, starts_B + i, -1)


def following(side: Side, numbers_B: np.ndarray) -> Batch:
    """These rows, with documents numbered from 1 where one begins with the row: 0 is the document
    of the row before it. A row numbered -1 is filling and weighs nothing.
    """
    there_B, numbers_B = numbers_B >= 0, np.maximum(numbers_B, 0)
    batch = side.read(numbers_B)
    starts_B = numbers_B * side.seq_len
    ended_B = side.ends_N[np.searchsorted(side.ends_N, starts_B, side="right") - 1]
    begins_B = (starts_B == 0) | (ended_B == starts_B)
    return batch._replace(
        segments_BT=batch.segments_BT + begins_B[:, None].astype(np.int32),
        weights_BT=batch.weights_BT * there_B[:, None].astype(np.float32),
    )
