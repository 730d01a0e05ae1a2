"""May this process train a run? Not one that has ended, nor one that another process has in hand;
and what trains it is held by its lock until it is left.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from parallelism.errors import InputError
from train.course import Outcome, open_text
from train.interrupts import lead_says
from train.record import DIVERGED, DONE, RunDir
from train.spec import RunSpec


@contextlib.contextmanager
def claimed(spec: RunSpec, run: RunDir, *, cache: Path) -> Iterator[Outcome | None]:
    """Yields None where the run is now this process's to train, and else how it stands: ended, or
    held by another.
    """
    run.check_format()
    lead = jax.process_index() == 0  # looks and claims for all processes
    standing = _ended(run) if lead else None
    with run.claim() if lead and standing is None else contextlib.nullcontext({}) as held:
        if held is None:
            reason = f"process {run.owner()} is training it"
            standing = Outcome(spec.run_id, "held", reason, {}, [])
        elif lead and standing is None:
            standing = _ended(run)  # another process may have finished it between the two looks
            if standing is None:
                run.clear_result()  # a failed run is tried again
        if lead_says(standing is not None):
            if standing is not None and standing.skipped:
                _check_text(spec, run, cache=cache)
            yield standing or _ended(run) or Outcome(spec.run_id, "held", None, {}, [])
        else:
            yield None


def _ended(run: RunDir) -> Outcome | None:
    """A finished run as it stands; a failed one has not ended."""
    if not (run.path / "spec.json").exists():
        return None
    result = run.read().result
    if result is None or result["status"] not in (DONE, DIVERGED):
        return None
    return Outcome(
        run.run_id, result["status"], result["reason"], result["metrics"], [], skipped=True
    )


def _check_text(spec: RunSpec, run: RunDir, *, cache: Path) -> None:
    """Refuse to hand out a finished run whose corpus is another one now."""
    then = run.read().env.get("data", {}).get("fingerprint")
    now = open_text(spec, cache=cache).fingerprint
    if then is not None and then != now:
        raise InputError(
            "data.sources",
            f"the corpus changed since {run.path} ended ({then} then, {now} now)",
            "restore the files, or train in another --root",
        )
