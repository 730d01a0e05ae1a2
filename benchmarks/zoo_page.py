"""What does the zoo's page look like? One table, one figure, and how to read them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.fit_figure import save
from analysis.svg import ACCENT, INK, MEASURED, MUTED, STYLE, colour
from benchmarks.zoo_plan import Zoo, word
from benchmarks.zoo_results import BASELINE, LAW, at_width

# best first: Arora et al. 2023 (arXiv 2312.04927), Yang et al. 2024 (arXiv 2406.06484)
EXPECTED = {"recall": ("dense", "deltanet", "gla", "linear")}
UNSTEADY = 0.1  # seeds whose accuracies are farther apart than this are told one by one


def order(found: dict[str, Any], zoo: Zoo) -> list[str]:
    """Best loss at the largest budget first; architectures without one after them."""

    def key(arch: str) -> tuple[bool, float, str]:
        at = _last(found[arch], zoo)
        mean = at.get("mean")
        return mean is None, mean or 0.0, arch

    return sorted(found, key=key)


def _last(one: dict[str, Any], zoo: Zoo) -> dict[str, Any]:
    return one["text"].get(f"{max(zoo.budgets):g}", {}) if zoo.budgets else {}


def page(value: dict[str, Any], zoo: Zoo, *, figure: str) -> str:
    """The Markdown page of a gathered result."""
    found, machine = value["archs"], value["machine"]
    names = order(found, zoo)
    width, length, rows = zoo.reference
    commits = ", ".join(f"`{c[:10]}`" for c in value["commits"]) or "none recorded"
    dirty = " (some runs from a tree with uncommitted changes)" if value["modified"] else ""
    counts = ", ".join(f"{n} {status}" for status, n in sorted(value["ends"].items()))
    parts = [
        f"# The zoo: {'every architecture at equal training compute' if zoo.budgets else 'tasks'}",
        "",
        f"Made by `{value['command']}`; the numbers and every run id are in [{zoo.out}.json]"
        f"({zoo.out}.json). {counts} runs; seeds {', '.join(map(str, zoo.seeds))}; FLOPs are the "
        f"`{value['convention']}` convention of `ladder show`; code {commits}{dirty}; "
        f"{machine['cpus']} CPU cores ({machine['processor']}), {machine['device']}, Python "
        f"{machine['python']}, jax {machine['versions'].get('jax')}.",
        "",
        f"![Loss and accuracies of every architecture]({figure})",
        "",
    ]
    if zoo.budgets:
        budgets = " | ".join(f"loss at {b:.3g} FLOPs" for b in zoo.budgets)
        parts += [
            "## Text at equal training FLOPs",
            "",
            f"Validation loss in nats per byte on the embedded corpus, the best of widths "
            f"{', '.join(map(str, zoo.widths))} at each budget (the width is in brackets), mean "
            f"over seeds with its 95 % Student interval. `C / C {BASELINE}` is the compute that "
            f"the architecture needs over what {BASELINE} needs for the loss that {BASELINE} has "
            f"at the largest budget, by power laws of compute through these cells ({LAW}), with "
            f"its 95 % interval: below 1 is better than {BASELINE}.",
            "",
            f"| architecture | {budgets} | exponent | C / C {BASELINE} | crosses {BASELINE} at | "
            "not done |",
            f"|---|{'---|' * (len(zoo.budgets) + 4)}",
        ]
        parts += [_text_row(name, found[name], zoo) for name in names]
        parts += [""]
        middle, budget = sorted(zoo.widths)[len(zoo.widths) // 2], max(zoo.budgets)
        parts += [
            f"## At one width ({middle})",
            "",
            f"The same runs at width {middle} and {budget:.3g} FLOPs: what a token meets of the "
            "parameters is about the same (experts: those that it is sent to), and what it costs "
            "decides how many tokens there are.",
            "",
            "| architecture | active parameters | FLOPs a token | tokens | loss |",
            "|---|---|---|---|---|",
        ]
        parts += [_width_row(name, at_width(found[name].get("runs", []), middle, budget))
                  for name in names]  # fmt: skip
        parts += [""]
    if zoo.tasks:
        tasks = " | ".join(f"{n} (guess {t.chance:.2f})" for n, t in zoo.tasks.items())
        told = "; ".join(
            f"{n}: `{json.dumps(t.source)}`, {t.sequences} rows of {t.seq_len} tokens, {t.steps} "
            f"steps"
            for n, t in zoo.tasks.items()
        )
        lrs = [f"{lr:g}" for lr in next(iter(zoo.tasks.values())).lrs]
        rate = f"learning rate {lrs[0]}"
        if len(lrs) > 1:
            rate = f"the best of learning rates {', '.join(lrs)} (chosen by the same seeds)"
        parts += [
            "## Recall and state tracking",
            "",
            f"Accuracy on the answers of held-out rows at width {zoo.task_width} after equal "
            f"steps, mean over seeds with its interval, at {rate}. {told}.",
            "",
            f"| architecture | {tasks} | not done |",
            f"|---|{'---|' * (len(zoo.tasks) + 1)}",
        ]
        parts += [_task_row(name, found[name], zoo) for name in names if found[name]["tasks"]]
        parts += [""]
    if not zoo.budgets:  # a page of tasks alone
        return "\n".join([*parts, "## How to read this", "", *_notes(value, zoo)]) + "\n"
    parts += [
        "## Speed, memory, decode state",
        "",
        f"One training step of {rows} x {length} tokens at width {width}, compiled for this "
        f"machine, float32, the median of a few steps in one process{_cores(found)}; temporary "
        "memory is what the compiler asks for beside parameters and their moments; decode state is "
        f"numbers kept for one sequence of {length} tokens, and how they grow with a token more.",
        "",
        "| architecture | parameters | tokens/s | temporaries, MB | decode state | per token |",
        "|---|---|---|---|---|---|",
    ]
    parts += [_cost_row(name, found[name], length) for name in names]
    parts += ["", "## How to read this", "", *_notes(value, zoo)]
    return "\n".join(parts) + "\n"


def _text_row(name: str, one: dict[str, Any], zoo: Zoo) -> str:
    cells, ended = [], {}
    for budget in zoo.budgets:
        at = one["text"].get(f"{budget:g}", {})
        for status, n in at.get("ended", {}).items():
            ended[status] = ended.get(status, 0) + n
        width = "" if at.get("d_model") is None else f" ({at['d_model']})"
        cells.append(f"{_mean(at, '.4f')}{width}")
    against = one.get("against", {})
    exponent = one.get("law", {}).get("params", {}).get("alpha_C")
    cells += ["-" if exponent is None else f"{exponent:.4f}"]
    cells += [_ratio(against.get("multiplier")), _crossing(name, against), _ended(ended)]
    return f"| {word(name)} | {' | '.join(cells)} |"


def _width_row(name: str, at: dict[str, Any]) -> str:
    if "active" not in at:
        return f"| {word(name)} | | | | - |"
    each = at["flops"] / at["tokens"]
    return (
        f"| {word(name)} | {at['active']:,} | {each:.3g} | {at['tokens']:,} | {_mean(at, '.4f')} |"
    )


def _task_row(name: str, one: dict[str, Any], zoo: Zoo) -> str:
    cells, ended = [], {}
    for task in zoo.tasks:
        at = one["tasks"].get(task, {})
        for status, n in at.get("ended", {}).items():
            ended[status] = ended.get(status, 0) + n
        cells.append(_mean(at, ".3f"))
    return f"| {word(name)} | {' | '.join([*cells, _ended(ended)])} |"


def _cost_row(name: str, one: dict[str, Any], length: int) -> str:
    cost = one.get("cost", {})
    if "tokens_per_second" not in cost:
        return f"| {word(name)} | | {cost.get('error', 'not measured')} | | | |"
    state = cost["decode_state"]
    memory = cost["temporary_bytes"]
    cells = [
        f"{cost['params']:,}",
        f"{cost['tokens_per_second']:,.0f}",
        "-" if memory is None else f"{memory / 1e6:,.1f}",
        f"{state['fixed'] + length * state['per_token']:,}",
        f"{state['per_token']:,}",
    ]
    return f"| {word(name)} | {' | '.join(cells)} |"


def _cores(found: dict[str, Any]) -> str:
    used = sorted(
        {one["cost"]["cores"] for one in found.values() if "cores" in one.get("cost", {})}
    )
    return f" on {' or '.join(map(str, used))} core{'s' * (used != [1])}" if used else ""


def _mean(at: dict[str, Any], spec: str) -> str:
    if at.get("mean") is None:
        return "-"
    if at["lo"] is None:
        return format(at["mean"], spec)
    return f"{at['mean']:{spec}} ± {at['hi'] - at['mean']:{spec}}"


def _ratio(q: dict[str, Any] | None) -> str:
    if not q or q["value"] is None:
        return "-"
    low, high = ("?" if q[end] is None else f"{q[end]:.2f}" for end in ("lo", "hi"))
    return f"{q['value']:.2f} [{low}, {high}]"


def _crossing(name: str, against: dict[str, Any]) -> str:
    if name == BASELINE:
        return "is the baseline"
    if "crossing" not in against:
        return against.get("reason", "-")
    found = against["crossing"]
    if found["at"] is None:
        return found["is"]
    ends = "" if None in (found["lo"], found["hi"]) else f" [{found['lo']:.1e}, {found['hi']:.1e}]"
    return f"{found['at']:.1e}{ends}, {found['is']}"


def _ended(ended: dict[str, int]) -> str:
    return ", ".join(f"{n} {status}" for status, n in sorted(ended.items())) or "0"


def _notes(value: dict[str, Any], zoo: Zoo) -> list[str]:
    notes = [
        "- The runs are tiny. What separates architectures at scale may not show here, and what "
        "shows here may not last; the interval of a multiplier says how little is known.",
        "- Widths (and learning rates of tasks) are chosen by the seeds that are reported, which "
        "flatters every architecture alike by a fraction of the seeds' spread.",
        "- A diverged run is a result: it is counted under `not done` and left out of the means.",
    ]
    if zoo.budgets:
        notes.append(
            "- One learning rate, batch and schedule serve every architecture on text, chosen for "
            f"{BASELINE}: an architecture that wants others is undersold. The loss of `diffusion` "
            "is a bound, and `span_mixture` is asked for plain text."
        )
    best = [
        at["d_model"]
        for one in value["archs"].values()
        for at in one["text"].values()
        if at["d_model"] is not None
    ]
    low, high = (sum(w == edge for w in best) for edge in (min(zoo.widths), max(zoo.widths)))
    if low or high:
        notes.append(
            f"- Of {len(best)} best widths {low} are the smallest ({min(zoo.widths)}) and {high} "
            f"the largest ({max(zoo.widths)}): there the optimum lies at the edge of the grid or "
            "beyond it, and the loss is not quite the compute-optimal one."
        )
    for task in zoo.tasks:
        notes += _separation(task, value["archs"])
    if zoo.budgets and any(
        "?" in _ratio(one.get("against", {}).get("multiplier")) for one in value["archs"].values()
    ):
        notes.append("- In intervals, `?` is an end that is not finite.")
    loads = [o["cost"]["load"] for o in value["archs"].values() if "load" in o.get("cost", {})]
    if zoo.budgets and loads and max(loads) > 1.5:  # a step of its own is about 1
        notes.append(
            f"- Speeds were taken beside other work (load {min(loads):.1f} to {max(loads):.1f}): "
            "only large ratios mean something."
        )
    notes += [f"- **{a}** is left out: {why}" for a, why in sorted(value["left_out"].items())]
    return notes


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


# -- the figure ------------------------------------------------------------------------------------


def draw(value: dict[str, Any], zoo: Zoo, path: Path) -> Path:
    """Architectures as rows: loss at every budget, then the accuracy of each task, by seed."""
    found = value["archs"]
    names = order(found, zoo)[::-1]
    panels = (["text"] if zoo.budgets else []) + list(zoo.tasks)
    with matplotlib.rc_context(STYLE):
        size = (2.6 + 2.6 * len(panels), 1.2 + 0.3 * len(names))
        made = Figure(figsize=size, layout="constrained")
        grid = made.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, panel in zip(grid, panels, strict=True):
            if panel == "text":
                _losses(axes, found, names, zoo)
            else:
                _accuracies(axes, found, names, panel, zoo.tasks[panel].chance)
            axes.set_ylim(-0.6, len(names) - 0.4)
            axes.grid(axis="x", visible=False)
        grid[0].set_yticks(range(len(names)), [word(name) for name in names])
        return save(made, path)


def _losses(axes: Axes, found: dict[str, Any], names: Sequence[str], zoo: Zoo) -> None:
    for k, budget in enumerate(sorted(zoo.budgets)):
        tint = colour(k, max(2, len(zoo.budgets)))
        for y, name in enumerate(names):
            at = found[name]["text"].get(f"{budget:g}", {})
            if at.get("mean") is None:
                continue
            if at["lo"] is not None:
                axes.plot([at["lo"], at["hi"]], [y, y], "-", color=tint, lw=2.2, alpha=0.5)
            axes.plot(at["losses"], [y] * len(at["losses"]), "o", color=tint, ms=3)
        axes.plot([], [], "o", color=tint, label=f"{budget:.3g} FLOPs")
    axes.set_xlabel("validation loss, nats a byte")
    axes.legend(loc="best", fontsize=8)
    if BASELINE in names:
        for budget in zoo.budgets:
            mean = found[BASELINE]["text"].get(f"{budget:g}", {}).get("mean")
            if mean is not None:
                axes.axvline(mean, color=MUTED, lw=0.8, ls=":")


def _accuracies(
    axes: Axes, found: dict[str, Any], names: Sequence[str], task: str, chance: float
) -> None:
    for y, name in enumerate(names):
        at = found[name]["tasks"].get(task, {})
        if at.get("mean") is None:
            continue
        axes.plot([chance, at["mean"]], [y, y], "-", color=ACCENT, lw=1.4, alpha=0.5)
        axes.plot(at["accuracies"], [y] * len(at["accuracies"]), "o", color=MEASURED, ms=3)
        axes.plot([at["mean"]], [y], "|", color=INK, ms=9, mew=1.4)
    axes.axvline(chance, color=MUTED, lw=0.8, ls=":")
    axes.set_xlim(0, 1.03)
    axes.set_xlabel(f"{task}: accuracy (dotted: a guess)")
