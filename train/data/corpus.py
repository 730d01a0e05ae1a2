"""Where is a tokenised corpus kept, and is the kept copy still true?

A text source is tokenised once into `<cache>/<key>/`: `tokens.bin` and one row a document in
`ends.npy` (cumulative tokens), `hashes.npy` (identity of the text), `bytes.npy` (its UTF-8 length).
A token source keeps only the index; its tokens stay where they are.

The key is made of paths, sizes and times of the files, the column and the tokeniser: starting again
reads no content (674 files of the standard library: 10 ms). A changed file changes the key. The
content's own sha256, taken while tokenising, is in `meta` and is what runs record. Kept files
are checked by size, and by checksum up to `CHECKED_BYTES`; a damaged one is rebuilt. Building holds
a kernel lock on the key, so processes that start together tokenise once; a killed builder frees the
lock and its partial folder is removed by the next.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from parallelism.errors import InputError
from train.data import tokens
from train.data.sources import SourceFile, documents, files_of, stat_key
from train.data.split import identity_hash
from train.data.tokenizers import Tokenizer
from train.record import disk_error
from train.spec import SourceSpec

FORMAT = "1"  # of the kept folder; part of the key
CHECKED_BYTES = 1 << 28  # guess: beyond it a checksum at every start takes too long (0.3 s)
DOCUMENTS_AT_ONCE = 256  # encoded together, for the tokeniser's threads


@dataclass(frozen=True)
class Corpus:
    """Every document of one source, tokenised: `files` (tokens,) end to end, cut at `ends_N`.

    Each document includes its end-of-document token. `hashes_N` is 64 bits of the sha256 of the
    document's text (or tokens), `bytes_N` its UTF-8 length; a token source has `text_bytes` at
    most, the total.
    """

    files: tuple[np.ndarray, ...]
    ends_N: np.ndarray
    hashes_N: np.ndarray
    bytes_N: np.ndarray | None
    text_bytes: int | None
    n_vocab: int
    end_of_document: int
    tokenizer: str
    fingerprint: str

    @property
    def n_tokens(self) -> int:
        return int(self.ends_N[-1])


def open_corpus(
    source: SourceSpec, *, tokenizer: Tokenizer, cache: Path, field: str = "data.sources.0"
) -> Corpus:
    """The tokenised corpus, kept or built; raises InputError for what is wrong with the source."""
    files = files_of(source, field=field)
    if source.kind == "tokens":
        beside = [SourceFile(f.id, tokens.sidecar(f.path)) for f in files]
        maps = [tokens.open_token_file(f) for f in files]
        tokens.token_files_agree(maps, field=field)
        key = stat_key([*files, *beside], FORMAT, "tokens")
    else:
        maps = None
        key = stat_key(
            files,
            FORMAT,
            source.kind,
            source.column,
            *([source.source_column] if source.source_column else []),
            tokenizer.name,
            tokenizer.fingerprint,
        )
    kept = Path(cache) / key
    loaded = _load(kept)
    if loaded is None:
        try:
            with _locked(kept):
                loaded = _load(kept)
                if loaded is None:
                    with _replacing(kept) as folder:
                        if maps is None:
                            _tokenise(source, tokenizer, folder, field=field)
                        else:
                            _index(maps, folder, field=field)
                    loaded = _load(kept)
        except OSError as error:
            raise disk_error(error, kept) from error
    if loaded is None:
        raise InputError(str(kept), "unreadable after it was written", "check the disk")
    meta, arrays = loaded
    if maps is None:
        held, total = (arrays["tokens"],), None
    else:
        held = tuple(m.ids for m in maps)
        sizes = [m.text_bytes for m in maps]
        total = None if None in sizes else sum(s or 0 for s in sizes)
    return Corpus(
        files=held,
        ends_N=arrays["ends"],
        hashes_N=arrays["hashes"],
        bytes_N=arrays.get("bytes"),
        text_bytes=total,
        n_vocab=meta["n_vocab"],
        end_of_document=meta["end_of_document"],
        tokenizer=meta["tokenizer"],
        fingerprint=meta["fingerprint"],
    )


# -- building --------------------------------------------------------------------------------------


def _tokenise(source: SourceSpec, tokenizer: Tokenizer, folder: Path, *, field: str) -> None:
    dtype = np.dtype(_narrowest(tokenizer.n_vocab))
    ends, hashes, sizes = array("q"), array("Q"), array("q")
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    total = 0
    stream = documents(source, field=field)
    with open(folder / "tokens.bin", "wb") as out:
        while group := list(islice(stream, DOCUMENTS_AT_ONCE)):
            for document in group:
                raw = document.utf8(field)
                identity = hashlib.sha256(raw).digest()
                digest.update(json.dumps(document.id).encode() + identity)
                hashes.append(identity_hash(identity))
                sizes.append(len(raw))
            for ids in tokenizer.encode_documents([d.text for d in group]):
                out.write(ids.astype(dtype, copy=False).tobytes())
                total += len(ids)
                ends.append(total)
    if not ends:
        raise InputError(
            f"{field}.path", str(source.path), "empty corpus: no text in its documents; add some"
        )
    arrays = {
        "ends": np.array(ends, np.int64),
        "hashes": np.array(hashes, np.uint64),
        "bytes": np.array(sizes, np.int64),
    }
    _finish(
        folder,
        arrays,
        dtype=dtype.str,
        n_vocab=tokenizer.n_vocab,
        end_of_document=tokenizer.end_of_document,
        tokenizer=tokenizer.name,
        fingerprint=digest.hexdigest(),
    )


def _index(maps: list[tokens.TokenFile], folder: Path, *, field: str) -> None:
    digest, ends, hashes, total = hashlib.sha256(b"tokens"), [], [], 0
    for file in maps:
        found = tokens.scan(file)
        digest.update(json.dumps([file.id, found.digest]).encode())
        ends.append(found.ends_N + total)
        hashes.append(found.hashes_N)
        total += len(file.ids)
    if not total:
        raise InputError(f"{field}.path", maps[0].id, "empty corpus: no tokens in its files")
    first = maps[0]
    digest.update(json.dumps([first.n_vocab, first.end_of_document]).encode())
    _finish(
        folder,
        {"ends": np.concatenate(ends), "hashes": np.concatenate(hashes)},
        dtype=None,
        n_vocab=first.n_vocab,
        end_of_document=first.end_of_document,
        tokenizer="tokens",
        fingerprint=digest.hexdigest(),
    )


def _narrowest(n_vocab: int) -> str:
    return "<u1" if n_vocab <= 2**8 else "<u2" if n_vocab <= 2**16 else "<u4"


def _finish(folder: Path, arrays: dict[str, np.ndarray], **meta: object) -> None:
    """Save the index, then meta with the size and checksum of every file."""
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    files = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
        size = path.stat().st_size
        files[path.name] = {"size": size, "crc32": _crc32(path) if size <= CHECKED_BYTES else None}
    about = json.dumps({**meta, "files": files})
    with open(folder / "meta", "w") as file:
        file.write(f"{zlib.crc32(about.encode()):08x} {about}")
        file.flush()
        os.fsync(file.fileno())


def _crc32(path: Path) -> int:
    with open(path, "rb") as file:
        return zlib.crc32(file.read())


@contextlib.contextmanager
def _locked(kept: Path) -> Iterator[None]:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with open(kept.with_name(kept.name + ".lock"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _replacing(kept: Path) -> Iterator[Path]:
    """A fresh folder that becomes `kept` when the body ends well. Called with the lock held."""
    partial = kept.with_name(kept.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)  # a killed builder's
    partial.mkdir()
    try:
        yield partial
        if kept.exists():
            shutil.rmtree(kept)
        os.rename(partial, kept)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# -- reading ---------------------------------------------------------------------------------------


def _load(kept: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """meta and the kept arrays, memory-mapped; None when there are none, or they are damaged."""
    try:
        crc32, _, about = (kept / "meta").read_text().partition(" ")
        if int(crc32, 16) != zlib.crc32(about.encode()):
            return None
        meta = json.loads(about)
        arrays = {}
        for name, expected in meta["files"].items():
            path = kept / name
            if path.stat().st_size != expected["size"]:
                return None
            if expected["crc32"] is not None and _crc32(path) != expected["crc32"]:
                return None
            if path.suffix == ".npy":
                arrays[path.stem] = np.load(path, mmap_mode="r").view(np.ndarray)
            else:
                arrays[path.stem] = np.memmap(path, meta["dtype"], "r").view(np.ndarray)
        return meta, arrays
    except (OSError, ValueError, KeyError, TypeError):
        return None
