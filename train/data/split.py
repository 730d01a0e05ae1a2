"""Which documents are held out?

A document is held out when 64 bits of the sha256 of its text fall below the wanted share. So the
side of a text does not depend on its file, its neighbours, the seed or the tokeniser, identical
texts share a side, and adding documents moves no other. A corpus so small that one side would be
empty gives that side the text nearest to the threshold.
"""

from collections.abc import Sequence

import numpy as np

from parallelism.errors import InputError


def identity_hash(digest: bytes) -> int:
    """The 64 bits of a text's sha256 that decide its side."""
    return int.from_bytes(digest[:8], "little")


def held_out(
    hashes: Sequence[np.ndarray], *, share: float, fields: Sequence[str]
) -> list[np.ndarray]:
    """For each source's document hashes (documents,), a mask (documents,) of the held-out ones.

    Both sides of every source are non-empty, and one text is on one side in all sources together.
    Raises InputError, with the source's entry of `fields`, when that cannot be.
    """
    threshold = np.uint64(
        min(share * 2.0**64, 2.0**64 - 2048)
    )  # 2048: the spacing of float64 there
    moved: dict[int, bool] = {}  # text hash -> held out, against the threshold
    for _ in range(len(hashes)):
        before = dict(moved)
        for hashes_N, field in zip(hashes, fields, strict=True):
            mask_N = _mask(hashes_N, threshold, moved)
            if mask_N.any() and not mask_N.all():
                continue
            to_held_out = not mask_N.any()
            free = [h for h in np.unique(hashes_N).tolist() if h not in moved]
            if len(np.unique(hashes_N)) < 2 or not free:
                raise InputError(
                    field,
                    f"{len(hashes_N)} documents, {len(np.unique(hashes_N))} different",
                    "nothing can be held out for validation; give at least two different documents "
                    "(a folder of files, or JSONL with a document a line)",
                )
            moved[min(free) if to_held_out else max(free)] = to_held_out
        if moved == before:
            break
    masks = [_mask(h, threshold, moved) for h in hashes]
    for mask_N, field in zip(masks, fields, strict=True):
        if mask_N.all() or not mask_N.any():
            raise InputError(
                field,
                f"{len(mask_N)} documents, shared with the other sources",
                "no split keeps a document on one side in all sources; add documents to this one",
            )
    return masks


def _mask(hashes_N: np.ndarray, threshold: np.uint64, moved: dict[int, bool]) -> np.ndarray:
    mask_N = hashes_N < threshold
    for text, side in moved.items():
        mask_N[hashes_N == np.uint64(text)] = side
    return mask_N
