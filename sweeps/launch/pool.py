"""How does the parent hold worker processes? Start, command, hear, interrupt, kill, restart.

A worker has its own session, so Ctrl-C in the terminal reaches only the parent, which decides.
"""

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeps.launch import machine
from sweeps.launch.schedule import Cell
from train.spec import to_dict

ENDED = "ended"  # the event that follows a worker's last line


@dataclasses.dataclass
class Worker:
    """A live worker process and what it has in hand."""

    index: int
    process: subprocess.Popen[str]
    log: Path
    cells: dict[str, Cell] = dataclasses.field(default_factory=dict)  # by run id
    compiled: set[str] = dataclasses.field(default_factory=set)
    ready: bool = False  # it has started
    leaving: bool = False  # it ends by itself: give it nothing more

    def give(self, cells: Sequence[Cell], *, places: int) -> None:
        """Cells to train, in a stack of so many places where there are more than one."""
        self.cells = {one.run_id: one for one in cells}
        command = {"specs": [to_dict(one.spec) for one in cells], "places": places}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: its `ended` event follows and takes the cells back

    @property
    def free(self) -> bool:
        return self.ready and not self.leaving and not self.cells

    def close(self) -> None:
        """No more cells; an idle worker ends, one in training checkpoints and ends."""
        self.leaving = True
        if self.process.stdin is not None and not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass

    def interrupt(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()

    def death(self) -> str:
        """Why the process ended, in words."""
        code = self.process.wait()
        if code >= 0:
            tail = self.tail()
            return f"worker ended with status {code}" + (f": {tail}" if tail else "")
        name = signal.Signals(-code).name
        hint = " (the kernel does this when memory runs out)" if -code == signal.SIGKILL else ""
        return f"worker killed by {name}{hint}"

    def tail(self) -> str:
        """The last line that the worker wrote to its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""


class Pool:
    """Worker processes over one root; their events arrive in `events` as (worker, message)."""

    def __init__(self, root: Path, *, n: int, pin: bool, logs: Path):
        self.root, self.logs = root, logs
        self.shares = machine.shares(n) if pin else [None] * n
        self.events: queue.Queue[tuple[Worker, dict[str, Any]]] = queue.Queue()
        self.workers: dict[int, Worker] = {}

    def start(self, index: int) -> Worker:
        self.logs.parent.mkdir(parents=True, exist_ok=True)
        log = self.logs.with_name(f"{self.logs.name}.{index}.log")
        command = [sys.executable, "-m", "sweeps.launch.worker", "--root", str(self.root.resolve())]
        share = self.shares[index]
        if share is not None:
            command += ["--cores", ",".join(map(str, share))]
        # the code and a user's own layers are found where the parent found them
        path = os.pathsep.join(str(Path(p or ".").resolve()) for p in sys.path)
        with open(log, "a") as stderr:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **machine.ALLOCATOR, "PYTHONPATH": path},
                start_new_session=True,
            )
        worker = Worker(index, process, log)
        self.workers[index] = worker
        threading.Thread(target=self._hear, args=(worker,), daemon=True).start()
        return worker

    def _hear(self, worker: Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            try:
                message = json.loads(line)
            except json.JSONDecodeError:
                continue  # half a line of a killed worker
            self.events.put((worker, message))
        worker.process.wait()
        self.events.put((worker, {"event": ENDED}))
