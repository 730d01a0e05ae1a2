"""How many tokens match a compute budget, and which sizes of a family belong to it?

Compute is FLOPs in a named convention (model/count.py). Tokens are whole batches and the achieved
compute lies within `TOLERANCE` of the target, or the budget is refused with the numbers that would
do. Sizes are log-spaced around the size whose tokens per parameter is the wanted one, taken from
the family's realisable widths; a width that another budget uses already is preferred when it lies
near, because each distinct shape is a compilation.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

from model import archs
from model.count import CONVENTIONS, Counts
from parallelism.errors import InputError, nearest
from train.counted import counted
from train.spec import RunSpec

TOLERANCE = 0.01
STEPS = (
    50  # whole steps always come within half a step of the target: 50 of them keep that under 1 %
)
SHARING = (
    1 / 9
)  # a shared width may lie a third of the grid's spacing farther off (squared, in spacings)


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture over its widths; `spec` is the run of a width before tokens and transfer."""

    arch: str
    widths: tuple[int, ...]
    spec: Callable[[int], RunSpec]

    def counts(self, width: int) -> Counts:
        spec = self.spec(width)
        return counted(spec)


def family(arch: str, spec: Callable[[int], RunSpec] | None = None) -> Family:
    """The named family with default run settings, or with the caller's `spec` of a width."""
    widths = tuple(archs.widths(arch))
    return Family(
        arch, widths, spec or (lambda width: RunSpec(model=archs.build(arch, width), seed=0))
    )


def check_convention(convention: str) -> str:
    if not isinstance(convention, str) or convention not in CONVENTIONS:
        raise InputError("convention", convention, nearest(str(convention), CONVENTIONS))
    return convention


def n_kind(convention: str) -> str:
    """Which parameters N counts beside this convention: Kaplan's leave embeddings out."""
    return "non_embedding" if convention == "six_nd_non_embedding" else "active"


def n_of(counts: Counts, convention: str) -> int:
    return counts.params[n_kind(convention)]


def whole_tokens(
    flops: float, *, flops_per_token: float, batch_tokens: int, unit: int, what: str
) -> int:
    """Tokens in whole batches, compute within 1 % of `flops`; `unit` is the smallest batch."""
    exact = flops / (flops_per_token * batch_tokens)
    steps = max(1, round(exact))
    if abs(steps / exact - 1) <= TOLERANCE:
        return steps * batch_tokens
    need = STEPS * batch_tokens * flops_per_token
    batch = int(exact * batch_tokens / STEPS) // unit * unit
    smaller = f"or budget.batch_tokens={batch}" if batch else "or a shorter data.seq_len"
    raise InputError(
        "budget",
        f"{flops:.4g} FLOPs is {exact:.3g} batches of {batch_tokens} tokens for {what}",
        f"whole batches miss it by more than 1 %; write at least {_up(need)} FLOPs, {smaller}",
    )


def sizes(
    family: Family,
    budgets: Sequence[float],
    *,
    convention: str,
    n: int,
    tokens_per_param: float,
    span: float,
) -> dict[float, list[int]]:
    """Budget (FLOPs) -> `n` widths, N log-spaced from centre/span to centre*span.

    The centre has D/N = tokens_per_param. Raises InputError when the family has no sizes so small,
    so large, or so dense.
    """
    reach = span if n > 1 else 1.0
    spacing = 2 * math.log(span) / (n - 1) if n > 1 else math.log(span)
    table = _Table(family, convention, tokens_per_param, largest=max(budgets), reach=reach)
    used: set[int] = set()
    out = {}
    for budget in sorted(budgets):
        centre = table.centre(budget, reach=reach)
        low = math.log(centre / reach)
        targets = [low + i * spacing for i in range(n)]
        chosen = table.assign(targets, spacing=spacing, used=used)
        if chosen is None:
            near = [
                f"{w} (N={table.n[w]:.3g})"
                for w in table.widths
                if 1 / span <= table.n[w] / centre <= span
            ]
            raise InputError(
                "sizes",
                f"{n} sizes within a factor {span:g} of N={centre:.3g} for the budget {budget:.4g}",
                f"the family {family.arch} has {len(near)} there: {', '.join(near) or 'none'}; "
                f"write fewer sizes, a larger span, or widths of your own",
            )
        used.update(chosen)
        out[budget] = chosen
    return {budget: out[budget] for budget in budgets}


