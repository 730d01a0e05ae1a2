"""How does one run get done in this process? As in a sweep of one, with the same display."""

import dataclasses
from pathlib import Path
from typing import Any

from sweeps.launch.schedule import cell
from sweeps.launch.show import display
from train.loop import Outcome, Progress, train
from train.spec import RunSpec


def train_here(spec: RunSpec, *, root: Path, show: bool = True) -> Outcome:
    """Train a run to its end in this process, on every device it asks for; Ctrl-C checkpoints."""
    one = cell(spec)
    with display([one], [one], show=show) as shown:
        shown.begin(one, 0)

        def progress(p: Progress) -> None:
            message: dict[str, Any] = dataclasses.asdict(p)
            shown.progress(one, 0, message)
            shown.tick()

        outcome = train(spec, root=Path(root), progress=progress)
        if outcome.status != "held":
            shown.end(one, outcome.status, outcome.reason)
    return outcome
