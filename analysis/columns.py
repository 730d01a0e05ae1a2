"""Which column is which quantity?"""

import math
from collections.abc import Collection, Mapping, Sequence

from analysis.files import Wanted
from analysis.tables import Table
from analysis.tags import is_bits, is_tag
from analysis.units import BITS, INVERSE_RATIO, RATIO, Source
from parallelism.errors import InputError, nearest

SIX_ND = "six_nd"  # the convention C = 6 N D, the only one a file of N and D has
# what any law may be given besides its own inputs
QUANTITIES = ("N", "D", "C", "loss", "sd", "seed", RATIO.name, INVERSE_RATIO.name)
DEFAULT_CONVENTION = "causal_attn"
# where runs keep what laws of batch, steps and learning rate ask for
OF_RUNS = {
    "B": "budget.batch_tokens",
    "S": "step",
    "lr": "optim.lr",
    "N_e": "params.encoder",
    "N_d": "params.decoder",
}
# columns of files that say more of a row than its quantities
VOCABULARY = ("model.vocab", "vocab_size", "vocab", "n_vocab")
PLANNED = ("tokens_planned", "planned_tokens", "target_tokens", "budget.tokens")
REACHED = ("tokens", "tokens_seen")
WARM_UP = ("warmup_steps", "warmup_tokens", "step")
ROW = ("id", "run_id", "run", "status", "reason", "optim.lr", "seconds")


def parse_map(text: str | None) -> dict[str, str]:
    """`N=1e9*Model Size,loss=y` -> the column of each quantity, with its factor."""
    out: dict[str, str] = {}
    for part in (text or "").split(",") if text else []:
        name, sign, column = part.partition("=")
        if not sign or not name.strip() or not column.strip():
            raise InputError("--map", part, "write N=column,D=1e9*column,loss=column")
        if name.strip() in out:
            raise InputError("--map", text, f"write {name.strip()} once")
        out[name.strip()] = column.strip()
    return out


def source_of(name: str, text: str, *, known: Collection[str], where: str) -> Source:
    """`column` or `factor*column`, as there are columns; raises InputError."""
    if text in known:
        return Source(text)
    factor, star, column = text.partition("*")
    try:
        number = float(factor) if star else 1.0
    except ValueError:
        raise InputError(
            f"--map {name}", text, f"write --map {name}=COLUMN or {name}=1e9*COLUMN"
        ) from None
    column = column.strip() if star else text
    if column not in known:
        raise InputError(f"--map {name}", f"no column {column} in {where}", nearest(column, known))
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"--map {name}", text, "write a positive factor such as 1e9")
    return Source(column, number)


def wanted_of(
    given: Mapping[str, str], inputs: Collection[str], *, where: str | None, cluster: str | None
) -> Wanted:
    """Which columns of a file are read: those mapped, asked about, or that say what rows are."""
    names = {*inputs, *QUANTITIES, *ROW, *VOCABULARY, *PLANNED, *REACHED, *WARM_UP}
    names |= {text.partition("*")[2].strip() for text in given.values()} | set(given.values())
    names |= {cluster} if cluster else set()

    def wanted(name: str) -> bool:
        return name in names or (where is not None and name in where) or is_tag(name)

    return wanted


def mapping_of(
    table: Table,
    given: Mapping[str, str],
    inputs: Sequence[str],
    *,
    convention: str | None,
    unit: str | None,
) -> dict[str, Source]:
    """The column of each quantity: as given, or as runs and files name them by default. `inputs`:
    those of a law, and its output."""
    known = table.columns
    quantities = {*inputs, *QUANTITIES}
    for name, text in given.items():
        if name not in quantities:
            raise InputError("--map", f"{name}={text}", nearest(name, quantities))
    stated = {n: source_of(n, text, known=known, where=table.source) for n, text in given.items()}
    if table.is_runs:
        mapping = _of_runs(known, stated, inputs, convention=convention, unit=unit)
    else:
        if convention not in (None, SIX_ND):
            raise InputError(
                "--convention", convention, "map the file's own FLOP column with --map C=column"
            )
        default = ("N", "D", "C", "sd", RATIO.name, INVERSE_RATIO.name)
        mapping = {n: Source(n) for n in default if n in known} | stated
    for name in inputs:
        if name not in mapping and name in known:
            mapping[name] = Source(name)
    derived = {"D"} if {"N", "C"} <= set(mapping) else set()
    derived |= {"C"} if {"N", "D"} <= set(mapping) else set()
    for name in inputs:
        if name not in mapping and name not in derived:
            shown = ", ".join(known[:8])
            raise InputError(
                f"--map {name}",
                f"no column {name} in {table.source}",
                f"write --map {name}=COLUMN, one of {shown}",
            )
    return mapping


def _of_runs(
    known: list[str],
    stated: dict[str, Source],
    inputs: Sequence[str],
    *,
    convention: str | None,
    unit: str | None,
) -> dict[str, Source]:
    # compute without embeddings goes with parameters without them
    which = "non_embedding" if convention == "six_nd_non_embedding" else "total"
    default = {"N": f"params.{which}", "D": "tokens", "C": f"C.{convention or DEFAULT_CONVENTION}"}
    default |= {n: c for n, c in OF_RUNS.items() if n in inputs and c in known}
    if "loss" in inputs:
        default["loss"] = "loss/val"
    conventions = [c.removeprefix("C.") for c in known if c.startswith("C.")]
    if "C" not in stated and convention and convention not in conventions:
        raise InputError("--convention", convention, nearest(convention, conventions))
    mapping = {n: Source(c) for n, c in default.items()} | stated
    if unit == BITS and "loss" in mapping and not is_bits(mapping["loss"].column):
        # runs log both: the byte ratio is that of their own evaluation text
        column = "bpb/" + mapping["loss"].column.removeprefix("loss/")
        if column not in known:
            raise InputError("--unit", f"{unit}: no column {column}", nearest(column, known))
        mapping["loss"] = Source(column, mapping["loss"].factor)
    return mapping
