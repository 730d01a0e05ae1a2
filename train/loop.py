"""How is one run trained? Top to bottom: claim, compile, restore, step, log, evaluate, checkpoint,
finish.
"""

import contextlib
import dataclasses
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from parallelism.errors import InputError
from parallelism.place import replicated
from train.batches import held_out, training
from train.carry import nothing
from train.checkpoint import Checkpoints
from train.counted import counted
from train.data.pipeline import Data, open_data
from train.environment import environment
from train.evaluate import evaluate
from train.interrupts import interrupts, lead_says
from train.programs import Compilation, Programs, devices, programs, use_cache
from train.record import DIVERGED, DONE, RunDir
from train.recycle import frozen
from train.schedule import hyper
from train.spec import FORMAT as SPEC_FORMAT
from train.spec import RunSpec, to_dict
from train.spread import placer, spread
from train.start import first_state, origin
from train.step import State, abstract_state, empty_window
from train.tracker import open_tracker

# A window's mean loss this far above a guess without looking at the input, after the warm-up, is an
# explosion (guess: no healthy run of any size is worse than not looking).
EXPLODED = 1.25

# Steps in flight before the loop waits for the oldest: enough to hide dispatch, few enough that
# several host devices
# do not deadlock (jax 0.10 and 0.11 on CPU starve when collectives are dispatched without bound).
IN_FLIGHT = 2


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


def train(spec: RunSpec, *, root: Path, progress: Report | None = None) -> Outcome:
    """Train a run to its end, from its last checkpoint if it has one; a finished run is returned as
    it stands.
    """
    run = RunDir(root / spec.run_id)
    run.check_format()
    lead = jax.process_index() == 0  # looks and claims for all processes
    standing = _ended(run) if lead else None
    with run.claim() if lead and standing is None else contextlib.nullcontext({}) as held:
        if held is None:
            reason = f"process {run.owner()} is training it"
            standing = Outcome(spec.run_id, "held", reason, {}, [])
        elif lead and standing is None:
            standing = _ended(run)  # another process may have finished it between the two looks
            if standing is None:
                run.clear_result()  # a failed run is tried again
        if lead_says(standing is not None):
            if standing is not None and standing.skipped:
                _check_text(spec, run, cache=root / ".cache")
            return standing or _ended(run) or Outcome(spec.run_id, "held", None, {}, [])
        with _memory(spec):
            return _train(spec, run, cache=root / ".cache", progress=progress or (lambda _: None))


