"""What does a person see while a sweep runs? A live table in a terminal, plain lines elsewhere.

The bar and the time left count FLOPs, because cells of one budget differ in steps and tokens.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from sweeps.dry_run import duration
from sweeps.launch.schedule import Cell

EVERY = 10.0  # seconds between plain progress lines


class Display:
    """Counts FLOPs done and shows them; this class alone shows nothing."""

    def __init__(self, cells: list[Cell], pending: list[Cell]):
        left = {one.run_id for one in pending}
        self.total = sum(one.flops for one in cells)
        self.before = sum(one.flops for one in cells if one.run_id not in left)
        self.n, self.ended = len(cells), len(cells) - len(pending)
        self.clock = time.monotonic()
        self.first: dict[str, float] = {}  # share of a cell that this session found done
        self.share: dict[str, float] = {}
        self.flops = {one.run_id: one.flops for one in cells}
        self.rows: dict[str, dict[str, Any]] = {}  # by run id

    @property
    def done(self) -> float:
        return self.before + sum(self.share[r] * self.flops[r] for r in self.share)

    @property
    def seconds_left(self) -> float | None:
        """By this session's own FLOP/s; None until it has some."""
        made = sum((self.share[r] - self.first[r]) * self.flops[r] for r in self.share)
        if made <= 0:
            return None
        return (self.total - self.done) * (time.monotonic() - self.clock) / made

    def line(self) -> str:
        return (
            f"{self.ended} of {self.n} cells, {self.done / self.total:.0%} of the FLOPs, "
            f"{duration(self.seconds_left)} left"
        )

    def begin(self, one: Cell, worker: int) -> None:
        row = {"phase": "start", "step": 0, "steps": one.spec.steps}
        self.rows[one.run_id] = {"cell": one, "worker": worker, **row}

    def progress(self, one: Cell, worker: int, message: dict[str, Any]) -> None:
        self.rows[one.run_id] = {"cell": one, "worker": worker, **message}
        if message["phase"] != "compile":
            share = message["step"] / message["steps"]
            # the first report comes one log interval after the start
            begun = max(0, message["step"] - one.spec.execution.log_every) / message["steps"]
            self.first.setdefault(one.run_id, begun)
            self.share[one.run_id] = share

    def end(self, one: Cell, status: str, reason: str | None) -> None:
        self.leave(one)
        if status == "interrupted":
            return
        self.ended += 1
        self.first.setdefault(one.run_id, 1.0)  # finished elsewhere: not this session's work
        self.share[one.run_id] = 1.0
        if status != "done":
            self.say(f"{one.run_id} {status}: {reason}")

    def leave(self, one: Cell) -> None:
        """No worker has it in hand any more."""
        self.rows.pop(one.run_id, None)

    def say(self, text: str) -> None:
        pass

    def tick(self) -> None:
        pass


class Lines(Display):
    """For files and pipes: a line when a cell ends and every few seconds."""

    last = 0.0

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def end(self, one: Cell, status: str, reason: str | None) -> None:
        super().end(one, status, reason)
        if status == "done":
            self.say(f"{one.run_id} done; {self.line()}")

    def tick(self) -> None:
        now = time.monotonic()
        if self.rows and now > max(self.last, self.clock) + EVERY:
            self.last = now
            self.say(self.line())


class Screen(Display):
    """For terminals: one row a run in hand under one bar."""

    live: Live | None = None

    def say(self, text: str) -> None:
        if self.live is not None:
            self.live.console.print(text, highlight=False, markup=False)

    def __rich__(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("worker", "run", "size", "phase", "step", "loss", "tokens/s"):
            table.add_column(name, justify="right")
        for row in sorted(self.rows.values(), key=lambda row: row["worker"]):
            spec, loss, rate = row["cell"].spec, row.get("loss"), row.get("tokens_per_second")
            table.add_row(
                str(row["worker"]),
                row["cell"].run_id,
                f"{spec.model.d_model}x{spec.model.n_layers}",
                row["phase"],
                f"{row['step']}/{row['steps']}",
                "" if loss is None else f"{loss:.4f}",
                f"{rate:,.0f}" if rate else "",
            )
        bar = ProgressBar(total=self.total, completed=self.done, width=60)
        return Group(*([table] if self.rows else []), bar, self.line())


@contextmanager
def display(cells: list[Cell], pending: list[Cell], *, show: bool) -> Iterator[Display]:
    """The display that fits where output goes; `show` False shows nothing."""
    console = Console(stderr=True)
    if not show:
        yield Display(cells, pending)
    elif not console.is_terminal:
        yield Lines(cells, pending)
    else:
        screen = Screen(cells, pending)
        with Live(screen, console=console, refresh_per_second=4) as screen.live:
            yield screen
