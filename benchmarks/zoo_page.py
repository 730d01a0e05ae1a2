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
from benchmarks.zoo_notes import notes, ratio
from benchmarks.zoo_plan import Zoo, word
from benchmarks.zoo_results import BASELINE, LAW, near_active


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
        budget = max(zoo.budgets)
        near = near_active(found, budget)
        parts += [
            "## At about equal active parameters",
            "",
            f"The same runs at {budget:.3g} FLOPs, each architecture at the width whose parameters "
            f"that a token meets (experts: those that it is sent to) come nearest to those of "
            f"{BASELINE} at its best width; what a token costs decides how many there are.",
            "",
            "| architecture | width | active parameters | FLOPs a token | tokens | loss |",
            "|---|---|---|---|---|---|",
        ]
        parts += [_active_row(name, near[name]) for name in names]
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
        return "\n".join([*parts, "## How to read this", "", *notes(value, zoo)]) + "\n"
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
    parts += ["", "## How to read this", "", *notes(value, zoo)]
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
    cells += [ratio(against.get("multiplier")), _crossing(name, against), _ended(ended)]
    return f"| {word(name)} | {' | '.join(cells)} |"


def _active_row(name: str, at: dict[str, Any]) -> str:
    if "active" not in at:
        return f"| {word(name)} | | | | | - |"
    cells = [
        f"{at['d_model']}",
        f"{at['active']:,}",
        f"{at['flops'] / at['tokens']:.3g}",
        f"{at['tokens']:,}",
        _mean(at, ".4f"),
    ]
    return f"| {word(name)} | {' | '.join(cells)} |"


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
