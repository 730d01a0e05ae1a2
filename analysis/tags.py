"""What may not share a law? Rows of several tokenisers, corpora, schedules or units.

Nats per token are those of one tokeniser and one text, so a mixture is refused until `--where`
separates it, or bits per byte make tokenisers comparable. Runs say what they are in their specs,
files in columns such as `tokenizer` or `dataset`, where they have them.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from analysis.tables import Table
from analysis.units import BITS, NATS, RATIO, UNSTATED, Source, in_bits, unit_of
from parallelism.errors import InputError

SIX_ND = "six_nd"  # the convention C = 6 N D, the only one a file of N and D has
# dotted paths of a spec within which one law can hold in nats per token
ONE_VALUE = (
    "data.tokenizer",
    "data.seq_len",
    "data.sources",
    "data.fingerprint",
    "model.arch",
    "schedule.kind",
)
TOKENISER = ("data.tokenizer", "tokenizer", "tokeniser")
SCHEDULE = ("schedule.kind", "schedule", "lr_schedule")
UNIT = ("unit", "units", "loss_unit")
# columns of files that say the same, in lower case with _ for spaces and hyphens
TAGS = (
    *ONE_VALUE,
    *TOKENISER,
    *SCHEDULE,
    *UNIT,
    "dataset",
    "dataset_name",
    "corpus",
    "eval_set",
    "eval_dataset",
    "validation_set",
    "seq_len",
    "sequence_length",
    "context_length",
    "convention",
    "flop_convention",
    "parameter_convention",
)
MIXED_RATIO = 0.01  # bytes per token within 1 % are those of one tokeniser on one text: guess


def is_tag(name: str) -> bool:
    return _plain(name) in TAGS or name.startswith("data.sources.")


def _plain(name: str) -> str:
    return re.sub(r"[ -]", "_", name.lower())


def is_bits(column: str) -> bool:
    """Whether a column's name says bits per byte."""
    return column.startswith(("bpb", "bits_per_byte", "bits/byte"))


def unit_of_runs(column: str, units: Collection[str], *, source: str) -> str:
    """The unit of a column of runs whose losses are in `units`; refuses several."""
    if len(units) > 1:
        raise _mixed(source, "loss_unit", sorted(units), "")
    unit = next(iter(units), NATS)
    if is_bits(column):
        return in_bits(unit)
    return unit if column.startswith("loss") else UNSTATED


def unit_in(table: Table, mapping: Mapping[str, Source], used_M: np.ndarray) -> str:
    """The unit that the loss column is in, as far as the source says it; refuses several."""
    if "loss" not in mapping:
        return ""
    column = mapping["loss"].column
    if table.is_runs:
        units = set(table.column("loss_unit").texts(used_M))
        return unit_of_runs(column, units, source=table.source)
    if is_bits(column):
        return BITS
    for name in table.columns:
        if _plain(name) in UNIT:
            texts = table.column(name).texts(used_M)
            units = {unit_of(text, field=f"{table.source}: {name}") for text in texts}
            if len(units) > 1:
                raise _mixed(table.source, name, sorted(units), "")
            if units:
                return units.pop()
    return UNSTATED


def conventions_of(
    table: Table,
    mapping: Mapping[str, Source],
    used_M: np.ndarray,
    *,
    six_nd: bool,
    unit: str,
    along_runs: bool,
) -> dict[str, Any]:
    """What the columns mean; refuses used rows that cannot share a law. `six_nd`: C is 6 N D."""
    out: dict[str, Any] = {n: str(s) for n, s in mapping.items()}
    if table.is_runs:
        out["C"] = mapping["C"].column.removeprefix("C.")
    else:
        if "C" in mapping and "N" in mapping:
            out.setdefault("D", "C / 6 N")
        if six_nd:
            out["C"] = SIX_ND
    if unit:
        out["loss_unit"] = unit
    taken = {source.column for source in mapping.values()}
    bits = unit.startswith(BITS)
    for path in ONE_VALUE if table.is_runs else [n for n in table.columns if is_tag(n)]:
        plain = _plain(path)
        # a law may have the tag as its input, and a law of curves is about several schedules
        if path in taken or (along_runs and plain in SCHEDULE) or plain in UNIT:
            continue
        values = _values(table, path, used_M)
        # a corpus is fingerprinted as its tokeniser encoded it
        if len(values) > 1 and not (bits and plain in (*TOKENISER, "data.fingerprint")):
            more = ", or compare bits per byte with --unit bpb" if plain in TOKENISER else ""
            raise _mixed(table.source, path, values, more)
        if values:
            out[path] = values[0] if len(values) == 1 else ", ".join(values[:6])
    return out


def refuse_mixed_ratios(table: Table, ratio_M: np.ndarray) -> None:
    """Raises InputError when rows in nats per token have several byte ratios."""
    ratio_M = ratio_M[np.isfinite(ratio_M) & (ratio_M > 0)]
    if len(ratio_M) and ratio_M.max() > (1 + MIXED_RATIO) * ratio_M.min():
        raise InputError(
            f"{table.source}: {RATIO.name}",
            f"{ratio_M.min():.3g} to {ratio_M.max():.3g}: nats of several tokenisers",
            "separate them with --where, or compare bits per byte with --unit bpb",
        )


def _mixed(source: str, path: str, values: list[str], more: str) -> InputError:
    return InputError(
        f"{source}: {path}",
        f"mixed: {' and '.join(values[:3])}",
        f'separate them, for example --where "{_example(path, values[0])}"{more}',
    )


def _values(table: Table, path: str, used_M: np.ndarray) -> list[str]:
    if not table.is_runs:
        return table.column(path).texts(used_M)
    tags = {_tag(row, path) for row, used in zip(table.rows, used_M, strict=True) if used}
    return sorted(t for t in tags if t is not None)


def _tag(row: Mapping[str, Any], path: str) -> str | None:
    """The value at a path, or all leaves below it, as one text."""
    if path in row:
        return str(row[path])
    below = {k: row[k] for k in sorted(row) if k.startswith(path + ".")}
    return json.dumps(below, default=str) if below else None


def _example(path: str, value: str) -> str:
    if value.startswith("{"):
        path, text = next(iter(json.loads(value).items()))
        value = str(text)
    number = value.replace(".", "", 1).isdigit()
    path = path if re.fullmatch(r"[\w./]+", path) else f"`{path}`"
    return f"{path} == {value}" if number else f"{path} == '{value}'"
