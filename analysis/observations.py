"""What may a law be fitted to? Measurements with their conventions; every row kept, unusable ones
with the reason.

A runs folder or a file becomes columns N, D, C and loss. Rows are flagged and never dropped: a
fit states which it left out and why. Rows of different tokenisers, corpora or sequence lengths do
not share a law in nats per token, so a mixture is refused until `--where` separates it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis import assemble, flags, tags
from analysis.assemble import quantity_of
from analysis.columns import mapping_of, parse_map, wanted_of
from analysis.quantities import LOSS, Quantity
from analysis.tables import read
from analysis.units import (
    BITS,
    NATS,
    UNSTATED,
    Source,
    in_bits,
    unit_of,
)
from parallelism.errors import InputError

__all__ = ["Observations", "observe", "parse_map"]

ALONG_RUNS = {"step", "S", "curve"}  # a law of these is about rows along a run and its schedule


@dataclass(frozen=True)
class Observations:
    """M rows. Numbers are NaN where missing; `reason` is None for rows that a fit may use."""

    source: str
    id: tuple[str, ...]
    # (M,) each: N, D, C, the output, further inputs of a law; codes for labels; `sd` as the noise
    # of the output on its scale, so relative for a loss
    columns: Mapping[str, np.ndarray]
    cluster: tuple[str, ...]  # rows that share noise: resampled together
    seed: tuple[Any, ...]
    reason: tuple[str | None, ...]
    conventions: Mapping[str, Any]  # which N, D, C, loss, tokeniser, corpus
    rows: Sequence[Mapping[str, Any]]  # as read
    # names of the codes in the column of a label quantity
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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
        digest = hashlib.sha256()
        for name, value_M in sorted(self.columns.items()):
            digest.update(f"{name}\0".encode())
            # one bit pattern for every NaN, one byte order for every machine
            plain_M = np.where(np.isnan(value_M), np.nan, value_M)
            digest.update(plain_M.astype("<f8").tobytes())
        for words in (self.id, self.reason, self.cluster):
            digest.update("\0".join(map(str, words)).encode("utf-8", "surrogatepass"))
            digest.update(b"\1")
        digest.update(json.dumps(dict(self.labels), sort_keys=True).encode())
        return digest.hexdigest()

    def excluding(self, ids: Mapping[str, str]) -> "Observations":
        """The same rows with further reasons against some."""
        pairs = zip(self.id, self.reason, strict=True)
        return dataclasses.replace(self, reason=tuple(r or ids.get(i) for i, r in pairs))


def observe(
    source: str | Path,
    *,
    inputs: Sequence[Quantity | str] = ("N", "D"),
    output: Quantity = LOSS,
    columns: Mapping[str, str] | None = None,
    where: str | None = None,
    exclude: Collection[str] = (),
    run_ids: Collection[str] | None = None,
    convention: str | None = None,
    cluster: str | None = None,
    unit: str | None = None,
) -> Observations:
    """Measurements from a runs folder or a file.

    `inputs` and `output`: the quantities of a law. `columns` maps N, D, C, the output or another
    input to `column` or `factor*column`; `convention` names the FLOP count that is C for runs
    (default causal_attn). `run_ids`: other runs are flagged as not selected. `unit`: `bits/byte`
    converts a loss in nats per token, by the column bytes_per_token or tokens_per_byte of a file.
    Raises InputError.
    """
    unit = unit and unit_of(unit)
    kinds = {q.name: q for q in (*map(quantity_of, inputs), output)}
    given = dict(columns or {})
    table = read(source, wanted=wanted_of(given, kinds, where=where, cluster=cluster))
    mapping = mapping_of(table, given, list(kinds), convention=convention, unit=unit)
    seed = mapping.pop("seed", Source("seed"))
    ids = assemble.ids(table)
    reasons: list[str | None] = [None] * len(ids)

    def flag(found: Mapping[int, str]) -> None:
        for i, reason in found.items():
            reasons[i] = reasons[i] or reason

    flag(assemble.by_hand(ids, exclude=exclude, run_ids=run_ids))
    flag(table.flaws)
    flag(flags.of_status(table))
    flag(flags.duplicates(table, ids, assemble.used(reasons, False)))
    numbers = assemble.numbers(table, mapping, kinds, required={*kinds, *given}, flag=flag)
    assemble.derive(numbers, flag, kinds)
    along_runs = bool(ALONG_RUNS & set(kinds))
    kept_M = assemble.kept(table, mapping, numbers, where)
    found_unit = tags.unit_in(table, mapping, assemble.used(reasons) & kept_M)
    in_bytes = found_unit.startswith(BITS)
    if "loss" in numbers and not in_bytes:
        flag(flags.above_uniform(table, numbers["loss"]))
    if not along_runs:
        flag(flags.stopped(table, numbers.get("D")))
        flag(flags.warming(table, numbers.get("D")))
    flag({i: f"not where {where}" for i in map(int, np.flatnonzero(~kept_M))})
    if "sd" in numbers and output.scale == "log":
        with np.errstate(invalid="ignore", divide="ignore"):
            numbers["sd"] = numbers["sd"] / numbers[output.name]
    ratio = assemble.ratio(numbers)
    if unit == BITS and not in_bytes:
        numbers["loss"] = assemble.converted(numbers, ratio, flag)
        found_unit, in_bytes = in_bits(found_unit), True
    elif unit == NATS and not found_unit.startswith((NATS, UNSTATED)):
        raise InputError("--unit", unit, f"the losses are in {found_unit}; leave --unit out")
    labels = assemble.labels(table, mapping, kinds, numbers, assemble.used(reasons))
    for array in numbers.values():
        array.setflags(write=False)
    found = Observations(
        source=str(source),
        id=ids,
        columns=numbers,
        cluster=assemble.clusters(table, ids, cluster),
        seed=assemble.cells(table, seed.column),
        reason=tuple(reasons),
        conventions={},
        rows=table.rows,
        labels=labels,
    )
    conventions = tags.conventions_of(
        table,
        mapping,
        found.used,
        six_nd=found.flops_per_token is None and {"N", "D"} <= set(numbers),
        unit=found_unit,
        along_runs=along_runs,
    )
    if ratio is not None and not in_bytes:
        tags.refuse_mixed_ratios(table, ratio[found.used])
    return dataclasses.replace(found, conventions=conventions)
