"""Which documents does a source hold?

Every kind of text source yields `Document(id, text)` in a fixed order: files by relative path, rows
by position. Token files (`kind: tokens`) are listed here and read in tokens.py. A file that cannot
be read is the user's to mend: nothing is skipped but empty documents, hidden files, and what the
standard library's list below leaves out.
"""

import glob
import gzip
import hashlib
import json
import os
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallelism.errors import InputError, nearest
from train.spec import SourceSpec

# Test data and idlelib are large and unlike the rest; config-* and _sysconfigdata* hold the paths
# of the machine that built this Python, and would make the fingerprint differ between two installs
# of one version.
STDLIB_WITHOUT = {"site-packages", "dist-packages", "test", "tests", "idlelib"}
STDLIB_WITHOUT_PREFIX = ("config-", "_sysconfigdata")

ENDINGS = {
    "stdlib": (".py",),
    "text": ("",),
    "jsonl": (".jsonl", ".jsonl.gz"),
    "parquet": (".parquet",),
    "tokens": (".bin", ".npy"),
    "series": (".csv", ".parquet", ".npy"),
}


@dataclass(frozen=True)
class Document:
    """`id` is the relative path of its file, with `:row` where a file holds many."""

    id: str
    text: str

    def utf8(self, field: str) -> bytes:
        try:
            return self.text.encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise InputError(
                f"{field}: {self.id}",
                f"a lone surrogate at character {error.start}",
                "write text that is valid Unicode",
            ) from None


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; `id` is its path relative to the source, with forward slashes."""

    id: str
    path: Path


def files_of(source: Any, *, field: str) -> list[SourceFile]:
    """The files of a source, which has a kind and a path, by relative path; raises InputError when
    there is none.

    `field` is the dotted path of the source in the spec, for messages.
    """
    path = sysconfig.get_path("stdlib") if source.kind == "stdlib" else str(source.path)
    endings = ENDINGS[source.kind]
    given = Path(path).expanduser()
    if given.is_file():
        return [SourceFile(given.name, given)]
    if glob.has_magic(path) and not given.exists():
        names = glob.glob(str(given), recursive=True)
        base = Path(os.path.dirname(str(given)[: _first_magic(str(given))]))
        found = [Path(n) for n in names if Path(n).is_file()]
        if source.kind == "tokens":  # the pattern may match the sidecars too
            found = [f for f in found if f.name.endswith(endings)]
    elif given.is_dir():
        base, found = given, list(_walk(given, stdlib=source.kind == "stdlib"))
        found = [f for f in found if f.name.endswith(endings)]
    else:
        raise InputError(f"{field}.path", path, "no such file or folder; write one that exists")
    if not found:
        wanted = " or ".join(e for e in endings if e) or "text"
        instead = (
            f"empty corpus: no {wanted} files there; write a folder, file or glob that has some"
        )
        if source.kind == "stdlib":
            instead = "this Python has no standard library sources; use a kind text source instead"
        raise InputError(f"{field}.path", path, instead)
    files = [SourceFile(os.path.relpath(f, base).replace(os.sep, "/"), f) for f in found]
    return sorted(files, key=lambda f: f.id)


def _first_magic(path: str) -> int:
    return min(path.index(c) for c in "*?[" if c in path)


def _walk(base: Path, *, stdlib: bool) -> Iterator[Path]:
    for folder, folders, names in os.walk(base):
        folders[:] = [f for f in folders if not f.startswith(".")]
        names = [n for n in names if not n.startswith(".")]
        if stdlib:
            folders[:] = [
                f for f in folders if f not in STDLIB_WITHOUT and not _machine_specific(f)
            ]
            names = [n for n in names if not _machine_specific(n)]
        yield from (Path(folder, n) for n in names)


def _machine_specific(name: str) -> bool:
    return name.startswith(STDLIB_WITHOUT_PREFIX)


def stat_key(files: list[SourceFile], *salt: str) -> str:
    """Hash of paths, sizes and times: the cheap test for "nothing changed", no content read.

    ctime is part of it: a tool that restores mtime after writing cannot restore ctime.
    """
    digest = hashlib.sha256(json.dumps(salt).encode())
    for file in files:
        try:
            stat = file.path.stat()
        except OSError as error:
            raise unreadable(file.path, error) from None
        line = [os.path.abspath(file.path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        digest.update(json.dumps(line).encode())
    return digest.hexdigest()[:24]


def documents(source: SourceSpec, *, field: str) -> Iterator[Document]:
    """The non-empty documents of a text source, in order; InputError at the first bad one.

    Of pairs, the texts of `column` where neither side is empty: the other side's documents are
    those of the same source with its two columns exchanged, one for one.
    """
    reader = {"jsonl": _jsonl, "parquet": _parquet}.get(source.kind, _text)
    for file in files_of(source, field=field):
        try:
            texts = reader(file, source.column, f"{field}.column")
            if source.source_column is not None:
                other = reader(file, source.source_column, f"{field}.source_column")
                texts = (own for own, far in zip(texts, other, strict=True) if far.text)
            for document in texts:
                if document.text:
                    yield document
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(file.path, error) from None


def unreadable(path: Path, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(
        str(path), f"cannot be read ({reason})", "mend it, or leave it out with a glob"
    )


def _decode(raw: bytes, where: str, offset: int = 0) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            where,
            f"not UTF-8 at byte {offset + error.start} (0x{raw[error.start]:02x})",
            "convert it to UTF-8, or leave it out with a glob",
        ) from None


def _text(file: SourceFile, column: str, field: str) -> Iterator[Document]:
    yield Document(file.id, _decode(file.path.read_bytes(), str(file.path)))


def _jsonl(file: SourceFile, column: str, field: str) -> Iterator[Document]:
    opener = gzip.open if file.path.name.endswith(".gz") else open
    offset = 0
    with opener(file.path, "rb") as lines:
        for number, raw in enumerate(lines, 1):
            where = f"{file.path}:{number}"
            line = _decode(raw, where, offset)
            offset += len(raw)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    where, f"not JSON ({error})", "write one JSON object a line"
                ) from None
            if not isinstance(row, dict):
                raise InputError(where, row, "write one JSON object a line")
            if column not in row:
                _no_column(field, column, list(row), where)
            yield Document(f"{file.id}:{number}", _string(row[column], where, column))


def _parquet(file: SourceFile, column: str, field: str) -> Iterator[Document]:
    import pyarrow  # 100 ms that other sources do without
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file.path)
        if column not in table.schema_arrow.names:
            _no_column(field, column, table.schema_arrow.names, str(file.path))
        number = 0
        for batch in table.iter_batches(columns=[column], batch_size=1024):
            for value in batch.column(0):
                number += 1
                where = f"{file.path}:{number}"
                yield Document(f"{file.id}:{number}", _string(_value(value, where), where, column))
    except pyarrow.ArrowException as error:
        raise InputError(
            str(file.path), f"not a Parquet file ({error})", "restore it, or leave it out"
        ) from None


def _value(value: object, where: str) -> object:
    try:
        return value.as_py()  # type: ignore[attr-defined]
    except UnicodeDecodeError as error:
        raise InputError(where, f"not UTF-8 at byte {error.start}", "convert it to UTF-8") from None


def _string(value: object, where: str, column: str) -> str:
    if not isinstance(value, str):
        raise InputError(where, f"{column} is {value!r}", "write text in that column of every row")
    return value


def _no_column(field: str, column: str, known: list[str], where: str) -> None:
    names = ", ".join(known[:12])
    raise InputError(
        field,
        column,
        f"no such column in {where}; it has {names or 'none'}; {nearest(column, known)}",
    )
