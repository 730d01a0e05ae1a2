"""How is one run shown to the person who waits for it? A progress bar with time left, or plain lines in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from train.loop import Progress

EVERY_SECONDS = 10  # between plain lines, where there is no terminal


@contextlib.contextmanager
def shown(label: str) -> Iterator[Callable[[Progress], None]]:
    """A progress callback for `train`, on stderr."""
    if not sys.stderr.isatty():
        yield _plain(label)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=1, loss="", rate="")

        def show(p: Progress) -> None:
            bar.update(
                task, total=p.steps, completed=p.step, description=f"{label} {p.phase}",
                loss="" if p.loss is None else f"loss {p.loss:.4f}",
                rate="" if not p.tokens_per_second else f"{p.tokens_per_second:,.0f} tokens/s",
            )

        yield show


def _plain(label: str) -> Callable[[Progress], None]:
    last = [0.0]

    def show(p: Progress) -> None:
        now = time.monotonic()
        if p.phase == "train" and p.step < p.steps and now - last[0] < EVERY_SECONDS:
            return
        last[0] = now
        loss = "" if p.loss is None else f" loss {p.loss:.4f}"
        left = ""
        if p.tokens_per_second and p.step:
            seconds = (p.steps - p.step) * (p.tokens / p.step) / p.tokens_per_second
            left = f" {p.tokens_per_second:,.0f} tokens/s, {seconds:.0f} s left"
        print(f"{label} {p.phase} {p.step}/{p.steps}{loss}{left}", file=sys.stderr, flush=True)

    return show
