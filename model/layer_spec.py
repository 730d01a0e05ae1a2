"""What does a layer say of itself before it is built? `LayerSpec`: its own knobs, the sizes that it
adds, and what it asks of the model around it. Imports no jax.
"""

import math
from collections.abc import Mapping
from typing import Any

from pydantic.dataclasses import dataclass

from parallelism.axes import SPEC


@dataclass(frozen=True, kw_only=True, config=SPEC)
class LayerSpec:
    """Abstract: a layer's own knobs, without the sizes it shares with the rest of the model."""

    kind: str

    def sizes(self, shared: Mapping[str, int]) -> dict[str, int]:
        """Sizes of the axes this layer adds, by letter; raises ValueError when they cannot be."""
        raise NotImplementedError

    @property
    def note(self) -> str | None:
        """What its parameters do not show of how it computes, in one line for `ladder show`."""
        return None

    @property
    def publishes(self) -> tuple[str, ...]:
        """Names of arrays this layer gives to every layer after it, as aux `share/NAME`."""
        return ()

    @property
    def bidirectional(self) -> bool:
        """Whether it lets positions of `ctx.prefix_BT` see one another whatever their order."""
        return False

    @property
    def sees_later(self) -> bool:
        """Whether every position sees later ones, whatever the model is made for."""
        return False

    @property
    def sequence_form(self) -> str | None:
        """What a mixer hands to `ctx.sequence` where devices share a sequence: a form named in
        `parallelism.sequence`. None: it has none, and only the compiler can split it.
        """
        return None

    def attentions(self, sizes: Mapping[str, int]) -> tuple[tuple[int, int, Any], ...]:
        """(heads, key-value heads, band or None) of each softmax attention that it hands over."""
        return ()

    def recurrence(self, sizes: Mapping[str, int]) -> tuple[int, int, int] | None:
        """(heads, width of keys, width of values) of the linear recurrence that it hands over."""
        return None

    @property
    def reads_order(self) -> bool:
        """Whether a feed-forward layer treats a position by where it lies in the batch."""
        return False

    @property
    def carries(self) -> bool:
        """Whether what a mixer remembers has one size however long the context and knows no
        position, and its `extend` keeps the documents of `ctx.segments_BT` apart: then it can go on
        from one batch to the next.
        """
        return False

    @property
    def replaces_stream(self) -> bool:
        """Whether a feed-forward layer's output is the block's, in place of the stream plus it."""
        return False

    @property
    def penalties(self) -> Mapping[str, str]:
        """Losses of its own, as aux `loss/NAME`: the name to the field that holds its weight.

        The weight is a hyper-parameter: it enters the compiled step as data.
        """
        return {}

    @property
    def takes_prefix(self) -> bool:
        """Whether its positions see the `model.streams.prefix` of their parallel stream, by which
        alone streams differ.
        """
        return False

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of such arrays that it needs, from `ctx.shared`."""
        return ()


def base_sizes(
    layer: LayerSpec, shared: Mapping[str, float], *, width_multiple: float
) -> dict[str, float]:
    """Sizes of a layer's axes in the base model, from how they grow with the width.

    An axis that doubles with d_model is divided by the width multiple, one that does not grow
    stays. So the rounding of a size (to whole heads, to a multiple of 8) stays out of the learning
    rates, and the base width need not be one that could be built.
    """
    whole = {letter: int(size) for letter, size in shared.items()}
    own = layer.sizes(whole)
    doubled = layer.sizes({**whole, "D": 2 * whole["D"]})
    return {
        letter: size / width_multiple ** round(math.log2(doubled[letter] / size))
        for letter, size in own.items()
    }
