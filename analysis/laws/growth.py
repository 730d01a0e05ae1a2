"""Growth by depth stacking: when should a small model be stacked, and what does that save?

Du et al. 2024 (G_stack, arXiv 2405.15319). `plan` splits a budget between a small model and the
stacked one; what growth saved is measured in `analysis/growth.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from analysis.law import Law, amplitude, exponent, floor, pivot, real
from analysis.quantities import C, N, Quantity
from parallelism.errors import InputError

LN10 = float(np.log(10))
TIMING = Quantity("d", "tokens of the small model before it is stacked", low=1, high=1e18)
STACKED = Quantity("stacked", "1 grown, 0 from scratch", "linear", low=0, high=1)


def _timing(p: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
    return jnp.exp(p["a"] * x["ln_N"] + p["b"] * LN10**2 / x["ln_C"] + p["c"] * LN10)


def _speedup(p: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
    ln_multiplier = x["stacked"] * p["M"] * jnp.exp(-p["kappa"] * x["ln_C"])
    return p["E"] + jnp.exp(p["alpha"] * (jnp.log(p["C_c"]) - x["ln_C"] - ln_multiplier))


GROWTH_TIMING = Law(
    name="growth_timing",
    equation="log10 d = a log10 N + b / log10 C + c",
    source="Du et al. 2024, arXiv 2405.15319, equation 2",
    section="E9",
    inputs=(replace(N, unit="parameters of the grown model, without embeddings"), C),
    params=(
        real("a", start=(0.3, 1.5)),
        real("b", start=(0.0, 400.0)),
        real("c", start=(-15.0, 5.0)),
    ),
    predict=_timing,
    output=TIMING,
    domain="410M, 1.1B and 3B grown fourfold, 8e19 to 1.2e21 FLOPs",
    published={"equation 2": {"a": 0.88, "b": 163.27, "c": -5.74}},
    typical={"N": (4.1e8, 3e9), "C": (8e19, 1.2e21)},
)

GROWTH_COMPUTE = Law(
    name="growth_compute",
    equation="L = E + (C_c / C)^alpha",
    source="the compute laws of Du et al. 2024, arXiv 2405.15319, which have no floor",
    section="E9",
    inputs=(C,),
    params=(floor("E"), pivot("C_c", of="C", exponent="alpha"), exponent("alpha")),
    predict=lambda p, x: p["E"] + jnp.exp(p["alpha"] * (jnp.log(p["C_c"]) - x["ln_C"])),
    domain="the runs of one family from scratch, or grown ones with the small phase in C",
    falls_in=("C",),
    typical={"C": (1e20, 1e22)},
)

GROWTH_SPEEDUP = Law(
    name="growth_speedup",
    equation="L = E + (C_c / (C m))^alpha, ln m = stacked M / C^kappa",
    source="the compute law of Du et al. 2024, arXiv 2405.15319, with a floor and a multiplier that"
    " may decay: this project's",
    section="E9",
    inputs=(C, STACKED),
    params=(
        floor("E"),
        pivot("C_c", of="C", exponent="alpha"),
        exponent("alpha"),
        amplitude("M", of="C", exponent="kappa"),
        real("kappa", start=(-0.2, 0.5)),
    ),
    predict=_speedup,
    domain="runs of one family from scratch and grown, the small phase's FLOPs counted in C;"
    " kappa > 0: the gain decays to nothing",
    falls_in=(),
    typical={"C": (1e20, 1e22), "stacked": (0.0, 1.0)},
)

FACTOR = 4.0  # of the paper; its valleys lie between 2 and 4
EARLY = 0.1  # guess: of the tokens; the paper's own examples of 7B and more stack before 2.1 %
SLACK = 2.0  # how far N and C may leave the range in which the timing law was fitted


@dataclass(frozen=True, kw_only=True)
class Growth:
    """A budget split into two phases. Parameters without embeddings, tokens, FLOPs as 6 N D."""

    small_N: float
    small_D: float  # tokens before stacking
    N: float
    D: float  # tokens after stacking
    small_share: float  # of the FLOPs
    token_share: float  # small_D over the tokens that all the FLOPs give a model of N from scratch
    outside: tuple[str, ...]  # what leaves the range in which the timing law was fitted
    warning: str | None  # where the timing law stacks too late to be believed


def plan(
    *,
    N: float,
    flops: float,
    factor: float = FACTOR,
    params: Mapping[str, float] = GROWTH_TIMING.published["equation 2"],
    fraction: float | None = None,
) -> Growth:
    """When to stack a model `factor` times smaller into N parameters, for `flops` in all; raises
    InputError. `params` are those of a `growth_timing` fit; `fraction`, where given, takes the
    place of their timing: small_D over the tokens of N parameters from scratch.
    """
    positive_or_refuse("N", N)
    positive_or_refuse("flops", flops)
    if not (np.isfinite(factor) and factor > 1):
        raise InputError("factor", factor, "write a number of copies above 1, such as 4")
    if fraction is not None and not 0 < fraction < factor:
        raise InputError("fraction", fraction, "write a share of the tokens, such as 0.05")
    whole = flops / (6 * N)
    log_d = params["a"] * np.log10(N) + params["b"] / np.log10(flops) + params["c"]
    tokens = float(np.exp(LN10 * log_d)) if fraction is None else fraction * whole
    small = 6 * N / factor * tokens
    if small >= flops:
        raise InputError(
            "flops",
            flops,
            f"the small model alone takes {small:.2g} FLOPs: write a fraction of your own, more "
            "FLOPs or a smaller N",
        )
    ranges = {"N": (N, GROWTH_TIMING.typical["N"]), "flops": (flops, GROWTH_TIMING.typical["C"])}
    outside = [
        f"{name} {value:.3g} against {low:.3g} to {high:.3g}"
        for name, (value, (low, high)) in ranges.items()
        if not low / SLACK <= value <= high * SLACK
    ]
    if not 2 <= factor <= 4:
        outside.append(f"factor {factor:.3g} against 2 to 4")
    warning = None
    if fraction is None and tokens > EARLY * whole:
        warning = (
            f"stacks after {tokens:.3g} tokens, {tokens / whole:.0%} of what these FLOPs give "
            f"{N:.3g} parameters from scratch; write a fraction of your own, such as 0.05"
        )
    return Growth(
        small_N=N / factor,
        small_D=tokens,
        N=N,
        D=(flops - small) / (6 * N),
        small_share=small / flops,
        token_share=tokens / whole,
        outside=tuple(outside) if fraction is None else (),
        warning=warning,
    )


def speed_up(scratch_flops: float, grown_flops: float) -> float:
    """What growth saves at an equal loss: FLOPs from scratch over those of both phases, less 1."""
    positive_or_refuse("scratch_flops", scratch_flops)
    positive_or_refuse("grown_flops", grown_flops)
    return scratch_flops / grown_flops - 1


def positive_or_refuse(field: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise InputError(field, value, "write a positive number such as 1e21")


LAWS = (GROWTH_TIMING, GROWTH_COMPUTE, GROWTH_SPEEDUP)
