"""How does a run survive its process? Orbax checkpoints of the state with the data position, behind
a thin face.

Saving is asynchronous and atomic (a checkpoint exists only once it is whole). Restoring goes onto
whatever mesh the run now has, and falls back to the checkpoint before when the newest cannot be
read.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from parallelism.errors import InputError

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax narrates every save


class Checkpoints:
    """The checkpoints of one run, under the folder that the run directory names."""

    def __init__(self, folder: Path, *, keep: int):
        self.folder = folder.resolve()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        with _full_disk(self.folder):
            self.manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
        """Begin to save; the arrays are copied before this returns, so the state may be donated
        afterwards.
        """
        with _full_disk(self.folder):
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
                ),
            )

    def restore(
        self, abstract: Any, shardings: Any, *, say: Callable[[str], None]
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, position) of the newest checkpoint that can be read, or None when there is
        none.

        A checkpoint that cannot be read is set aside under `ckpt/unreadable-<step>` and said so.
        """
        targets = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            shardings,
        )
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                found = self.manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(targets), position=ocp.args.JsonRestore()
                    ),
                )
                return step, found["state"], found["position"]
            except Exception as error:  # orbax raises what the storage raised: any of a dozen types
                why = _first_line(error)
                say(f"checkpoint {step} cannot be read ({why}); falling back to the one before")
                self._set_aside(step)
        return None

    def wait(self) -> None:
        with _full_disk(self.folder):
            self.manager.wait_until_finished()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.manager.close()

    def _set_aside(self, step: int) -> None:
        target = self.folder / f"unreadable-{step}"
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.folder / str(step)).rename(target)
        self.manager.reload()


def read_params(folder: Path, abstract: Any, *, say: Callable[[str], None]) -> Any:
    """(step, params) of the newest checkpoint that can be read, or None when there is none.

    Touches nothing, so a run that is being trained can be read; `abstract` is the params' tree of
    shapes with the shardings that they shall have.
    """
    if not folder.is_dir():
        return None
    options = ocp.CheckpointManagerOptions(read_only=True)
    manager = ocp.CheckpointManager(folder.resolve(), options=options)
    target = {"params": abstract}
    wanted = ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=True,
    )
    with contextlib.closing(manager):
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                found = manager.restore(step, args=ocp.args.Composite(state=wanted))
                return step, found["state"]["params"]
            except Exception as error:  # orbax raises what the storage raised
                why = _first_line(error)
                say(f"checkpoint {step} cannot be read ({why}); trying the one before")
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]


@contextlib.contextmanager
def _full_disk(folder: Path):
    try:
        yield
    except Exception as error:
        if "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
            raise InputError(
                str(folder),
                "the disk is full",
                "free some space and run the same command again: it resumes",
            ) from error
        raise
