"""What does each sequence scheme hold and move? Draws docs/figures/sequence.svg.

    python -m benchmarks.sequence_figure [FILE]

Layouts are read from the schemes themselves; what moves is told by hand, one line a scheme.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  the backend comes first
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import FancyArrowPatch, Rectangle  # noqa: E402

from parallelism.sequence import resolve  # noqa: E402

WAYS, LENGTH = 4, 16
COLOURS = ["#4C78A8", "#F58518", "#54A24B", "#B279A2"]  # of a device
# scheme, arrows (text, direction: 1 right round, -1 left round, 0 all to all), what stays
TOLD = {
    "ring_self_attention": (
        [("k, then v", 1)],
        "q stays; all scores of a device's queries are held",
    ),
    "ring": ([("k v", 1)], "q stays; (y, lse) of the device's queries is joined hop by hop"),
    "striped": ([("k v", 1)], "as ring; every W-th position on a device"),
    "zigzag": ([("k v", 1)], "as ring; a run from the front and one from the back on a device"),
    "token_ring": ([("q", -1), ("(y, lse) straight home", 1)], "k v stay; layout of zigzag"),
    "ulysses": ([("q k v, then y back", 0)], "between: all positions of a quarter of the heads"),
    "all_gather": ([("k v to all", 0)], "q stays; for one layer each device has all k v"),
    "lasp2": (
        [("(A, M) of a device's positions to all", 0)],
        "q k v stay; A carries a state past the device, M is what it adds: no size of T",
    ),
}


def panel(axes: Axes, name: str) -> None:
    arrows, stays = TOLD[name]
    order = resolve(name).order(LENGTH, ways=WAYS).reshape(WAYS, -1)
    for device, held in enumerate(order):
        left = 5.2 * device
        axes.add_patch(Rectangle((left, 0), 4.4, 1.7, fill=False, lw=1, ec="#444444"))
        axes.text(left + 2.2, 1.95, f"device {device}", ha="center", fontsize=8, color="#444444")
        for place, position in enumerate(held):
            at = (left + 0.2 + place, 0.35)
            axes.add_patch(Rectangle(at, 0.95, 1.0, fc=COLOURS[position // 4], ec="white"))
            axes.text(at[0] + 0.47, 0.85, str(position), ha="center", va="center", color="white")
    end = 5.2 * (WAYS - 1) + 4.4
    for i, (text, way) in enumerate(arrows):
        y = -0.55 - 0.95 * i
        if way == 0:
            style, (a, b) = "<|-|>", (0.5, end - 0.5)
        else:
            style, (a, b) = "-|>", (0.5, end - 0.5) if way > 0 else (end - 0.5, 0.5)
        axes.add_patch(FancyArrowPatch((a, y), (b, y), arrowstyle=style, mutation_scale=12, lw=1.2))
        round_ = {
            0: "",
            1: " (and from the last to the first)",
            -1: " (and from the first to the last)",
        }[way]
        axes.text(end / 2, y + 0.12, text + round_, ha="center", va="bottom", fontsize=8)
    axes.text(0, -0.75 - 0.95 * len(arrows), stays, fontsize=8, va="center", color="#444444")
    axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlim(-0.3, end + 0.3)
    axes.set_ylim(-2.9, 2.4)
    axes.set_aspect("equal")
    axes.axis("off")


def hops(axes: Axes, name: str) -> None:
    """Which pairs of a query and a key are worked on after how many hops."""
    order = resolve(name).order(LENGTH, ways=WAYS)
    device = np.arange(LENGTH) // (LENGTH // WAYS)
    seen = order[:, None] >= order
    hop = (device[:, None] - device) % WAYS
    if name in ("ulysses", "all_gather"):
        hop = np.zeros_like(hop)
    if name == "lasp2":  # other devices' keys come as one state
        hop = np.minimum(hop, 1)
    shades = plt.get_cmap("Blues")(np.linspace(0.85, 0.3, WAYS))[hop]
    shades[~seen] = 1
    axes.imshow(shades, interpolation="nearest")
    for edge in np.arange(0, LENGTH + 1, LENGTH // WAYS) - 0.5:
        axes.axhline(edge, color="#888888", lw=0.5)
        axes.axvline(edge, color="#888888", lw=0.5)
    axes.set_xticks([1.5, 5.5, 9.5, 13.5], [f"k{i}" for i in range(WAYS)], fontsize=7)
    axes.set_yticks([1.5, 5.5, 9.5, 13.5], [f"q{i}" for i in range(WAYS)], fontsize=7)
    axes.tick_params(length=0)


def main(path: Path) -> None:
    plt.rcParams.update({"svg.hashsalt": "sequence", "font.family": "DejaVu Sans"})
    sizes = {"width_ratios": [5.5, 1]}
    figure, grid = plt.subplots(len(TOLD), 2, figsize=(9.5, 2.05 * len(TOLD)), gridspec_kw=sizes)
    for row, name in zip(grid, TOLD, strict=True):
        panel(row[0], name)
        hops(row[1], name)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/figures/sequence.svg"))
