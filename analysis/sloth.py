"""What will the next model of a family score on every benchmark, from models of all families?

Sloth (Maia Polo et al. 2024, arXiv 2412.06540): a few latent skills lie behind all benchmarks. A
skill is affine in ln N, ln D and their product, with slopes that all families share and an
intercept of each family's own; a score is the rate of guessing plus a logistic of the skills. So
one model of a family is enough to predict its others. Differs from the paper: least squares on
scores instead of Huber's loss, and intervals from resampled models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.sloth_solve import SLOPES, Point, Scores, standard
from analysis.uncertainty import student_t
from parallelism.errors import InputError, nearest

STEPS, AGAIN = 300, 30  # of the solver, from the start and from the optimum


@dataclass(frozen=True, kw_only=True)
class SkillScores:
    """Scores of one model on B benchmarks; `skills` (K,) in units of their spread over models."""

    family: str
    N: float
    D: float
    mean: dict[str, float]
    lo: dict[str, float]
    hi: dict[str, float]
    skills: list[float]
    level: float
    in_domain: bool  # within a factor of ten of its family's compute

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Sloth:
    """Logits are base (B,) + z A loadings (B, K), z = family indicators and (u, v, u v) of
    u = ln N, v = ln D about their means. `slopes` (K, 3) are those of the three."""

    families: tuple[str, ...]
    benchmarks: tuple[str, ...]
    chance: np.ndarray
    centre: tuple[float, float]
    base: np.ndarray
    A: np.ndarray  # (F + 3, K)
    loadings: np.ndarray
    draws: tuple[Point, ...]  # base, A, loadings
    noise: np.ndarray  # (B,) sd of a model's score
    dof: int
    rows_MZ: np.ndarray  # the fitted models' z
    compute: Mapping[str, tuple[float, float]]  # N D of each family: least, most
    level: float
    stretch: float  # factor on intervals, from models held out
    seed: int

    @property
    def slopes(self) -> np.ndarray:
        return self.A[-SLOPES:].T

    def predict(self, family: str, *, N: float, D: float) -> SkillScores:
        """Scores of one new model of a family; raises InputError, also for a point that the
        models leave open (tokens that no family varies apart from its size)."""
        if family not in self.families:
            raise InputError("family", family, nearest(family, self.families))
        for name, value in (("N", N), ("D", D)):
            if not (np.isfinite(value) and value > 0):
                raise InputError(name, value, "write a positive number")
        z = design([family], [N], [D], self.families, self.centre)[0]
        known = np.linalg.pinv(self.rows_MZ) @ self.rows_MZ
        if np.abs(z @ known - z).max() > 1e-6 * np.abs(z).max():
            raise InputError(
                "N, D",
                f"{N:.3g}, {D:.3g}",
                "the models leave it open: give models whose tokens vary apart from their size",
            )
        mean = self._score(self.base, self.A, self.loadings, z)
        rng = np.random.default_rng(self.seed)
        drawn_SB = np.array([self._score(*draw, z) for draw in self.draws] or [mean])
        drawn_SB = np.repeat(drawn_SB, max(1, 2000 // len(drawn_SB)), axis=0)
        drawn_SB = drawn_SB + self.noise * rng.standard_normal(drawn_SB.shape)
        lo, hi = np.quantile(drawn_SB, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        # Student's t: the noise is estimated from as few models as there are
        wide = student_t(self.level, self.dof) / student_t(self.level, 10**6)
        least, most = self.compute[family]

        def named(values: np.ndarray) -> dict[str, float]:
            clipped = np.clip(values, 0, 1)
            return dict(zip(self.benchmarks, clipped.tolist(), strict=True))

        return SkillScores(
            family=family,
            N=float(N),
            D=float(D),
            mean=named(mean),
            lo=named(mean + self.stretch * wide * np.minimum(lo - mean, 0)),
            hi=named(mean + self.stretch * wide * np.maximum(hi - mean, 0)),
            skills=(z @ self.A).tolist(),
            level=self.level,
            in_domain=bool(least / 10 <= N * D <= most * 10),
        )

    def _score(
        self, base: np.ndarray, A: np.ndarray, loadings: np.ndarray, z: np.ndarray
    ) -> np.ndarray:
        eta = np.clip(base + z @ A @ loadings.T, -40, 40)
        return self.chance + (1 - self.chance) / (1 + np.exp(-eta))


@dataclass(frozen=True, kw_only=True)
class HeldOutModels:
    """The largest model of each family, predicted from all others, for each number of skills."""

    error: dict[int, float]  # mean absolute error of the scores
    best: int
    covered: int  # scores inside their interval at `best`
    asked: int
    stretch: float  # factor on intervals, 1 or more, with which they would hold `level` of them
    models: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def design(
    family: Any, N: Any, D: Any, families: Sequence[str], centre: tuple[float, float]
) -> np.ndarray:
    """(M, F + 3) indicators of the families, then u, v and u v."""
    u, v = np.log(N) - centre[0], np.log(D) - centre[1]
    own = np.array([[name == f for f in families] for name in family], float)
    return np.concatenate([own, np.stack([u, v, u * v], axis=1)], axis=1)


def fit_sloth(
    table: Any,
    *,
    N: Any,
    D: Any,
    family: Any,
    benchmarks: Sequence[str] | None = None,
    chance: Any = 0.0,
    skills: int = 3,
    bootstrap: int = 100,
    level: float = 0.95,
    stretch: float = 1.0,
    seed: int = 0,
) -> Sloth:
    """From (M, B) scores between `chance` (B,) and 1, NaN where not measured, of models of N
    parameters, D tokens and a family, each (M,). `stretch`: that of `held_out_largest`; without
    it intervals know nothing of the form's error. Raises InputError."""
    y_MB = np.array(table, float)
    if y_MB.ndim != 2 or np.isinf(y_MB).any():
        raise InputError("table", y_MB.shape, "give finite scores, a row a model; NaN for gaps")
    M, B = y_MB.shape
    sizes, tokens = np.asarray(N, float), np.asarray(D, float)
    names = np.asarray(family).astype(str)
    if not len(sizes) == len(tokens) == len(names) == M:
        raise InputError("table", M, "give N, D and family for every row")
    if not (np.isfinite(sizes) & (sizes > 0) & np.isfinite(tokens) & (tokens > 0)).all():
        raise InputError("N, D", "a value that is not positive", "give both of every model")
    low = np.broadcast_to(np.asarray(chance, float), (B,))
    if not ((low >= 0) & (low < 1)).all():
        raise InputError("chance", low.tolist(), "write rates of guessing from 0 to below 1")
    there = np.isfinite(y_MB)
    if (there.sum(0) < 2).any() or not there.any(1).all():
        raise InputError("table", "a benchmark or a model with hardly any score", "leave it out")
    labels = tuple(benchmarks or (f"benchmark {k}" for k in range(B)))
    if len(labels) != B:
        raise InputError("benchmarks", len(labels), f"give {B} names")
    families = tuple(sorted(set(names)))
    centre = (float(np.log(sizes).mean()), float(np.log(tokens).mean()))
    z_MZ = design(names, sizes, tokens, families, centre)
    free = int(np.linalg.matrix_rank(z_MZ)) - 1  # the constant is each benchmark's own
    if not 1 <= skills <= min(free, B):
        raise InputError("skills", skills, f"write 1 to {min(free, B)}")
    dof = int(there.sum()) - B - skills * (free + B - skills)
    if dof < 1:
        raise InputError("skills", skills, "ask for fewer, or give more models and benchmarks")

    problem = Scores(z_MZ, low, there)
    best = problem.solve(y_MB, problem.start(y_MB, skills), steps=STEPS)
    mean_MB = problem.scores(best)
    off_MB = np.where(there, y_MB - mean_MB, 0.0)
    # residuals of a fit are smaller than the noise by the parameters it has spent
    off_MB *= np.sqrt(there.sum() / dof)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(bootstrap):
        # one sign a model: what is odd about a model is odd on all its benchmarks
        sign = rng.choice([-1.0, 1.0], size=(M, 1))
        draws.append(problem.solve(mean_MB + sign * off_MB, best, steps=AGAIN))
    base, A, loadings = standard(problem, best)
    span = {
        f: (float((sizes * tokens)[names == f].min()), float((sizes * tokens)[names == f].max()))
        for f in families
    }
    return Sloth(
        families=families,
        benchmarks=labels,
        chance=low,
        centre=centre,
        base=base,
        A=A,
        loadings=loadings,
        draws=tuple(draws),
        noise=np.sqrt((off_MB**2).sum(0) / there.sum(0)),
        dof=dof,
        rows_MZ=z_MZ,
        compute=span,
        level=level,
        stretch=stretch,
        seed=seed,
    )


