"""Who else is told? wandb mirrors the ledger when a key or offline mode is there; nothing depends
on it.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


class Silent:
    def log(self, row: dict[str, Any]) -> None: ...

    def close(self, status: str) -> None: ...


class Mirror:
    """A wandb run of the same id. The record stays local."""

    def __init__(self, run_id: str, spec: dict[str, Any], *, folder: str):
        import wandb

        self.run = wandb.init(
            project="ladder",
            id=run_id,
            name=run_id,
            config=spec,
            dir=folder,
            resume="allow",
            settings=wandb.Settings(silent=True),
        )

    def log(self, row: dict[str, Any]) -> None:
        with _never_fatal(self.run.id):
            self.run.log(row, step=row["step"])

    def close(self, status: str) -> None:
        with _never_fatal(self.run.id):
            self.run.summary["status"] = status
            self.run.finish()


def wanted() -> bool:
    mode = os.environ.get("WANDB_MODE", "")
    return mode == "offline" or (
        mode not in ("disabled", "dryrun") and "WANDB_API_KEY" in os.environ
    )


def open_tracker(run_id: str, spec: dict[str, Any], *, folder: str) -> Silent | Mirror:
    if wanted():
        with _never_fatal(run_id):
            return Mirror(run_id, spec, folder=folder)
    return Silent()


@contextlib.contextmanager
def _never_fatal(run_id: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever wandb raises: the record does not depend on it
        print(f"wandb does not mirror {run_id}: {error}", file=sys.stderr, flush=True)
