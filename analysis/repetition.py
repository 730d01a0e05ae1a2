"""How many epochs, and how many unique tokens, does a run want?

Decisions from a fitted law in (N, D, U), whichever of the competing forms it is: D tokens are
read, U of them unique. `repeated` turns a law in D into one in (D, U), each repetition worth less
(Muennighoff et al. 2023, arXiv 2305.16264).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from analysis.coordinates import Coordinates, evaluate
from analysis.law import Law, Values, positive
from analysis.laws.repetition import ln_worth
from analysis.quantities import U
from parallelism.errors import InputError

GRID = 400  # points in log N, log D or log U: 3 % apart over five decades
EPOCHS = 1e4  # the most that are looked at


class Fitted(Protocol):
    """What a decision needs of a fit: its coordinates, its optimum, its draws."""

    @property
    def where(self) -> Coordinates: ...
    @property
    def theta_p(self) -> np.ndarray: ...
    @property
    def samples_Sp(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Range:
    """A number with the interval of the draws."""

    value: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Allocation:
    """The best N and D for a compute budget when U tokens are all there are."""

    N: Range
    D: Range
    epochs: Range
    loss: Range
    unlimited: Range  # the loss of the best N and D if every token were new
    at_edge: bool  # the least loss is at the end of what was searched

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@cache  # programs are compiled by the identity of their law
def repeated(law: Law) -> Law:
    """The same law over unique tokens U too: it sees D' = U + U R_D (1 - exp(-(D/U - 1)+ / R_D))
    where it saw D; raises InputError."""
    if "D" not in law.input_names or "U" in law.input_names:
        raise InputError("law", law.name, "name a law with D and without U among its inputs")
    if law.prepare is not None:
        raise InputError(
            "law", law.name, "it prepares arrays from D before D' is known: write U into it"
        )

    def predict(p: Values, x: Values) -> Any:
        ln_D = ln_worth(x["ln_D"], x["ln_U"], p["R_D"])
        return law.predict(p, {**x, "ln_D": ln_D, "D": jnp.exp(ln_D)})

    return replace(
        law,
        name=f"{law.name}_repeated",
        equation=f"{law.equation}, D -> U + U R_D (1 - exp(-(D/U - 1)+ / R_D))",
        source=f"{law.source}; repetition: Muennighoff et al. 2023, arXiv 2305.16264",
        inputs=(*law.inputs, U),
        params=(*law.params, positive("R_D", start=(2.0, 60.0), bound=(1e-2, 1e4))),
        predict=predict,
        falls_in=(*law.falls_in, "U") if "D" in law.falls_in else law.falls_in,
        published={},
        typical={**law.typical, "U": law.typical["D"]} if "D" in law.typical else {},
    )


def effective_tokens(*, D: Any, U: Any, R_D: float) -> np.ndarray:
    """What D tokens of which U are unique are worth in unique ones."""
    D, U = np.asarray(D, float), np.asarray(U, float)
    if not ((D > 0) & (U > 0)).all() or not R_D > 0:
        raise InputError("D, U, R_D", f"{D}, {U}, {R_D}", "write positive numbers")
    repeats = np.clip(D / U - 1, 0, None)
    return np.minimum(D, U) - np.minimum(D, U) * R_D * np.expm1(-repeats / R_D)


def allocate(
    fit: Fitted,
    *,
    flops: float,
    unique: float,
    flops_per_token: Callable[[np.ndarray], np.ndarray] = lambda N: 6 * N,
    level: float = 0.95,
) -> Allocation:
    """N and D of least predicted loss at `flops` with `unique` tokens; raises InputError.

    `flops_per_token(N)` is the family's; the interval of each is that of the draws' own optima.
    """
    three_inputs(fit)
    _positive(flops=flops, unique=unique)
    N = np.geomspace(*_sizes(flops), GRID)
    D = flops / flops_per_token(N)
    thetas = np.concatenate([fit.theta_p[None], fit.samples_Sp])
    loss = evaluate(fit.where, thetas, {"N": N, "D": D, "U": np.full(GRID, float(unique))})
    free = evaluate(fit.where, thetas, {"N": N, "D": D, "U": D})
    best, least = _vertex(np.log(N), loss)
    size = np.exp(best)
    tokens = flops / flops_per_token(size)
    return Allocation(
        N=_range(size, level),
        D=_range(tokens, level),
        epochs=_range(tokens / unique, level),
        loss=_range(least, level),
        unlimited=_range(_vertex(np.log(N), free)[1], level),
        at_edge=bool(loss[0].argmin() in (0, GRID - 1)),
    )


def unique_needed(
    fit: Fitted, *, N: float, D: float, within: float = 1e-3, level: float = 0.95
) -> dict[str, Range]:
    """The fewest unique tokens `U` with which D tokens at N parameters lose at most the fraction
    `within` against all-new tokens, and the `epochs` that are D / U."""
    three_inputs(fit)
    _positive(N=N, D=D, within=within)
    unique = D * np.geomspace(1 / EPOCHS, 1, GRID)
    thetas = np.concatenate([fit.theta_p[None], fit.samples_Sp])
    x = {"N": np.full(GRID, float(N)), "D": np.full(GRID, float(D)), "U": unique}
    excess = evaluate(fit.where, thetas, x)
    excess = excess / excess[:, -1:] - 1
    ln_U = np.array([_crossing(np.log(unique), row, within) for row in excess])
    return {"U": _range(np.exp(ln_U), level), "epochs": _range(D / np.exp(ln_U), level)}


def most_epochs(fit: Fitted, *, N: float, U: float, level: float = 0.95) -> Range | None:
    """Epochs over U tokens after which more of them raise the loss at N parameters; None where the
    law foresees no harm up to EPOCHS."""
    three_inputs(fit)
    _positive(N=N, U=U)
    epochs = np.geomspace(1, EPOCHS, GRID)
    thetas = np.concatenate([fit.theta_p[None], fit.samples_Sp])
    x = {"N": np.full(GRID, float(N)), "D": U * epochs, "U": np.full(GRID, float(U))}
    loss = evaluate(fit.where, thetas, x)
    if loss[0].argmin() == GRID - 1 or loss[0].min() > loss[0, -1] * (1 - 1e-12):
        return None  # the least loss is at the end, or the curve is flat from there on
    return _range(np.exp(_vertex(np.log(epochs), loss)[0]), level)


def _crossing(ln_U: np.ndarray, excess: np.ndarray, within: float) -> float:
    """ln U of the last point, from few to many, where the excess falls to `within`."""
    above = np.flatnonzero(excess > within)
    if not len(above):
        return float(ln_U[0])
    k = min(int(above[-1]), len(ln_U) - 2)
    share = (excess[k] - within) / (excess[k] - excess[k + 1])
    return float(ln_U[k] + share * (ln_U[k + 1] - ln_U[k]))


def _vertex(ln_x: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S,) where each row is least and how much, by the parabola through the least point and its
    neighbours."""
    rows = np.arange(len(loss))
    k = np.clip(loss.argmin(1), 1, len(ln_x) - 2)
    low, mid, high = loss[rows, k - 1], loss[rows, k], loss[rows, k + 1]
    bend = low - 2 * mid + high
    shift = np.where(bend > 0, 0.5 * (low - high) / np.where(bend > 0, bend, 1.0), 0.0)
    # at the edge of the search the vertex lies outside: the end itself is the answer
    shift = np.clip(shift, -1, 1)
    step = ln_x[1] - ln_x[0]
    return ln_x[k] + shift * step, mid - 0.25 * (low - high) * shift


def _range(values: np.ndarray, level: float) -> Range:
    """The fit (first) and the interval of the draws."""
    tail = (1 - level) / 2
    lo, hi = np.quantile(values[1:], [tail, 1 - tail])
    return Range(float(values[0]), float(lo), float(hi))


def _sizes(flops: float) -> tuple[float, float]:
    """Sizes worth looking at: 0.03 to 3e5 tokens a parameter."""
    middle = np.sqrt(flops / 6)
    return middle / np.sqrt(3e5), middle / np.sqrt(0.03)


def three_inputs(fit: Fitted) -> None:
    law = fit.where.law
    if set(law.input_names) != {"N", "D", "U"}:
        raise InputError(
            "law", law.name, "fit a law in N, D and U, such as repetition or repetition_bounded"
        )


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise InputError(name, value, "write a positive number")
