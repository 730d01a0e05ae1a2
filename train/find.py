"""Which run does a person mean? Its folder, its id, or the unique beginning of an id."""

from pathlib import Path

from parallelism.errors import InputError, nearest
from train.record import Run, RunDir, run_folders


def find_run(name: str, root: Path | str) -> Run:
    """The run that `name` means, ids looked for under `root`; raises InputError."""
    given = Path(name).resolve()
    if given in run_folders(given.parent):
        return RunDir(given).read()
    ids = [p.name for p in run_folders(root)]
    fitting = [one for one in ids if one == name] or [one for one in ids if one.startswith(name)]
    if len(fitting) == 1:
        return RunDir(Path(root) / fitting[0]).read()
    if fitting and name:
        some = ", ".join(fitting[:6]) + (", ..." if len(fitting) > 6 else "")
        raise InputError(
            "RUN", name, f"{len(fitting)} runs begin so ({some}); write more of the id"
        )
    known = nearest(name, ids) if ids else f"{root} holds no runs; write --root with their folder"
    raise InputError("RUN", repr(name), f"no such run; {known}")
