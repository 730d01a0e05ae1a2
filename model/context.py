"""What does a layer get besides the stream? One frozen value, the same for every layer of a forward
pass.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax

from parallelism.expert import Exchange
from parallelism.kernels import Kernel
from parallelism.pipeline import Pipeline
from parallelism.sequence import Scheme

Constrain = Callable[[jax.Array, str], jax.Array]
State = dict[str, jax.Array]  # what one layer remembers of the positions before, when decoding


def unplaced(x: jax.Array, dims: str) -> jax.Array:
    """The constrain of a single device: nothing to say."""
    return x


@dataclass(frozen=True)
class Context:
    """positions_BT counts from the start of the row; segments_BT numbers documents, None when they
    are not isolated. `shared` holds what head blocks published for the layers after them. `naive`
    asks a mixer for its slow and obvious form, which tests and benchmarks compare with. `sequence`
    is how devices share the sequence: places of the arrays hold the positions that it says, and a
    mixer hands it what crosses positions; None where the text's order stands and nobody needs ask.
    `kernel` computes softmax attention in its place where no scheme does; None: the plain form.
    """

    positions_BT: jax.Array
    segments_BT: jax.Array | None
    prefix_BT: jax.Array | None = None  # positions that see one another whatever their order
    constrain: Constrain = unplaced
    residual: Constrain = unplaced  # where the stream lies between layers
    exchange: Exchange | None = None  # brings tokens to their experts; None: all on one device
    pipeline: Pipeline | None = None  # runs the repeated unit in stages; None: every layer in turn
    sequence: Scheme | None = None
    kernel: Kernel | None = None
    layers: str = "scan"  # or unroll
    remat: str = "none"  # full, dots, stream
    remat_chunk: int | None = None  # positions of a chunk of stream; None: a sixteenth
    naive: bool = False
    apart: bool = False  # a part of the batch: layers give sums by row, aux is made of all rows'
    source_BS: jax.Array | None = None  # what an encoder reads, and its documents; None: one
    source_segments_BS: jax.Array | None = None
    progress: jax.Array | None = None  # fraction of the run that is done; None: it is over
    shared: Mapping[str, jax.Array] = field(default_factory=dict)
