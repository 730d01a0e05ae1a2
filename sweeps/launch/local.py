"""How does a plan get done on this machine? Worker processes train its cells until none is left.

A cell is claimed by its run's lock, so several sweeps can share a root: a cell that another one
holds is waited for and then skipped. A worker that dies is replaced and its cell retried from the
last checkpoint, in no stack; a cell that dies every time becomes a failed result and the sweep goes
on.
"""

import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parallelism.errors import InputError
from sweeps.launch import machine
from sweeps.launch.pool import ENDED, Pool, Worker
from sweeps.launch.schedule import Cell, cell, choose, together
from sweeps.launch.show import Display, display
from sweeps.plan import Plan
from sweeps.summary import Session, Summary
from train.counted import counted
from train.environment import environment
from train.record import DIVERGED, DONE, FAILED, RunDir
from train.spec import FORMAT, RunSpec, to_dict

ENDS = (DONE, DIVERGED)  # a failed run is tried again by the next sweep
LOOK = 1.0  # seconds between looks at runs that another process holds


def sweep(
    plan: Plan,
    root: Path,
    *,
    workers: int | None = None,
    retries: int = 2,
    show: bool = True,
) -> Summary:
    """Train every run of a plan that is not finished yet. Ctrl-C checkpoints and returns.

    `workers` defaults to one a core on CPU and one in all on an accelerator. `retries` is how often
    a cell whose worker died is tried again. Raises InputError before anything starts.
    """
    root = Path(root)
    _check("workers", workers, least=1)
    _check("retries", retries, least=0)
    plan.write(root)
    cells = [cell(run.spec) for run in plan.runs]
    session = Session(plan, root)
    pending = []
    for one in cells:
        status = _ended(root, one)
        session.skip(one, status) if status is not None else pending.append(one)
    with display(cells, pending, show=show) as shown:
        if pending:
            launch = _Launch(session, shown, pending, workers=workers, retries=retries)
            launch.run()
            summary = session.summary()
            launch.check()
            return summary
    return session.summary()


