"""Who holds a file? The kernel's lock (flock) decides, so a killed owner frees it at once; the file
itself only keeps who that was."""

import fcntl
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# A reader who asks for the owner of a dead claim holds the lock for microseconds: try again before
# believing that it is held.
TRIES, PAUSE_SECONDS = 5, 0.02


@dataclass(frozen=True)
class Held:
    """`about` names this process, and under `taken_over` the dead owner whose place it takes."""

    file: IO[str]
    about: dict[str, Any]

    def release(self) -> None:
        self.file.truncate(0)
        self.file.close()


def take(path: Path) -> Held | None:
    """The lock, or None when another living process has it."""
    file = open(path, "a+")  # noqa: SIM115  closed by Held.release
    try:
        if not _locked(file):
            file.close()
            return None
        file.seek(0)
        before = _read(file)
        owner = {"pid": os.getpid(), "host": platform.node(), "since": time.time()}
        file.truncate(0)
        file.write(json.dumps(owner))
        file.flush()
    except BaseException:
        file.close()
        raise
    return Held(file, {**owner, "taken_over": before})


def owner(path: Path) -> dict[str, Any] | None:
    """Who holds the lock now; {} while the holder is writing who it is; None when nobody does."""
    if not path.exists():
        return None
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(file) or {}
        return None


def _locked(file: IO[str]) -> bool:
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            continue
    return False


def _read(file: IO[str]) -> dict[str, Any] | None:
    """Half an owner, of a writer that was killed or has not finished, is nobody."""
    try:
        found = json.loads(file.read())
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
