"""What does each mesh axis make a device hold, move and compute? Draws docs/figures/mesh.svg.

    python -m benchmarks.mesh_figure [FILE]

What is held is read from the tables of parallelism/rules.py; what moves, and what an expert's or a
stage's device computes, is told by hand. The axis `sequence` has a figure of its own.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  the backend comes first
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.patches import FancyArrowPatch, Rectangle  # noqa: E402

from benchmarks.sequence_figure import COLOURS, WAYS  # noqa: E402
from parallelism.axes import MeshSpec, letters  # noqa: E402
from parallelism.place import Rules, partition  # noqa: E402
from parallelism.rules import ACTIVATIONS, PARAMETERS  # noqa: E402

SIZE = 4  # of every dim that is drawn
NOTHING = "#E8E8E8"
Array = tuple[str, str, Rules]  # what it is, its dims of which the first two are drawn
TOKENS: Array = ("tokens", "B T", ACTIVATIONS)
UP, OUT = ("ffn up", "D F", PARAMETERS), ("ffn out", "F D", PARAMETERS)
TABLE: Array = ("table", "V D", PARAMETERS)
EXPERTS: Array = ("experts", "E D F", PARAMETERS)
LAYERS: Array = ("layers", "Z D F", PARAMETERS)


@dataclass(frozen=True)
class Told:
    """Of a mesh axis: what is drawn of a device; arrows (text, direction: 1 right, 0 all to all);
    and the dims of the product whose parts are drawn by who computes them."""

    arrays: tuple[Array, ...]
    arrows: tuple[tuple[str, int], ...]
    product: tuple[str, str]


TOLD = {
    "data": Told(
        (TOKENS, UP, OUT),
        (("gradients, summed: once a step", 0),),
        ("B", "F"),
    ),
    "fsdp": Told(
        (TOKENS, UP, OUT),
        (
            ("a layer's parameters to all: where they are used", 0),
            ("their gradients, summed, to who holds them", 0),
        ),
        ("B", "F"),
    ),
    "tensor": Told(
        (TOKENS, UP, OUT),
        (("parts of a layer's output, summed; of its input's gradient too", 0),),
        ("B", "F"),
    ),
    "expert": Told(
        (TOKENS, EXPERTS),
        (
            ("tokens, choices and weights to all of the group", 0),
            ("outputs, summed, to whose rows they are", 0),
        ),
        ("tokens", "experts"),
    ),
    "pipeline": Told(
        (TOKENS, TABLE, LAYERS),
        (
            ("the stream of a part, to the next stage every turn; gradients the other way", 1),
            ("what leaves the last stage, once, to all", 0),
        ),
        ("turn", "stage"),
    ),
}


def held(array: Array, axis: str) -> np.ndarray:
    """(device, SIZE, SIZE): whether it holds an element."""
    what, dims, rules = array
    names, mesh = letters(dims), MeshSpec(**{axis: WAYS}).sizes
    spec = partition(names, (SIZE,) * len(names), rules=rules, mesh=mesh, what=what)
    out = np.ones((WAYS, SIZE, SIZE), bool)
    for d, part in enumerate(tuple(spec)[:2]):
        if part is not None:
            own = np.arange(SIZE) == np.arange(WAYS)[:, None]
            out &= own[:, :, None] if d == 0 else own[:, None]
    return out


def panel(axes: Axes, axis: str) -> None:
    told = TOLD[axis]
    wide = 5.0 * len(TOLD["data"].arrays) + 0.6
    for device in range(WAYS):
        left = (wide + 1.2) * device
        axes.add_patch(Rectangle((left, 0), wide, 6.2, fill=False, lw=1, ec="#444444"))
        axes.text(left + wide / 2, 6.5, f"device {device}", ha="center", fontsize=8, color="#444")
        for i, array in enumerate(told.arrays):
            at = left + 0.8 + 5.0 * i
            title = f"{array[0]} {' '.join(letters(array[1])[:2])}"
            axes.text(at + SIZE / 2, 5.0, title, ha="center", fontsize=6.5, color="#444444")
            for (row, column), mine in np.ndenumerate(held(array, axis)[device]):
                place = (at + column, 0.6 + SIZE - 1 - row)
                colour = COLOURS[device] if mine else NOTHING
                axes.add_patch(Rectangle(place, 0.94, 0.94, fc=colour, ec="white", lw=0.5))
    end = (wide + 1.2) * (WAYS - 1) + wide
    for i, (text, way) in enumerate(told.arrows):
        y, style = -2.2 - 2.6 * i, "-|>" if way else "<|-|>"
        drawn = {"arrowstyle": style, "mutation_scale": 11, "lw": 1.2, "color": "black"}
        axes.add_patch(FancyArrowPatch((1.0, y), (end - 1.0, y), **drawn))
        axes.text(end / 2, y + 0.3, text, ha="center", va="bottom", fontsize=8)
    axes.set_title(axis, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlim(-0.5, end + 0.5)
    axes.set_ylim(-5.6, 7.6)
    axes.set_aspect("equal")
    axes.axis("off")


def computes(axes: Axes, axis: str) -> None:
    """Whose colour has which part of the work."""
    down, across = TOLD[axis].product
    if axis == "pipeline":
        turns = np.arange(SIZE + WAYS - 1)[:, None]
        part = turns - np.arange(WAYS)
        by = np.where((part >= 0) & (part < SIZE), np.arange(WAYS), -1)
        for (turn, stage), who in np.ndenumerate(by):
            if who >= 0:
                text = "abcd"[part[turn, stage]]
                axes.text(stage, turn, text, color="white", fontsize=7, ha="center", va="center")
    elif axis == "expert":
        by = np.tile(np.arange(WAYS), (SIZE, 1))
    else:
        by = np.zeros((SIZE, SIZE), int)
        for device, mine in enumerate(held(("product", "B F", ACTIVATIONS), axis)):
            by[mine] = device
    colours = np.array([to_rgb(c) for c in [*COLOURS, NOTHING]])
    axes.imshow(colours[by], interpolation="nearest")
    for edge in np.arange(-0.5, max(by.shape)):
        axes.axhline(edge, color="white", lw=0.8)
        axes.axvline(edge, color="white", lw=0.8)
    axes.set_xlabel(across, fontsize=7, labelpad=2)
    axes.set_ylabel(down, fontsize=7, labelpad=2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_frame_on(False)


def main(path: Path) -> None:
    plt.rcParams.update({"svg.hashsalt": "mesh", "font.family": "DejaVu Sans"})
    sizes = {"width_ratios": [8, 1]}
    figure, grid = plt.subplots(len(TOLD), 2, figsize=(10, 1.95 * len(TOLD)), gridspec_kw=sizes)
    for row, axis in zip(grid, TOLD, strict=True):
        panel(row[0], axis)
        computes(row[1], axis)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/figures/mesh.svg"))
