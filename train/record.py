"""What does a run leave behind, and how is it read?

The only file that knows the file names of a run directory (house contract): `spec.json`,
`env.json`, `counts.json`, `metrics.jsonl`, `result.json`, `ckpt/`. Whole files are written to a
temporary name and renamed; the ledger is append-only while a run lives and is cut back to the
checkpoint's step when a run resumes, so a resumed ledger equals an uninterrupted one. This file
imports no jax: analysis reads runs through it.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from parallelism.errors import InputError
from train import lock

FORMAT = 1  # of the run directory

DONE, DIVERGED, FAILED = "done", "diverged", "failed"
STATUSES = (DONE, DIVERGED, FAILED)


def write_json(path: Path, value: Any) -> None:
    """Atomic: temporary file in the same folder, flushed to disk, then renamed."""
    handle = name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a device, a pipe or a folder is not replaced
            raise OSError(errno.EEXIST, "not a regular file")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w") as file:
            json.dump(value, file, indent=2, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        if name is not None:
            with contextlib.suppress(OSError):
                os.unlink(name)
        if isinstance(error, OSError):
            raise disk_error(error, path) from error
        raise


def disk_error(error: OSError, path: Path) -> InputError:
    """A path that cannot be written is the user's to mend: say so in one line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(
            str(path),
            "the disk is full",
            "free some space and run the same command again: it resumes",
        )
    why = (error.strerror or str(error)).lower()
    return InputError(str(path), f"not writable ({why})", "give a path that can be written")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            str(path), f"not JSON ({error})", "restore the file, or remove it"
        ) from None
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise InputError(str(path), f"not readable ({why})", "give a JSON file") from None