def _train(spec: RunSpec, run: RunDir, *, cache: Path, progress: Report) -> Outcome:
    started = time.perf_counter()

    # Programs and data
    base = origin(spec, run)
    begun = {} if base is None else {"start": base.record()}
    progress(Progress(run.run_id, "compile", 0, spec.steps, 0))
    use_cache(cache)
    ready, compilations = programs(spec, cache=cache)
    data = open_text(spec, cache=cache)
    data = data if base is None else base.onward(data)
    place, share = placer(ready.mesh, spec)
    counts = counted(spec)
    flops_per_token = counts.flops_per_token["causal_attn"]

    # State
    checkpoints = Checkpoints(run.checkpoints, keep=spec.execution.keep_checkpoints)
    found = checkpoints.restore(
        abstract_state(ready.model, frozen=frozen(spec), carry=ready.carry),
        ready.shardings,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    earlier = 0.0  # seconds of the sessions before this one, up to the checkpoint
    if found is None:
        first = first_state(spec, ready.model, root=run.path.parent)
        step, state = 0, spread(first, ready.shardings)
    else:
        step, state, position = found
        data.check_position(position)
        earlier = position.get("seconds", 0.0)

    # Record
    lead = jax.process_index() == 0
    if lead and step == 0:
        run.start(
            spec={"format": SPEC_FORMAT, **to_dict(spec)},
            env={**environment(), **devices(spec), "data": data.manifest, **begun},
            counts={
                "params": counts.params,
                "flops_per_token": counts.flops_per_token,
                "tokens_planned": spec.tokens,
                "steps_planned": spec.steps,
                "bytes_per_token": data.bytes_per_token(),
                **begun,
            },
        )
    elif lead:
        run.resumed(step=step, env={**environment(), **devices(spec)})
    ledger = run.ledger(resume_step=step) if lead else None
    tracker = open_tracker(run.run_id, to_dict(spec), folder=str(run.path)) if lead else None
    numbers = jax.device_put(hyper(spec), replicated(ready.mesh))
    measures = [
        dataclasses.replace(m, batches=[place(b) for b in m.batches])
        for m in held_out(spec, data, **share)
    ]
    unread = ready.carry and spread(nothing(ready.carry), ready.shardings["carry"])
    blind = spec.objective.blind(spec.model)
    worst = math.inf if blind is None else EXPLODED * blind
    row: dict[str, Any] = {}
    bad: str | None = None
    clock, first_step = time.perf_counter(), step

    def seconds() -> float:
        return earlier + time.perf_counter() - started

    def show(phase: str) -> None:
        rate = (step - first_step) * spec.budget.batch_tokens / (time.perf_counter() - clock)
        progress(
            Progress(
                run.run_id,
                phase,
                step,
                spec.steps,
                step * spec.budget.batch_tokens,
                row.get("loss/train"),
                rate,
            )
        )

    def log(*, evaluated: bool) -> None:
        nonlocal row, state, bad
        row, state, bad = _window(state, ready)
        tokens = step * spec.budget.batch_tokens
        row = {"step": step, "tokens": tokens, "flops": tokens * flops_per_token, **row}
        loss = row.get("loss/train")
        if (
            bad is None
            and loss is not None
            and loss > worst
            and step > spec.schedule.warmup * spec.steps
        ):
            bad = (
                f"exploding loss: {loss:.3f} at step {step}; "
                f"{EXPLODED} x a guess without looking is {worst:.3f}"
            )
        if bad is None and evaluated:
            show("evaluate")
            for measure in measures:
                row |= evaluate(
                    ready.evaluate, state["params"], measure, spec.objective, carry=unread
                )
        row |= {
            "time/seconds": seconds(),
            "time/device_seconds": seconds() * ready.mesh.size,
            "time/tokens_per_second": (step - first_step)
            * spec.budget.batch_tokens
            / (time.perf_counter() - clock),
        }
        if ledger is not None and tracker is not None:
            row = ledger.append(row)
            tracker.log(row)
        show("train")

    def save() -> None:
        if ledger is not None:
            ledger.sync()  # a checkpoint never knows more than the ledger
        checkpoints.save(step, state, {**data.position(step), "seconds": seconds()})

    status = "interrupted"
    try:
        with interrupts() as interrupted:
            # Steps
            losses: deque[jax.Array] = deque()
            stop = False
            while step < spec.steps and not stop and bad is None:
                batch = place(training(spec, data, step, **share))
                state, loss = ready.step(state, numbers, batch)
                step += 1
                losses.append(loss)
                if len(losses) > IN_FLIGHT:
                    losses.popleft().block_until_ready()

                # Log, evaluate
                every = spec.evaluation.every
                evaluated = step == spec.steps or (every is not None and step % every == 0)
                logged = evaluated or step % spec.execution.log_every == 0
                if logged:
                    log(evaluated=evaluated)
                stop = interrupted.stop(agree=logged)

                # Checkpoint
                if (
                    step % spec.execution.checkpoint_every == 0
                    and step < spec.steps
                    and bad is None
                ):
                    save()

        # End
        if step < spec.steps and bad is None:
            if step > first_step and step not in checkpoints.manager.all_steps():
                save()
            checkpoints.wait()
            reason = f"stopped at step {step} of {spec.steps}; the same command resumes"
            return Outcome(run.run_id, status, reason, row, compilations)
        if step == first_step and bad is None:  # killed between the last checkpoint and the result
            log(evaluated=True)
        if bad is None and step > first_step:
            save()
        checkpoints.wait()
        status = DONE if bad is None else DIVERGED
        if ledger is not None:
            made = [dataclasses.asdict(c) for c in compilations]
            run.finish(status=status, reason=bad, metrics=row, seconds=seconds(), compilations=made)
        return Outcome(run.run_id, status, bad, row, compilations)
    finally:
        if ledger is not None:
            ledger.close()
        if tracker is not None:  # the next run of this process opens its own
            tracker.close(status)
        checkpoints.close()


@contextlib.contextmanager
def _memory(spec: RunSpec) -> Iterator[None]:
    """A run that does not fit is the user's to shrink: say so in one line."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            "model.d_model",
            f"{spec.model.d_model} with {spec.model.n_layers} layers and "
            f"{spec.budget.batch_tokens} tokens a batch: out of memory",
            "write a smaller model or budget.batch_tokens, a larger execution.accumulate, "
            "execution.remat=full, or a larger execution.mesh.fsdp",
        ) from error


def _ended(run: RunDir) -> Outcome | None:
    """A finished run as it stands; a failed one has not ended."""
    if not (run.path / "spec.json").exists():
        return None
    result = run.read().result
    if result is None or result["status"] not in (DONE, DIVERGED):
        return None
    return Outcome(
        run.run_id, result["status"], result["reason"], result["metrics"], [], skipped=True
    )


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


def _check_text(spec: RunSpec, run: RunDir, *, cache: Path) -> None:
    """Refuse to hand out a finished run whose corpus is another one now."""
    then = run.read().env.get("data", {}).get("fingerprint")
    now = open_text(spec, cache=cache).fingerprint
    if then is not None and then != now:
        raise InputError(
            "data.sources",
            f"the corpus changed since {run.path} ended ({then} then, {now} now)",
            "restore the files, or train in another --root",
        )


def _window(state: State, ready: Programs) -> tuple[dict[str, float], State, str | None]:
    """Means since the last log point, the state with an empty window, and why the run is bad if it
    is.
    """
    sums = {name: float(value) for name, value in jax.device_get(state["window"]).items()}
    bad = int(jax.device_get(state["bad"]))
    state = {**state, "window": spread(empty_window(ready.model), ready.shardings["window"])}
    if bad:
        return {}, state, f"non-finite loss or gradient at step {bad}"
    n = sums["count"]
    if n == 0:  # nothing was trained since the last log point: there is no mean
        return {}, state, None
    # a layer's own loss is a statistic of the run: `loss/` names what the model is judged by
    aux = {f"stat/{k.partition('/')[2]}": sums[k] / n for k in ready.model.aux}
    row = {"loss/train": sums["loss"] / n, "stat/grad_norm": sums["grad_norm"] / n, **aux}
    return row, state, None
