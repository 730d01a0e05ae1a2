"""How are sizes and compute written, and how do axes carry them? One spelling everywhere."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, NullFormatter, NullLocator

from analysis.quantities import Quantity
from analysis.units import UNSTATED


def count(value: float, _: object = None) -> str:
    """1250000 -> 1.25M: sizes and tokens as people say them."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit * 0.9995:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def flops(value: float, _: object = None) -> str:
    """3e13 -> 3·10¹³."""
    if value <= 0:
        return "0"
    digits, _, exponent = f"{value:.2e}".partition("e")
    digits, power = digits.rstrip("0").rstrip("."), int(exponent)
    raised = str(power).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    return f"10{raised}" if digits == "1" else f"{digits}·10{raised}"


def style_of(name: str) -> Callable[[float, object], str]:
    """How the values of a quantity are written."""
    return flops if name == "C" else count


class LogTicks(Locator):
    """Final. At most `most` ticks at round numbers: 1-2-5 steps, 1-3 steps or whole decades, as
    many as fit; plain round numbers within a factor of 3."""

    def __init__(self, most: int):
        self.most = most

    def __call__(self) -> Sequence[float]:
        low, high = self.axis.get_view_interval()  # pyright: ignore[reportOptionalMemberAccess]
        return self.tick_values(low, high)

    def nonsingular(self, v0: float, v1: float) -> tuple[float, float]:
        return (v0 / 2, v0 * 2) if 0 < v0 <= v1 < 1.001 * v0 else (v0, v1)

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        low, high = sorted((max(vmin, 1e-300), max(vmax, 1e-300)))
        if high / low < 3:
            return self._plain(low, high)
        first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
        ticks: list[float] = []
        every = 1
        for subs in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
            ticks = _ticks(subs, range(first, last + 1), low, high)
            if len(ticks) <= self.most:
                return ticks if len(ticks) > 2 or high / low > 10 else self._plain(low, high)
        while len(ticks) > self.most:
            every += 1
            ticks = _ticks((1.0,), range(first - first % every, last + 1, every), low, high)
        return ticks

    def _plain(self, low: float, high: float) -> Sequence[float]:
        plain = np.asarray(MaxNLocator(min(self.most - 1, 5)).tick_values(low, high))
        return [float(v) for v in plain if low <= v <= high]


def _ticks(subs: Sequence[float], decades: range, low: float, high: float) -> list[float]:
    return [s * 10.0**d for d in decades for s in subs if low <= s * 10.0**d <= high]


def log_x(axes: Axes, text: object, *, most: int = 8) -> None:
    """A logarithmic abscissa with at most so many ticks, each written by `text`."""
    axes.set_xscale("log")
    _ticked(axes.xaxis, text, most)
    axes.yaxis.set_major_locator(MaxNLocator(7))


def log_y(axes: Axes, text: object, *, most: int = 6) -> None:
    axes.set_yscale("log")
    _ticked(axes.yaxis, text, most)


def _ticked(axis: Any, text: object, most: int) -> None:
    axis.set_major_locator(LogTicks(most))
    axis.set_major_formatter(FuncFormatter(text))  # pyright: ignore[reportArgumentType]
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def loss_label(conventions: object) -> str:
    names = dict(conventions) if isinstance(conventions, dict) else {}
    unit = names.get("loss_unit", "")
    return f"{names.get('loss', 'loss')}" + (f", {unit}" if unit and unit != UNSTATED else "")


def axis_label(quantity: Quantity | str, conventions: object) -> str:
    """What an axis shows and its unit; `C` for training compute, of whatever law."""
    names = dict(conventions) if isinstance(conventions, dict) else {}
    if quantity == "C" or (isinstance(quantity, Quantity) and quantity.name == "C"):
        convention = f" ({names['C']})" if names.get("C") else ""
        return f"training compute C, FLOPs{convention}"
    if isinstance(quantity, str):
        return quantity
    if quantity.name == "loss":
        return loss_label(conventions)
    words = {"N": "parameters N", "D": "tokens D"}
    unit = f", {quantity.unit}" if quantity.unit else ""
    return words.get(quantity.name, f"{quantity.name}{unit}")
