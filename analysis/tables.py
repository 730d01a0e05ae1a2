"""What was measured, as rows? A runs folder, a CSV, a JSON Lines or a Parquet file -> one table.

Values are as found: numbers where the text is a number, None where there is nothing. Nothing is
dropped here and the input is never written to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from analysis.cells import Column, Rows
from analysis.files import Wanted, read_file
from analysis.units import NATS
from parallelism.errors import InputError, nearest
from train.record import Run, flatten, read_runs

TOTAL = "causal_attn"  # the convention in which a run records what went into its origin


@dataclass(frozen=True)
class Table:
    """M rows of one source. `is_runs`: rows are ladder's own runs, with status and conventions.

    Of a file only the wanted columns were read: `cells` has those, `names` all there are.
    """

    source: str
    rows: Sequence[Mapping[str, Any]]
    is_runs: bool
    names: tuple[str, ...] = ()
    cells: Mapping[str, Column] = field(default_factory=dict)
    key_M: np.ndarray | None = None  # equal for rows of a file that are equal in every column
    flaws: Mapping[int, str] = field(default_factory=dict)  # what is wrong with a row as such

    @cached_property
    def columns(self) -> list[str]:
        return list(self.names) or list(dict.fromkeys(name for row in self.rows for name in row))

    def column(self, name: str) -> Column:
        """The cells of a column that was read; missing throughout where there is none."""
        if name in self.cells:
            return self.cells[name]
        return Column.of([row.get(name) for row in self.rows])

    def first(self, *names: str) -> Column | None:
        """The first of these columns that there is."""
        return next((self.column(n) for n in names if n in self.columns), None)

    def to_json(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self.rows]

    def text(self, columns: list[str] | None = None) -> str:
        """A table for people: chosen columns, or those that differ between rows and the results."""
        if not self.rows:
            return f"{self.source}: no runs yet"
        always = ["run_id", "status", "N", "D", "loss/train", "loss/val", "bpb/val"]
        if columns is None:
            first = {name: self.rows[0].get(name) for name in self.columns}
            varying = [
                n
                for n in self.columns
                if n not in always
                and "." in n
                and not n.startswith(
                    ("C.", "params.", "flops_per_token.", "execution.", "budget.tokens", "env.")
                )
                and any(row.get(n) != first[n] for row in self.rows)
            ]
            unit = {row.get("loss_unit", NATS) for row in self.rows} - {NATS}
            columns = [*always[:4], *varying, *always[4:], *(["loss_unit"] if unit else [])]
            columns = [c for c in columns if any(row.get(c) is not None for row in self.rows)]
        for name in columns:
            if name not in self.columns:
                raise InputError("--columns", name, nearest(name, self.columns))
        cells = [columns, *([_cell(row.get(c)) for c in columns] for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in cells
        )


def table(root: str | Path) -> Table:
    """Rows of `ladder table`: every dotted path of every run's spec, its status, results and
    costs."""
    return Table(str(root), tuple(_run_row(run) for run in read_runs(root)), True)


def read(source: str | Path, *, wanted: Wanted = lambda name: True) -> Table:
    """A runs folder or a file, told apart by what is there; raises InputError when neither.

    `wanted` says of a file's column whether to keep it: what is not kept costs no memory.
    """
    path = Path(source)
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte, is no path
        is_folder = is_file = False
    if is_folder:
        found = table(path)
        if not found.rows:
            raise InputError(
                str(path), "no runs in it", "give the --root of a sweep, or a CSV file"
            )
        return found
    if not is_file:
        raise InputError(
            str(path),
            "no such file or folder",
            "give a runs folder or a CSV, JSONL or Parquet file",
        )
    cells = read_file(path, wanted)
    columns = cells.columns
    return Table(
        str(path),
        Rows(columns, cells.count),
        False,
        tuple(cells.names),
        columns,
        cells.key_M,
        cells.flaws,
    )


def _run_row(run: Run) -> dict[str, Any]:
    result = run.result or {}
    metrics, reason = dict(_part(result, "metrics")), result.get("reason")
    if not metrics:
        # an unfinished run shows where it stands; its status says that this is not a result
        try:
            for line in run.metrics():
                metrics.update(line)
        except (InputError, TypeError, ValueError):
            # one damaged ledger does not hide the other runs
            metrics, reason = {}, reason or "metrics.jsonl is damaged"
    row: dict[str, Any] = {
        "run_id": run.run_id,
        "status": run.status,
        "reason": reason,
    }
    row |= flatten({k: v for k, v in run.spec.items() if k != "format"})
    params, per_token = _part(run.counts, "params"), _part(run.counts, "flops_per_token")
    row |= {f"params.{k}": v for k, v in params.items()}
    row |= {f"flops_per_token.{k}": v for k, v in per_token.items()}
    row |= {k: v for k, v in metrics.items() if isinstance(v, int | float)}
    row["seconds"] = result.get("seconds", metrics.get("time/seconds"))
    row["data.fingerprint"] = _part(run.env, "data").get("fingerprint")
    row |= _environment(run.env)
    tokens = metrics.get("tokens")
    row |= {"N": params.get("total"), "D": tokens}
    # all there was before runs said it
    row["loss_unit"] = str(run.counts.get("loss_unit", NATS))
    row["tokens_planned"] = run.counts.get("tokens_planned")
    if isinstance(tokens, int | float):
        row |= {f"C.{k}": v * tokens for k, v in per_token.items() if isinstance(v, int | float)}
    if f"C.{TOTAL}" in row and run.spec.get("start"):
        # with all that went into the run it began from; missing where that was not recorded
        before = _part(run.counts, "start").get("flops")
        known = isinstance(before, int | float)
        row[f"C.{TOTAL}_total"] = row[f"C.{TOTAL}"] + before if known else None
    elif f"C.{TOTAL}" in row:
        row[f"C.{TOTAL}_total"] = row[f"C.{TOTAL}"]
    return {k: v for k, v in row.items() if v is not None}


def _part(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """An object within a run's files, empty where it is missing or something else."""
    value = tree.get(name)
    return value if isinstance(value, dict) else {}


def _environment(env: dict[str, Any]) -> dict[str, Any]:
    """What a reviewer asks of a number: which code, on what."""
    if not env.get("commit") and not env.get("versions"):
        return {}
    device = _part(env, "devices")
    return {
        "env.commit": env.get("commit"),
        "env.modified": bool(env.get("diff")),
        "env.python": env.get("python"),
        "env.jax": _part(env, "versions").get("jax"),
        "env.host": env.get("host"),
        "env.device": f"{device.get('count')} x {device.get('kind')}" if device else None,
    }


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-2 <= abs(value) < 1e3 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1e5:
        return f"{value:.3g}"
    return str(value)
