"""What may a law be fitted to? Measurements with their conventions; every row kept, unusable ones
with the reason.

A runs folder or a file becomes columns N, D, C and loss. Rows are flagged and never dropped: a
fit states which it left out and why. Rows of different tokenisers, corpora or sequence lengths do
not share a law in nats per token, so a mixture is refused until `--where` separates it.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.expression import keep
from analysis.tables import Table, read
from parallelism.errors import InputError, nearest

SIX_ND = "six_nd"  # the convention C = 6 N D, the only one a file of N and D has
DEFAULT_CONVENTION = "causal_attn"
# dotted paths of a spec within which one law can hold in nats per token
ONE_VALUE = (
    "data.tokenizer",
    "data.seq_len",
    "data.sources",
    "data.fingerprint",
    "model.arch",
    "schedule.kind",
)


@dataclass(frozen=True)
class Observations:
    """M rows. Numbers are NaN where missing; `reason` is None for rows that a fit may use."""

    source: str
    id: tuple[str, ...]
    columns: Mapping[str, np.ndarray]  # (M,) each: N, D, C, loss and further inputs of a law
    cluster: tuple[str, ...]  # rows that share noise: resampled together
    seed: tuple[Any, ...]
    reason: tuple[str | None, ...]
    conventions: Mapping[str, Any]  # which N, D, C, loss, tokeniser, corpus
    rows: tuple[Mapping[str, Any], ...]  # as read

    @property
    def used(self) -> np.ndarray:
        """(M,) bool: rows without a reason against them."""
        return np.array([r is None for r in self.reason], bool)

    def values(self, name: str) -> np.ndarray:
        """A column over the used rows."""
        return self.columns[name][self.used]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(i for i, r in zip(self.id, self.reason, strict=True) if r is None)

    @property
    def excluded(self) -> list[dict[str, str]]:
        pairs = zip(self.id, self.reason, strict=True)
        return [{"id": i, "reason": r} for i, r in pairs if r is not None]

    @property
    def flops_per_token(self) -> list[list[float]] | None:
        """Pairs (N, C / D) of the used rows by rising N; None where C = 6 N D says it all.

        Rows of one N are averaged: C / D depends on the family's shape alone.
        """
        if "C" not in self.columns or "D" not in self.columns or "N" not in self.columns:
            return None
        N, D, C = (self.values(n) for n in ("N", "D", "C"))
        if not len(N) or np.allclose(C, 6 * N * D, rtol=1e-9):
            return None
        ratio = C / D
        return [[float(n), float(np.exp(np.log(ratio[n == N]).mean()))] for n in np.unique(N)]

    @property
    def hash(self) -> str:
        """sha256 of ids, numbers and reasons: what a fit was made from."""
        columns = {k: [repr(float(v)) for v in a] for k, a in sorted(self.columns.items())}
        text = json.dumps([self.id, columns, self.reason, self.cluster], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def excluding(self, ids: Mapping[str, str]) -> "Observations":
        """The same rows with further reasons against some."""
        pairs = zip(self.id, self.reason, strict=True)
        return dataclasses.replace(self, reason=tuple(r or ids.get(i) for i, r in pairs))


def parse_map(text: str | None) -> dict[str, str]:
    """`N=Model Size,loss=y` -> the column of each quantity."""
    out = {}
    for part in (text or "").split(",") if text else []:
        name, sign, column = part.partition("=")
        if not sign or not name.strip() or not column.strip():
            raise InputError("--map", part, "write N=column,D=column,loss=column")
        out[name.strip()] = column.strip()
    return out


def observe(
    source: str | Path,
    *,
    inputs: Sequence[str] = ("N", "D"),
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    exclude: Collection[str] = (),
    run_ids: Collection[str] | None = None,
    convention: str | None = None,
    cluster: str | None = None,
) -> Observations:
    """Measurements from a runs folder or a file.

    `columns` maps N, D, C, loss or another input of a law to a column; `convention` names the
    FLOP count that is C for runs (default causal_attn). `run_ids`: other runs are flagged as not
    selected. Raises InputError.
    """
    table = read(source)
    mapping = _mapping(table, dict(columns or {}), inputs, convention)
    ids = _ids(table)
    reasons: list[str | None] = [None] * len(ids)

    def flag(i: int, reason: str) -> None:
        reasons[i] = reasons[i] or reason

    unknown = set(exclude) - set(ids)
    if unknown:
        raise InputError("--exclude", sorted(unknown)[0], nearest(sorted(unknown)[0], ids))
    seen: dict[str, str] = {}
    for i, row in enumerate(table.rows):
        if ids[i] in exclude:
            flag(i, "excluded by hand")
        if run_ids is not None and ids[i] not in run_ids:
            flag(i, "not selected")
        if table.is_runs and row["status"] != "done":
            why = row.get("reason")
            flag(i, row["status"] + (f": {why}" if why else ""))
        if not table.is_runs:
            text = json.dumps(row, sort_keys=True, default=str)
            if text in seen:
                flag(i, f"duplicate of row {seen[text]}")
            seen.setdefault(text, ids[i])
    numbers: dict[str, np.ndarray] = {}
    for name, column in mapping.items():
        values = []
        for i, row in enumerate(table.rows):
            number, problem = _number(row.get(column))
            values.append(number)
            if problem:
                flag(i, f"{name}: {problem}")
        numbers[name] = np.array(values, float)
    if "D" not in numbers and {"N", "C"} <= set(numbers):
        numbers["D"] = numbers["C"] / (6 * numbers["N"])
    if "C" not in numbers and {"N", "D"} <= set(numbers):
        numbers["C"] = 6 * numbers["N"] * numbers["D"]
    if where:
        views = [
            {**row, **{n: _shown(row.get(c)) for n, c in mapping.items() if n not in row}}
            for row in table.rows
        ]
        for i, kept in enumerate(keep(where, views)):
            if not kept:
                flag(i, f"not where {where}")
    for array in numbers.values():
        array.setflags(write=False)
    found = Observations(
        source=str(source),
        id=ids,
        columns=numbers,
        cluster=_clusters(table, ids, cluster),
        seed=tuple(row.get("seed") for row in table.rows),
        reason=tuple(reasons),
        conventions={},
        rows=table.rows,
    )
    return dataclasses.replace(found, conventions=_conventions(table, mapping, found, convention))


def _mapping(
    table: Table, given: dict[str, str], inputs: Sequence[str], convention: str | None
) -> dict[str, str]:
    known = table.columns
    for name, column in given.items():
        if column not in known:
            raise InputError(
                f"--map {name}", f"no column {column} in {table.source}", nearest(column, known)
            )
    if table.is_runs:
        # compute without embeddings goes with parameters without them
        which = "non_embedding" if convention == "six_nd_non_embedding" else "total"
        default = {
            "N": f"params.{which}",
            "D": "tokens",
            "C": f"C.{convention or DEFAULT_CONVENTION}",
            "loss": "loss/val",
        }
        conventions = [c.removeprefix("C.") for c in known if c.startswith("C.")]
        if "C" not in given and convention and convention not in conventions:
            raise InputError("--convention", convention, nearest(convention, conventions))
        mapping = {**default, **given}
    else:
        if convention not in (None, SIX_ND):
            raise InputError(
                "--convention", convention, "map the file's own FLOP column with --map C=column"
            )
        mapping = {n: n for n in ("N", "D", "C", "loss") if n in known} | given
    for name in inputs:
        if name not in mapping and name in known:
            mapping[name] = name
    derived = {"D"} if {"N", "C"} <= set(mapping) else set()
    for name in (*inputs, "loss"):
        if name not in mapping and name not in derived:
            shown = ", ".join(known[:8])
            raise InputError(
                f"--map {name}",
                f"no column {name} in {table.source}",
                f"write --map {name}=COLUMN, one of {shown}",
            )
    return mapping


def _ids(table: Table) -> tuple[str, ...]:
    if table.is_runs:
        return tuple(str(row["run_id"]) for row in table.rows)
    ids = [row.get("run_id", row.get("id")) for row in table.rows]
    if all(i is not None for i in ids) and len(set(ids)) == len(ids):
        return tuple(
            str(int(i)) if isinstance(i, float) and i.is_integer() else str(i) for i in ids
        )
    return tuple(str(i) for i in range(1, len(table.rows) + 1))


def _clusters(table: Table, ids: tuple[str, ...], cluster: str | None) -> tuple[str, ...]:
    if cluster is None or (cluster == "run" and "run" not in table.columns):
        return ids
    if cluster not in table.columns:
        raise InputError("--cluster", cluster, nearest(cluster, table.columns))
    return tuple(str(row.get(cluster)) for row in table.rows)


def _number(value: Any) -> tuple[float, str | None]:
    """A usable number, or NaN and what is wrong with it."""
    if value is None:
        return math.nan, "missing"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan, f"not a number ({str(value)[:40]})"
    if not math.isfinite(value):
        return math.nan, f"not finite ({value})"
    if value <= 0:
        return float(value), f"not positive ({value:g})"
    return float(value), None


def _shown(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else None


def _conventions(
    table: Table, mapping: dict[str, str], found: Observations, convention: str | None
) -> dict[str, Any]:
    """What the columns mean; refuses used rows that cannot share a law."""
    used = [row for row, ok in zip(table.rows, found.used, strict=True) if ok]
    out: dict[str, Any] = dict(mapping)
    if table.is_runs:
        out["C"] = mapping["C"].removeprefix("C.")
        out["loss_unit"] = "bits/byte" if mapping["loss"].startswith("bpb") else "nats/token"
    else:
        out.setdefault("D", "C / 6 N")
        same = found.flops_per_token is None
        out["C"] = SIX_ND if same else mapping["C"]
        out["loss_unit"] = "as in the file"
    for path in ONE_VALUE:
        values = {_tag(row, path) for row in used} - {None}
        if len(values) > 1 and not (path == "data.tokenizer" and mapping["loss"].startswith("bpb")):
            shown = " and ".join(sorted(values)[:3])
            raise InputError(
                f"{table.source}: {path}",
                f"mixed: {shown}",
                f'choose one with --where, for example --where "{_example(path, sorted(values)[0])}"',
            )
        if values:
            out[path] = next(iter(values))
    return out


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
    return f"{path} == {value}" if number else f"{path} == '{value}'"
