"""How are sizes and compute written, and how do axes carry them? One spelling everywhere."""

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator


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


def log_x(axes: Axes, text: object) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(text))  # pyright: ignore[reportArgumentType]
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(7))


def loss_label(conventions: object) -> str:
    names = dict(conventions) if isinstance(conventions, dict) else {}
    unit = names.get("loss_unit", "")
    return f"{names.get('loss', 'loss')}" + (
        f", {unit}" if unit and unit != "as in the file" else ""
    )
