"""Can the checkpoints of a run be scaling data? Once flagged, corrected to "as if annealed", and
kept together as one run.

A checkpoint in mid-schedule has a higher loss than a run that ended there, so pooled as it is it
bends a law of final losses. A fitted law of learning curves says by how much: the loss is
multiplied by the predicted loss of a run annealed over that length, over the predicted loss of the
run as it was. Checkpoints of one run share its seed: they are one cluster.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis import tables, tags
from analysis.artefact import FAILED, Fit
from analysis.coordinates import evaluate
from analysis.curve_features import reader_of, seen_at_ends
from analysis.observations import Observations
from analysis.schedules import History, cosine, linear, logged, of_spec, wsd
from analysis.units import NATS, UNSTATED
from parallelism.errors import InputError, nearest
from train.record import Run, read_runs

WARM_UP = "inside the warm-up"
EARLY = "in the first 10 % of its tokens"
NOT_ANNEALED = "not annealed"
CORRECTED = "corrected to as if annealed"
EARLY_PART = 0.1  # laws.md section 3, and the advice of the Hitchhiker's guide
# A checkpoint is annealed when its rate is low, and will not fall further in its run. Guesses:
ANNEALED_RATE = 0.15  # of the peak: cosine to a tenth has ended
STILL = 1.01  # times the run's last rate

NEEDED = ("run", "step", "lr", "loss")


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """M checkpoints of several runs; `flags` says what speaks against each, none drops it."""

    source: str
    run: tuple[str, ...]  # names, in the order of their codes
    curve: np.ndarray  # (M,) codes of runs
    step: np.ndarray
    lr: np.ndarray
    loss: np.ndarray
    N: np.ndarray  # NaN where unknown
    D: np.ndarray  # tokens so far; NaN where unknown
    flags: tuple[tuple[str, ...], ...]
    histories: Mapping[float, History]  # by code
    unit: str

    def observations(self, *, exclude: Sequence[str] = (WARM_UP, EARLY)) -> Observations:
        """As rows for a fit, clustered by run. Rows with an excluded flag stay, with the reason."""
        for flag in exclude:
            if flag not in (WARM_UP, EARLY, NOT_ANNEALED):
                raise InputError("exclude", flag, nearest(flag, (WARM_UP, EARLY, NOT_ANNEALED)))
        reason: list[str | None] = []
        for i, flags in enumerate(self.flags):
            against = [f for f in flags if f in exclude or f not in (NOT_ANNEALED, WARM_UP, EARLY)]
            against = [f for f in against if f != CORRECTED]
            reason.append(_wrong(self.loss[i]) or (against[0] if against else None))
        known = {"N": self.N, "D": self.D, "C": 6 * self.N * self.D}
        names = [self.run[int(code)] for code in self.curve]
        return Observations(
            source=self.source,
            id=tuple(f"{name}@{step:g}" for name, step in zip(names, self.step, strict=True)),
            columns={
                **{k: v for k, v in known.items() if np.isfinite(v).all()},
                "step": self.step,
                "lr": self.lr,
                "curve": self.curve,
                "loss": self.loss,
            },
            cluster=tuple(names),
            seed=(None,) * len(names),
            reason=tuple(reason),
            conventions={"C": "six_nd", "loss_unit": self.unit},
            rows=tuple(
                {"run": n, "flags": list(f)} for n, f in zip(names, self.flags, strict=True)
            ),
            labels={"curve": self.run},
        )

    def as_if_annealed(
        self,
        fit: Fit,
        *,
        shape: str = "cosine",
        final: float = 0.0,
        decay: float = 0.2,
        **inputs: float,
    ) -> "Checkpoints":
        """Every un-annealed checkpoint as the end of a run of its own length, annealed.

        `fit`: of a law of learning curves. `shape`: cosine, linear or wsd over that length, to
        `final` of the peak; `decay`: the part of the length over which wsd decays. The warm-up is
        the run's own. Raises InputError.
        """
        if fit.status == FAILED:
            raise InputError("fit.json", "status FAILED", "fit again: this optimum is unconfirmed")
        if not (0 <= final < 1 and 0 < decay <= 1):
            raise InputError("final, decay", (final, decay), "write fractions of the peak, the run")
        law, target = fit.where.law, _target(shape, final=final, decay=decay)
        reader_of(law)
        rows = [i for i, flags in enumerate(self.flags) if _to_correct(flags)]
        if not rows:
            return self
        columns = {"N": self.N[rows]} | {k: np.full(len(rows), v) for k, v in inputs.items()}
        for name in set(law.input_names) - {"step", "lr", "curve"}:
            if name not in columns or not np.isfinite(columns[name]).all():
                raise InputError(name, "unknown", f"map {name}, an input of {law.name}")
        was, ended = [], []
        for i in rows:
            history = self.histories[float(self.curve[i])]
            was.append(history.until(int(self.step[i])))
            ended.append(target(was[-1]))
        ratio = (
            evaluate(fit.where, fit.theta_p, seen_at_ends(law, ended, **columns))[0]
            / evaluate(fit.where, fit.theta_p, seen_at_ends(law, was, **columns))[0]
        )
        loss, flags = self.loss.copy(), list(self.flags)
        loss[rows] *= ratio
        for i in rows:
            flags[i] = (*(f for f in flags[i] if f != NOT_ANNEALED), CORRECTED)
        return dataclasses.replace(self, loss=loss, flags=tuple(flags))


def checkpoints(
    source: str | Path, *, columns: Mapping[str, str] | None = None, loss: str = "loss/val"
) -> Checkpoints:
    """The checkpoints of a runs folder (rows of each metrics.jsonl that have `loss`) or of a file.

    `columns` maps run, step, lr, loss, and perhaps N and D, to columns of a file. Raises
    InputError.
    """
    if Path(source).is_dir():
        return _of_runs(source, loss)
    table = tables.read(source)
    names = {k: (columns or {}).get(k, k) for k in (*NEEDED, "N", "D")}
    for name in NEEDED:
        if names[name] not in table.columns:
            raise InputError(
                f"{source}: {name}", f"no column {names[name]}", f"map it: {name}=column"
            )
    cells = {k: table.column(c) for k, c in names.items()}
    named = [str(cells["run"].text(i)) for i in range(len(cells["run"]))]
    runs = tuple(dict.fromkeys(named))
    code = {name: float(i) for i, name in enumerate(runs)}
    number = {k: v.number_M for k, v in cells.items() if k != "run"}
    curve = np.array([code[name] for name in named])
    for name in ("step", "lr"):
        bad = np.flatnonzero(~(np.isfinite(number[name]) & (number[name] >= 0)))
        if len(bad):
            given = cells[name][int(bad[0])]
            raise InputError(f"{source}: {name}", given, f"mend row {bad[0] + 1}: a number >= 0")
    histories = {
        c: logged(number["step"][curve == c], number["lr"][curve == c]) for c in code.values()
    }
    return _flagged(str(source), runs, curve, number, histories, unit=UNSTATED, ended={}, bad={})


def refuse_iid(observations: Observations) -> None:
    """Raise InputError where rows of one run would be resampled as if they were independent: their
    intervals would be too narrow by about the root of their number."""
    if "curve" not in observations.columns:
        return
    used = observations.used
    curve = observations.columns["curve"][used]
    cluster = np.array(observations.cluster)[used]
    runs = np.unique(curve)
    split = [c for c in runs if len(np.unique(cluster[curve == c])) > 1]
    if split:
        raise InputError(
            "--cluster",
            f"{len(curve)} checkpoints of {len(runs)} runs as independent rows",
            "name the column of runs with --cluster: checkpoints of a run are one cluster",
        )


def _of_runs(root: str | Path, loss: str) -> Checkpoints:
    """Rows of every run's ledger; the rates from its spec."""
    cells: dict[str, list[float]] = {k: [] for k in ("step", "loss", "N", "D", "curve", "lr")}
    names: list[str] = []
    histories: dict[float, History] = {}
    ended: dict[float, float] = {}
    bad: dict[float, str] = {}
    units: set[str] = set()
    for run in read_runs(root):
        rows = [row for row in run.metrics() if loss in row]
        if not rows:
            continue
        code = float(len(names))
        names.append(run.run_id)
        units.add(str(run.counts.get("loss_unit", NATS)))  # all there was before runs said it
        histories[code] = of_spec(run.spec)
        if run.status != "done":
            bad[code] = run.status
        for row in rows:
            cells["step"].append(float(row["step"]))
            cells["loss"].append(_number(row[loss]))
            cells["D"].append(_number(row.get("tokens")))
            cells["N"].append(_number(_size(run)))
            cells["curve"].append(code)
            cells["lr"].append(float(histories[code].at(row["step"])))
        ended[code] = float(histories[code].steps)
    if not names:
        raise InputError(str(root), f"no run has logged {loss}", "name another loss, as loss/train")
    number = {k: np.array(v) for k, v in cells.items()}
    unit = tags.unit_of_runs(loss, units, source=str(root))
    return _flagged(
        str(root), tuple(names), number["curve"], number, histories, unit=unit, ended=ended, bad=bad
    )


