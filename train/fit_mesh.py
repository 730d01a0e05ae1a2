"""Does a run fit its mesh? Rows, layers and microbatches against the axes, before anything is
compiled. Sizes of arrays are checked where their shardings are made (parallelism/place.py).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from model.spec import BlockSpec
    from train.spec import RunSpec


def microbatches(spec: "RunSpec") -> int:
    """Parts of a (micro-)batch that follow one another through a pipeline: as said, or as many as
    rows allow, up to four a stage (guess: a fifth of the time is lost with four, half with one).
    """
    if spec.execution.microbatches is not None:
        return spec.execution.microbatches
    rows, mesh = _rows(spec), spec.execution.mesh
    return max(m for m in range(1, min(rows, 4 * mesh.pipeline) + 1) if rows % m == 0)


def _rows(spec: "RunSpec") -> int:
    """Of a (micro-)batch, on one device."""
    execution = spec.execution
    return spec.sequences_per_batch // execution.accumulate // execution.mesh.replicas


def check(spec: "RunSpec") -> None:
    """Raises ValueError, with what to write instead."""
    rows, execution = spec.sequences_per_batch, spec.execution
    if rows % execution.accumulate:
        raise ValueError(
            f"execution.accumulate {execution.accumulate} does not divide the {rows} "
            f"sequences of a batch; write a "
            f"divisor of {rows}"
        )
    if execution.accumulate > 1:
        encoder = spec.model.encoder
        blocks = (*spec.model.blocks, *(encoder.blocks if encoder is not None else ()))
        _check_slots(blocks, "execution.accumulate", "execution.accumulate")
    replicas = execution.mesh.replicas
    if (rows // execution.accumulate) % replicas:
        raise ValueError(
            f"execution.mesh data x fsdp x expert = {replicas} does not divide the "
            f"{rows // execution.accumulate} sequences of a micro-batch; write a mesh whose "
            f"data x fsdp x expert divides it, or a larger budget.batch_tokens"
        )
    if execution.mesh.pipeline > 1:
        _check_pipeline(spec, _rows(spec))


def _check_pipeline(spec: "RunSpec", rows: int) -> None:
    execution, units, parts = spec.execution, spec.model.n_repeats, microbatches(spec)
    stages, rounds = execution.mesh.pipeline, execution.rounds
    if not units or units % (stages * rounds):
        raise ValueError(
            f"execution.mesh.pipeline x execution.rounds = {stages * rounds} does not divide the "
            f"{units} repeated units of model.n_layers {spec.model.n_layers}; write sizes whose "
            f"product divides {units}, or another model.n_layers"
        )
    if rows % parts:
        raise ValueError(
            f"execution.microbatches {parts} does not divide the {rows} sequences of a device; "
            f"write a divisor of {rows}, or a larger budget.batch_tokens"
        )
    if rounds > 1 and parts < stages:
        raise ValueError(
            f"execution.rounds {rounds} needs as many microbatches as execution.mesh.pipeline "
            f"{stages}, and there are {parts}; write execution.rounds=1, or a larger "
            f"budget.batch_tokens"
        )
    if execution.remat == "stream":
        raise ValueError(
            "execution.remat stream cuts the positions of whole batches, and a pipeline runs parts "
            "of their rows; write execution.remat=full, or execution.mesh.pipeline=1"
        )
    _check_slots(spec.model.repeat, "a pipeline", "execution.mesh.pipeline")
    if spec.data.carry_state:
        raise ValueError(
            "data.carry_state true goes on from what each layer remembers, and a pipeline runs "
            "parts of the rows; write execution.mesh.pipeline=1"
        )
    if spec.model.encoder is not None:
        raise ValueError(
            "execution.mesh.pipeline runs one stack of layers, and this model has an encoder "
            "beside it; write 1, and a larger data, fsdp or tensor"
        )


def _check_slots(blocks: "Iterable[BlockSpec]", what: str, field: str) -> None:
    for block in blocks:
        if block.ffn is not None and block.ffn.reads_order:
            raise ValueError(
                f"ffn kind {block.ffn.kind}, as it is set, shares slots among all rows of a batch, "
                f"and {what} runs parts of them; write its capacity null, or {field}=1"
            )
