"""Is a number in the unit that its column should have, and what turns one unit into another?

Plausible ranges are those of `analysis/quantities.py`. A factor that a user must state is
suggested and never applied unasked: parameters in billions look like small integers, and only
the user knows. Nats per token are those of one tokeniser; bits per byte are of the text.
"""

from dataclasses import dataclass

import numpy as np

from analysis.quantities import Quantity
from parallelism.errors import InputError

NATS, BITS = "nats/token", "bits/byte"
BOUND = " (upper bound)"  # ends the unit of a loss that is one
UNSTATED = "as in the file"
SPELLED = {
    "nats/token": NATS,
    "nats": NATS,
    "nats_per_token": NATS,
    "bits/byte": BITS,
    "bits_per_byte": BITS,
    "bpb": BITS,
}
RATIO = Quantity("bytes_per_token", "bytes/token", low=0.1, high=100)
INVERSE_RATIO = Quantity("tokens_per_byte", "tokens/byte", low=0.01, high=10)


@dataclass(frozen=True)
class Source:
    """The column of a quantity and the factor it is multiplied by."""

    column: str
    factor: float = 1.0

    def __str__(self) -> str:
        return self.column if self.factor == 1 else f"{self.factor:g}*{self.column}"


def unit_of(text: str, *, field: str = "--unit") -> str:
    """`nats/token` or `bits/byte`, however it was spelled; raises InputError."""
    found = SPELLED.get(text.strip().lower())
    if found is None:
        raise InputError(field, text, f"write {NATS} or {BITS}")
    return found


def in_bits(unit: str) -> str:
    """The unit of a loss in `unit` once it is in bits per byte: of a bound, a bound."""
    return BITS + (BOUND if unit.endswith(BOUND) else "")


def bits_per_byte(loss_M: np.ndarray, *, bytes_per_token_M: np.ndarray) -> np.ndarray:
    """L / ln 2 / bytes per token of the same text, from nats per token."""
    return loss_M / np.log(2) / bytes_per_token_M


def usable(value_M: np.ndarray, quantity: Quantity) -> np.ndarray:
    """(M,) bool: numbers that the quantity's scale takes."""
    finite = np.isfinite(value_M)
    return finite & (value_M > 0) if quantity.scale == "log" else finite


def implausible(value_M: np.ndarray, quantity: Quantity) -> np.ndarray:
    """(M,) bool: usable numbers beyond what the quantity's unit makes plausible."""
    if quantity.scale == "label" or (quantity.low, quantity.high) == (0.0, np.inf):
        return np.zeros(len(value_M), bool)
    outside = (value_M < quantity.low) | (value_M > quantity.high)
    return outside & usable(value_M, quantity)


def advice(quantity: Quantity, source: Source, value_M: np.ndarray) -> str:
    """What to write when these values are beyond the plausible: the factor, where one is usual."""
    name, column = quantity.name, source.column
    if source.factor != 1:
        return f"check the factor of --map {name}={source}"
    if name in ("N", "D", "U") and value_M.max() < quantity.low:
        return (
            f"if the column is in billions write --map {name}=1e9*{column},"
            f" in millions --map {name}=1e6*{column}"
        )
    if name == "C" and value_M.max() < quantity.low:
        return (
            f"if the column is in exaFLOPs write --map C=1e18*{column},"
            f" in PF-days --map C=8.64e19*{column}"
        )
    if quantity.high == 1 and value_M.min() >= 0 and value_M.max() <= 100:
        return f"if the column is in percent write --map {name}=0.01*{column}"
    if name == "loss":
        return f"map a column in {quantity.unit} with --map loss=COLUMN; a perplexity is no loss"
    return f"map a column in {quantity.unit}, or state its factor: --map {name}=FACTOR*{column}"


def refuse_if_all(value_M: np.ndarray, quantity: Quantity, source: Source) -> None:
    """Raises InputError when no usable number of a quantity is plausible: the unit is wrong."""
    numbers = value_M[usable(value_M, quantity)]
    if len(numbers) and implausible(numbers, quantity).all():
        low, high = numbers.min(), numbers.max()
        span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        raise InputError(
            f"--map {quantity.name}",
            f"{source} is {span} in every row, not plausible in {quantity.unit}",
            advice(quantity, source, numbers),
        )
