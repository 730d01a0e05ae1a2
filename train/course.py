"""How does one run get from its last checkpoint to its end, whoever makes its steps? Its data, its
record, its checkpoints, and how far it is.

A `Course` is made, begun, read at log points, saved and ended; `train/loop.py` takes one of them
through its steps, `train/stack.py` several at once.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from parallelism.errors import InputError
from train.batches import HeldOut, held_out, training
from train.checkpoint import Checkpoints
from train.counted import counted
from train.data.pipeline import Data, open_data
from train.environment import environment
from train.objectives import Arrays
from train.programs import Compilation, Programs, devices
from train.record import DIVERGED, DONE, Ledger, RunDir
from train.recycle import frozen
from train.spec import FORMAT as SPEC_FORMAT
from train.spec import ExecutionSpec, RunSpec, to_dict
from train.spread import spread
from train.start import first_state, origin
from train.step import State, abstract_state
from train.tracker import Mirror, Silent, open_tracker

# A window's mean loss this far above a guess without looking at the input, after the warm-up, is an
# explosion (guess: no healthy run of any size is worse than not looking).
EXPLODED = 1.25


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run is, for whoever shows it."""

    run_id: str
    phase: str  # compile, train, evaluate
    step: int
    steps: int
    tokens: int
    loss: float | None = None
    tokens_per_second: float | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: done, diverged, interrupted (resumes), or held (another process is training
    it).
    """

    run_id: str
    status: str
    reason: str | None
    metrics: dict[str, float]
    compilations: list[Compilation]
    skipped: bool = False


Report = Callable[[Progress], None]


class Course:
    """One run on its way: `step` steps are done, `row` is its last log point, `bad` why it cannot
    go on.
    """

    def __init__(self, spec: RunSpec, run: RunDir, *, cache: Path, progress: Report | None):
        """Raises InputError for data or an origin that do not fit; nothing is written."""
        self.spec, self.run = spec, run
        self.report = progress or (lambda _: None)
        self.started = self.clock = self.charged = time.perf_counter()
        self.step = self.first_step = 0
        self.row: dict[str, Any] = {}
        self.bad: str | None = None
        self.earlier = self.on_devices = 0.0  # seconds: of the sessions before, up to a checkpoint
        self.devices = 1.0  # that work for this run
        self.ledger: Ledger | None = None
        self.tracker: Silent | Mirror | None = None
        self.checkpoints: Checkpoints | None = None
        self.status = "interrupted"
        base = origin(spec, run)
        self.begun = {} if base is None else {"start": base.record()}
        self.show("compile")
        data = open_text(spec, cache=cache)
        self.data = data if base is None else base.onward(data)
        blind = spec.objective.blind(spec.model)
        self.worst = math.inf if blind is None else EXPLODED * blind
        self.counts = counted(spec)

    def begin(
        self, ready: Programs, *, devices: float, together: Mapping[str, Any] | None = None
    ) -> State:
        """The state to go on from, the last checkpoint's or the first, laid out for one run. The
        record is opened, and says who is trained `together` with this one.
        """
        self.devices = devices
        self.checkpoints = Checkpoints(self.run.checkpoints, keep=self.execution.keep_checkpoints)
        found = self.checkpoints.restore(
            abstract_state(ready.model, frozen=frozen(self.spec), carry=ready.carry),
            ready.shardings,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        if found is None:
            first = first_state(self.spec, ready.model, root=self.run.path.parent)
            state = spread(first, ready.shardings)
        else:
            self.step, state, position = found
            self.data.check_position(position)
            self.earlier = position.get("seconds", 0.0)
            self.on_devices = position.get("device_seconds", self.earlier * devices)
        if jax.process_index() == 0:
            self._open(dict(together or {}))
        self.clock, self.first_step = time.perf_counter(), self.step
        return state

    def _open(self, together: dict[str, Any]) -> None:
        spec, run, counts = self.spec, self.run, self.counts
        env = {**environment(), **devices(spec), **together}
        if self.step == 0:
            run.start(
                spec={"format": SPEC_FORMAT, **to_dict(spec)},
                env={**env, "data": self.data.manifest, **self.begun},
                counts={
                    "params": counts.params,
                    "flops_per_token": counts.flops_per_token,
                    **counts.each,
                    "tokens_planned": spec.tokens,
                    "steps_planned": spec.steps,
                    "loss_unit": spec.objective.unit,
                    "bytes_per_token": self.data.bytes_per_token(),
                    **self.begun,
                },
            )
        else:
            run.resumed(step=self.step, env=env)
        self.ledger = run.ledger(resume_step=self.step)
        self.tracker = open_tracker(run.run_id, to_dict(spec), folder=str(run.path))

    # -- what the next step is ---------------------------------------------------------------------

    @property
    def execution(self) -> ExecutionSpec:
        return self.spec.execution

    @property
    def goes_on(self) -> bool:
        return self.step < self.spec.steps and self.bad is None

    @property
    def evaluates(self) -> bool:
        """Whether there is an evaluation after `step` steps."""
        every = self.spec.evaluation.every
        return self.step == self.spec.steps or (every is not None and self.step % every == 0)

    @property
    def logs(self) -> bool:
        return self.evaluates or self.step % self.execution.log_every == 0

    @property
    def saves(self) -> bool:
        """Whether there is a checkpoint here; that of the end is `end`'s."""
        return self.step % self.execution.checkpoint_every == 0 and self.goes_on

    @property
    def moved(self) -> bool:
        """Whether there are steps since the checkpoint that it began from."""
        return self.step > self.first_step

    def batch(self, **share: int) -> Arrays:
        """What the next step sees, or a process's rows of it."""
        return training(self.spec, self.data, self.step, **share)

    def held_out(self, **share: int) -> list[HeldOut]:
        return list(held_out(self.spec, self.data, **share))

    # -- what is recorded --------------------------------------------------------------------------

    def read(self, sums: Mapping[str, float], bad: int, aux: Iterable[str]) -> None:
        """Begin a row from the sums since the last log point; `bad` is the 1-based step that was
        not finite, or 0. Sets why the run is bad, if it is.
        """
        tokens = self.step * self.spec.budget.batch_tokens
        flops = tokens * self.counts.flops_per_token["causal_attn"]
        self.row = {"step": self.step, "tokens": tokens, "flops": flops}
        if bad:
            self.bad = f"non-finite loss or gradient at step {bad}"
            return
        if not (n := sums["count"]):  # nothing was trained since: there is no mean
            return
        loss = sums["loss"] / n
        # a layer's own loss is a statistic of the run: `loss/` names what the model is judged by
        own = {f"stat/{name.partition('/')[2]}": sums[name] / n for name in aux}
        self.row |= {"loss/train": loss, "stat/grad_norm": sums["grad_norm"] / n, **own}
        if loss > self.worst and self.step > self.spec.schedule.warmup * self.spec.steps:
            self.bad = (
                f"exploding loss: {loss:.3f} at step {self.step}; "
                f"{EXPLODED} x a guess without looking is {self.worst:.3f}"
            )

    def write(self) -> None:
        """The row as it stands, with the time, into the ledger."""
        self.share(self.devices)
        self.row |= {
            "time/seconds": self.seconds,
            "time/device_seconds": self.on_devices,
            "time/tokens_per_second": self._rate(),
        }
        if self.ledger is not None and self.tracker is not None:
            self.row = self.ledger.append(self.row)
            self.tracker.log(self.row)
        self.show("train")

    def save(self, state: State) -> None:
        """Begin a checkpoint of `state`, laid out for one run."""
        assert self.checkpoints is not None
        if self.ledger is not None:
            self.ledger.sync()  # a checkpoint never knows more than the ledger
        self.share(self.devices)
        spent = {"seconds": self.seconds, "device_seconds": self.on_devices}
        self.checkpoints.save(self.step, state, {**self.data.position(self.step), **spent})

    def save_last(self, state: Callable[[], State]) -> None:
        """Begin the checkpoint of where the run stops, unless it is there or begun."""
        assert self.checkpoints is not None
        if self.moved and self.bad is None:
            if self.step not in self.checkpoints.manager.all_steps():
                self.save(state())

    def end(self, state: Callable[[], State], compilations: list[Compilation]) -> Outcome:
        """The last checkpoint and the result; of a run that could go on, where it resumes."""
        assert self.checkpoints is not None
        self.save_last(state)
        self.checkpoints.wait()
        reason = self.bad
        if self.goes_on:
            reason = f"stopped at step {self.step} of {self.spec.steps}; the same command resumes"
        else:
            self.status = DONE if self.bad is None else DIVERGED
            if self.ledger is not None:
                self.run.finish(
                    status=self.status,
                    reason=reason,
                    metrics=self.row,
                    seconds=self.seconds,
                    compilations=[dataclasses.asdict(c) for c in compilations],
                )
        return Outcome(self.run.run_id, self.status, reason, self.row, compilations)

    def close(self) -> None:
        if self.ledger is not None:
            self.ledger.close()
        if self.tracker is not None:  # the next run of this process opens its own
            self.tracker.close(self.status)
        if self.checkpoints is not None:
            self.checkpoints.close()

    # -- time --------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.started

    def share(self, devices: float) -> None:
        """So many devices work for this run from now on; what they did until now is counted."""
        now = time.perf_counter()
        self.on_devices += (now - self.charged) * self.devices
        self.charged, self.devices = now, devices

    def show(self, phase: str) -> None:
        tokens = self.step * self.spec.budget.batch_tokens
        loss, rate = self.row.get("loss/train"), None if phase == "compile" else self._rate()
        self.report(
            Progress(self.run.run_id, phase, self.step, self.spec.steps, tokens, loss, rate)
        )

    def _rate(self) -> float:
        """Tokens a second since it began."""
        tokens = (self.step - self.first_step) * self.spec.budget.batch_tokens
        return tokens / (time.perf_counter() - self.clock)


def open_text(spec: RunSpec, *, cache: Path) -> Data:
    """The data of a run, tokenised or found under `cache`."""
    data = open_data(
        spec.data,
        seed=spec.seed,
        sequences_per_batch=spec.sequences_per_batch,
        cache=cache / "data",
        vocab=spec.model.vocab,
        reserved=spec.objective.reserved,
    )
    if data.has_missing and spec.model.series is not None and not spec.model.series.missing:
        raise InputError(
            "model.series.missing", False, "numbers of the sources are missing; write true"
        )
    return data
