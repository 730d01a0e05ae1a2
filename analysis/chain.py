"""What score will a run reach, and how sure is that? Two fitted steps in a row: the task's loss
from size and data, the score from the task's loss.

Runs are resampled once for both steps, so what a run's seed does to its loss and to its score
stays together, and the interval holds the doubt of both steps: statistics, noise, and the error of
form that runs held out from the far end showed. An interval of the second step
alone, at a loss taken as known, is too narrow by the slope times the doubt of the loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.chain_form import SCORE_PRIOR, StepForm, step_form
from analysis.coordinates import evaluate
from analysis.prior import belief
from analysis.problem import Problem
from analysis.search import noise_about, regularised, search
from analysis.solve import solve
from analysis.uncertainty import FORM_PRIOR, statistical_sd, student_t
from parallelism.errors import InputError

REDRAWS = 100


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score at one point, with the loss on the way to it; sds in units of the score."""

    at: dict[str, float]
    mean: float
    lo: float
    hi: float
    level: float
    loss: float
    loss_lo: float
    loss_hi: float
    # first, second (each step's statistics alone), form, second_form (errors of form), noise
    sd: dict[str, float]
    outside: list[str]  # what leaves the data of its step

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        at = ", ".join(f"{k} {v:.4g}" for k, v in self.at.items())
        lines = [
            f"{at}: {self.mean:.4f} [{self.lo:.4f}, {self.hi:.4f}] ({self.level:.0%} interval)"
            f" through a loss of {self.loss:.4f} [{self.loss_lo:.4f}, {self.loss_hi:.4f}]",
            "sd: " + ", ".join(f"{k} {v:.4f}" for k, v in self.sd.items()),
        ]
        return "\n".join(lines + [f"outside the data: {o}" for o in self.outside])


@dataclass(frozen=True, kw_only=True)
class Step:
    """One fitted step: its rows, optimum (p,), draws (S, p) and noise on the output's scale."""

    rows: Problem
    theta: np.ndarray
    samples_Sp: np.ndarray
    noise: float
    delta: float

    @property
    def params(self) -> dict[str, float]:
        return {k: float(v) for k, v in self.rows.where.natural(self.theta).items()}

    def outputs(self, thetas_Sp: np.ndarray, x: Mapping[str, Any]) -> np.ndarray:
        """(S, Q) outputs of draws at points."""
        return evaluate(self.rows.where, thetas_Sp, x)


