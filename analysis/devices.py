"""How long does a budget take on given devices, and what does it cost? Peak rates of
parallelism/accelerators.py times a utilisation: a range of it unless it was measured."""

from dataclasses import dataclass
from typing import Any

from parallelism import accelerators
from parallelism.errors import InputError

ASSUMED_MFU = 0.4  # guess: reported large dense runs lie in the range below
ASSUMED_RANGE = (0.3, 0.55)


@dataclass(frozen=True)
class Devices:
    """`count` chips of one kind; `mfu` is model FLOPs done over peak, a range unless measured.
    `dollars_per_hour` is the price of one chip."""

    kind: str
    count: int
    mfu: float = ASSUMED_MFU
    mfu_origin: str = "assumed"
    mfu_range: tuple[float, float] | None = ASSUMED_RANGE
    dollars_per_hour: float | None = None

    @property
    def peak(self) -> float:
        """Of one chip."""
        return accelerators.find(self.kind).flops_per_second

    @property
    def flops_per_second(self) -> float:
        return self.count * self.peak * self.mfu

    def hours(self, flops: float, *, between: tuple[float, float] | None = None) -> dict[str, Any]:
        """Wall-clock, device hours and, with a price, dollars of `flops`; each with `_lo` and
        `_hi` from the range of utilisation and `between`, the range of the FLOPs. Without either
        there is nothing to make an interval from, and the ends are None."""
        known = self.mfu_range is None and between is None
        low, high = between or (flops, flops)
        slow, fast = self.mfu_range or (self.mfu, self.mfu)
        ends: dict[str, Any] = {"": self._seconds(flops, self.mfu), "_lo": None, "_hi": None}
        if not known:
            ends |= {"_lo": self._seconds(low, fast), "_hi": self._seconds(high, slow)}
        out: dict[str, Any] = {
            "kind": self.kind,
            "count": self.count,
            "mfu": self.mfu,
            "mfu_origin": self.mfu_origin,
            "mfu_range": None if self.mfu_range is None else list(self.mfu_range),
            "peak_flops_per_second": self.peak,
            "train_flops": flops,
        }
        for end, seconds in ends.items():
            wall = None if seconds is None else seconds / 3600
            out[f"wall_hours{end}"] = wall
            out[f"device_hours{end}"] = None if wall is None else wall * self.count
            if self.dollars_per_hour is not None:
                out[f"dollars{end}"] = (
                    None if wall is None else wall * self.count * self.dollars_per_hour
                )
        if known:
            out["interval_absent"] = "the utilisation was given as one number"
        return out

    def _seconds(self, flops: float, mfu: float) -> float:
        return flops / (self.count * self.peak * mfu)


def said(hours: dict[str, Any]) -> str:
    """The answer of `Devices.hours` for people."""

    def one(name: str, unit: str) -> str:
        ends = ""
        if hours[f"{name}_lo"] is not None:
            ends = f" [{hours[f'{name}_lo']:.3g}, {hours[f'{name}_hi']:.3g}]"
        return f"{hours[name]:.4g}{ends} {unit}"

    of = "" if hours["mfu_range"] is None else "{:g} to {:g}, ".format(*hours["mfu_range"])
    parts = [one("wall_hours", "hours"), one("device_hours", "device hours")]
    if "dollars" in hours:
        parts.append(one("dollars", "dollars"))
    head = f"{hours['count']} x {hours['kind']} at MFU {hours['mfu']} ({of}{hours['mfu_origin']}): "
    return head + ", ".join(parts)


def parse(text: str, *, mfu: float | None = None, dollars_per_hour: float | None = None) -> Devices:
    """`h100:1024` -> Devices; raises InputError."""
    chip, count = accelerators.parse(text)
    kind = chip.kind if chip.kind in accelerators.ACCELERATORS else text.rpartition(":")[0] or text
    # NaN compares false, and infinity is no price
    if dollars_per_hour is not None and not 0 < dollars_per_hour < float("inf"):
        raise InputError(
            "--dollars-per-hour", dollars_per_hour, "write the price of one device such as 2.5"
        )
    if mfu is None:
        return Devices(kind, count, dollars_per_hour=dollars_per_hour)
    if not 0 < mfu <= 1:
        raise InputError("--mfu", mfu, "write a fraction of peak such as 0.4")
    return Devices(kind, count, mfu, "given", None, dollars_per_hour)
