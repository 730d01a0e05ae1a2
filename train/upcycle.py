"""How does a run of a mixture of experts go on as a chain of experts? By `model/upcycle.py`, which
keeps the function: while the mix is zero, the chain is the mixture, and the loss goes on from where
it stood.
"""

from collections.abc import Mapping

import numpy as np

from model.ffns import chain_of_experts
from model.spec import ModelSpec
from model.upcycle import PARTS, chained, moe_to_chain
from parallelism.errors import InputError
from train.paths import differences

LABELS = ("arch", "objective")


def check(base: ModelSpec, spec: ModelSpec, *, run: str) -> None:
    """Raises InputError unless `spec` is what `base` becomes with its passes and its routers."""
    path, chain = _chain(spec)
    if chain.passes < 2:
        raise InputError(
            f"model.{path}.passes", chain.passes, "write 2 or more: one pass is the mixture itself"
        )
    try:
        expected = chained(base, passes=chain.passes, routers=chain.routers)
    except InputError as error:
        raise InputError("start.run", run, error.instead) from None
    for path, (there, here) in differences(expected, spec).items():
        if path not in LABELS:
            raise InputError(
                f"model.{path}",
                here,
                f"{run} does not fit, which becomes a chain with {there}; only passes and routers "
                "are yours to choose",
            )


def upcycled(
    params: Mapping[str, np.ndarray], base: ModelSpec, spec: ModelSpec
) -> dict[str, np.ndarray]:
    """The mixture's parameters as those of `spec`, a chain."""
    _, chain = _chain(spec)
    _, made = moe_to_chain(base, params, passes=chain.passes, routers=chain.routers)
    return {path: np.asarray(value) for path, value in made.items()}


def _chain(spec: ModelSpec) -> tuple[str, chain_of_experts.Spec]:
    """The first chain, and its path."""
    for part in PARTS:
        for i, block in enumerate(getattr(spec, part)):
            if isinstance(block.ffn, chain_of_experts.Spec):
                return f"{part}.{i}.ffn", block.ffn
    raise InputError(
        "model.arch", spec.arch, "upcycling makes a chain of experts; write --arch chain_of_experts"
    )