def read_object(path: Path, **fields: type | tuple[type, ...]) -> dict[str, Any]:
    """A JSON object whose `fields`, where they are there, have these types; raises InputError."""
    value = read_json(path)
    instead = "restore the file, or remove its folder"
    if not isinstance(value, dict):
        raise InputError(str(path), "not a JSON object", instead)
    for name, kind in fields.items():
        if name in value and not isinstance(value[name], kind):
            raise InputError(f"{path}: {name}", value[name], instead)
    return value


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{"optim": {"lr": 1}}` -> `{"optim.lr": 1}`; list items are numbered."""
    if isinstance(tree, dict) and tree:
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, list) and tree:
        items = enumerate(tree)
    else:
        return {prefix: tree}
    out: dict[str, Any] = {}
    for key, value in items:
        out.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return out


@dataclasses.dataclass(frozen=True)
class RunDir:
    """One run directory, written by the loop and read by everyone."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "ckpt"

    # -- written once at the start -----------------------------------------------------------------

    def start(self, *, spec: dict[str, Any], env: dict[str, Any], counts: dict[str, Any]) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, self.path) from error
        self.check_format()
        write_json(self.path / "counts.json", counts)
        write_json(self.path / "env.json", {**env, "format": FORMAT})
        write_json(self.path / "spec.json", spec)

    def resumed(self, *, step: int, env: dict[str, Any]) -> None:
        """Add to `resumes` in env.json where and with what a run went on."""
        path = self.path / "env.json"
        before = read_object(path, resumes=list) if path.exists() else {}
        again = [*before.get("resumes", []), {"step": step, "time": time.time(), **env}]
        write_json(path, {**before, "resumes": again})

    def check_format(self) -> None:
        """Refuse a directory that a newer ladder wrote, before anything is touched."""
        path = self.path / "env.json"
        made = read_object(path, format=int).get("format", FORMAT) if path.exists() else FORMAT
        if made > FORMAT:
            raise InputError(
                str(self.path),
                f"written by a newer ladder (format {made})",
                f"upgrade ladder, or give another --root; this one reads formats up to {FORMAT}",
            )

    # -- the ledger --------------------------------------------------------------------------------

    def ledger(self, *, resume_step: int) -> "Ledger":
        """Open for appending after `resume_step`: later lines, from work since that checkpoint, are
        cut.
        """
        path = self.path / "metrics.jsonl"
        kept = [row for row in self.metrics() if row["step"] <= resume_step]
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in kept)
        temporary = path.with_name(".metrics.jsonl.cut")
        try:
            temporary.write_text(text)
            os.replace(temporary, path)
            last = kept[-1] if kept else None
            return Ledger(open(path, "a"), path, last)  # noqa: SIM115  closed by Ledger.close
        except OSError as error:
            raise disk_error(error, path) from error

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of the ledger; a half-written last line (a killed run) is left out."""
        path = self.path / "metrics.jsonl"
        rows = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    break
                if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                    raise InputError(
                        f"{path}: line {len(rows) + 1}",
                        line,
                        "no row of a ledger; restore the file, or remove the run directory",
                    )
                rows.append(row)
        return rows

    # -- written once at the end -------------------------------------------------------------------

    def finish(
        self, *, status: str, metrics: dict[str, float], reason: str | None = None, **more: Any
    ) -> None:
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is not one of {STATUSES}")
        metrics = {k: v for k, v in metrics.items() if v is not None and math.isfinite(v)}
        write_json(
            self.path / "result.json",
            {"status": status, "reason": reason, "metrics": metrics, **more},
        )

    def clear_result(self) -> None:
        (self.path / "result.json").unlink(missing_ok=True)

    def record_attempt(self, *, reason: str, **more: Any) -> None:
        """One line in attempts.jsonl for an attempt that ended in a crash: when, why, and what the
        launcher adds.
        """
        row = {"time": time.time(), "reason": reason, **more}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self.path / "attempts.jsonl", "a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise disk_error(error, self.path) from error

    def attempts(self) -> list[dict[str, Any]]:
        """Attempts that ended in a crash, oldest first; a half-written last line is left out."""
        path, rows = self.path / "attempts.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    # -- read --------------------------------------------------------------------------------------

    def read(self) -> "Run":
        self.check_format()

        def part(name: str, **fields: type | tuple[type, ...]) -> dict[str, Any] | None:
            path = self.path / name
            return read_object(path, **fields) if path.exists() else None

        spec = part("spec.json")
        if spec is None:
            raise InputError(
                str(self.path), "no spec.json", "give the --root that holds run directories"
            )
        return Run(
            run_id=self.run_id,
            path=self.path,
            spec=spec,
            env=part("env.json") or {},
            counts=part("counts.json", params=dict, flops_per_token=dict) or {},
            result=self._result(part("result.json", metrics=dict)),
        )

    def _result(self, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and (value.get("status") not in STATUSES or "metrics" not in value):
            raise InputError(
                str(self.path / "result.json"),
                f"status {value.get('status')!r}",
                "remove the file: the run goes on from its last checkpoint",
            )
        return value

    @contextlib.contextmanager
    def claim(self) -> Iterator[dict[str, Any] | None]:
        """Hold this run for one process. Yields None when another living process holds it.

        The lock is the kernel's (flock), so a killed owner frees it at once; the file keeps who
        held it. A yielded dict's `taken_over` names the dead owner whose unfinished claim this one
        replaces.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held = lock.take(self.path / "lock")
        except OSError as error:
            raise disk_error(error, self.path) from error
        try:
            yield None if held is None else held.about
        finally:
            if held is not None:
                held.release()

    def owner(self) -> dict[str, Any] | None:
        """Who holds the run now, or None."""
        return lock.owner(self.path / "lock")


@dataclasses.dataclass
class Ledger:
    """An open metrics.jsonl: one JSON object a log point, `last` the newest of them."""

    file: IO[str]
    path: Path
    last: dict[str, Any] | None = None

    def append(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row of this step as it stands: one that is there already is kept."""
        if self.last is not None and self.last["step"] == row["step"]:
            return self.last
        # a missing number is missing: non-finite values never enter the ledger
        row = {k: v for k, v in row.items() if not (isinstance(v, float) and not math.isfinite(v))}
        try:
            self.file.write(json.dumps(row, allow_nan=False) + "\n")
            self.file.flush()
        except OSError as error:
            raise disk_error(error, self.path) from error
        self.last = row
        return row

    def sync(self) -> None:
        """Onto the disk, not only into the kernel."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise disk_error(error, self.path) from error

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory as read: plain JSON values, nothing resolved."""

    run_id: str
    path: Path
    spec: dict[str, Any]
    env: dict[str, Any]
    counts: dict[str, Any]
    result: dict[str, Any] | None

    @property
    def status(self) -> str:
        """done, diverged, failed, running (a living process holds it) or unfinished."""
        if self.result is not None:
            return self.result["status"]
        return "running" if RunDir(self.path).owner() is not None else "unfinished"

    def metrics(self) -> list[dict[str, Any]]:
        return RunDir(self.path).metrics()


def run_folders(root: Path | str) -> list[Path]:
    """Every run directory under a root, by run id."""
    return sorted(p.parent for p in Path(root).glob("*/spec.json"))


def read_runs(root: Path | str) -> list[Run]:
    """Every run under a root, by run id; raises InputError when the root is no folder."""
    root = Path(root)
    if not root.is_dir():
        raise InputError("--root", str(root), "no such folder; give the folder that holds the runs")
    return [RunDir(p).read() for p in run_folders(root)]