class _Table:
    """Counts of the widths that a set of budgets can reach, and the choice among them."""

    def __init__(
        self,
        family: Family,
        convention: str,
        tokens_per_param: float,
        *,
        largest: float,
        reach: float,
    ):
        self.family, self.convention = family, convention
        self.n: dict[int, int] = {}
        self.flops_per_token: dict[int, float] = {}
        self.budget: dict[
            int, float
        ] = {}  # FLOPs at which a width has the wanted tokens per parameter
        end = math.inf
        for width in family.widths:
            counts = family.counts(width)
            n = n_of(counts, convention)
            if n <= max(self.n.values(), default=0):
                continue  # depth rounding can make a wider model no larger
            self.n[width] = n
            self.flops_per_token[width] = counts.flops_per_token[convention]
            self.budget[width] = tokens_per_param * n * self.flops_per_token[width]
            if self.budget[width] >= largest and end == math.inf:
                end = n * reach
            if n >= 2 * end:
                break
        self.widths = list(self.n)

    def centre(self, budget: float, *, reach: float) -> float:
        """N at which the budget buys the wanted tokens per parameter, by interpolation."""
        smallest, largest = self.widths[0], self.widths[-1]
        least = self._budget_at(self.n[smallest] * reach)
        if budget < least * (1 - 1e-9):
            raise InputError(
                "budget",
                f"{budget:.4g} FLOPs is too small for the family {self.family.arch}",
                f"its smallest size, width {smallest}, has N={self.n[smallest]}; "
                f"write at least {_up(least)} FLOPs, a smaller span, or fewer tokens_per_param",
            )
        most = self._budget_at(self.n[largest] / reach)
        if budget > most:
            raise InputError(
                "budget",
                f"{budget:.4g} FLOPs is too large for the family {self.family.arch}",
                f"its largest size, width {largest}, has N={self.n[largest]:.4g}; "
                f"write at most {most:.4g} FLOPs",
            )
        return math.exp(
            _interpolate(
                math.log(budget),
                [math.log(self.budget[w]) for w in self.widths],
                [math.log(self.n[w]) for w in self.widths],
            )
        )

    def _budget_at(self, n: float) -> float:
        return math.exp(
            _interpolate(
                math.log(n),
                [math.log(self.n[w]) for w in self.widths],
                [math.log(self.budget[w]) for w in self.widths],
            )
        )

    def assign(self, targets: list[float], *, spacing: float, used: set[int]) -> list[int] | None:
        """Distinct increasing widths, each within one spacing of its ln N target.

        By dynamic programming; a width costs its squared distance in spacings, plus SHARING where
        no other budget has it.
        """
        best: list[tuple[float, tuple[int, ...]] | None] = [None] * (len(targets) + 1)
        best[0] = (0.0, ())
        for width in self.widths:
            for i in range(len(targets), 0, -1):
                before = best[i - 1]
                distance = abs(math.log(self.n[width]) - targets[i - 1]) / spacing
                if before is None or distance > 1:
                    continue
                cost = before[0] + distance**2 + (0 if width in used else SHARING)
                now = best[i]
                if now is None or cost < now[0]:
                    best[i] = (cost, (*before[1], width))
        found = best[-1]
        return None if found is None else list(found[1])


def _interpolate(x: float, xs: list[float], ys: list[float]) -> float:
    """Piecewise linear through increasing xs, the end pieces carried on outside."""
    if len(xs) == 1:
        return ys[0]
    i = min(max(1, sum(known < x for known in xs)), len(xs) - 1)
    share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + share * (ys[i] - ys[i - 1])


def _up(value: float) -> str:
    """Three digits, rounded up, so that what the message says is enough."""
    scale = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / scale) * scale:.3g}"
