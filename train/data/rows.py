"""How do documents become rows of a fixed length?

One side of a corpus is the concatenation of its documents; row i is its tokens i*T to i*T+T, inputs
and the targets shifted by one, so rows share one token and nothing is skipped but a last piece
shorter than a row. The loss never asks for a token of another document than the input's: such a
target weighs 0.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from train.data.corpus import Corpus


class Batch(NamedTuple):
    """Rows of tokens. A NamedTuple: jax takes it as a tree, and this file imports no jax. Rows that
    are more than tokens are a NamedTuple of their own, with these fields first and a row's place in
    every array first; rows of real values are train.data.windows.Windows.

    tokens_BT, targets_BT: int32 ids. segments_BT: int32, the document within the row, from 0.
    weights_BT: float32, 0 where the target belongs to another document than the input (or the row
    is padding), else 1.
    """

    tokens_BT: np.ndarray
    targets_BT: np.ndarray
    segments_BT: np.ndarray
    weights_BT: np.ndarray


class Pairs(NamedTuple):
    """Rows of pairs: the target's arrays as in `Batch`, and the sources beside them.

    A target begins with the id that ends documents, and every token of it is asked for, its end
    too. A row holds whole pairs: those of segment i are pair i of the row, on both sides; places
    that are left are of segment PADDING, weight 0.
    """

    tokens_BT: np.ndarray
    targets_BT: np.ndarray
    segments_BT: np.ndarray
    weights_BT: np.ndarray
    source_BS: np.ndarray
    source_segments_BS: np.ndarray


PADDING = -1


class Rows(Protocol):
    """What a source serves of one side, training or held out."""

    @property
    def n_rows(self) -> int: ...
    @property
    def n_documents(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def n_predicted(self) -> int: ...
    @property
    def text_bytes(self) -> float | None: ...
    def read(self, rows_B: np.ndarray) -> Any: ...


@dataclass(frozen=True)
class Side:
    """The training or held-out documents of one corpus, laid end to end without copying them.

    An extent is a stretch of documents that lie together in one file: extent e holds the side's
    tokens from `extents_E[e]` on, which are tokens of file `file_E[e]` from `offset_E[e]` on.
    `ends_N`: where documents end.
    """

    seq_len: int
    files: tuple[np.ndarray, ...]
    windows: tuple[np.ndarray | None, ...]  # (starts, T+1) views of each file; None when shorter
    extents_E: np.ndarray
    file_E: np.ndarray
    offset_E: np.ndarray
    ends_N: np.ndarray
    text_bytes: float | None  # UTF-8 length of the documents, where it is known

    @property
    def n_tokens(self) -> int:
        return int(self.ends_N[-1])

    @property
    def n_documents(self) -> int:
        return len(self.ends_N)

    @property
    def n_rows(self) -> int:
        return max(0, (self.n_tokens - 1) // self.seq_len)

    @property
    def n_predicted(self) -> int:
        """Tokens that the loss asks for: all but the first of each document."""
        return self.n_tokens - self.n_documents

    def read(self, rows_B: np.ndarray) -> Batch:
        """The batch of the rows with these numbers, in their order."""
        return rows(self, rows_B=rows_B)


def take_side(corpus: Corpus, *, keep_N: np.ndarray, seq_len: int) -> Side:
    """The documents of `corpus` where `keep_N` is true; at least one is."""
    ends_N = np.asarray(corpus.ends_N)
    starts_N = np.concatenate([[0], ends_N[:-1]])
    lengths_N = ends_N - starts_N
    file_ends = np.cumsum([len(f) for f in corpus.files])
    file_starts = file_ends - [len(f) for f in corpus.files]
    file_N = np.searchsorted(file_ends, starts_N, side="right")
    opens_N = keep_N.copy()
    opens_N[1:] &= ~keep_N[:-1] | (file_N[1:] != file_N[:-1])
    side_ends_N = np.cumsum(np.where(keep_N, lengths_N, 0))
    if corpus.bytes_N is not None:
        text_bytes = int(np.asarray(corpus.bytes_N)[keep_N].sum())
    elif corpus.text_bytes is not None:
        # only the total is known: this side's share by tokens the loss asks for
        predicted = lengths_N[keep_N].sum() - keep_N.sum()
        text_bytes = corpus.text_bytes * float(predicted) / (corpus.n_tokens - len(ends_N))
    else:
        text_bytes = None
    width = seq_len + 1
    return Side(
        seq_len=seq_len,
        files=corpus.files,
        windows=tuple(
            sliding_window_view(f, width) if len(f) >= width else None for f in corpus.files
        ),
        extents_E=(side_ends_N - lengths_N)[opens_N],
        file_E=file_N[opens_N],
        offset_E=(starts_N - file_starts[file_N])[opens_N],
        ends_N=side_ends_N[keep_N],
        text_bytes=text_bytes,
    )


def gather(side: Side, *, rows_B: np.ndarray) -> np.ndarray:
    """Tokens (B, T+1) int32 of the rows with these numbers."""
    width = side.seq_len + 1
    starts_B = rows_B * side.seq_len
    first_B = np.searchsorted(side.extents_E, starts_B, side="right") - 1
    last_B = np.searchsorted(side.extents_E, starts_B + side.seq_len, side="right") - 1
    at_B = starts_B - side.extents_E[first_B] + side.offset_E[first_B]
    whole_B = first_B == last_B
    if len(side.files) == 1 and whole_B.all() and side.windows[0] is not None:
        return side.windows[0][at_B].astype(np.int32)
    out_BW = np.empty((len(rows_B), width), np.int32)
    file_B = side.file_E[first_B]
    for file in np.unique(file_B[whole_B]).tolist():
        window, pick_B = side.windows[file], whole_B & (file_B == file)
        assert window is not None  # a row that lies whole in a file is no longer than it
        out_BW[pick_B] = window[at_B[pick_B]]
    for b in np.flatnonzero(~whole_B).tolist():
        done = 0
        for extent in range(first_B[b], last_B[b] + 1):
            skipped = starts_B[b] + done - side.extents_E[extent]
            last = extent == last_B[b]
            stop = width if last else side.extents_E[extent + 1] - starts_B[b]
            source, at = side.files[side.file_E[extent]], side.offset_E[extent] + skipped
            out_BW[b, done:stop] = source[at : at + stop - done]
            done = stop
    return out_BW


def rows(side: Side, *, rows_B: np.ndarray) -> Batch:
    """The batch of the rows with these numbers, in their order."""
    tokens_BW = gather(side, rows_B=rows_B)
    batch, length = len(rows_B), side.seq_len
    starts_B = rows_B * length
    segments_BT = np.zeros((batch, length), np.int32)
    weights_BT = np.ones((batch, length), np.float32)
    # documents that end after at least one input and before the last target
    low_B = np.searchsorted(side.ends_N, starts_B, side="right")
    high_B = np.searchsorted(side.ends_N, starts_B + length, side="right")
    count_B = high_B - low_B
    if count_B.any():
        row = np.repeat(np.arange(batch), count_B)
        within = np.arange(len(row)) - np.repeat(np.cumsum(count_B) - count_B, count_B)
        cut = side.ends_N[np.repeat(low_B, count_B) + within] - starts_B[row]  # 1..T
        weights_BT[row, cut - 1] = 0
        inside = cut < length
        segments_BT[row[inside], cut[inside]] = 1
        np.cumsum(segments_BT, axis=1, out=segments_BT)
    return Batch(
        np.ascontiguousarray(tokens_BW[:, :-1]),
        np.ascontiguousarray(tokens_BW[:, 1:]),
        segments_BT,
        weights_BT,
    )
