"""Which names do dimensions and mesh axes have? Names are born only here.

`AXES` is the legend of array dimensions: the letter used in code (`x_BTD`, einsum `"btd,df->btf"`),
the word used in sharding rules, and its meaning. `MeshSpec` names the axes of the device mesh. This
file imports no jax.
"""

from dataclasses import dataclass as plain_dataclass
from dataclasses import fields

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from parallelism.errors import InputError


@plain_dataclass(frozen=True)
class Axis:
    letter: str
    name: str
    meaning: str


AXES = {
    a.letter: a
    for a in (
        Axis("B", "batch", "sequences of a batch"),
        Axis("T", "time", "positions of a sequence"),
        Axis("S", "keys", "positions attended to"),
        Axis("D", "d_model", "residual width"),
        Axis("F", "ffn", "feed-forward hidden width"),
        Axis("H", "heads", "attention heads"),
        Axis("J", "kv_heads", "key-value heads"),
        Axis("K", "per_head", "width of one head; of its queries and keys where values differ"),
        Axis("M", "per_value", "width of one head's values"),
        Axis("V", "vocab", "vocabulary"),
        Axis("U", "extra_inputs", "ids beyond the vocabulary, read and never said: of a mask"),
        Axis("O", "outlook", "numbers that the heads of a series forecast, all horizons together"),
        Axis("E", "experts", "experts"),
        Axis("N", "state", "recurrent state"),
        Axis("P", "streams", "parallel streams"),
        Axis("G", "blocks", "blocks of a structured matrix"),
        Axis("R", "rank", "rank of a factor"),
        Axis("W", "taps", "taps of a short convolution"),
        Axis("X", "features", "features of a fixed map: of a position, of a key"),
        Axis("Y", "targets", "inputs of a token shift that are mixed apart"),
        Axis("Z", "layers", "depth: stacked layers"),
    )
}

SPEC = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=SPEC)
class MeshSpec:
    """Devices along each mesh axis. The product is the number of devices the run uses, or the stack
    of runs that `run` shares out.
    """

    run: int = Field(default=1, ge=1)  # the outermost: runs have nothing to say to each other
    data: int = Field(default=1, ge=1)
    fsdp: int = Field(default=1, ge=1)
    tensor: int = Field(default=1, ge=1)
    sequence: int = Field(default=1, ge=1)
    expert: int = Field(default=1, ge=1)
    pipeline: int = Field(default=1, ge=1)

    @property
    def sizes(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def replicas(self) -> int:
        """Among how many the rows of a batch are shared: every axis of `ACTIVATIONS["batch"]`."""
        return self.data * self.fsdp * self.expert

    @property
    def n_devices(self) -> int:
        n = 1
        for size in self.sizes.values():
            n *= size
        return n


RUN = "run"  # along which several runs of one shape are stacked: train/stack.py
MESH_AXES = tuple(f.name for f in fields(MeshSpec))


def letters(dims: str) -> tuple[str, ...]:
    """`"D F"` -> `("D", "F")`; raises `InputError` on a letter that the table lacks."""
    out = tuple(dims.split())
    for letter in out:
        if letter not in AXES:
            raise InputError(
                "dims", dims, f"{letter} is not in the axis table (parallelism/axes.py)"
            )
    return out
