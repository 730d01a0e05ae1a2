"""What speaks against a row? Each reason that its own columns give, in words.

A flagged row stays in the observations with its reason; no fit uses it and every fit lists it.
"""

import numpy as np

from analysis.cells import Column
from analysis.columns import PLANNED, REACHED, VOCABULARY
from analysis.quantities import Quantity
from analysis.tables import Table
from analysis.units import NATS, Source, advice, implausible

Flags = dict[int, str]

BAD = ("diverged", "failed", "crashed", "unfinished", "killed", "oom", "nan", "error", "running")
SHORT = 0.99  # of the planned tokens: whole batches come nearest, not exactly
EARLY = 0.1  # the first tenth of a run says nothing of its end (laws.md section 3)


def number_of(column: Column, source: Source) -> np.ndarray:
    """(M,) float64 numbers of a column, times the stated factor."""
    return column.number_M if source.factor == 1 else column.number_M * source.factor


def unusable(column: Column, quantity: Quantity, value_M: np.ndarray, source: Source) -> Flags:
    """Cells that are missing, no number, or not of the quantity's scale and unit."""
    name, out = quantity.name, {}
    if quantity.scale == "label":
        empty_M = (column.code_M == -2) | ((column.code_M == -1) & np.isnan(value_M))
        return {int(i): f"{name}: missing" for i in np.flatnonzero(empty_M)}
    log = quantity.scale == "log"
    bad_M = ~np.isfinite(value_M) | (log & (value_M <= 0))
    for i in map(int, np.flatnonzero(bad_M)):
        out[i] = f"{name}: {_wrong(column[i], float(value_M[i]))}"
    outside_M = implausible(value_M, quantity)
    for i in map(int, np.flatnonzero(outside_M)):
        hint = advice(quantity, source, value_M[i : i + 1])
        out[i] = f"{name} {value_M[i]:g}: not plausible in {quantity.unit}; {hint}"
    return out


def _wrong(cell: object, value: float) -> str:
    if cell is None:
        return "missing"
    if not isinstance(cell, float):
        return f"not a number ({str(cell)[:40]})"
    return f"not positive ({value:g})" if np.isfinite(value) else f"not finite ({value})"


def of_status(table: Table) -> Flags:
    """Runs that are not done; rows of a file whose status is a word for failure."""
    if table.is_runs:
        words = {i: str(row["status"]) for i, row in enumerate(table.rows)}
        words = {i: word for i, word in words.items() if word != "done"}
    else:
        column = table.first("status")
        bad = [k for k, v in enumerate(column.others if column else ()) if str(v).lower() in BAD]
        found = np.flatnonzero(np.isin(column.code_M, bad)) if column and bad else ()
        words = {int(i): str(column[int(i)]) for i in found} if column else {}
    why = table.first("reason")
    reasons = {i: why.text(i) if why else None for i in words}
    return {i: word + (f": {reasons[i]}" if reasons[i] else "") for i, word in words.items()}


def duplicates(table: Table, ids: tuple[str, ...], taken_M: np.ndarray) -> Flags:
    """Rows of a file equal in every column to an earlier one that is not `taken` already."""
    if table.key_M is None:
        return {}
    free = np.flatnonzero(~taken_M)
    _, first, which = np.unique(table.key_M[free], return_index=True, return_inverse=True)
    first = free[first][which]
    again = first != free
    return {
        int(i): f"duplicate of row {ids[k]}" for i, k in zip(free[again], first[again], strict=True)
    }


def above_uniform(table: Table, loss_M: np.ndarray) -> Flags:
    """Losses in nats per token above log V: worse than a guess, where the vocabulary is known.

    Of runs, those that say so: a bound may lie above a guess, and a series has no vocabulary.
    """
    column = table.first(*VOCABULARY)
    if column is None:
        return {}
    with np.errstate(invalid="ignore", divide="ignore"):
        most_M = np.log(column.number_M)
        above_M = np.isfinite(most_M) & np.isfinite(loss_M) & (loss_M > most_M)
    if table.is_runs:
        above_M &= np.array([row.get("loss_unit") == NATS for row in table.rows])
    return {
        int(i): f"loss: above log V ({loss_M[i]:.4g} > ln {column[int(i)]:g} = {most_M[i]:.4g})"
        for i in np.flatnonzero(above_M)
    }


def stopped(table: Table, D_M: np.ndarray | None) -> Flags:
    """Rows that had not seen the tokens planned for them: their schedule has not ended."""
    planned = table.first(*PLANNED)
    reached = table.first(*REACHED)
    reached_M = reached.number_M if reached is not None else D_M
    if planned is None or reached_M is None:
        return {}
    # a run is whole batches: fewer than half a batch is no early stop
    batch = table.first("budget.batch_tokens")
    slack_M = np.nan_to_num(batch.number_M) if batch is not None else 0.0
    short_M = (reached_M < SHORT * planned.number_M) & (reached_M + slack_M < planned.number_M)
    out = {}
    for i in map(int, np.flatnonzero(short_M)):
        part = reached_M[i] / planned.number_M[i]
        said = "in the first 10 % of its tokens" if part < EARLY else "stopped early"
        out[i] = f"{said}: at {part:.3g} of {planned.number_M[i]:.4g} planned"
    return out


def warming(table: Table, D_M: np.ndarray | None) -> Flags:
    """Rows inside the warm-up of their learning rate, where columns say how long it is."""
    reached = table.first(*REACHED)
    pairs = [
        (table.first("step"), table.first("warmup_steps"), "steps"),
        (reached, table.first("warmup_tokens"), "tokens"),
    ]
    out: Flags = {}
    for here, end, unit in pairs:
        here_M = here.number_M if here is not None else (D_M if unit == "tokens" else None)
        if here_M is None or end is None:
            continue
        for i in map(int, np.flatnonzero(here_M < end.number_M)):
            out[i] = f"inside the warm-up: {here_M[i]:.4g} of {end.number_M[i]:.4g} {unit}"
    return out
