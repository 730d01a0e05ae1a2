"""How does a trained mixture of experts become a chain of experts? By a function of its parameters
after which it computes the same, and from which it can learn to use its further passes.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from model.decoder import build
from model.ffns import chain_of_experts, moe
from model.spec import BlockSpec, ModelSpec
from parallelism.errors import InputError


def moe_to_chain(
    spec: ModelSpec,
    params: Mapping[str, Any],
    *,
    passes: int,
    routers: Literal["each", "one"] = "each",
) -> tuple[ModelSpec, dict[str, jax.Array]]:
    """Every mixture of `spec` as a chain in the `upcycled` reading: routers and their biases
    repeated, the mix zero, the rest as it is (official: scripts/README_moe_to_coe_conversion.md).
    """
    grown = chained(spec, passes=passes, routers=routers)
    if lacking := sorted(set(build(spec).declarations) - set(params)):
        raise InputError("params", f"{len(params)} arrays", f"lack {lacking[0]} of this model")
    out = {}
    for path, declaration in build(grown).declarations.items():
        if ".ffn.mix_" in path:
            out[path] = jnp.zeros(declaration.shape, jnp.float32)
        else:
            out[path] = jnp.asarray(params[_source(path)])
    return grown, out


PARTS = ("first", "repeat", "last")


def chained(spec: ModelSpec, *, passes: int, routers: Literal["each", "one"] = "each") -> ModelSpec:
    """`spec` with a chain for every mixture, in the `upcycled` reading."""
    if passes < 2:
        raise InputError("passes", passes, "write 2 or more: one pass is the mixture itself")
    parts = {part: tuple(_block(b, passes, routers) for b in getattr(spec, part)) for part in PARTS}
    if all(parts[part] == getattr(spec, part) for part in PARTS):
        raise InputError("model", spec.arch, "has no mixture of experts (ffn kind moe) to chain")
    return replace(spec, **parts)


def _block(block: BlockSpec, passes: int, routers: Literal["each", "one"]) -> BlockSpec:
    if not isinstance(block.ffn, moe.Spec):
        return block
    knobs = {f.name: getattr(block.ffn, f.name) for f in fields(moe.Spec) if f.name != "kind"}
    chain = chain_of_experts.Spec(**knobs, passes=passes, residual="upcycled", routers=routers)
    return replace(block, ffn=chain)


def _source(path: str) -> str:
    """The mixture's parameter that one of the chain starts from: router_2 from router."""
    parts = path.split(".")
    return ".".join("router" if part.startswith("router_") else part for part in parts)
