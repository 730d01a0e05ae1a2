"""How are many runs of one shape trained in one program? Their states, their numbers and their
batches are stacked, and the step of one run is mapped over the stack.

Each run keeps its own place, clock, record and checkpoints, so that nothing tells it later from one
that was trained alone but `stack` in its env.json. Nothing is summed over runs: what one of them
does, diverging included, changes no other. A run that has ended leaves its place in the stack to be
computed on and never read: the program is compiled once, for so many places.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from parallelism.errors import InputError
from parallelism.place import batch_sharding, replicated, stacked
from train.batches import HeldOut
from train.carry import nothing
from train.claim import claimed
from train.course import Course, Outcome, Report
from train.evaluate import report
from train.interrupts import interrupts
from train.loop import IN_FLIGHT, memory
from train.objectives import Arrays
from train.programs import Compilation, Programs, programs, shape_key, use_cache
from train.record import RunDir
from train.schedule import hyper
from train.scheme import laid_out
from train.spec import RunSpec
from train.spread import spread
from train.step import State

Ended = Callable[[str, Outcome | InputError], None]


def train_stack(
    specs: Sequence[RunSpec],
    *,
    root: Path,
    places: int | None = None,
    progress: Report | None = None,
    ended: Ended | None = None,
) -> dict[str, Outcome | InputError]:
    """Train runs of one shape to their ends, each from its last checkpoint, and tell how each
    `ended` when it does: by an outcome, or by a mistake of its own that leaves the others alone.

    `places` is how many runs the program is compiled for: as many as there are unless said, or
    more, and so that the run axis divides them.
    """
    _check(specs)
    cache, ways = root / ".cache", specs[0].execution.mesh.run
    places = -(-max(len(specs), places or 0) // ways) * ways
    told: dict[str, Outcome | InputError] = {}

    def tell(run_id: str, how: Outcome | InputError) -> None:
        told[run_id] = how
        if ended is not None:
            ended(run_id, how)

    with contextlib.ExitStack() as everything:
        courses: list[Course] = []
        holds: dict[str, contextlib.ExitStack] = {}
        for spec in specs:
            run, hold = RunDir(root / spec.run_id), everything.enter_context(contextlib.ExitStack())
            try:
                standing = hold.enter_context(claimed(spec, run, cache=cache))
                if standing is None:
                    courses.append(Course(spec, run, cache=cache, progress=progress))
                    hold.callback(courses[-1].close)
                    holds[spec.run_id] = hold
                    continue
                tell(spec.run_id, standing)
            except InputError as mistake:
                tell(spec.run_id, mistake)
            hold.close()

        def leave(course: Course, how: Outcome | InputError) -> None:
            holds[course.run.run_id].close()
            tell(course.run.run_id, how)

        if courses:
            with memory(specs[0]):
                use_cache(cache)
                ready, compilations = programs(courses[0].spec, cache=cache, stack=places)
                stack = _Stack(ready, compilations, courses, places=places, leave=leave)
                stack.train()
    return told


class _Stack:
    """Runs by their place in the stack while they go on; `state` has all of them ahead."""

    def __init__(
        self,
        ready: Programs,
        compilations: list[Compilation],
        courses: Sequence[Course],
        *,
        places: int,
        leave: Callable[[Course, Outcome | InputError], None],
    ):
        self.ready, self.compilations, self.leave = ready, compilations, leave
        self.live: dict[int, Course] = dict(enumerate(courses))
        self.measures: dict[int, list[HeldOut]] = {}
        self.rows = stacked(batch_sharding(ready.mesh))
        self.whole = stacked(replicated(ready.mesh))
        ids = [course.run.run_id for course in courses]
        states: dict[int, State] = {}
        for i, course in list(self.live.items()):
            with self._own(i):
                together = {"stack": {"runs": ids, "places": places}}
                devices = ready.mesh.size / len(courses)
                states[i] = jax.device_get(course.begin(ready, devices=devices, together=together))
                self.measures[i] = _laid_out(course)
        if not self.live:
            return
        # a place without a run holds what another one does
        first = next(iter(self.live))
        held = [i if i in self.live else first for i in range(places)]
        self.state = spread(
            jax.tree.map(lambda *each: np.stack(each), *(states[i] for i in held)),
            jax.tree.map(stacked, ready.shardings),
        )
        self.numbers = self._put([hyper(self.live[i].spec) for i in held], self.whole)
        self.batches: list[Arrays] = [{}] * places

    def train(self) -> None:
        with interrupts() as interrupted:
            # some were killed between their last checkpoint and their result
            self._log([i for i, course in self.live.items() if not course.goes_on])
            losses: deque[jax.Array] = deque()
            while self.live and not interrupted.stop(agree=True):
                self._read()
                if not self.live:
                    return
                losses.append(self._step())
                if len(losses) > IN_FLIGHT:
                    losses.popleft().block_until_ready()
                self._log([i for i, course in self.live.items() if course.logs])
                for i in [i for i, course in self.live.items() if course.saves]:
                    with self._own(i):
                        self.live[i].save(self._take(i))
            self._end(list(self.live))

    def _read(self) -> None:
        """What the next step sees; a run that has ended sees its last batch again."""
        for i, course in list(self.live.items()):
            with self._own(i):
                self.batches[i] = laid_out(course.spec, course.batch())

    def _step(self) -> jax.Array:
        some = self.batches[next(iter(self.live))]
        batch = self._put([batch or some for batch in self.batches], self.rows)
        self.state, loss = self.ready.step(self.state, self.numbers, batch)
        for course in self.live.values():
            course.step += 1
        return loss

    def _log(self, places: Iterable[int]) -> None:
        """Log points of the runs in these places, which may be their ends."""
        logged = {i: self.live[i] for i in places}
        if not logged:
            return
        sums, bad = jax.device_get((self.state["window"], self.state["bad"]))
        sums = {name: np.array(each) for name, each in sums.items()}
        for i, course in logged.items():
            mine = {name: float(each[i]) for name, each in sums.items()}
            course.read(mine, int(bad[i]), self.ready.model.aux)
            for each in sums.values():
                each[i] = 0
        self.state = {**self.state, "window": jax.device_put(sums, self.whole)}
        self._evaluate({i: c for i, c in logged.items() if c.evaluates and c.bad is None})
        for i, course in logged.items():
            with self._own(i):
                course.write()
        self._end([i for i, course in logged.items() if i in self.live and not course.goes_on])

    def _evaluate(self, asked: Mapping[int, Course]) -> None:
        """Every measure of these runs, one batch of each at a time."""
        for course in asked.values():
            course.show("evaluate")
        carry = self.ready.carry and spread(
            jax.tree.map(lambda x: np.stack([x] * len(self.batches)), nothing(self.ready.carry)),
            jax.tree.map(stacked, self.ready.shardings["carry"]),
        )
        for m in range(max((len(self.measures[i]) for i in asked), default=0)):
            mine = {i: self.measures[i][m] for i in asked if m < len(self.measures[i])}
            sums: dict[int, list[Any]] = {i: [] for i in mine}
            held = carry
            for k in range(max(len(measure.batches) for measure in mine.values())):
                here = {i: x.batches[k] for i, x in mine.items() if k < len(x.batches)}
                some = next(iter(here.values()))
                everywhere = [here.get(i, some) for i in range(len(self.batches))]
                batch = self._put(everywhere, self.rows)
                if carry is None:
                    told = self.ready.evaluate(self.state["params"], batch)
                else:
                    told = self.ready.evaluate(self.state["params"], {**batch, "carry": held})
                    *told, held = told
                columns = jax.device_get(list(told))
                for i in here:
                    sums[i].append([column[i] for column in columns])
            for i, measure in mine.items():
                asked[i].row |= report(measure, sums[i], asked[i].spec.objective)

    def _end(self, places: Sequence[int]) -> None:
        for i in places:  # all are being written before any is waited for
            with self._own(i):
                self.live[i].save_last(lambda i=i: self._take(i))
        for i in [i for i in places if i in self.live]:
            with self._own(i):
                how = self.live[i].end(lambda i=i: self._take(i), self.compilations)
                self.compilations = []  # told once, by the first to end
                self._leave(i, how)

    def _leave(self, i: int, how: Outcome | InputError) -> None:
        self.leave(self.live.pop(i), how)
        for other in self.live.values():
            other.share(self.ready.mesh.size / len(self.live))

    @contextlib.contextmanager
    def _own(self, i: int) -> Iterator[None]:
        """A mistake here is that of the run in place i, which leaves."""
        try:
            yield
        except InputError as mistake:
            if i in self.live:
                self._leave(i, mistake)

    def _take(self, i: int) -> State:
        return self.ready.take(self.state, np.int32(i))

    def _put(self, each: Sequence[Mapping[str, Any]], sharding: Any) -> dict[str, jax.Array]:
        """Dictionaries of arrays, one a place, as one on the mesh."""
        both = {name: np.stack([one[name] for one in each]) for name in each[0]}
        return jax.device_put(both, sharding)


def _laid_out(course: Course) -> list[HeldOut]:
    return [
        dataclasses.replace(m, batches=[laid_out(course.spec, b) for b in m.batches])
        for m in course.held_out()
    ]


def _check(specs: Sequence[RunSpec]) -> None:
    """Raises InputError for runs that are not of one shape."""
    first, keys = specs[0], [shape_key(spec) for spec in specs]
    for spec, key in zip(specs, keys, strict=True):
        if key != keys[0]:
            raise InputError(
                "execution.stack",
                f"{first.run_id} and {spec.run_id}",
                "run different programs; stack runs that differ in nothing but what is data: "
                "seed, optimiser, schedule, tokens, weights of losses, texts",
            )
    if len({spec.run_id for spec in specs}) < len(specs):
        raise InputError("execution.stack", f"{first.run_id}", "is there twice; name each run once")
