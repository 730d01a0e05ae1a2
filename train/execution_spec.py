"""How is a run run, as a value? Nothing here changes the science: it is recorded, not hashed."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from parallelism.axes import SPEC, MeshSpec
from parallelism.errors import nearest


def _scheme(name: str) -> str:
    from parallelism import sequence  # which imports jax

    known = (sequence.NONE, sequence.AUTO, *sequence.names())
    if name not in known:
        raise ValueError(f"no such way to share a sequence; {nearest(name, known)}")
    return name


@dataclass(frozen=True, kw_only=True, config=SPEC)
class ExecutionSpec:
    """How it is run: nothing here changes the science, all of it is recorded."""

    mesh: MeshSpec = Field(default_factory=MeshSpec)
    # how devices share a sequence: a file of parallelism/sequence, or none
    sequence: Annotated[str, AfterValidator(_scheme)] = "auto"
    # Where the residual stream lies between layers: whole on every device of a tensor group, or its
    # positions shared among them (parallelism/rules.py).
    residuals: Literal["whole", "sharded"] = "whole"
    # Parts of a (micro-)batch that follow one another through the stages of a pipeline; None: as
    # many as rows allow, up to four a stage. In `rounds` a part comes by each device as often.
    microbatches: int | None = Field(default=None, ge=1)
    rounds: int = Field(default=1, ge=1)
    compute_dtype: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # auto: float32 on CPU, bfloat16 elsewhere
    )
    layers: Literal["scan", "unroll", "auto"] = "auto"  # auto: unroll on CPU, scan elsewhere
    # What computes softmax attention: a kernel (parallelism/kernels) or the plain form
    attention: Literal["auto", "plain", "cudnn", "pallas"] = "auto"
    # What the backward pass makes anew: nothing, each layer, all but parameter products, or each
    # layer and the logits a few positions at a time (parallelism/stream.py).
    remat: Literal["none", "full", "dots", "stream"] = "none"
    remat_chunk: int | None = Field(default=None, ge=1)  # positions, of stream; None: a sixteenth
    accumulate: int = Field(default=1, ge=1)  # micro-batches of one step
    stack: int = Field(default=1, ge=1)  # runs of a sweep, of one shape, that one program trains
    checkpoint_every: int = Field(default=1000, ge=1)  # steps
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every: int = Field(default=50, ge=1)  # steps

    def __post_init__(self):
        if self.stack % self.mesh.run:
            raise ValueError(
                f"execution.mesh.run {self.mesh.run} does not divide the runs of execution.stack "
                f"{self.stack}; write a divisor of {self.stack}, or execution.stack="
                f"{self.stack * self.mesh.run}"
            )
