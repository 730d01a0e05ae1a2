"""How do initialisation, learning rate, weight decay and forward scale follow the dimensions?

Computed from the dims of a parameter, the sizes of the model and the sizes of its base model;
nothing else. Source: Yang et al. 2022 (muP for Adam, table 8 in the "abc" form with width
multiples), microsoft/mup, EleutherAI/nanoGPT-mup.

| role | initial std | learning rate | weight decay | forward |
|---|---|---|---|---|
| hidden (contracted dims wide) | fan_in^-1/2 | 1/m | m^p | 1 |
| residual (hidden, writes to the stream) | fan_in^-1/2 (2 layers)^-1/2 | 1/m | m^p | 1 |
| readout (to the vocabulary) | 0 | 1 | 1 | output_multiplier / m |
| router (to finitely many: experts, a gate) | base fan_in^-1/2 | 1 | 1 | 1/m |
| table, vector | constant | 1 | 0 | 1 (a tied table: 1/m where it reads out) |
| buffer (no gradient trains it) | the layer's own | 0 | 0 | 1 |
| recurrence (poles, step sizes, decays) | the layer's own | not covered by muP | 0 | 1 |

m is the product over contracted dims of size / base size: 1 for every parameter under `standard`,
where the readout starts from fan_in^-1/2. muP's initial variance of a hidden matrix, sigma^2/m, is
the same line as fan_in^-1/2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from model.spec import Parametrisation

HIDDEN, RESIDUAL, READOUT, TABLE, VECTOR = "hidden", "residual", "readout", "table", "vector"
RECURRENCE, BUFFER, ROUTER = "recurrence", "buffer", "router"
ROLES = (HIDDEN, RESIDUAL, READOUT, TABLE, VECTOR, RECURRENCE, BUFFER, ROUTER)


@dataclass(frozen=True)
class Scaling:
    """Multipliers of one parameter; `covered` is False where the theory has no rule for it."""

    std: float
    lr: float
    weight_decay: float
    forward: float
    covered: bool = True


def width_multiple(
    contract: tuple[str, ...], sizes: Mapping[str, int], base: Mapping[str, float]
) -> float:
    return math.prod(sizes[d] / base[d] for d in contract)


def scaling(
    role: str,
    *,
    contract: tuple[str, ...],
    sizes: Mapping[str, int],
    base: Mapping[str, float],
    rule: Parametrisation,
    n_layers: int,
    tied: bool,
) -> Scaling:
    """The multipliers of a parameter; raises ValueError on a role that the table above lacks."""
    m = width_multiple(contract, sizes, base)
    if role in (HIDDEN, RESIDUAL):
        std = math.prod(sizes[d] for d in contract) ** -0.5
        if role == RESIDUAL:
            std *= (2 * n_layers) ** -0.5
        return Scaling(std, 1 / m, m**rule.weight_decay_exponent, 1.0)
    if role == READOUT:
        std = 0.0 if rule.kind == "mup" else math.prod(sizes[d] for d in contract) ** -0.5
        return Scaling(std, 1.0, 1.0, rule.output_multiplier / m)
    if role == ROUTER:
        # a readout whose products do not grow in number; not from zero, where all choices tie
        return Scaling(math.prod(base[d] for d in contract) ** -0.5, 1.0, 1.0, 1 / m)
    if role == TABLE:
        # a tied table also reads out, so its entries start at the readout's scale at the base width
        return Scaling(base["D"] ** -0.5 if tied else rule.embed_std, 1.0, 0.0, 1.0)
    if role == VECTOR:
        return Scaling(0.0, 1.0, 0.0, 1.0)
    if role == BUFFER:
        return Scaling(0.0, 0.0, 0.0, 1.0)
    if role == RECURRENCE:
        return Scaling(0.0, 1.0, 0.0, 1.0, covered=rule.kind == "standard")
    raise ValueError(f"unknown role {role!r}; a parameter is one of {', '.join(ROLES)}")


def attention_scale(rule: Parametrisation, *, per_head: int) -> float:
    """Factor on q.k: K^-1/2 in standard, base_K^1/2 / K in muP, so that the two agree at base_K."""
    if rule.kind == "standard" or rule.base_d_head is None:
        return rule.attention_multiplier * per_head**-0.5
    return rule.attention_multiplier * rule.base_d_head**0.5 / per_head


def tied_readout_scale(rule: Parametrisation, *, d_model: int) -> float:
    """Forward multiplier of a tied table on the readout side."""
    m = d_model / rule.base_d_model if rule.kind == "mup" else 1.0
    return rule.output_multiplier / m
