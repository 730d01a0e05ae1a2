"""How is the zoo's page to be read? What its numbers cannot say, and what the papers expect."""

from typing import Any

from benchmarks.zoo_plan import Zoo, word
from benchmarks.zoo_results import BASELINE
from model import archs

# best first: Arora et al. 2023 (arXiv 2312.04927), Yang et al. 2024 (arXiv 2406.06484)
EXPECTED = {"recall": ("dense", "deltanet", "gla", "linear")}
UNSTEADY = 0.1  # seeds whose accuracies are farther apart than this are told one by one
BESIDE = 1.25  # compiler's FLOPs over counted ones, above which an architecture is told


def notes(value: dict[str, Any], zoo: Zoo) -> list[str]:
    out = [
        "- The runs are tiny. What separates architectures at scale may not show here, and what "
        "shows here may not last; the interval of a multiplier says how little is known.",
        "- Widths (and learning rates of tasks) are chosen by the seeds that are reported, which "
        "flatters every architecture alike by a fraction of the seeds' spread.",
        "- A diverged run is a result: it is counted under `not done` and left out of the means.",
    ]
    if zoo.budgets:
        out.append(
            "- One learning rate, batch and schedule serve every architecture on text, chosen for "
            f"{BASELINE}: an architecture that wants others is undersold. The loss of `diffusion` "
            "is a bound, and `span_mixture` is asked for plain text."
        )
        out += _uncounted(value["archs"])
        out += [
            f"- `{word(arch)}` is in its `{block.ffn.residual}` reading."
            for arch in value["archs"]
            for block in archs.build(arch).repeat
            if hasattr(block.ffn, "residual")
        ]
    best = [
        at["d_model"]
        for one in value["archs"].values()
        for at in one["text"].values()
        if at["d_model"] is not None
    ]
    low, high = (sum(w == edge for w in best) for edge in (min(zoo.widths), max(zoo.widths)))
    if low or high:
        out.append(
            f"- Of {len(best)} best widths {low} are the smallest ({min(zoo.widths)}) and {high} "
            f"the largest ({max(zoo.widths)}): there the optimum lies at the edge of the grid or "
            "beyond it, and the loss is not quite the compute-optimal one."
        )
    for task in zoo.tasks:
        out += _separation(task, value["archs"])
    if zoo.budgets and any(
        "?" in ratio(one.get("against", {}).get("multiplier")) for one in value["archs"].values()
    ):
        out.append("- In intervals, `?` is an end that is not finite.")
    loads = [o["cost"]["load"] for o in value["archs"].values() if "load" in o.get("cost", {})]
    if zoo.budgets and loads and max(loads) > 1.5:  # a step of its own is about 1
        out.append(
            f"- Speeds were taken beside other work (load {min(loads):.1f} to {max(loads):.1f}): "
            "only large ratios mean something."
        )
    out += [f"- **{a}** is left out: {why}" for a, why in sorted(value["left_out"].items())]
    return out


def _uncounted(found: dict[str, Any]) -> list[str]:
    """Whose forward pass costs more than what is counted for its tokens."""
    name = "compiled_over_counted"
    shares = {arch: one[name] for arch, one in found.items() if name in one}
    much = {word(arch): x for arch, x in shares.items() if x > BESIDE}
    if not much:
        return []
    rest = [x for x in shares.values() if x <= BESIDE]
    others = f", for all others {min(rest):.2f} to {max(rest):.2f}" if rest else ""
    told = ", ".join(f"{a} {x:.2f}" for a, x in sorted(much.items(), key=lambda item: -item[1]))
    return [
        "- What a step makes once for all its rows (the kernel of S4, the filter of Monarch) is no "
        "cost of a token and is not counted. At rows as few and short as these it is: the "
        "compiler's FLOPs of a forward pass over the counted ones (`full_attn`) are "
        f"{told}{others}. By that measure the compute of those named is so many times as much as "
        "the page says; with many rows in a batch it is not."
    ]


def ratio(q: dict[str, Any] | None) -> str:
    if not q or q["value"] is None:
        return "-"
    low, high = ("?" if q[end] is None else f"{q[end]:.2f}" for end in ("lo", "hi"))
    return f"{q['value']:.2f} [{low}, {high}]"


def _separation(task: str, found: dict[str, Any]) -> list[str]:
    """Whether neighbours of the papers' order are apart by their intervals, and unsteady seeds."""
    at = {
        name: one["tasks"][task]
        for name, one in found.items()
        if one["tasks"].get(task, {}).get("lo") is not None
    }
    notes = []
    expected = [name for name in EXPECTED.get(task, ()) if name in at]
    pairs = []
    for better, worse in zip(expected, expected[1:], strict=False):
        a, b = at[better], at[worse]
        verdict = "holds" if a["lo"] > b["hi"] else "NOT SO" if b["lo"] > a["hi"] else "not apart"
        pairs.append(f"{better} {a['mean']:.3f} over {worse} {b['mean']:.3f}: {verdict}")
    if pairs:
        notes.append(
            f"- {task}: the papers have {' > '.join(expected)}. By the intervals here: "
            f"{'; '.join(pairs)}."
        )
    unsteady = [
        f"{word(name)} {', '.join(f'{a:.3f}' for a in one['accuracies'])}"
        for name, one in at.items()
        if max(one["accuracies"]) - min(one["accuracies"]) > UNSTEADY
    ]
    if unsteady:
        notes.append(f"- {task}: seeds that ended far apart: {'; '.join(unsteady)}.")
    return notes