class _Launch:
    """The parent's side of one sweep."""

    def __init__(
        self,
        session: Session,
        shown: Display,
        pending: list[Cell],
        *,
        workers: int | None,
        retries: int,
    ):
        self.session, self.shown, self.root = session, shown, session.root
        self.retries = retries
        self.pending = {one.run_id: one for one in pending}
        self.held: dict[str, Cell] = {}  # another process trains them
        self.looked = 0.0
        self.deaths: dict[str, int] = {}
        self.places: dict[str, int] = {}  # of stacks, by shape
        self.mistakes: list[str] = []  # of the user, by which a cell failed
        self.stops = 0  # Ctrl-C and SIGTERM so far
        platform = machine.platform()
        one_device = all(one.spec.execution.mesh.n_devices == 1 for one in pending)
        if workers is None:
            workers = len(machine.cores()) if platform == "cpu" and one_device else 1
        self.n = min(workers, len(pending))
        session.workers = self.n
        self.pool = Pool(
            self.root,
            n=self.n,
            pin=platform == "cpu" and one_device,
            logs=self.root / ".cache" / "workers" / f"{session.plan.name}.{os.getpid()}",
        )

    def run(self) -> None:
        with self._signals():
            for index in range(self.n):
                self.pool.start(index)
            try:
                while self._alive():
                    self._hear()
                    if not self.stops:
                        self._look_at_held()
                        self._feed()
                    self.shown.tick()
                if not self.deaths:  # a log is of use after a crash only
                    for worker in self.pool.workers.values():
                        worker.log.unlink(missing_ok=True)
            finally:
                for worker in self.pool.workers.values():
                    worker.kill()

    def check(self) -> None:
        """A mistake that failed every cell is the sweep's: raises InputError."""
        if self.session.interrupted or len(self.mistakes) < max(1, len(self.session.trained)):
            return
        others = len(self.mistakes) - 1
        more = f" (and {others} more cells; see ladder status)" if others else ""
        raise InputError("", None, f"{self.mistakes[0]}{more}")

    def _alive(self) -> bool:
        """Work is left, or a worker still winds up."""
        if self.stops:
            self.session.interrupted = True
            for worker in self.pool.workers.values():
                if not worker.cells and not worker.leaving:
                    worker.close()
            return any(w.process.poll() is None or w.cells for w in self.pool.workers.values())
        busy = any(w.cells for w in self.pool.workers.values())
        if self.pending or self.held or busy:
            return True
        for worker in self.pool.workers.values():
            worker.close()
        return False

    # -- cells to workers -------------------------------------------------------------------------

    def _feed(self) -> None:
        for worker in self.pool.workers.values():
            while worker.free and self.pending:
                busy = {c.shape for w in self.pool.workers.values() for c in w.cells.values()}
                chosen = choose(
                    self.pending.values(),
                    compiled=worker.compiled,
                    elsewhere=busy - worker.compiled,
                )
                assert chosen is not None
                cells, places = self._together(chosen)
                if cells := [one for one in cells if self._take(one)]:
                    worker.give(cells, places=places)
                    for one in cells:
                        self.shown.begin(one, worker.index)

    def _together(self, chosen: Cell) -> tuple[list[Cell], int]:
        """With which cells, and in how many places; one that died is tried by itself."""
        like = [one for one in self.pending.values() if one.run_id not in self.deaths]
        if chosen.run_id in self.deaths:
            return [chosen], chosen.spec.execution.mesh.run
        known = self.places.get(chosen.shape)
        cells, places = together(chosen, like, workers=self.n, places=known)
        self.places[chosen.shape] = places
        return cells, places

    def _take(self, one: Cell) -> bool:
        """Out of what is pending; whether it is there to be trained."""
        del self.pending[one.run_id]
        if (status := _ended(self.root, one)) is not None:
            self.session.skip(one, status)  # another sweep on this root finished it
            self.shown.end(one, status, None)
        elif RunDir(self.root / one.run_id).owner() is not None:
            self._hold(one)
        else:
            return True
        return False

    def _hold(self, one: Cell) -> None:
        self.held[one.run_id] = one
        self.shown.leave(one)
        self.shown.say(f"{one.run_id} is held by another process; it is waited for")

    def _look_at_held(self) -> None:
        now = time.monotonic()
        if not self.held or now < self.looked + LOOK:
            return
        self.looked = now
        for run_id in list(self.held):
            if RunDir(self.root / run_id).owner() is None:
                self.pending[run_id] = self.held.pop(run_id)

    # -- events from workers ----------------------------------------------------------------------

    def _hear(self) -> None:
        try:
            worker, message = self.pool.events.get(timeout=0.2)
        except queue.Empty:
            return
        event = message.pop("event")
        one = worker.cells.get(message.get("run_id", ""))
        if event == "ready":
            worker.ready = True
        elif event == ENDED:
            self._ended_worker(worker)
        elif event == "crash":
            worker.leaving = True
            self._died(worker, message["reason"])
        elif one is None:
            return
        elif event == "progress":
            self.shown.progress(one, worker.index, message)
        elif event == "outcome":
            del worker.cells[one.run_id]
            self._outcome(worker, one, message)
        elif event == "input_error":
            del worker.cells[one.run_id]
            # the user can mend it: no result is written, so the same command tries again
            reason = message["reason"]
            self.mistakes.append(reason)
            run = RunDir(self.root / one.run_id)
            run.record_attempt(reason=reason, worker_pid=worker.process.pid)
            self._end(one, FAILED, reason)

    def _outcome(self, worker: Worker, one: Cell, message: dict[str, Any]) -> None:
        worker.compiled.add(one.shape)
        status, reason = message["status"], message["reason"]
        self.session.worked(message["seconds"], message["compilations"])
        if status == "held":
            self._hold(one)
        elif status == "interrupted" and not self.stops:
            self._attempted(one, "interrupted by a signal to its worker", worker)
        elif status == "interrupted":
            self.shown.end(one, status, reason)
        elif message["skipped"]:
            self.session.skip(one, status)
            self.shown.end(one, status, None)
        else:
            self._end(one, status, reason)

    def _end(self, one: Cell, status: str, reason: str | None) -> None:
        self.session.end(one, status, reason)
        self.shown.end(one, status, reason)

    def _ended_worker(self, worker: Worker) -> None:
        if self.stops:
            worker.cells.clear()
            return
        if worker.cells:
            self._died(worker, worker.death())
        elif not worker.ready:
            raise InputError(
                "workers",
                worker.death(),
                f"see {worker.log}; a worker that cannot start trains nothing",
            )
        if self.pending or self.held or any(w.cells for w in self.pool.workers.values()):
            self.pool.start(worker.index)

    def _died(self, worker: Worker, reason: str) -> None:
        """Nobody knows which of the cells in its hands did it."""
        cells, worker.cells = list(worker.cells.values()), {}
        for one in cells:
            self._attempted(one, reason, worker)

    def _attempted(self, one: Cell, reason: str, worker: Worker) -> None:
        """An attempt ended in a crash: record why, try again, or give the cell up."""
        deaths = self.deaths[one.run_id] = self.deaths.get(one.run_id, 0) + 1
        run = RunDir(self.root / one.run_id)
        run.record_attempt(reason=reason, attempt=deaths, worker_pid=worker.process.pid)
        self.session.retried(one, reason)
        self.shown.leave(one)
        if deaths <= self.retries:
            self.shown.say(f"{one.run_id}: {reason}; retry {deaths} of {self.retries}")
            self.pending[one.run_id] = one
            return
        reason = f"{reason} ({deaths} attempts, see attempts.jsonl)"
        with run.claim() as claimed:
            if claimed is None:  # another sweep took it up: what comes of it is that one's to say
                self._hold(one)
                return
            if not (run.path / "spec.json").exists():
                run.start(
                    spec={"format": FORMAT, **to_dict(one.spec)},
                    env=environment(),
                    counts=_counts(one.spec),
                )
            last = run.metrics()[-1:]
            run.finish(status=FAILED, metrics=dict(last[0]) if last else {}, reason=reason)
        self._end(one, FAILED, reason)

    # -- Ctrl-C ------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM: workers checkpoint and end; a second one kills them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            self.stops += 1
            for worker in self.pool.workers.values():
                worker.interrupt() if self.stops == 1 else worker.kill()

        before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _counts(spec: RunSpec) -> dict[str, Any]:
    """What the loop writes of a run, but for what only its data tell."""
    counts = counted(spec)
    return {
        "params": counts.params,
        "flops_per_token": counts.flops_per_token,
        "tokens_planned": spec.tokens,
        "steps_planned": spec.steps,
        "loss_unit": spec.objective.unit,
    }


def _ended(root: Path, one: Cell) -> str | None:
    run = RunDir(root / one.run_id)
    if not (run.path / "spec.json").exists():
        return None
    result = run.read().result
    return result["status"] if result is not None and result["status"] in ENDS else None


def _check(field: str, value: int | None, *, least: int) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int) or value < least
    ):
        raise InputError(field, value, f"write a whole number of at least {least}")