def _flagged(
    source: str,
    runs: tuple[str, ...],
    curve: np.ndarray,
    number: Mapping[str, np.ndarray],
    histories: Mapping[float, History],
    *,
    unit: str,
    ended: Mapping[float, float],
    bad: Mapping[float, str],
) -> Checkpoints:
    """With what speaks against each row; `ended`: the steps that were planned, where known."""
    flags: list[tuple[str, ...]] = []
    for code, step, lr in zip(curve, number["step"], number["lr"], strict=True):
        history = histories[float(code)]
        last = ended.get(float(code), float(history.steps))
        said = [bad[float(code)]] if float(code) in bad else []
        if step < history.peak * history.stride:
            said.append(WARM_UP)
        if step < EARLY_PART * last:
            said.append(EARLY)
        if lr > ANNEALED_RATE * history.lr.max() or lr > STILL * history.lr[-1]:
            said.append(NOT_ANNEALED)
        flags.append(tuple(said))
    return Checkpoints(
        source=source,
        run=runs,
        curve=curve,
        step=number["step"],
        lr=number["lr"],
        loss=number["loss"],
        N=number["N"],
        D=number["D"],
        flags=tuple(flags),
        histories=histories,
        unit=unit,
    )


def _target(shape: str, *, final: float, decay: float) -> Callable[[History], History]:
    """The annealed run of a history's length, peak and warm-up."""
    shapes = ("cosine", "linear", "wsd")
    if shape not in shapes:
        raise InputError("shape", shape, nearest(shape, shapes))

    def of(history: History) -> History:
        peak, steps = float(history.lr.max()), history.steps
        # a shape reaches its peak at the last step of its warm-up
        warmup = min(history.peak * history.stride + 1, steps - 1) if history.peak else 0
        low = final * peak
        if shape == "cosine":
            return cosine(steps, peak=peak, final=low, warmup=warmup)
        if shape == "linear":
            return linear(steps, peak=peak, final=low, warmup=warmup)
        start = int(np.clip(round((1 - decay) * steps), warmup, steps - 1))
        return wsd(steps, peak=peak, final=low, warmup=warmup, decay_from=start)

    return of


def _to_correct(flags: Sequence[str]) -> bool:
    """In warm-up there is no run to speak of, and in the first tenth the laws do not hold."""
    return NOT_ANNEALED in flags and WARM_UP not in flags and EARLY not in flags


def _wrong(loss: float) -> str | None:
    if not np.isfinite(loss):
        return "loss: missing" if np.isnan(loss) else f"loss: not finite ({loss})"
    return None if loss > 0 else f"loss: not positive ({loss:g})"


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    return float(value)


def _size(run: Run) -> Any:
    params = run.counts.get("params")
    return params.get("total") if isinstance(params, dict) else None
