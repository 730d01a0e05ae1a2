"""How do pairs of texts become rows? As many whole pairs, in their order, as fit on both sides.

The sources and the targets are two corpora of as many documents, pair i being document i of each
(`open_pairs`). A row takes the next pairs while their sources fit in S places and their targets in
T; a pair is never cut. One that is longer than a row is left out, and counted where a run records
what it read; where more than a share of them are, the lengths are refused.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from parallelism.errors import InputError
from train.data.corpus import Corpus, open_corpus
from train.data.rows import PADDING, Pairs
from train.data.tokenizers import Tokenizer
from train.spec import SourceSpec

LEFT_OUT = 0.05  # share of pairs that may be longer than a row (guess)


@dataclass(frozen=True)
class PairCorpus:
    """Sources and targets, document by document. A pair's side of the split is its source's, so
    that no held-out source has been trained on.
    """

    source: Corpus
    target: Corpus

    @property
    def n_vocab(self) -> int:
        return self.target.n_vocab

    @property
    def end_of_document(self) -> int:
        return self.target.end_of_document

    @property
    def hashes_N(self) -> np.ndarray:
        return self.source.hashes_N

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint} {self.target.fingerprint}"


def open_pairs(source: SourceSpec, *, tokenizer: Tokenizer, cache: Path, field: str) -> PairCorpus:
    """Both columns of a source of pairs, tokenised, kept or built."""
    # the targets first: what is wrong with a column is then said of the field that names it
    target = open_corpus(source, tokenizer=tokenizer, cache=cache, field=field)
    far = replace(source, column=source.source_column, source_column=source.column)
    sources = open_corpus(far, tokenizer=tokenizer, cache=cache, field=field)
    return PairCorpus(source=sources, target=target)


@dataclass(frozen=True)
class PairSide:
    """The training or held-out pairs of a corpus: row r holds pairs `first_R[r]` to `first_R[r+1]`
    of `pair_N`, which numbers those that fit.
    """

    corpus: PairCorpus
    seq_len: int
    source_len: int
    pair_N: np.ndarray
    first_R: np.ndarray
    left_out: int  # pairs that are longer than a row
    n_tokens: int  # of the targets, each with its end
    text_bytes: float | None  # UTF-8 length of the targets

    @property
    def n_rows(self) -> int:
        return len(self.first_R) - 1

    @property
    def n_documents(self) -> int:
        return len(self.pair_N)

    @property
    def n_predicted(self) -> int:
        return self.n_tokens  # a source tells something of the first token too

    def read(self, rows_B: np.ndarray) -> Pairs:
        """The batch of the rows with these numbers, in their order."""
        end = self.corpus.end_of_document
        shape_BT, shape_BS = (len(rows_B), self.seq_len), (len(rows_B), self.source_len)
        made = Pairs(
            tokens_BT=np.full(shape_BT, end, np.int32),
            targets_BT=np.full(shape_BT, end, np.int32),
            segments_BT=np.full(shape_BT, PADDING, np.int32),
            weights_BT=np.zeros(shape_BT, np.float32),
            source_BS=np.full(shape_BS, end, np.int32),
            source_segments_BS=np.full(shape_BS, PADDING, np.int32),
        )
        for b, row in enumerate(np.asarray(rows_B).tolist()):
            s = t = 0
            pairs = self.pair_N[self.first_R[row] : self.first_R[row + 1]].tolist()
            for segment, pair in enumerate(pairs):
                source = _document(self.corpus.source, pair)
                target = _document(self.corpus.target, pair)
                made.source_BS[b, s : s + len(source)] = source
                made.source_segments_BS[b, s : s + len(source)] = segment
                made.targets_BT[b, t : t + len(target)] = target
                made.tokens_BT[b, t + 1 : t + len(target)] = target[:-1]  # its first is an end
                made.segments_BT[b, t : t + len(target)] = segment
                made.weights_BT[b, t : t + len(target)] = 1
                s, t = s + len(source), t + len(target)
        return made


def take_pairs(
    corpus: PairCorpus, *, keep_N: np.ndarray, seq_len: int, source_len: int, field: str
) -> PairSide:
    """The pairs where `keep_N` is true, in rows; raises InputError where too many are too long."""
    source_N, target_N = _lengths(corpus.source), _lengths(corpus.target)
    fits_N = (source_N <= source_len) & (target_N <= seq_len)
    if (~fits_N).mean() > LEFT_OUT:
        wanted = [math.ceil(np.quantile(x_N, 1 - LEFT_OUT / 2)) for x_N in (target_N, source_N)]
        raise InputError(
            field,
            f"{(~fits_N).sum()} of {len(fits_N)} pairs are longer than a row",
            f"write data.seq_len of at least {wanted[0]} and data.source_len of at least "
            f"{wanted[1]}, which leave out {LEFT_OUT:.0%} at most",
        )
    pair_N = np.flatnonzero(keep_N & fits_N)
    ends = [np.cumsum(x_N[pair_N]) for x_N in (source_N, target_N)]
    first, before = [0], [0, 0]
    while first[-1] < len(pair_N):
        rooms = (source_len, seq_len)
        stop = min(
            int(np.searchsorted(end_N, done + room, side="right"))
            for end_N, done, room in zip(ends, before, rooms, strict=True)
        )
        before = [int(end_N[stop - 1]) for end_N in ends]
        first.append(stop)
    bytes_N = corpus.target.bytes_N
    return PairSide(
        corpus=corpus,
        seq_len=seq_len,
        source_len=source_len,
        pair_N=pair_N,
        first_R=np.array(first),
        left_out=int((keep_N & ~fits_N).sum()),
        n_tokens=int(target_N[pair_N].sum()),
        text_bytes=None if bytes_N is None else float(np.asarray(bytes_N)[pair_N].sum()),
    )


def _lengths(corpus: Corpus) -> np.ndarray:
    return np.diff(np.asarray(corpus.ends_N), prepend=0)


def _document(corpus: Corpus, i: int) -> np.ndarray:
    """The tokens of a document, its end too; a corpus of text is one file."""
    start = int(corpus.ends_N[i - 1]) if i else 0
    return corpus.files[0][start : int(corpus.ends_N[i])]
