"""How does a user learn what to write instead?

Every mistake a user can make is raised as `InputError`; the front door prints it as one line and
exits with status 2. It lives in the lowest room because every room raises it.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A mistake in what the user gave: the field or file, what was given, what to write instead.

    `given` is None where `instead` already says it (a relation between several fields).
    """

    def __init__(self, field: str, given: object, instead: str):
        self.field, self.given, self.instead = field, given, instead
        shown = given if isinstance(given, str) else repr(given)
        if len(shown) > 160:
            shown = shown[:157] + "..."
        parts = [f"{field}: " if field else "", f"{shown}; " if given is not None else "", instead]
        super().__init__("".join(parts).replace("\n", " "))


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for a mistyped name, or the known names when nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    head = ", ".join(known[:12])
    return f"choose one of {head}" + (", ..." if len(known) > 12 else "")


def nearest_path(path: str, known: Iterable[str]) -> str:
    """`nearest` of a dotted path: where its parent is right, only the last name is compared, as the
    rest would make any field beside it look near. A field of that very name elsewhere comes first.
    """
    known = sorted(known)
    parent, _, leaf = path.rpartition(".")
    beside = {p.rpartition(".")[2]: p for p in known if parent and p.rpartition(".")[0] == parent}
    close = difflib.get_close_matches(leaf, beside, n=1, cutoff=0.5)
    elsewhere = [p for p in known if p.endswith(f".{leaf}")]
    if len(elsewhere) == 1:
        return f"did you mean {elsewhere[0]}?"
    if close:
        return f"did you mean {beside[close[0]]}?"
    return "choose one of " + ", ".join(beside.values()) if beside else nearest(path, known)
