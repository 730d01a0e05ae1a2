"""Which run spends a production budget? The family's size nearest the fitted one, as a RunSpec.

A fit gives N and D as real numbers; a family has some sizes. The nearest size is taken, D is solved
again so that the compute is met, the transfer rule gives learning rate, batch and weight decay, and
the prediction for exactly this N and D is kept beside the spec for the run to be checked against.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model import archs
from model.count import count
from parallelism.errors import InputError
from sweeps.budget import check_convention, whole_tokens
from sweeps.transfer import BATCH, quantum, transferred
from train import paths
from train.counted import counted
from train.record import write_json
from train.spec import FORMAT, RunSpec, to_dict


@dataclasses.dataclass(frozen=True)
class Production:
    """A realisable run with what was asked for and what it achieves; FLOPs by convention."""

    spec: RunSpec
    asked: dict[str, Any]  # n, flops, convention, transfer
    params: dict[str, int]
    flops: dict[str, float]
    notes: tuple[str, ...]

    @property
    def tokens(self) -> int:
        return self.spec.tokens

    def to_json(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "run_id": spec.run_id,
            "asked": self.asked,
            "d_model": spec.model.d_model,
            "n_layers": spec.model.n_layers,
            "params": self.params,
            "tokens": self.tokens,
            "flops": self.flops,
            "lr": spec.optim.lr,
            "batch_tokens": spec.budget.batch_tokens,
            "weight_decay": spec.optim.weight_decay,
            "steps": spec.steps,
            "notes": list(self.notes),
        }

    def text(self) -> str:
        spec, asked = self.spec, self.asked
        achieved = self.flops[asked["convention"]]
        return "\n".join(
            [
                f"{spec.model.arch} {spec.model.d_model}x{spec.model.n_layers}: "
                f"N={self.params['total']:.4g} (asked {asked['n']:.4g}), D={self.tokens:.4g}",
                f"{achieved:.4g} FLOPs by {asked['convention']}, "
                f"{achieved / asked['flops'] - 1:+.2%} off the budget, {spec.steps} steps",
                f"transfer {asked['transfer']}: lr {spec.optim.lr:.3g}, batch "
                f"{spec.budget.batch_tokens} tokens, weight decay {spec.optim.weight_decay:.3g}",
                *(f"note: {note}" for note in self.notes),
            ]
        )

    def write(
        self,
        path: Path,
        *,
        prediction: Mapping[str, Any],
        estimate: Mapping[str, Any] | None = None,
    ) -> Path:
        """The RunSpec that `ladder train` takes, with `<name>.prediction.json` beside it;
        `estimate`: what it costs on the devices it was sized for."""
        path = Path(path)
        if path.suffix != ".json":
            raise InputError("--out", str(path), "write a name ending in .json")
        write_json(path, {"format": FORMAT, **to_dict(self.spec)})
        sidecar = path.with_name(f"{path.stem}.prediction.json")
        write_json(
            sidecar, {**self.to_json(), "prediction": dict(prediction), "estimate": estimate}
        )
        return sidecar


def production(
    base: RunSpec,
    *,
    n: float,
    flops: float,
    convention: str,
    arch: str | None = None,
    transfer: str | Mapping[str, Any] = "fixed",
    kind: str = "total",
    devices: int | None = None,
) -> Production:
    """The run of `arch` with the size nearest `n` parameters (of `kind`) that spends `flops`.

    `base` is any run of the sweep: its settings that are not its size carry over. `devices` only
    warns of a batch that does not divide among them. Raises InputError on what cannot be met.
    """
    for field, value in (("n", n), ("flops", flops)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(field, value, "write a number above 0")
    check_convention(convention)
    arch = arch or base.model.arch
    if arch not in archs.names():
        raise InputError("--arch", arch, "name the family; this run's model has a label of its own")
    width = _nearest(base, arch, n, kind)
    spec = _resized(base, arch, width)
    counts = counted(spec)
    per_token = counts.flops_per_token[convention]
    moved = transferred(transfer, params=counts.params, tokens=flops / per_token, base=spec)
    tokens = whole_tokens(
        flops,
        flops_per_token=per_token,
        batch_tokens=int(moved.changes.get(BATCH, spec.budget.batch_tokens)),
        unit=quantum(spec),
        what=f"{arch} at width {width}",
    )
    spec = paths.put(spec, {**moved.changes, "budget.tokens": tokens})
    notes = list(moved.notes)
    if not 0.8 <= counts.params[kind] / n <= 1.25:
        notes.append(
            f"the family's nearest size has {counts.params[kind] / n:.2f} times the asked N"
        )
    if devices and spec.sequences_per_batch % devices:
        notes.append(
            f"{spec.sequences_per_batch} sequences a batch do not divide among {devices} devices; "
            f"set execution.mesh.tensor, or budget.batch_tokens to a multiple of "
            f"{devices * spec.data.seq_len}"
        )
    rule = transfer if isinstance(transfer, str) else dict(transfer)
    asked = {"n": n, "flops": flops, "convention": convention, "transfer": rule}
    made = {name: rate * spec.tokens for name, rate in counts.flops_per_token.items()}
    return Production(spec, asked, counts.params, made, tuple(notes))


def _nearest(base: RunSpec, arch: str, n: float, kind: str) -> int:
    """The width whose parameter count is nearest in ratio; a size outside the family is refused."""
    sizes: dict[int, int] = {}
    for width in archs.widths(arch):
        try:
            model = _resized(base, arch, width).model
        except InputError:  # a size that a setting of the sweep does not fit, a head width say
            continue
        sizes[width] = count(model, seq_len=base.data.seq_len).params[kind]
        if sizes[width] > 2 * n:
            break
    smallest, largest = min(sizes.values()), max(sizes.values())
    if not smallest / 1.5 <= n <= largest * 1.5:
        raise InputError(
            "N",
            f"{n:.4g}",
            f"the family {arch} has sizes from {smallest:.4g} to {largest:.4g} parameters; "
            "write a budget whose optimum lies there",
        )
    return min(sizes, key=lambda width: abs(math.log(sizes[width] / n)))


def _resized(base: RunSpec, arch: str, width: int) -> RunSpec:
    """`base` at another width: what its model changed over the family's own shape is kept."""
    given = paths.flatten(to_dict(base)["model"])
    plain = RunSpec(model=archs.build(base.model.arch, base.model.d_model), seed=0)
    own = paths.flatten(to_dict(plain)["model"]) if base.model.arch == arch else given
    changed = {f"model.{path}": value for path, value in given.items() if own.get(path) != value}
    return paths.put(dataclasses.replace(base, model=archs.build(arch, width)), changed)
