"""Series from files: CSV or Parquet tables, wide or long, and .npy arrays.

Wide (no `id`): every column but `time` is a series, in the order of the rows; `columns` picks some.
Long: the column `id` names the series that a row's `value` belongs to. An .npy array of one
dimension is a series, of two dimensions a series a row. An empty cell, or one that says NA, NaN or
null, is a missing number, and stays one; anything else that is no number is refused, and so is an
infinity, and a column `time` that goes back. `time` is used for nothing else: steps count as equal.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from parallelism.axes import SPEC
from parallelism.errors import InputError, nearest
from train.data.sources import SourceFile, files_of, unreadable
from train.data.windows import Opened, Series, ValueSource, shortest, split


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(ValueSource):
    """`path` is a file, folder or glob."""

    kind: Literal["series"] = "series"  # pyright: ignore[reportIncompatibleVariableOverride]
    path: str = Field(min_length=1)
    time: str | None = None  # a column that orders the rows and is no series
    columns: tuple[str, ...] | None = None  # wide: the series; None: every column but `time`
    id: str | None = None  # long: the column that names the series of a row
    value: str | None = None  # long: the column of numbers
    split: Literal["time", "series"] = "time"  # hold out the end of each series, or whole series
    stride: int | None = Field(default=None, ge=1)  # between training rows; None: data.seq_len
    shorter: Literal["refuse", "leave_out"] = "refuse"  # series too short for a window

    def __post_init__(self):
        if (self.id is None) != (self.value is None):
            raise ValueError("a long table has both an id and a value column; write both, or none")
        if self.id is not None and self.columns is not None:
            raise ValueError("columns picks series of a wide table; leave it out beside id")

    def open(self, *, seq_len: int, validation: float, field: str) -> Opened:
        found = list(read(self, field=field))
        if self.shorter == "leave_out":
            need = shortest(by=self.split, seq_len=seq_len)
            if self.split == "time":
                need = max(need, math.ceil((seq_len + 1) / (1 - validation)))
            found = [s for s in found if len(s.values_N) >= need]
        if not found:
            said = "no series that is long enough" if self.shorter == "leave_out" else "no series"
            raise InputError(field, said, "write a path that has some, or a shorter data.seq_len")
        train, held = split(
            found,
            by=self.split,
            seq_len=seq_len,
            stride=self.stride or seq_len,
            validation=validation,
            field=field,
        )
        whole = hashlib.sha256(repr((self.split, self.stride)).encode())
        for one in found:
            whole.update(one.digest)
        missing = any(bool(np.isnan(s.values_N).any()) for s in found)
        return Opened(train, held, whole.hexdigest(), missing)


def read(source: Spec, *, field: str) -> Iterator[Series]:
    """The series of the files, in order; raises InputError at the first bad one."""
    for file in files_of(source, field=field):
        if file.path.suffix == ".npy":
            yield from _array(file)
        elif file.path.suffix in (".csv", ".parquet"):
            yield from _table(file, source, field=field)
        else:
            raise InputError(f"{field}.path", str(file.path), "write a .csv, .parquet or .npy file")


def _array(file: SourceFile) -> Iterator[Series]:
    try:
        values = np.load(file.path, allow_pickle=False)
    except OSError as error:
        raise unreadable(file.path, error) from None
    except ValueError as error:
        raise InputError(str(file.path), f"not an array ({error})", "save numbers") from None
    if values.dtype.kind not in "iuf" or values.ndim not in (1, 2):
        given = f"{values.dtype} of {values.ndim} dimensions"
        raise InputError(str(file.path), given, "save numbers of one dimension, or a series a row")
    for i, row_N in enumerate(np.atleast_2d(values)):
        name = file.id if values.ndim == 1 else f"{file.id}:{i}"
        yield _finite(Series(name, np.asarray(row_N, np.float64)), file.path)


def _table(file: SourceFile, source: Spec, *, field: str) -> Iterator[Series]:
    table = _opened(file.path)
    names: list[str] = table.column_names

    def column(name: str, of: str) -> Any:
        if name not in names:
            known = f"{file.path} has {', '.join(names[:12])}; {nearest(name, names)}"
            raise InputError(f"{field}.{of}", name, known)
        return table.column(names.index(name))

    time = None if source.time is None else column(source.time, "time")
    if source.id is not None and source.value is not None:
        which = column(source.id, "id").combine_chunks().dictionary_encode()
        code_N = which.indices.to_numpy(zero_copy_only=False)
        if which.null_count:
            raise InputError(str(file.path), f"{source.id} is empty", "name a series in every row")
        values_N = _numbers(column(source.value, "value"), source.value, file.path)
        for i, name in enumerate(which.dictionary.to_pylist()):
            pick_M = code_N == i
            if time is not None:
                _check_order(time.filter(pick_M), source.time, file.path)
            yield _finite(Series(f"{file.id}:{name}", values_N[pick_M]), file.path)
        return
    if time is not None:
        _check_order(time, source.time, file.path)
    for name in source.columns or [n for n in names if n != source.time]:
        values_N = _numbers(column(name, "columns"), name, file.path)
        yield _finite(Series(f"{file.id}:{name}", values_N), file.path)


def _opened(path: Path) -> Any:
    import pyarrow  # 100 ms that other sources do without
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".parquet":
            return parquet.read_table(path)
        return csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True))
    except OSError as error:
        raise unreadable(path, error) from None
    except pyarrow.ArrowException as error:
        raise InputError(str(path), f"no table ({error})", "restore it, or leave it out") from None


def _numbers(column: Any, name: str, path: Path) -> np.ndarray:
    import pyarrow as pa

    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        first = next((v for v in column.to_pylist() if not _is_number(v)), kind)
        raise InputError(
            str(path),
            f"column {name} has {str(first)[:40]!r}, which is no number",
            "name the column in the source's time or id, pick others with columns, or leave the "
            "cell empty",
        )
    return column.cast(pa.float64()).to_numpy()  # null becomes NaN: missing


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return value is None
    return not isinstance(value, bool)


def _check_order(time: Any, name: str | None, path: Path) -> None:
    if time.null_count:
        raise InputError(str(path), f"{name} is empty in a row", "write when it was in every row")
    times_N = time.to_numpy()
    (back,) = np.nonzero(times_N[1:] < times_N[:-1])
    if len(back):
        said = f"{name} goes back, from {times_N[back[0]]} to {times_N[back[0] + 1]}"
        raise InputError(str(path), said, "sort the rows by time")


def _finite(series: Series, path: Path) -> Series:
    if np.isinf(series.values_N).any():
        at = int(np.flatnonzero(np.isinf(series.values_N))[0]) + 1
        raise InputError(
            str(path), f"{series.name} is infinite at {at}", "leave it empty, so that it is missing"
        )
    return series
