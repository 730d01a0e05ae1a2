"""Causal text mixed with infilling (CodeGen2, Nijkamp et al. 2023): in a share of the rows every
document has spans taken out, each with a mark in its place, and says them at its end:

    text <mask_1> text <mask_2> text <sep> <mask_1> span <eom> <mask_2> span <eom>

The marks are the last ids of the model's vocabulary: the masks in order, `<sep>`, `<eom>`. A row is
filled with fewer tokens of text than it has places, by the marks it needs; what does not fit is cut
off its last document. `loss/<set>` is the loss of the next token on plain text, as of any causal
model; `loss/<set>/infill` that of what follows `<sep>`, over text all of which has spans taken out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass as plain
from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from model.spec import ModelSpec
from parallelism.axes import SPEC
from train.data.rows import Batch
from train.data.task import fractions, uniform_bits
from train.objectives import Arrays, ObjectiveSpec

MARKS = 3  # places that a span takes besides its tokens: two masks and an <eom>


@plain(frozen=True)
class Ids:
    """The marks: `<mask_1>` on from `mask`, `<sep>`, `<eom>`."""

    mask: int
    sep: int
    eom: int


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(ObjectiveSpec):
    """The paper's ratios, lengths of spans and share of rows were not at hand: all guesses."""

    kind: Literal["span_mixture"] = "span_mixture"  # pyright: ignore[reportIncompatibleVariableOverride]
    span_probability: float = Field(default=0.5, ge=0, le=1)  # of a row to have spans taken out
    # Share of a document that is taken out: one of these for each, all as likely.
    ratios: tuple[float, ...] = Field(default=(0.15, 0.5), min_length=1)
    mean_span: float = Field(default=8.0, ge=1)  # tokens
    spans: int = Field(default=30, ge=1)  # of a document at most, then they are longer
    # all: every token after the first of a document, marks too. infill: those after `<sep>`.
    loss_on: Literal["all", "infill"] = "all"
    # The text up to `<sep>` sees itself both ways, and is then never asked for.
    bidirectional_prefix: bool = False

    def __post_init__(self):
        if not all(0 < ratio < 1 for ratio in self.ratios):
            raise ValueError(f"ratios {list(self.ratios)}: write shares between 0 and 1")

    @property
    def over_positions(self) -> bool:
        return True

    @property
    def arrays(self) -> Mapping[str, Any]:
        return {"prefix_BT": np.bool_} if self.bidirectional_prefix else {}

    @property
    def reserved(self) -> int:
        return self.spans + 2

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        if model.vocab < self.reserved + 2:
            raise ValueError(
                f"objective {self.kind} has {self.reserved} ids of its own and model.vocab is "
                f"{model.vocab}; write their sum with those of the text, or a smaller "
                f"objective.spans"
            )
        if not self.bidirectional_prefix:
            return
        for block in model.blocks:
            if block.mixer is not None and not block.mixer.bidirectional:
                raise ValueError(
                    f"a {block.mixer.kind} mixer sees earlier positions only; write "
                    f"objective.bidirectional_prefix=false, or a mixer that sees both ways, such "
                    f"as attention"
                )

    def ids(self, vocab: int) -> Ids:
        return Ids(mask=vocab - self.reserved, sep=vocab - 2, eom=vocab - 1)

    def prepare(self, batch: Batch, *, rows_B: np.ndarray, seed: int, vocab: int) -> Arrays:
        u_BN = _uniform(f"span mixture {seed}", rows_B, batch)
        made = self._plain(batch)
        asked = self.loss_on == "all" and not self.bidirectional_prefix
        for b in np.flatnonzero(u_BN[:, 0] < self.span_probability).tolist():
            self._corrupt(made, b, batch, u_BN[b, 1:], ids=self.ids(vocab), prefix_asked=asked)
        return made

    def held_out(
        self, batch: Batch, *, rows_B: np.ndarray, vocab: int
    ) -> Iterator[tuple[str, Arrays]]:
        yield "", self._plain(batch)
        u_BN = _uniform("held out span mixture", rows_B, batch)
        made = self._plain(batch)
        made["weights_BT"][:] = 0
        # rows that fill up the last batch ask for nothing before and after
        for b in np.flatnonzero(batch.weights_BT.any(axis=1)).tolist():
            self._corrupt(made, b, batch, u_BN[b, 1:], ids=self.ids(vocab), prefix_asked=False)
        yield "infill", made

    def _plain(self, batch: Batch) -> Arrays:
        made = {name: array.copy() for name, array in batch._asdict().items()}
        return made | {k: np.zeros(batch.tokens_BT.shape, kind) for k, kind in self.arrays.items()}

    def _corrupt(
        self,
        made: Arrays,
        b: int,
        batch: Batch,
        u_N: np.ndarray,
        *,
        ids: Ids,
        prefix_asked: bool,
    ) -> None:
        """Put row b of the batch into `made`, its documents with spans taken out."""
        tokens_W = np.append(batch.tokens_BT[b], batch.targets_BT[b, -1])
        opens = np.flatnonzero(np.diff(batch.segments_BT[b])) + 1
        ends = [*opens.tolist(), len(tokens_W)]
        if batch.weights_BT[b, -1] == 0:  # the last target opens a document
            ends.insert(-1, len(tokens_W) - 1)
        pieces, segments, prefixes = [], [], []
        at, room = 0, len(tokens_W)
        for n, end in enumerate(ends):
            own_N = u_N[at + n : end + n + 1]
            piece, prefix = self._document(tokens_W[at:end], own_N, room=room, ids=ids)
            pieces.append(piece)
            segments.append(np.full(len(piece), n))
            prefixes.append(np.arange(len(piece)) < prefix)
            at, room = end, room - len(piece)
            if not room:
                break
        row_W, segment_W, prefix_W = (
            np.concatenate(parts) for parts in (pieces, segments, prefixes)
        )
        made["tokens_BT"][b], made["targets_BT"][b] = row_W[:-1], row_W[1:]
        made["segments_BT"][b] = segment_W[:-1]
        asked_T = segment_W[1:] == segment_W[:-1]
        # a target within the prefix is one that the prefix itself may hold
        infill_T = ~prefix_W[1:] & (np.isin(segment_W[1:], segment_W[prefix_W]))
        made["weights_BT"][b] = asked_T & (infill_T | prefix_asked)
        if "prefix_BT" in made:
            made["prefix_BT"][b] = prefix_W[:-1]

    def _document(
        self, tokens_N: np.ndarray, u_N: np.ndarray, *, room: int, ids: Ids
    ) -> tuple[np.ndarray, int]:
        """A document with spans taken out, in at most `room` places, and in all of them if it is
        cut; and how many places its prefix has, with `<sep>`. Too short a one stays as it is.
        """
        ratio = self.ratios[int(u_N[0] * len(self.ratios))]
        for spans in range(self._spans(min(len(tokens_N), room), ratio), 0, -1):
            n = min(len(tokens_N), room - MARKS * spans - 1)
            if n > 1 and spans <= self._most(n, ratio):
                taken = self._taken(n, ratio)
                return corrupted(tokens_N[:n], u_N[1:], taken=taken, spans=spans, ids=ids)
        return tokens_N[:room], 0

    def _taken(self, n: int, ratio: float) -> int:
        return min(max(1, round(ratio * n)), n - 1)

    def _most(self, n: int, ratio: float) -> int:
        """Spans that n tokens can have: each of a token, and a token between two."""
        taken = self._taken(n, ratio)
        return min(self.spans, taken, n - taken + 1)

    def _spans(self, n: int, ratio: float) -> int:
        if n < 2:
            return 0
        return min(max(1, round(self._taken(n, ratio) / self.mean_span)), self._most(n, ratio))


