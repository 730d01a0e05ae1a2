"""How does a tree of fields change with the fields that a spec has? Those that came later hold, in
older files, the value that reproduces them.
"""

from collections.abc import Mapping
from typing import Any


def fill(tree: dict[str, Any], added: Mapping[str, Any]) -> None:
    """Set the fields of `added` that are not there."""
    for path, legacy in added.items():
        for node, leaf in _holders(tree, path):
            node.setdefault(leaf, legacy)


def strip(tree: dict[str, Any], added: Mapping[str, Any]) -> None:
    """Leave out the fields of `added` that hold their legacy value."""
    for path, legacy in added.items():
        for node, leaf in _holders(tree, path):
            if leaf in node and node[leaf] == legacy:
                del node[leaf]


def _holders(tree: Any, path: str) -> list[tuple[dict[str, Any], str]]:
    """(object, its key) of every place that a path of ADDED_SINCE_FORMAT_1 names."""
    *parents, leaf = path.split(".")
    nodes = [tree]
    for key in parents:
        name, _, kind = key.partition(":")
        if name == "*":
            nodes = [item for node in nodes if isinstance(node, list) for item in node]
        else:
            nodes = [node[name] for node in nodes if isinstance(node, dict) and name in node]
        if kind:
            nodes = [node for node in nodes if isinstance(node, dict) and node.get("kind") == kind]
    return [(node, leaf) for node in nodes if isinstance(node, dict)]
