"""Small corpora for the data tests, and a slow, obvious account of what should be served."""

import hashlib
import random
from pathlib import Path

import numpy as np

from train.data.pipeline import Data, open_data
from train.data.task import TaskSpec
from train.spec import DataSpec, SourceSpec

WORDS = "the law of scale über naïve 東京 loss\tdepth\nwidth layer token 🙂 budget".split(" ")


def texts(n: int, *, seed: int = 0, words: int = 60) -> list[str]:
    """`n` texts of 1 to `words` words, some not ASCII, numbered so that no rows repeat."""
    rng = random.Random(seed)

    def word() -> str:
        return f"{rng.choice(WORDS)}{rng.getrandbits(32)}"

    return [" ".join(word() for _ in range(rng.randint(1, words))) for _ in range(n)]


def write_folder(folder: Path, contents: list[str]) -> SourceSpec:
    for i, text in enumerate(contents):
        path = folder / f"part{i % 3}" / f"{i:04d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return SourceSpec(kind="text", path=str(folder))


def in_order(contents: list[str]) -> list[str]:
    """The order in which write_folder's files are read: by relative path."""
    return [contents[i] for i in sorted(range(len(contents)), key=lambda i: (i % 3, i))]


def is_held_out(text: str, share: float) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") / 2**64 < share


def naive_rows(documents: list[list[int]], seq_len: int) -> list[tuple[list, list, list, list]]:
    """Rows (tokens, targets, segments, weights) of documents that end in their end token."""
    flat = [(token, which) for which, document in enumerate(documents) for token in document]
    rows, at = [], 0
    while at + seq_len < len(flat):
        piece = flat[at : at + seq_len + 1]
        rows.append(
            (
                [token for token, _ in piece[:-1]],
                [token for token, _ in piece[1:]],
                [which - piece[0][1] for _, which in piece[:-1]],
                [float(a[1] == b[1]) for a, b in zip(piece, piece[1:], strict=False)],
            )
        )
        at += seq_len
    return rows


def as_rows(batch) -> list[tuple[list, list, list, list]]:
    return list(zip(*(a.tolist() for a in batch), strict=True))


def opened(
    source: SourceSpec | TaskSpec | tuple[SourceSpec | TaskSpec, ...],
    cache: Path,
    *,
    batch: int = 8,
    seed: int = 0,
    vocab: int = 2**16,
    seq_len: int = 32,
    **spec,
) -> Data:
    sources = source if isinstance(source, tuple) else (source,)
    return open_data(
        DataSpec(sources=sources, seq_len=seq_len, **spec),
        seed=seed,
        sequences_per_batch=batch,
        cache=cache,
        vocab=vocab,
    )


def equal(a, b) -> bool:
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True))
