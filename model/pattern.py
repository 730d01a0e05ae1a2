"""How is a hybrid of layers written? One symbol a block, tiled over the depth.

The symbols are those of Megatron's Mamba hybrids: "MMM*" is three recurrent blocks, then one of
attention. The pattern is a way to write the `repeat` of a ModelSpec, which is what is kept.
"""

from collections.abc import Mapping

from model.spec import BlockSpec
from parallelism.errors import InputError

SYMBOLS = {"M": "a linear recurrence", "*": "softmax attention", "-": "feed-forward alone"}


def unit(pattern: str, blocks: Mapping[str, BlockSpec], *, n_layers: int) -> tuple[BlockSpec, ...]:
    """The repeated blocks that a pattern names, for a depth that it divides."""
    known = ", ".join(f"{symbol} ({meaning})" for symbol, meaning in SYMBOLS.items())
    if not pattern or set(pattern) - set(SYMBOLS):
        raise InputError("pattern", pattern, f"write one or more of {known}")
    if n_layers % len(pattern):
        raise InputError(
            "pattern",
            pattern,
            f"has {len(pattern)} blocks, which do not tile {n_layers} layers; write a number of "
            f"layers that is a multiple of {len(pattern)}",
        )
    return tuple(blocks[symbol] for symbol in pattern)
