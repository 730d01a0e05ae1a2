"""Which laws are there? One a file of this folder, found by its name; or `module:object`."""

import importlib
import pkgutil
import sys
from pathlib import Path

from analysis.law import Law, check
from parallelism.errors import InputError, nearest


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def resolve(name: str) -> Law:
    """The law `analysis/laws/<name>.py`, or `module:object`; raises InputError."""
    if ":" not in name:
        if name not in names():
            raise InputError(
                "--law", name, nearest(name, names()) + ", or module:object for a law of your own"
            )
        return importlib.import_module(f"{__name__}.{name}").LAW
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    # the installed command does not search the current folder, where a user's own law lies
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module can raise anything while it is imported
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            "--law", f"{name} ({said})", "write module:object of a module that imports"
        ) from None
    finally:
        if added:
            sys.path.remove(here)
    if attribute not in vars(module):
        raise InputError("--law", name, f"{module_name} has no {attribute}; write module:object")
    return check(vars(module)[attribute], field=f"--law {name}")
