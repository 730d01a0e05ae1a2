"""Which learning rate, batch and weight decay does a size get? A named rule with its source.

A rule maps parameters N and tokens D to the global knobs it covers and leaves the others at their
base values. muP carries the width by itself, so the rules that were fitted in the standard
parametrisation refuse a muP model: both at once would count the width twice.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from parallelism.errors import InputError, nearest
from train.spec import RunSpec

LR, BATCH, DECAY = "optim.lr", "budget.batch_tokens", "optim.weight_decay"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where a rule comes from, the dotted paths it sets, its settings with their defaults."""

    name: str
    source: str
    sets: tuple[str, ...]
    settings: Mapping[str, float]
    standard_only: bool
    apply: Callable[[Mapping[str, int], float, RunSpec, Mapping[str, float]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Transferred:
    """Values by dotted path after the rule, and what had to be said about them."""

    changes: dict[str, float | int]
    notes: tuple[str, ...]


def _fixed(params: Mapping[str, int], tokens: float, base: RunSpec, given: Mapping[str, float]):
    return {}


def _step_law(params: Mapping[str, int], tokens: float, base: RunSpec, given: Mapping[str, float]):
    n = params["non_embedding"]
    return {LR: 1.79 * n**-0.713 * tokens**0.307, BATCH: 0.58 * tokens**0.571}


def _olmo_ladder(
    params: Mapping[str, int], tokens: float, base: RunSpec, given: Mapping[str, float]
):
    ratio = params["non_embedding"] / 108e6
    return {LR: 0.0047 * ratio ** (-1 / 3) / 2, BATCH: 2048 * 160 * ratio ** (2 / 3)}


def _power_lines(
    params: Mapping[str, int], tokens: float, base: RunSpec, given: Mapping[str, float]
):
    # tau = B / (lr x decay x D): the span of AdamW's weight average as a fraction of the run
    tau = given["scale"] * (tokens / params["total"]) ** given["exponent"]
    decay = base.budget.batch_tokens / (base.optim.lr * tokens * tau)
    mup = base.model.parametrisation
    if mup.kind == "mup":
        # matrices train at lr/m with decay x m^p: tau speaks of the product, lr x decay x m^(p-1)
        multiple = base.model.d_model / mup.base_d_model
        decay *= multiple ** (1 - mup.weight_decay_exponent)
    return {DECAY: decay}


RULES = {
    rule.name: rule
    for rule in (
        Rule(
            "fixed",
            "the base values at every size; muP carries the width (Yang et al., arXiv 2203.03466)",
            (),
            {},
            False,
            _fixed,
        ),
        Rule(
            "step_law",
            "Li et al. 2025, arXiv 2503.04715: lr = 1.79 N^-0.713 D^0.307, B = 0.58 D^0.571 "
            "tokens, N without embeddings; data cover N 0.2-1.1B, D 4-100B",
            (LR, BATCH),
            {},
            True,
            _step_law,
        ),
        Rule(
            "olmo_ladder",
            "allenai/OLMo-core model_ladder, after Porian et al. 2024 (arXiv 2406.19146): "
            "B = 2048 x 160 (N/108e6)^(2/3) tokens, lr = 0.0047 (N/108e6)^(-1/3) / 2, "
            "N without embeddings",
            (LR, BATCH),
            {},
            True,
            _olmo_ladder,
        ),
        Rule(
            "power_lines",
            "Bergsma et al. 2025, arXiv 2505.13738: decay = B / (lr D tau), "
            "tau = scale (D/N)^exponent; scale and exponent are from memory, hence settings",
            (DECAY,),
            {"scale": 1.084, "exponent": -0.527},
            False,
            _power_lines,
        ),
    )
}
ROUNDING = {"power_of_two": False}  # of every rule: batch to a power of two of sequences


def rule_of(transfer: str | Mapping[str, Any]) -> tuple[Rule, dict[str, Any]]:
    """`"fixed"` or `{"rule": "power_lines", "exponent": -0.5}` -> the rule, full settings."""
    if not isinstance(transfer, str | Mapping):
        raise InputError("transfer", transfer, f"write a name in quotes; {nearest('', RULES)}")
    given = {"rule": transfer} if isinstance(transfer, str) else dict(transfer)
    name = given.pop("rule", None)
    if not isinstance(name, str) or name not in RULES:
        raise InputError("transfer", name if name is not None else given, nearest(str(name), RULES))
    rule = RULES[name]
    settings: dict[str, Any] = {**rule.settings, **ROUNDING}
    for key, value in given.items():
        if key not in settings:
            raise InputError(f"transfer.{key}", value, f"no such setting; {nearest(key, settings)}")
        if isinstance(settings[key], bool):
            if not isinstance(value, bool):
                raise InputError(f"transfer.{key}", value, "write true or false")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"transfer.{key}", value, "write a number")
        settings[key] = value
    return rule, settings


def check(
    transfer: str | Mapping[str, Any], *, base: RunSpec, explicit: Mapping[str, Any] | None = None
) -> None:
    """Refuse a rule that does not cover this parametrisation, or overwrites what the user set."""
    rule, _ = rule_of(transfer)
    kind = base.model.parametrisation.kind
    if rule.standard_only and kind != "standard":
        raise InputError(
            "transfer",
            f"{rule.name} with model.parametrisation.kind={kind}",
            "write transfer fixed (muP carries the width), or model.parametrisation.kind=standard",
        )
    for path in rule.sets:
        if explicit and path in explicit:
            raise InputError(
                path,
                explicit[path],
                f"transfer {rule.name} computes {path}; leave it out, or write transfer fixed",
            )


def transferred(
    transfer: str | Mapping[str, Any], *, params: Mapping[str, int], tokens: float, base: RunSpec
) -> Transferred:
    """The rule's values for N parameters (by kind) and D tokens; the batch is whole sequences.

    The batch is also a multiple of what the base's mesh and accumulation divide it into.
    """
    check(transfer, base=base)
    rule, settings = rule_of(transfer)
    try:
        values: dict[str, float | int] = dict(rule.apply(params, tokens, base, settings))
    except (OverflowError, ZeroDivisionError):
        values = dict.fromkeys(rule.sets, math.inf)
    for path, value in values.items():
        if not (math.isfinite(value) and value > 0):
            given = ", ".join(f"{key} {settings[key]}" for key in rule.settings)
            raise InputError(
                "transfer",
                f"{rule.name} with {given or 'its constants'} gives {path} {value:.3g}",
                "write settings that give a positive number",
            )
    notes = []
    if BATCH in values or settings["power_of_two"]:
        wanted = values.get(BATCH, base.budget.batch_tokens)
        values[BATCH] = batch = whole_batch(
            wanted, base=base, power_of_two=settings["power_of_two"]
        )
        if wanted < batch / 2:
            notes.append(
                f"{rule.name} asks for {wanted:.3g} tokens a batch; the smallest is {batch}"
            )
    return Transferred(values, tuple(notes))


def quantum(spec: RunSpec) -> int:
    """Tokens of the smallest batch that sequence length, mesh and accumulation allow."""
    mesh = spec.execution.mesh
    return spec.data.seq_len * spec.execution.accumulate * mesh.data * mesh.fsdp


def whole_batch(tokens: float, *, base: RunSpec, power_of_two: bool = False) -> int:
    """The nearest realisable batch, at least one sequence; a power of two (in ratio) where told."""
    unit = quantum(base)
    times = max(1.0, tokens / unit)
    return unit * (2 ** round(math.log2(times)) if power_of_two else round(times))
