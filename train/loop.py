"""How is one run trained? Top to bottom: claim, compile, restore, step, log, evaluate, checkpoint,
finish.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import jax

from parallelism.errors import InputError
from parallelism.place import replicated
from train.carry import nothing
from train.claim import claimed
from train.course import Course, Outcome, Report
from train.course import Progress as Progress
from train.course import open_text as open_text
from train.evaluate import evaluate
from train.interrupts import interrupts
from train.programs import programs, use_cache
from train.record import RunDir
from train.schedule import hyper
from train.spec import RunSpec
from train.spread import placer, spread
from train.step import empty_window

# Steps in flight before the loop waits for the oldest: enough to hide dispatch, few enough that
# several host devices
# do not deadlock (jax 0.10 and 0.11 on CPU starve when collectives are dispatched without bound).
IN_FLIGHT = 2


def train(spec: RunSpec, *, root: Path, progress: Report | None = None) -> Outcome:
    """Train a run to its end, from its last checkpoint if it has one; a finished run is returned as
    it stands.
    """
    run, cache = RunDir(root / spec.run_id), root / ".cache"
    with claimed(spec, run, cache=cache) as standing:
        if standing is not None:
            return standing
        with memory(spec):
            return _train(spec, run, cache=cache, progress=progress)


def _train(spec: RunSpec, run: RunDir, *, cache: Path, progress: Report | None) -> Outcome:
    # Data and programs
    course = Course(spec, run, cache=cache, progress=progress)
    use_cache(cache)
    ready, compilations = programs(spec, cache=cache)
    place, share = placer(ready.mesh, spec)

    try:
        # State and record
        state = course.begin(ready, devices=ready.mesh.size)
        numbers = jax.device_put(hyper(spec), replicated(ready.mesh))
        measures = [
            dataclasses.replace(m, batches=[place(b) for b in m.batches])
            for m in course.held_out(**share)
        ]
        unread = ready.carry and spread(nothing(ready.carry), ready.shardings["carry"])

        def log(*, evaluated: bool) -> None:
            nonlocal state
            sums, bad = jax.device_get((state["window"], state["bad"]))
            window = spread(empty_window(ready.model), ready.shardings["window"])
            state = {**state, "window": window}
            course.read({k: float(v) for k, v in sums.items()}, int(bad), ready.model.aux)
            if course.bad is None and evaluated:
                course.show("evaluate")
                for measure in measures:
                    course.row |= evaluate(
                        ready.evaluate, state["params"], measure, spec.objective, carry=unread
                    )
            course.write()

        with interrupts() as interrupted:
            # Steps
            losses: deque[jax.Array] = deque()
            stop = False
            while course.goes_on and not stop:
                batch = place(course.batch(**share))
                state, loss = ready.step(state, numbers, batch)
                course.step += 1
                losses.append(loss)
                if len(losses) > IN_FLIGHT:
                    losses.popleft().block_until_ready()

                # Log, evaluate, checkpoint
                logged = course.logs
                if logged:
                    log(evaluated=course.evaluates)
                stop = interrupted.stop(agree=logged)
                if course.saves:
                    course.save(state)

        # End
        if not course.moved and not course.goes_on:
            log(evaluated=True)  # it was killed between the last checkpoint and the result
        return course.end(lambda: state, compilations)
    finally:
        course.close()


@contextlib.contextmanager
def memory(spec: RunSpec) -> Iterator[None]:
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
            "execution.remat=full, or a larger execution.mesh.fsdp"
            + (", or a smaller execution.stack" if spec.execution.stack > 1 else ""),
        ) from error
