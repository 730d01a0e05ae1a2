"""What can one chip do, and how fast do chips talk? Public accelerators, and a user's own.

Peak rates from data sheets, dense bfloat16, decimal units. This table is the only one; a file of a
user's own (JSON or TOML, the fields of `Accelerator`) stands wherever a name does.
"""

import json
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from parallelism.errors import InputError, nearest


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One chip. Rates are bytes a second that it sends, one way: `inside` to the others of its node
    (of a TPU: along one axis of its torus, both ways round), `between` nodes."""

    kind: str
    flops_per_second: float
    memory_bytes: float
    memory_rate: float
    node: int  # chips that `inside` connects
    inside: float
    between: float
    source: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _gpu(kind: str, tflops: float, gb: float, tbs: float, node: int, nvlink: float, source: str):
    # one 400 Gbit/s port a chip between nodes (DGX reference designs), 200 with A100
    between = 25e9 if kind == "a100" else 50e9
    return Accelerator(
        kind=kind,
        flops_per_second=tflops * 1e12,
        memory_bytes=gb * 1e9,
        memory_rate=tbs * 1e12,
        node=node,
        inside=nvlink * 1e9,
        between=between,
        source=source,
    )


def _tpu(kind: str, tflops: float, gib: float, gbs: float, pod: int, link: float, dcn: float):
    return Accelerator(
        kind=kind,
        flops_per_second=tflops * 1e12,
        memory_bytes=gib * 2**30,
        memory_rate=gbs * 1e9,
        node=pod,
        inside=2 * link * 1e9,
        between=dcn * 1e9,
        source="Google Cloud TPU documentation; link rates of the scaling book (jax-ml.github.io)",
    )


ACCELERATORS = {
    a.kind: a
    for a in (
        _gpu("a100", 312, 80, 2.039, 8, 300, "NVIDIA A100 80GB SXM data sheet; NVLink 600 GB/s"),
        _gpu("h100", 989.4, 80, 3.35, 8, 450, "NVIDIA H100 SXM data sheet: 1,979 with sparsity"),
        _gpu("h200", 989.4, 141, 4.8, 8, 450, "NVIDIA H200 SXM data sheet"),
        _gpu("b200", 2250, 180, 8.0, 8, 900, "NVIDIA HGX B200 data sheet: 4.5 with sparsity"),
        _gpu("gb200", 2500, 186, 8.0, 72, 900, "NVIDIA GB200 NVL72 data sheet, one of 72 GPUs"),
        _gpu("mi300x", 1307.4, 192, 5.3, 8, 448, "AMD Instinct MI300X data sheet: 7 links of 64"),
        _tpu("tpu_v4", 275, 32, 1228, 4096, 45, 6.25),
        _tpu("tpu_v5e", 197, 16, 819, 256, 45, 3.125),
        _tpu("tpu_v5p", 459, 95, 2765, 8960, 90, 6.25),
        _tpu("tpu_v6e", 918, 32, 1640, 256, 90, 12.5),
    )
}


def find(kind: str, *, field: str = "--devices") -> Accelerator:
    """A name of the table, or a JSON or TOML file; raises InputError."""
    name = kind.strip().lower().replace("-", "_")
    if name in ACCELERATORS:
        return ACCELERATORS[name]
    path = Path(kind.strip())
    if path.suffix not in (".json", ".toml"):
        raise InputError(field, kind, nearest(name, ACCELERATORS) + ", as in h100:1024")
    try:
        text = path.read_text()
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(field, kind, f"cannot be read ({error}); give one chip's fields") from None
    wanted = [f.name for f in fields(Accelerator)]
    tree = {"kind": path.stem, "source": str(path), **(tree if isinstance(tree, dict) else {})}
    for name in wanted:
        value = tree.get(name)
        number = name not in ("kind", "source")
        if value is None or (number and not (isinstance(value, int | float) and value > 0)):
            raise InputError(
                f"{path}: {name}", value, "write a number above 0" if number else "say"
            )
    if unknown := sorted(set(tree) - set(wanted)):
        raise InputError(f"{path}: {unknown[0]}", tree[unknown[0]], nearest(unknown[0], wanted))
    return Accelerator(**tree)


def of_device(device_kind: str) -> Accelerator | None:
    """The row of a device by the name that its driver gives; None for one that is not here."""
    said = device_kind.lower().replace("-", " ")
    lite = {"tpu v5 lite": "tpu_v5e", "tpu v6 lite": "tpu_v6e", "tpu v5": "tpu_v5p"}
    for name, kind in lite.items():
        if said == name:
            return ACCELERATORS[kind]
    words = said.replace("tpu ", "tpu_").split()
    return next((a for kind, a in ACCELERATORS.items() if kind in words), None)


def parse(text: str, *, field: str = "--devices") -> tuple[Accelerator, int]:
    """`h100:1024` or `mine.toml:8` -> (chip, how many); raises InputError."""
    kind, colon, number = text.rpartition(":")
    if not colon:
        kind, number = text, "1"
    chip = find(kind, field=field)
    count = int(number) if number.strip().isdigit() else 0
    if count < 1:
        raise InputError(field, text, f"write a number of devices, as in {chip.kind}:1024")
    return chip, count
