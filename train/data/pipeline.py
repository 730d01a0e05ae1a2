"""Which batch does a step see?

`open_data` returns `Data`, whose `batch(step)` is a function of (seed, step) alone: nothing is
iterated, so resuming needs no state but the step, and any number of processes cut the same global
batch into contiguous parts. Order comes from grain: each source's rows are shuffled anew every
epoch, and sources are interleaved by weight. grain hands out row numbers only; the tokens are
gathered here, all rows of a batch at once.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grain
import numpy as np

from parallelism.errors import InputError
from train.data.contiguous import Contiguous, contiguous, following, held_out_rows
from train.data.corpus import Corpus, open_corpus
from train.data.pairs import PairCorpus, PairSide, open_pairs, take_pairs
from train.data.rows import Batch, Rows, Side, take_side
from train.data.split import held_out
from train.data.task import HELD_OUT, TRAIN, TaskRows, TaskSpec
from train.data.tokenizers import load_tokenizer
from train.data.windows import Opened, ValueSource
from train.spec import DataSpec

WHOLE = "val"  # the held-out documents of all sources together


@dataclass(frozen=True)
class Data:
    """An opened DataSpec. `train` and `held_out` have one entry a source."""

    spec: DataSpec
    seed: int
    sequences_per_batch: int
    n_vocab: int
    tokenizer: str
    corpora: tuple[Corpus | PairCorpus | TaskSpec | Opened, ...] = field(repr=False)
    train: tuple[Rows, ...] = field(repr=False)
    held_out: tuple[Rows, ...] = field(repr=False)
    order: Any = field(
        repr=False
    )  # grain MapDataset: position in the run -> row, counted through the sources
    first: int = 0  # positions that earlier runs took: where this one begins

    def batch(self, step: int, *, process_index: int = 0, process_count: int = 1) -> Batch:
        """Rows p*B/n to (p+1)*B/n of a step's global batch, for process p of n: (B/n, T)."""
        size = self._share(process_count)
        start = self.first + step * self.sequences_per_batch + process_index * size
        order = self.order
        numbers_B = np.array([order[i] for i in range(start, start + size)])
        if isinstance(order, Contiguous):
            return following(_only(self.train), numbers_B)
        return _rows(self.train, numbers_B)

    @property
    def validation_sets(self) -> tuple[str, ...]:
        """`val`, and in a mixture `val/<i>` for the i-th source."""
        n = len(self.held_out)
        return (WHOLE, *(f"{WHOLE}/{i}" for i in range(n))) if n > 1 else (WHOLE,)

    def validation(
        self, tokens: int, *, name: str = WHOLE, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """About `tokens` held-out tokens in whole batches: the same rows in every run.

        ceil(tokens / T) rows, or all there are, spread evenly over the documents; the last batch is
        filled up with rows of weight 0. The seed has no part in it. In contiguous order each row of
        the batches reads a stretch of the documents from its beginning on.
        """
        sides = self._sides(name)
        size = self._share(process_count)
        available = sum(s.n_rows for s in sides)
        n = min(-(-tokens // self.spec.seq_len), available)
        low = process_index * size
        if isinstance(self.order, Contiguous):
            found = held_out_rows(available, width=self.sequences_per_batch, wanted=n)
            return (following(_only(sides), rows_B[low : low + size]) for rows_B in found)
        numbers = np.arange(n) * available // n

        def batches() -> Iterator[Batch]:
            for at in range(0, n, self.sequences_per_batch):
                here = at + low
                yield _padded(_rows(sides, numbers[here : here + size]), size)

        return batches()

    def bytes_per_token(self, name: str = WHOLE, *, every: bool = False) -> float | None:
        """UTF-8 bytes of held-out text for each token the loss asks for; None where unknown. It
        asks for all but the first of each document, or for `every` one.

        Bits per byte = nats per token / (ln 2 x this). Exactly 1 for bytes: the end-of-document
        token is asked for, the first of a document is not.
        """
        sides = self._sides(name)
        sizes = [s.text_bytes for s in sides]
        if None in sizes:
            return None
        asked = sum(s.n_tokens if every else s.n_predicted for s in sides)
        return sum(s or 0.0 for s in sizes) / asked

    def has_answers(self, name: str = WHOLE) -> bool:
        """Whether the loss asks for answers only, so that counting the right ones makes sense."""
        return all(isinstance(side, TaskRows) for side in self._sides(name))

    @property
    def has_missing(self) -> bool:
        """Whether numbers of a series are, or can be, missing."""
        return any(isinstance(c, Opened) and c.missing for c in self.corpora)

    @property
    def rows_per_epoch(self) -> int:
        return sum(s.n_rows for s in self.train)

    @property
    def fingerprint(self) -> str:
        """12 hex of ids, contents and tokeniser of all sources."""
        joined = json.dumps([c.fingerprint for c in self.corpora])
        return hashlib.sha256(joined.encode()).hexdigest()[:12]

    @property
    def manifest(self) -> dict[str, Any]:
        """What was read, as JSON: what a run records beside its spec."""
        sources = []
        share = sum(s.weight for s in self.spec.sources)
        for spec, corpus, train, val in zip(
            self.spec.sources, self.corpora, self.train, self.held_out, strict=True
        ):
            sides = {"train": train, "validation": val}
            sources.append(
                {
                    "kind": spec.kind,
                    "path": vars(spec).get("path"),  # None where it is generated
                    "share": spec.weight / share,
                    "fingerprint": corpus.fingerprint,
                    "documents": {k: s.n_documents for k, s in sides.items()},
                    "tokens": {k: s.n_tokens for k, s in sides.items()},
                    "bytes": {k: s.text_bytes for k, s in sides.items()},
                    "rows_per_epoch": train.n_rows,
                }
            )
            if isinstance(train, PairSide) and isinstance(val, PairSide):
                left_out = {"train": train.left_out, "validation": val.left_out}
                sources[-1]["left_out"] = left_out  # pairs longer than a row
        totals = {
            unit: {side: _sum(s[unit][side] for s in sources) for side in ("train", "validation")}
            for unit in ("documents", "tokens", "bytes")
        }
        return {
            "fingerprint": self.fingerprint,
            "tokenizer": self.tokenizer,
            "vocab": self.n_vocab,
            **totals,
            "bytes_per_token": self.bytes_per_token(),
            "rows_per_epoch": self.rows_per_epoch,
            "sources": sources,
        }

    def position(self, step: int) -> dict[str, Any]:
        """Where the data stands after `step` steps: goes into the checkpoint."""
        return {"seed": self.seed, "step": step, "fingerprint": self.fingerprint}

    def check_position(self, position: dict[str, Any]) -> None:
        """Raises InputError when a checkpoint's position belongs to another corpus or seed."""
        if position["fingerprint"] != self.fingerprint:
            raise InputError(
                "data.sources",
                f"the corpus changed since the checkpoint ({position['fingerprint']} then, "
                f"{self.fingerprint} now)",
                "restore the files and the tokeniser, or start the run again in another --root",
            )
        if position["seed"] != self.seed:
            raise InputError(
                "seed", self.seed, f"the checkpoint was made with {position['seed']}; write that"
            )

    def _share(self, process_count: int) -> int:
        size, rest = divmod(self.sequences_per_batch, process_count)
        if rest:
            raise InputError(
                "budget.batch_tokens",
                f"{self.sequences_per_batch} sequences for {process_count} processes",
                f"write a multiple of {process_count * self.spec.seq_len}",
            )
        return size

    def _sides(self, name: str) -> tuple[Rows, ...]:
        if name not in self.validation_sets:
            raise KeyError(f"{name!r} is not one of {self.validation_sets}")
        return self.held_out if name == WHOLE else (self.held_out[int(name.rpartition("/")[2])],)


def open_data(
    spec: DataSpec,
    *,
    seed: int,
    sequences_per_batch: int,
    cache: Path,
    vocab: int,
    reserved: int = 0,
) -> Data:
    """Tokenise (or find in `cache`) every source and split it; InputError names field or file.

    `vocab` is the model's: ids must lie below it, and below the `reserved` ones at its end.
    """
    fields = [f"data.sources.{i}" for i in range(len(spec.sources))]
    texts = [s for s in spec.sources if not isinstance(s, TaskSpec | ValueSource)]
    tokenizer = load_tokenizer(spec.tokenizer)

    def opened(source: Any, name: str) -> Corpus | PairCorpus | TaskSpec | Opened:
        if isinstance(source, TaskSpec):
            return source
        if isinstance(source, ValueSource):
            return source.open(seq_len=spec.seq_len, validation=spec.validation, field=name)
        read = open_corpus if source.source_column is None else open_pairs
        return read(source, tokenizer=tokenizer, cache=cache, field=name)

    corpora = [opened(*pair) for pair in zip(spec.sources, fields, strict=True)]
    # token files bring their own ids; only a tokeniser that was asked for must agree with them
    any_ids = spec.tokenizer == "bytes" and all(s.kind == "tokens" for s in texts)
    pairs = zip(fields, corpora, strict=True)
    named = {name: c for name, c in pairs if isinstance(c, Corpus | PairCorpus)}
    expected = next(iter(named.values())) if any_ids and named else tokenizer
    _check_vocab(fields, corpora, vocab=vocab, reserved=reserved)
    _check_ids(named, expected=(expected.n_vocab, expected.end_of_document))
    hashes = [c.hashes_N for c in named.values()]
    masks = held_out(hashes, share=spec.validation, fields=list(named))
    split = dict(zip(named, masks, strict=True))
    train: list[Rows] = []
    val: list[Rows] = []
    for corpus, name in zip(corpora, fields, strict=True):
        if isinstance(corpus, TaskSpec):
            train.append(TaskRows(corpus, spec.seq_len, TRAIN, spec.source_length))
            val.append(TaskRows(corpus, spec.seq_len, HELD_OUT, spec.source_length))
            continue
        if isinstance(corpus, Opened):
            train.append(corpus.train)
            val.append(corpus.held_out)
            continue
        mask_N = split[name]
        for sides, keep_N, what in ((train, ~mask_N, "training"), (val, mask_N, "validation")):
            if isinstance(corpus, PairCorpus):
                lengths = {"seq_len": spec.seq_len, "source_len": spec.source_length}
                sides.append(take_pairs(corpus, keep_N=keep_N, **lengths, field=name))
            else:
                sides.append(take_side(corpus, keep_N=keep_N, seq_len=spec.seq_len))
            if not sides[-1].n_rows:
                raise InputError(
                    name,
                    f"{sides[-1].n_tokens} tokens of {what} text",
                    f"shorter than one sequence of data.seq_len {spec.seq_len} and its target; add "
                    "text, change data.validation, or write a shorter data.seq_len",
                )
    return Data(
        spec=spec,
        seed=seed,
        sequences_per_batch=sequences_per_batch,
        n_vocab=max(c.n_vocab for c in corpora),  # 0 where nothing has ids
        tokenizer=spec.tokenizer if not any_ids else "tokens" if texts else "none",
        corpora=tuple(corpora),
        train=tuple(train),
        held_out=tuple(val),
        order=contiguous(_only(tuple(train)), width=sequences_per_batch, seed=seed)
        if spec.order == "contiguous"
        else _order([s.n_rows for s in train], [s.weight for s in spec.sources], seed=seed),
    )


def _check_vocab(fields: list[str], corpora: list[Any], *, vocab: int, reserved: int) -> None:
    for name, corpus in zip(fields, corpora, strict=True):
        if corpus.n_vocab + reserved > vocab:
            own = f" and the objective {reserved} of its own" if reserved else ""
            instead = f"write {corpus.n_vocab + reserved} or more"
            raise InputError(
                "model.vocab", vocab, f"{name} has {corpus.n_vocab} ids{own}; {instead}"
            )


def _check_ids(named: dict[str, Corpus | PairCorpus], *, expected: tuple[int, int]) -> None:
    """Texts of one tokeniser; a task's ids stand for nothing else, so they agree with any."""
    for name, corpus in named.items():
        ids = (corpus.n_vocab, corpus.end_of_document)
        if ids != expected:
            raise InputError(
                name,
                f"vocabulary {ids[0]} ending documents with {ids[1]}",
                f"the rest has {expected[0]} and {expected[1]}; use one tokeniser for all, and "
                "name it in data.tokenizer",
            )


def _order(n_rows: list[int], weights: list[float], *, seed: int) -> Any:
    """position in the run -> row number, counted through the sources; endless.

    grain rounds the ratio of weights to a hundredth of the smallest.
    """
    parts, first = [], 0
    for i, n in enumerate(n_rows):
        # a seed a source: sources of one length would be shuffled alike
        mixed = int(np.random.SeedSequence([seed, i]).generate_state(1)[0])
        part = grain.MapDataset.range(first, first + n).seed(mixed).shuffle().repeat()
        parts.append(part)
        first += n
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


def _only(sides: tuple[Rows, ...]) -> Side:
    (side,) = sides
    assert isinstance(side, Side)  # train/carry_check.py refuses tasks and mixtures
    return side


def _rows(sides: tuple[Rows, ...], numbers_B: np.ndarray) -> Batch:
    """Rows by their number counted through the sides."""
    if len(sides) == 1:
        return sides[0].read(numbers_B)
    ends = np.cumsum([s.n_rows for s in sides])
    which_B = np.searchsorted(ends, numbers_B, side="right")
    places, parts = [], []
    for i in np.unique(which_B).tolist():
        places.append(np.flatnonzero(which_B == i))
        parts.append(sides[i].read(numbers_B[places[-1]] - (ends[i] - sides[i].n_rows)))
    back_B = np.argsort(np.concatenate(places))
    return type(parts[0])(*(np.concatenate(some)[back_B] for some in zip(*parts, strict=True)))


def _padded(batch: Batch, size: int) -> Batch:
    missing = size - len(batch[0])
    if not missing:
        return batch
    return type(batch)(*(np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) for a in batch))


def _sum(values: Any) -> Any:
    values = list(values)
    return None if None in values else sum(values)
