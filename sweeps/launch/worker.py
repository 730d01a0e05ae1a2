"""What does a worker process do? It trains one cell after another, or one stack of them after
another, so programs stay compiled.

Commands come as JSON lines on stdin, events go as JSON lines to what was stdout; anything else that
prints goes to stderr. The end of stdin means that the parent is gone: the run in hand is
checkpointed and the worker ends. An exception that is not the user's to mend ends the worker after
it was told, because the state of the runtime behind it is unknown.
"""

import argparse
import dataclasses
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

GONE = 3  # exit status after an unexpected exception, which was told on stdout before


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--cores", default="")
    args = parser.parse_args()
    if args.cores and sys.platform == "linux":
        # before jax starts: its thread pool is as large as the cores it sees
        os.sched_setaffinity(0, [int(core) for core in args.cores.split(",")])
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(event: str, **fields: Any) -> None:
        events.write(json.dumps({"event": event, **fields}) + "\n")

    commands: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_listen, args=(commands,), daemon=True).start()
    try:
        import jax

        import train.stack  # noqa: F401  with all that it imports, before this one is ready

        jax.devices()  # a machine without its accelerator is told before any cell is taken
        tell("ready", pid=os.getpid())
        while (command := commands.get()) is not None:
            status = _cells(command, root=args.root, tell=tell)
            if status is not None:
                return status
        return 0
    except (KeyboardInterrupt, BrokenPipeError):
        return 128 + signal.SIGINT


def _cells(command: dict[str, Any], *, root: Path, tell: Any) -> int | None:
    """Train the cells of a command; gives the exit status where the worker must end."""
    from parallelism.errors import InputError
    from train.loop import train
    from train.spec import from_dict
    from train.stack import train_stack

    specs, places = [from_dict(tree) for tree in command["specs"]], command["places"]
    left, clock = {spec.run_id for spec in specs}, [time.monotonic()]

    def progress(p: Any) -> None:
        tell("progress", **dataclasses.asdict(p))

    def ended(run_id: str, how: Any) -> None:
        left.remove(run_id)
        if isinstance(how, InputError):
            return tell("input_error", run_id=run_id, reason=str(how))
        clock.append(time.monotonic())  # the worker's time since it told of another
        tell("outcome", seconds=clock[-1] - clock[-2], **dataclasses.asdict(how))

    try:
        if places == 1:
            ended(specs[0].run_id, train(specs[0], root=root, progress=progress))
        else:
            train_stack(specs, root=root, places=places, progress=progress, ended=ended)
    except InputError as error:
        for run_id in list(left):
            ended(run_id, error)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        traceback.print_exc()
        tell("crash", reason=f"{type(error).__name__} at {where}: {error}")
        return GONE
    return None


def _listen(commands: "queue.Queue[dict[str, Any] | None]") -> None:
    for line in sys.stdin:
        commands.put(json.loads(line))
    # the parent is gone or wants no more: end what is in hand as Ctrl-C would
    commands.put(None)
    main_thread = threading.main_thread().ident
    if main_thread is not None:
        signal.pthread_kill(main_thread, signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
