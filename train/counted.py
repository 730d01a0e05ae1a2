"""What does a run cost? The counts of its model at its lengths, run as it is run."""

from model.count import Counts, count
from train.spec import RunSpec


def counted(spec: RunSpec) -> Counts:
    """Parameters, and FLOPs per token of the target by convention."""
    return count(
        spec.model,
        seq_len=spec.data.seq_len,
        source_len=spec.data.source_length,
        remat=spec.execution.remat,
        remat_chunk=spec.execution.remat_chunk,
    )