@dataclass(frozen=True, kw_only=True)
class Chained:
    """Both steps with their joint draws: row s of each is one resample of the runs."""

    first: Step
    second: Step
    kind: str  # pairs, or wild where runs are too few to leave any out
    runs: int
    redrawn: int
    form: StepForm  # of the loss on its scale, per e-fold of compute
    second_form: StepForm  # of the score, per e-fold of the loss beyond the second step's rows
    level: float
    seed: int

    def predict(self, at: Mapping[str, float]) -> Score:
        """The score of one new run at the inputs of the first step; raises InputError."""
        wanted = self.first.rows.law.input_names
        for name in wanted:
            if not (np.isfinite(at.get(name, np.nan)) and at[name] > 0):
                raise InputError("at", dict(at), f"write a positive value for {name}")
        x = {name: np.array([at[name]]) for name in wanted}
        rng = np.random.default_rng(self.seed)
        first, second = self.first, self.second
        of_loss = first.rows.law.output

        def score(theta_Sp: np.ndarray, losses: np.ndarray) -> np.ndarray:
            """(S,) scores; one parameter set a loss, or one of either for all."""
            name = second.rows.law.input_names[0]
            if len(theta_Sp) == 1:
                return second.outputs(theta_Sp, {name: losses})[0]
            if len(losses) == 1:
                return second.outputs(theta_Sp, {name: losses})[:, 0]
            # each draw of the second step at its own loss: the diagonal, in blocks
            out = np.empty(len(theta_Sp))
            for i in range(0, len(out), 64):
                block = slice(i, i + 64)
                out[block] = np.diag(second.outputs(theta_Sp[block], {name: losses[block]}))
            return out

        best = first.outputs(first.theta[None], x)[0]
        mean = float(score(second.theta[None], best)[0])
        losses_S = first.outputs(first.samples_Sp, x)[:, 0]
        S = len(losses_S)
        beyond = self._e_folds(x)
        wrong_S = self.form.form * beyond * rng.standard_normal(S)
        noise_S = first.noise * rng.standard_normal(S)

        def moved(losses: np.ndarray, by: np.ndarray) -> np.ndarray:
            return of_loss.inverse(of_loss.forward(losses, log=np.log) + by)

        meant_S = moved(losses_S, wrong_S)
        seen_S = moved(meant_S, noise_S)
        off_S = second.noise * rng.standard_normal(S)
        # the score's law is wrong by more, the farther the loss leaves what it was fitted on
        bent_S = rng.standard_normal(S)
        drawn_S = score(second.samples_Sp, seen_S) + off_S + self._bent(meant_S) * bent_S
        one = second.theta[None]
        sd = {
            "first": statistical_sd(score(one, losses_S)),
            "second": statistical_sd(score(second.samples_Sp, best)),
            "form": statistical_sd(score(one, moved(np.broadcast_to(best, S), wrong_S))),
            "second_form": statistical_sd(self._bent(np.broadcast_to(best, S)) * bent_S),
            "noise": statistical_sd(score(one, moved(np.broadcast_to(best, S), noise_S)) + off_S),
        }
        kind = second.rows.law.output
        lo, hi = np.clip(self._interval(drawn_S, mean, first.rows), kind.low, kind.high)
        loss_lo, loss_hi = self._interval(seen_S, float(best[0]), first.rows)
        return Score(
            at={name: float(at[name]) for name in wanted},
            mean=mean,
            lo=float(lo),
            hi=float(hi),
            level=self.level,
            loss=float(best[0]),
            loss_lo=loss_lo,
            loss_hi=loss_hi,
            sd={name: float(value) for name, value in sd.items()},
            outside=self._outside(at, float(best[0])),
        )

    def _interval(self, draws_S: np.ndarray, mean: float, rows: Problem) -> tuple[float, float]:
        """Quantiles of the draws, stretched about the mean as Student's t is wider than the
        normal: the noise is estimated from few rows."""
        stretch = student_t(self.level, max(1, rows.rows - rows.parameters)) / student_t(
            self.level, 10**6
        )
        low, high = np.nanquantile(draws_S, [(1 - self.level) / 2, (1 + self.level) / 2])
        ends = mean + stretch * (low - mean), mean + stretch * (high - mean)
        return float(min(ends[0], mean)), float(max(ends[1], mean))

    def _bent(self, losses_S: np.ndarray) -> np.ndarray:
        """(S,) sd of the score's error of form at losses."""
        seen = np.log(np.asarray(self.second.rows.x[self.second.rows.law.input_names[0]]))
        at = np.log(np.maximum(losses_S, 1e-12))
        return self.second_form.form * np.maximum(0.0, np.maximum(seen.min() - at, at - seen.max()))

    def _e_folds(self, x: Mapping[str, np.ndarray]) -> float:
        """How far the point is beyond the rows of the first step, in e-folds of all its log
        inputs together (compute, for N and D)."""
        logs = [i.name for i in self.first.rows.law.inputs if i.scale == "log"]
        there = float(sum(np.log(x[name][0]) for name in logs))
        return max(0.0, there - float(_log_compute(self.first.rows).max()))

    def _outside(self, at: Mapping[str, float], loss: float) -> list[str]:
        out = []
        losses = np.asarray(self.second.rows.x[self.second.rows.law.input_names[0]])
        if not losses.min() <= loss <= losses.max():
            out.append(f"loss {loss:.3g} against {losses.min():.3g} to {losses.max():.3g}")
        if {"N", "D"} <= set(at):
            ratio = self.first.rows.x["D"] / self.first.rows.x["N"]
            value = at["D"] / at["N"]
            if not ratio.min() / 2 <= value <= ratio.max() * 2:
                out.append(f"D/N {value:.3g} against {ratio.min():.3g} to {ratio.max():.3g}")
        return out