def corrupted(
    tokens_N: np.ndarray, u_N: np.ndarray, *, taken: int, spans: int, ids: Ids
) -> tuple[np.ndarray, int]:
    """`taken` tokens in `spans` spans moved to the end, and the length of what is before; every way
    to choose lengths and places is as likely.
    """
    kept = len(tokens_N) - taken
    ends_K = np.append(np.sort(np.argsort(u_N[: taken - 1])[: spans - 1]) + 1, taken)
    # spans go into different gaps of the tokens that stay, so that they never touch
    gaps_K = np.sort(np.argsort(u_N[taken - 1 : taken + kept])[:spans])
    starts_K = gaps_K + np.append(0, ends_K[:-1])
    edge_N = np.zeros(len(tokens_N) + 1, np.int64)
    edge_N[starts_K], edge_N[gaps_K + ends_K] = 1, -1
    hidden_N = np.cumsum(edge_N[:-1]).astype(bool)
    masks_K = ids.mask + np.arange(spans)
    before = np.insert(tokens_N[~hidden_N], gaps_K, masks_K)
    marks = np.stack([masks_K, np.full(spans, ids.eom)], axis=1).reshape(-1)
    places = np.stack([np.append(0, ends_K[:-1]), ends_K], axis=1).reshape(-1)
    after = np.insert(tokens_N[hidden_N], places, marks)
    return np.concatenate([before, [ids.sep], after]).astype(np.int32), len(before) + 1


def _uniform(stream: str, rows_B: np.ndarray, batch: Batch) -> np.ndarray:
    """Numbers in (0, 1): one of the row, one for each of its documents and of their tokens."""
    return fractions(uniform_bits(stream, rows_B, 1 + 2 * (batch.tokens_BT.shape[1] + 1)))
