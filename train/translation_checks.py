"""Which runs with an encoder, or with pairs, cannot be?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.spec import RunSpec


def check(spec: RunSpec) -> None:
    """Raises ValueError with what to write instead."""
    model, data, execution = spec.model, spec.data, spec.execution
    if model.encoder is None:
        if data.source_len is not None:
            raise ValueError(
                f"data.source_len {data.source_len} is the length of what an encoder reads, and "
                f"the model has none; write data.source_len=null"
            )
        return
    if not data.isolate_documents:
        raise ValueError(
            "data.isolate_documents false would let each translation see the row's other sources; "
            "write data.isolate_documents=true"
        )
    table = model.learned_positions
    if table is not None and data.source_length > table:
        raise ValueError(
            f"data.source_len {data.source_length} exceeds model.learned_positions {table}; write "
            f"at most that, or raise model.learned_positions"
        )
    if execution.mesh.pipeline > 1:
        raise ValueError(
            f"execution.mesh.pipeline {execution.mesh.pipeline}: the stream that stages pass on "
            f"has an encoder beside it; write 1, and data, fsdp or tensor in its place"
        )
    if spec.start is not None:
        raise ValueError(
            f"start.kind {spec.start.kind} begins from a decoder alone, and the model has an "
            f"encoder; write start=null"
        )
