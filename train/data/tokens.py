"""How are pre-tokenised corpora read?

A file of tokens is a `.npy` vector or a raw little-endian `.bin`, uint16 or uint32, with a sidecar
`<file>.json`:

    {"dtype": "uint16", "vocab": 50257, "end_of_document": 50256, "bytes": 123456}

`bytes`, the UTF-8 length of the text, is optional; without it bits per byte are not reported. Files
are memory-mapped; finding the documents reads them once, in pieces.
"""

import hashlib
import json
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parallelism.errors import InputError
from train.data.sources import SourceFile, unreadable
from train.data.split import identity_hash
from train.record import read_json, write_json

DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
PIECE = 1 << 22  # tokens read at once; bounds memory, not a format constant
EXAMPLE = '{"dtype": "uint16", "vocab": 50257, "end_of_document": 50256}'


@dataclass(frozen=True)
class TokenFile:
    """One memory-mapped file: ids (tokens,), and what its sidecar says of them."""

    id: str
    path: Path
    ids: np.ndarray
    n_vocab: int
    end_of_document: int
    text_bytes: int | None


def sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def write_tokens(
    ids: np.ndarray, *, path: Path, vocab: int, end_of_document: int, text_bytes: int | None = None
) -> None:
    """Write ids (tokens,) as `.bin` or `.npy` with its sidecar, in the type that holds `vocab`."""
    dtype = "uint16" if vocab <= 2**16 else "uint32"
    narrow = np.ascontiguousarray(ids, DTYPES[dtype])
    if path.suffix == ".npy":
        np.save(path, narrow)
    else:
        narrow.tofile(path)
    about = {"dtype": dtype, "vocab": vocab, "end_of_document": end_of_document}
    write_json(sidecar(path), about if text_bytes is None else {**about, "bytes": text_bytes})


def open_token_file(file: SourceFile) -> TokenFile:
    """Map a file and check its sidecar; InputError names the file or the sidecar's field."""
    beside = sidecar(file.path)
    if not beside.is_file():
        raise InputError(str(beside), "missing", f"write the sidecar, for example {EXAMPLE}")
    about = read_json(beside)
    if not isinstance(about, dict):
        raise InputError(str(beside), about, f"write an object, for example {EXAMPLE}")
    n_vocab = _whole(about, "vocab", beside, at_least=2)
    end = _whole(about, "end_of_document", beside, at_least=0)
    if end >= n_vocab:
        raise InputError(f"{beside}: end_of_document", end, f"write an id below vocab {n_vocab}")
    text_bytes = _whole(about, "bytes", beside, at_least=1) if "bytes" in about else None
    ids = _npy(file.path) if file.path.suffix == ".npy" else _bin(file.path, about, beside)
    given = about.get("dtype", ids.dtype.name)
    if given != ids.dtype.name:
        raise InputError(f"{beside}: dtype", given, f"the array is {ids.dtype.name}; write that")
    return TokenFile(file.id, file.path, ids, n_vocab, end, text_bytes)


def _whole(about: dict, key: str, beside: Path, *, at_least: int) -> int:
    value = about.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise InputError(f"{beside}: {key}", value, f"write a whole number of at least {at_least}")
    return value


def _npy(path: Path) -> np.ndarray:
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise unreadable(path, error) from None
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype not in DTYPES.values():
        shape = f"{getattr(ids, 'dtype', '?')} array of shape {getattr(ids, 'shape', '?')}"
        raise InputError(str(path), shape, "write a vector of little-endian uint16 or uint32")
    return ids.view(np.ndarray)


def _bin(path: Path, about: dict, beside: Path) -> np.ndarray:
    dtype = DTYPES.get(str(about.get("dtype")))
    if dtype is None:
        raise InputError(f"{beside}: dtype", about.get("dtype"), "write uint16 or uint32")
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise InputError(
            str(path),
            f"{size} bytes",
            f"truncated: {dtype.name} takes a multiple of {dtype.itemsize}; write it again",
        )
    if not size:
        return np.empty(0, dtype)
    try:
        return np.memmap(path, dtype, "r").view(np.ndarray)
    except OSError as error:
        raise unreadable(path, error) from None


@dataclass(frozen=True)
class Scan:
    """Documents of one file: ends (documents,) in tokens, hashes (documents,), and a digest."""

    ends_N: np.ndarray
    hashes_N: np.ndarray
    digest: str


def scan(file: TokenFile) -> Scan:
    """Find documents by the end-of-document id; tokens after the last one are a document too.

    Raises InputError for an id outside the vocabulary. Memory: one piece and the index.
    """
    ends, hashes, whole = array("q"), array("Q"), hashlib.sha256()
    open_document = hashlib.sha256()
    started = 0  # first token of the open document
    for at in range(0, len(file.ids), PIECE):
        piece = np.asarray(file.ids[at : at + PIECE])
        top = int(piece.max())
        if top >= file.n_vocab:
            where = at + int(piece.argmax())
            raise InputError(
                str(file.path),
                f"id {top} at token {where} is outside the vocabulary of {file.n_vocab}",
                f"correct vocab in {sidecar(file.path).name}, or tokenise again",
            )
        # one width for hashing, so the same tokens are the same document in either type
        wide = piece.astype("<u4")
        cut = 0
        for end in (np.flatnonzero(piece == file.end_of_document) + 1).tolist():
            open_document.update(wide[cut:end].tobytes())
            ends.append(at + end)
            hashes.append(_close(open_document, whole))
            open_document, cut, started = hashlib.sha256(), end, at + end
        open_document.update(wide[cut:].tobytes())
    if started < len(file.ids):
        ends.append(len(file.ids))
        hashes.append(_close(open_document, whole))
    return Scan(np.array(ends, np.int64), np.array(hashes, np.uint64), whole.hexdigest())


def _close(document: "hashlib._Hash", whole: "hashlib._Hash") -> int:
    digest = document.digest()
    whole.update(digest)
    return identity_hash(digest)


def token_files_agree(files: list[TokenFile], *, field: str) -> None:
    """All files of a source share one vocabulary and end-of-document id."""
    first = files[0]
    for file in files:
        if (file.n_vocab, file.end_of_document) != (first.n_vocab, first.end_of_document):
            raise InputError(
                f"{field}.path",
                json.dumps([first.id, file.id]),
                "these files differ in vocab or end_of_document; tokenise them with one tokeniser",
            )
