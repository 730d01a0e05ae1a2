"""What is fitted, as arrays? The used rows of some observations for one law, or why they cannot
fix it."""

from dataclasses import dataclass

import numpy as np

from analysis.budgets import Budgets, budgets
from analysis.law import Coordinates, Law, centred, evaluate
from analysis.observations import Observations
from parallelism.errors import InputError

COLLINEAR = 0.05  # inputs within 5 % of one line: the terms cannot be told apart


@dataclass(frozen=True)
class Problem:
    """M rows to fit: inputs `x` (M,) each, log losses `y` (M,), and what says which rows belong
    together."""

    where: Coordinates
    x: dict[str, np.ndarray]
    y: np.ndarray
    C: np.ndarray | None
    levels: Budgets
    ids: np.ndarray
    cluster: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.y)

    @property
    def parameters(self) -> int:
        return len(self.where.law.params)

    @property
    def points(self) -> np.ndarray:
        """(M, I) log inputs."""
        return np.stack([np.log(v) for v in self.x.values()], axis=1)

    @property
    def stratum(self) -> np.ndarray:
        """(M,) rows of one stratum are resampled among themselves: a budget, or all where there
        are none."""
        return np.zeros(self.rows, int) if self.levels.are_bands else self.levels.label_M

    def fitted(self, theta_p: np.ndarray) -> np.ndarray:
        """(M,) log losses of one parameter set."""
        return np.log(evaluate(self.where, theta_p, self.x)[0])


def pose(observations: Observations, law: Law) -> Problem:
    """The used rows as a problem; raises InputError when they cannot fix the law, and says what
    would."""
    x = {name: observations.values(name) for name in law.input_names}
    loss = observations.values("loss")
    C = observations.values("C") if "C" in observations.columns else None
    points = np.stack([np.log(v) for v in x.values()], axis=1)
    source, p = observations.source, len(law.params)
    if few := too_few(points, p):
        left = len(observations.id) - len(points)
        raise InputError(
            source,
            f"{few} usable points ({left} rows excluded) for {p} parameters of {law.name}",
            f"give at least {p + 1} runs of different sizes or lengths",
        )
    levels = budgets(C) if C is not None else Budgets(np.zeros(len(loss), int), np.ones(1), True)
    if points.shape[1] > 1:
        if C is not None and levels.count == 1:
            raise InputError(
                source,
                f"one compute budget only ({levels.flops[0]:.3g} FLOPs)",
                "add runs of at least one other budget, a factor of 3 away: along one"
                " budget N and D"
                " move together",
            )
        if (off := off_line(points)) < COLLINEAR:
            names = " and ".join(law.input_names)
            raise InputError(
                source,
                f"{names} lie on one line (they leave it by {off:.1%})",
                f"add runs with another ratio of {names}, at least a factor of 2 to each side",
            )
    used = observations.used
    return Problem(
        centred(law, x, loss),
        x,
        np.log(loss),
        C,
        levels,
        np.array(observations.id)[used],
        np.array(observations.cluster)[used],
    )


def too_few(points: np.ndarray, parameters: int) -> str | None:
    """How many distinct points there are, when that is not more than the parameters."""
    distinct = len(np.unique(points, axis=0)) if len(points) else 0
    return str(distinct) if distinct <= parameters else None


def off_line(points: np.ndarray) -> float:
    """How far (M, I) log inputs spread in their narrowest direction."""
    spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
    return float(spread[-1] / np.sqrt(len(points)))
