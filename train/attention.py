"""Which kernel computes the softmax attention of a run, and why not another? By its setting, its
layers, and the chip.
"""

import sys
from dataclasses import dataclass

from jax.sharding import AbstractMesh, Mesh

from parallelism import counted_kernel
from parallelism.errors import InputError
from parallelism.kernels import (
    AUTO,
    CUDA,
    PLAIN,
    TPU,
    Asked,
    Chip,
    Kernel,
    here,
    names,
    resolve,
)
from parallelism.sequence import AXIS
from train.spec import RunSpec

PREFERRED = ("cudnn", "pallas")  # what auto takes, the first that can be: no chip has both


@dataclass(frozen=True)
class Choice:
    """`name` is a kernel's or `plain`; `refused` says of the others why they cannot be."""

    name: str
    refused: dict[str, str]


def choice(spec: RunSpec, *, dtype: str, chip: Chip | None = None) -> Choice:
    """What computes attention in a run whose compute type is `dtype`: on this program's devices, or
    on another chip. One that the run names stands even where it cannot be.
    """
    refused = {}
    for name in names():
        reason = _refusal(spec, name, dtype=dtype, chip=here() if chip is None else chip)
        if reason is None and chip is None:
            reason = resolve(name).absent(here())
        if reason is not None:
            refused[name] = reason
    asked = spec.execution.attention
    if asked == AUTO:
        asked = next((name for name in PREFERRED if name not in refused), PLAIN)
    return Choice(asked, refused)


def kernel(
    spec: RunSpec,
    mesh: Mesh | AbstractMesh,
    *,
    dtype: str,
    chip: Chip | None = None,
    counted: bool = False,
) -> Kernel | None:
    """The run's kernel; None for the plain form. Raises InputError for one that cannot be.
    `counted`: one that is traced on any machine and never run.
    """
    taken = choice(spec, dtype=dtype, chip=chip)
    if taken.name == PLAIN:
        return None
    if taken.name in taken.refused:
        reason = f"{taken.refused[taken.name]}; write {AUTO} or {PLAIN}"
        raise InputError("execution.attention", taken.name, reason)
    if counted:
        return counted_kernel.Kernel(mesh, masks=taken.name == "cudnn")
    return resolve(taken.name)(mesh)


def tell(spec: RunSpec, *, dtype: str, chip: Chip | None = None) -> None:
    """Say on stderr that a run takes the plain form where its chip has a kernel."""
    own = {CUDA: "cudnn", TPU: "pallas"}.get((here() if chip is None else chip).platform)
    taken = choice(spec, dtype=dtype, chip=chip)
    if own in taken.refused and spec.execution.attention == AUTO and _asked(spec, dtype=dtype):
        reason = f"attention: the plain form; {own} {taken.refused[own]}"
        print(reason, file=sys.stderr, flush=True)


def _refusal(spec: RunSpec, name: str, *, dtype: str, chip: Chip) -> str | None:
    execution, layers = spec.execution, _asked(spec, dtype=dtype)
    if not layers:
        return "no layer of this model is softmax attention that a kernel is offered"
    if execution.mesh.sequence > 1:
        return f"needs whole rows on a device, and execution.mesh.{AXIS} shares them"
    if execution.remat == "stream":
        return "runs over a whole row, and execution.remat=stream over a few positions at a time"
    reasons = (resolve(name).refusal(layer, chip) for layer in layers)
    return next((reason for reason in reasons if reason is not None), None)


def _asked(spec: RunSpec, *, dtype: str) -> list[Asked]:
    """Every softmax attention layer of the model, once."""
    model, data, execution = spec.model, spec.data, spec.execution
    later = not model.causal or "prefix_BT" in spec.objective.batch
    towers = [(model.blocks, data.seq_len, later, data.isolate_documents)]
    if model.encoder is not None:
        towers.append((model.encoder.blocks, data.source_length, True, True))
    found: dict[Asked, None] = {}
    for blocks, length, sees_later, documents in towers:
        for mixer in dict.fromkeys(block.mixer for block in blocks if block.mixer is not None):
            sizes = mixer.sizes(model.shared_sizes)
            streams = model.n_streams > 1 and mixer.takes_prefix
            for _, _, band in mixer.attentions(sizes):
                one = Asked(
                    what=mixer.kind,
                    length=length,
                    per_head=sizes["K"],
                    dtype=dtype,
                    documents=documents,
                    later=sees_later and band is None,
                    ahead=model.shared_sizes["S"] if streams else 0,
                    band=band,
                    mapped=execution.mesh.pipeline > 1 or execution.stack > 1,
                )
                found[one] = None
    return list(found)
