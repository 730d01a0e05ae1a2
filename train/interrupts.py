"""How does a run stop when asked to? After the step in hand, the same in all processes."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


@dataclass(frozen=True)
class Interrupts:
    """Whether a signal has come, to this process or to any."""

    event: threading.Event = field(default_factory=threading.Event)

    def stop(self, *, agree: bool) -> bool:
        """Whether to stop now. Several processes ask each other only where `agree` is true (the
        log points, which all of them reach): one that stopped alone would leave the rest waiting.
        """
        if jax.process_count() == 1:
            return self.event.is_set()
        if not agree:
            return False
        return bool(np.any(multihost_utils.process_allgather(np.array(self.event.is_set()))))


@contextlib.contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Ctrl-C and SIGTERM end the run with a checkpoint; a second one ends it at once."""
    found = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return

    def on_signal(number: int, frame: Any) -> None:
        if found.event.is_set():
            raise KeyboardInterrupt
        found.event.set()

    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def lead_says(value: bool) -> bool:
    """What process 0 gave; every process calls this."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))