def chain(
    first: Problem,
    second: Problem,
    *,
    bootstrap: int = 400,
    starts: int = 64,
    form: float | None = None,
    second_form: float | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Chained:
    """Fit both steps and resample their runs together.

    `first` and `second` come from `analysis.arrays.rows` or `analysis.problem.pose`; a run has one
    cluster label in both. The first predicts what the second takes. `form`: error of form of the
    loss per e-fold of compute, `second_form`: of the score per e-fold of the loss, instead of
    those that runs held out show. Raises InputError.
    """
    wants, gives = second.law.input_names, first.law.output.name
    if len(wants) != 1 or wants[0] != gives:
        raise InputError(
            "steps",
            f"{first.law.name} gives {gives}, {second.law.name} takes {', '.join(wants)}",
            f"choose a second step that takes {gives}",
        )
    if bootstrap < 20:
        raise InputError("bootstrap", bootstrap, "write at least 20 resamples, 400 for a report")
    runs, inverse = np.unique(np.concatenate([first.cluster, second.cluster]), return_inverse=True)
    which = np.split(inverse.ravel(), [first.rows])
    shared = set(which[0]) & set(which[1])
    if not shared:
        raise InputError(
            "steps",
            f"{first.cluster[0]} in the first, {second.cluster[0]} in the second",
            "label rows of one run alike in both steps: they are resampled together",
        )
    fitted = [_fitted(p, starts=starts, seed=seed) for p in (first, second)]
    rng = np.random.default_rng(seed)
    pairs = len(set(which[0])) >= 3 * first.parameters
    samples, redrawn = [], 0
    times_SR = np.ones((bootstrap, len(runs)))
    signs_SR = rng.choice([-1.0, 1.0], size=times_SR.shape)
    if pairs:
        times_SR, redrawn = _draw_runs(rng, which, (first, second), len(runs), bootstrap)
    for problem, w, (theta, delta, noise) in zip((first, second), which, fitted, strict=True):
        y_SM = problem.y
        if not pairs:
            mean = problem.fitted(theta)
            # residuals of a fit are smaller than the noise by the parameters it has spent
            scale = np.sqrt(problem.rows / max(1, problem.rows - problem.parameters))
            y_SM = mean + scale * signs_SR[:, w] * (problem.y - mean)
        weights_SM = times_SR[:, w] * problem.weight
        found = solve(
            problem.where,
            problem.x,
            y=y_SM,
            weights=weights_SM,
            starts_Pp=np.broadcast_to(theta, (bootstrap, len(theta))),
            delta=delta,
            prior=belief(problem.where, noise=noise),
        )
        samples.append(found.theta_Pp)
    steps = [
        Step(rows=p, theta=theta, samples_Sp=s, noise=noise.sd, delta=delta)
        for p, (theta, delta, noise), s in zip((first, second), fitted, samples, strict=True)
    ]
    far = (_log_compute(first), -np.log(np.asarray(second.x[wants[0]])))
    forms = [
        StepForm(form=given, folds=[])
        if given is not None
        else step_form(p, f, theta=theta, delta=delta, noise=noise, prior=prior, seed=seed)
        for p, f, given, prior, (theta, delta, noise) in zip(
            (first, second),
            far,
            (form, second_form),
            (FORM_PRIOR, SCORE_PRIOR),
            fitted,
            strict=True,
        )
    ]
    return Chained(
        first=steps[0],
        second=steps[1],
        kind="pairs" if pairs else "wild",
        runs=len(runs),
        redrawn=redrawn,
        form=forms[0],
        second_form=forms[1],
        level=level,
        seed=seed,
    )


def _log_compute(rows: Problem) -> np.ndarray:
    """(M,) sum of the logs of a step's inputs on a log scale: compute, for N and D."""
    logs = [i.name for i in rows.law.inputs if i.scale == "log"]
    return np.sum([np.log(np.asarray(rows.x[name])) for name in logs], axis=0)


def _fitted(problem: Problem, *, starts: int, seed: int) -> tuple[np.ndarray, float, Any]:
    """The optimum under the weak prior (an asymptote that no row reaches is left open by the data
    alone), the delta of its Huber loss, and the noise."""
    found, delta, _ = search(problem, problem.law.name, huber=None, starts=starts, seed=seed)
    best = found.theta_Pp[found.objective_P.argmin()]
    noise = noise_about(problem, best)
    return regularised(problem, best, delta=delta, noise=noise), delta, noise


def _draw_runs(
    rng: np.random.Generator,
    which: Sequence[np.ndarray],
    problems: Sequence[Problem],
    runs: int,
    count: int,
) -> tuple[np.ndarray, int]:
    """(S, R) times each run is drawn, and how many draws were thrown away because a step had no
    more distinct points than parameters."""
    times_SR = rng.multinomial(runs, np.full(runs, 1 / runs), count)
    redrawn = 0
    for _ in range(REDRAWS):
        bad = np.zeros(count, bool)
        for w, problem in zip(which, problems, strict=True):
            _, point = np.unique(problem.points, axis=0, return_inverse=True)
            seen_SP = np.zeros((count, int(point.max()) + 1), bool)
            s, row = np.nonzero(times_SR[:, w])
            seen_SP[s, point.ravel()[row]] = True
            bad |= seen_SP.sum(1) <= problem.parameters
        if not bad.any():
            break
        redrawn += int(bad.sum())
        times_SR[bad] = rng.multinomial(runs, np.full(runs, 1 / runs), int(bad.sum()))
    return times_SR, redrawn