def held_out_largest(
    table: Any,
    *,
    N: Any,
    D: Any,
    family: Any,
    counts: Sequence[int] = (1, 2, 3),
    level: float = 0.95,
    **options: Any,
) -> HeldOutModels:
    """Leave out the model of most compute of every family that has two, predict it, for each
    number of skills; the fewest errors are the number to use. Raises InputError."""
    y_MB, names = np.array(table, float), np.asarray(family).astype(str)
    N_M, D_M = np.asarray(N, float), np.asarray(D, float)
    order = np.argsort(N_M * D_M)
    last = {names[i]: int(i) for i in order}
    held = np.array(sorted(i for f, i in last.items() if (names == f).sum() > 1), int)
    if not len(held):
        raise InputError("family", "one model in each", "give two models of at least one family")
    rest = np.setdiff1d(np.arange(len(names)), held)
    error: dict[int, float] = {}
    ratios: dict[int, list[float]] = {}  # of a miss to the half interval on its side
    for count in counts:
        made = fit_sloth(
            y_MB[rest],
            N=N_M[rest],
            D=D_M[rest],
            family=names[rest],
            skills=count,
            level=level,
            **options,
        )
        off, out = [], []
        for i in held:
            said = made.predict(str(names[i]), N=float(N_M[i]), D=float(D_M[i]))
            for k, name in enumerate(made.benchmarks):
                if np.isfinite(y_MB[i, k]):
                    miss = float(y_MB[i, k]) - said.mean[name]
                    end = said.hi[name] if miss > 0 else said.lo[name]
                    off.append(abs(miss))
                    out.append(abs(miss) / max(abs(end - said.mean[name]), 1e-12))
        error[count] = float(np.mean(off))
        ratios[count] = out
    best = min(error, key=lambda count: error[count])
    ratio = np.array(ratios[best])
    return HeldOutModels(
        error=error,
        best=best,
        covered=int((ratio <= 1).sum()),
        asked=len(ratio),
        stretch=max(1.0, float(np.quantile(ratio, level, method="higher"))),
        models=len(held),
    )
