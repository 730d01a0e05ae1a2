"""What is the answer to "which run for this budget"? Its numbers, their intervals, and how they
read."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from analysis.devices import said

KNOWN = 100.0  # an interval of N wider than this factor is no statement about N


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """N and D for a budget. Each of N, D, loss, ratio has value, lo, hi at `level`.

    `N`, `D`, `loss` are the optimum of the fit; `chosen` is the run to train: the size of least
    expected regret, with inference demand that of least training and inference, or one decided
    elsewhere. FLOPs are by
    the fit's convention.
    """

    flops: float
    N: dict[str, float]
    D: dict[str, float]
    loss: dict[str, float]
    ratio: dict[str, float]  # tokens per parameter
    known: bool  # the interval of N spans at most KNOWN
    chosen: dict[str, Any]  # N, D, loss {value, lo, hi}, rule
    flat: dict[str, float]  # sizes within 0.1 % of the optimum's loss: N_lo, N_hi
    regret: dict[str, float]  # the size of least regret: expected, upper; those of the optimum
    inference: dict[str, float] | None
    data: dict[str, Any] | None  # unique tokens, epochs
    devices: dict[str, Any] | None
    fixed: dict[str, float]  # the law's other inputs
    tokens_per_parameter: float
    level: float
    extrapolation: float
    convention: str
    flops_per_token_origin: str
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def text(self) -> str:
        held = "".join(f", {name} {value:.4g}" for name, value in self.fixed.items())
        lines = [
            f"{self.flops:.4g} FLOPs ({self.convention}; {self.flops_per_token_origin}){held},"
            f" {self.extrapolation:.3g} times the largest fitted",
            self._line("N", self.N),
            self._line("D", self.D),
            self._line("D/N", self.ratio),
            self._line("loss", self.loss, always=True),
            f"flat: N from {self.flat['N_lo']:.3g} to {self.flat['N_hi']:.3g} costs at"
            " most 0.1 % of loss",
            f"least regret: N {self.regret['N']:.4g}, D {self.regret['D']:.4g}"
            f" (expected {self.regret['expected']:.3%} of loss, {self.level:.0%} below"
            f" {self.regret['upper']:.3%}; the optimum's {self.regret['of_optimum']:.3%} and"
            f" {self.regret['upper_of_optimum']:.3%})",
        ]
        lines += self._demand() + self._epochs()
        c = self.chosen
        lines.append(
            f"train N {c['N']:.4g} on D {c['D']:.4g} ({c['rule']}): loss {c['loss']['value']:.4f}"
            f" [{c['loss']['lo']:.4f}, {c['loss']['hi']:.4f}]"
        )
        if self.devices is not None:
            lines.append(said(self.devices))
        return "\n".join(lines + [f"warning: {w}" for w in self.warnings])

    def _line(self, name: str, q: dict[str, float], *, always: bool = False) -> str:
        if always or self.known:
            return f"{name:<5} {q['value']:.4g} [{q['lo']:.4g}, {q['hi']:.4g}]"
        return f"{name:<5} not fixed by the data: between {q['lo']:.3g} and {q['hi']:.3g}"

    def _demand(self) -> list[str]:
        if self.inference is None:
            return []
        i = self.inference
        return [
            f"with {i['tokens']:.3g} inference tokens: N {i['N']:.4g}"
            f" [{i['N_lo']:.3g}, {i['N_hi']:.3g}], D {i['D']:.4g} [{i['D_lo']:.3g},"
            f" {i['D_hi']:.3g}], the same loss for {i['saving']:.1%} less in all, training"
            f" {i['train_flops'] / self.flops:.3g} times the budget"
        ]

    def _epochs(self) -> list[str]:
        if self.data is None:
            return []
        needed = self.data.get("needed")
        said = f"{self.data['epochs']:.3g} epochs over {self.data['unique']:.3g} unique tokens"
        if needed is not None:
            said += (
                f"; {needed['value']:.3g} [{needed['lo']:.3g}, {needed['hi']:.3g}] of them cost at"
                " most 0.1 % of loss against all new"
            )
        return [said]
