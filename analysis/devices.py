"""How long does a budget take on given devices? Peak rates from data sheets, times an assumed
utilisation."""

from dataclasses import dataclass

from parallelism.errors import InputError, nearest

# dense bf16 matrix FLOP/s of one chip, without sparsity
PEAK = {
    "a100": 312e12,  # NVIDIA A100 data sheet (SXM and PCIe)
    "h100": 989.4e12,  # NVIDIA H100 data sheet, SXM: 1,979 with sparsity
    "h200": 989.4e12,  # NVIDIA H200 data sheet, SXM
    "b200": 2250e12,  # NVIDIA B200 data sheet: 4.5 PFLOP/s with sparsity
    "mi300x": 1307.4e12,  # AMD Instinct MI300X data sheet
    "tpu_v4": 275e12,  # Google Cloud TPU v4 documentation
    "tpu_v5e": 197e12,  # Google Cloud TPU v5e documentation
    "tpu_v5p": 459e12,  # Google Cloud TPU v5p documentation
    "tpu_v6e": 918e12,  # Google Cloud TPU v6e documentation
}
ASSUMED_MFU = 0.4  # guess: reported large dense runs lie between 0.3 and 0.55


@dataclass(frozen=True)
class Devices:
    """`count` chips of one kind; `mfu` is model FLOPs done over peak, assumed unless measured."""

    kind: str
    count: int
    mfu: float = ASSUMED_MFU
    mfu_origin: str = "assumed"

    @property
    def flops_per_second(self) -> float:
        return self.count * PEAK[self.kind] * self.mfu

    def hours(self, flops: float) -> dict[str, float | int | str]:
        seconds = flops / self.flops_per_second
        return {
            "kind": self.kind,
            "count": self.count,
            "mfu": self.mfu,
            "mfu_origin": self.mfu_origin,
            "peak_flops_per_second": PEAK[self.kind],
            "wall_hours": seconds / 3600,
            "device_hours": seconds / 3600 * self.count,
        }


def parse(text: str, *, mfu: float | None = None) -> Devices:
    """`h100:1024` -> Devices; raises InputError."""
    kind, _, number = text.partition(":")
    kind = kind.strip().lower().replace("-", "_")
    if kind not in PEAK:
        raise InputError("--devices", text, nearest(kind, PEAK) + ", as in h100:1024")
    count = 1 if not number else int(number) if number.strip().isdigit() else 0
    if count < 1:
        raise InputError("--devices", text, f"write a number of devices, as in {kind}:1024")
    if mfu is None:
        return Devices(kind, count)
    if not 0 < mfu <= 1:
        raise InputError("--mfu", mfu, "write a fraction of peak such as 0.4")
    return Devices(kind, count, mfu, "given")
