"""What does the page of the signatures say? A table and a verdict a study, one figure of all."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.fit_figure import save
from analysis.scales import log_x
from analysis.svg import MEASURED, MUTED, STYLE, colour


def page(value: dict[str, Any], *, figure: str, out: str) -> str:
    """Markdown of a gathered result."""
    sizes, machine = value["sizes"], value["machine"]
    commits = ", ".join(f"`{c[:10]}`" for c in value["commits"]) or "none recorded"
    dirty = " (some runs from a tree with uncommitted changes)" if value["modified"] else ""
    parts = [
        "# Signatures: do the papers' claims show at this size?",
        "",
        f"Made by `python -m benchmarks.signatures`; every run id is in [{out}.json]({out}.json). "
        f"Embedded corpus, bytes, seeds {', '.join(map(str, sizes['seeds']))}, batches of 256 "
        f"tokens, one learning rate for all (0.006, chosen for `dense`); losses are validation "
        f"nats per byte, means over seeds with 95 % Student intervals; differences are between "
        f"runs of one seed, which saw the same batches; FLOPs are `causal_attn`. Code {commits}"
        f"{dirty}; {machine['cpus']} CPU cores, Python {machine['python']}, jax "
        f"{machine['versions'].get('jax')}.",
        "",
        f"![losses of every study](figures/{figure})",
        "",
    ]
    parts += ["## In short", "", *_in_short(value["studies"]), ""]
    said = {"streams": _streams, "structured": _structured, "experts": _experts, "growth": _growth}
    for name, study in value["studies"].items():
        parts += [*said[name](study, sizes), ""]
    return "\n".join(parts)


def _in_short(studies: dict[str, Any]) -> list[str]:
    """A line a study: what the intervals of differences say, counted."""

    def counted(differences: list[Any]) -> str:
        verdicts = [verdict(one) for one in differences if one is not None]
        return ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))

    out = []
    if "streams" in studies:
        against = [c.get("against_one") for c in studies["streams"]["cells"]]
        out.append(f"- Losses of 2 and 4 streams against one: {counted(against)}.")
    if "structured" in studies:
        study = studies["structured"]
        against = [c.get("against") for c in study["cells"]]
        guided = verdict(study["guidance"])
        out.append(
            f"- Structured layers against dense: {counted(against)}; with a guide: {guided}."
        )
    if "experts" in studies:
        against = [c.get("against") for c in studies["experts"]["cells"] if "chain" in c["form"]]
        out.append(f"- Chains against the mixture of as many calls: {counted(against)}.")
    if "growth" in studies:
        m = studies["growth"]["multiplier"]
        out.append(f"- Growth: {m['said'] if m['m'] is not None else m['reason']}.")
    return out


def _pm(cell: dict[str, Any] | None, spec: str = ".4f") -> str:
    if not cell or cell["mean"] is None:
        return "-"
    if cell["lo"] is None:
        return format(cell["mean"], spec)
    return f"{cell['mean']:{spec}} ± {cell['hi'] - cell['mean']:{spec.lstrip('+')}}"


def verdict(difference: dict[str, Any] | None) -> str:
    """What an interval of a difference of losses says."""
    if not difference or difference["lo"] is None:
        return "not told: one seed or none"
    if difference["hi"] < 0:
        return "lower"
    return "higher" if difference["lo"] > 0 else "not told apart"


def _streams(study: dict[str, Any], sizes: dict[str, Any]) -> list[str]:
    lines = [
        "## Parallel streams (ParScale)",
        "",
        f"`dense` with P streams, prefixes of {sizes['prefix']}, {sizes['tokens']:,} tokens each. "
        "Claim: the loss falls with P, as if parameters were 1 + k ln P times as many.",
        "",
        "| width | P | parameters outside tables | loss | against one stream | |",
        "|---|---|---|---|---|---|",
    ]
    for c in study["cells"]:
        against = c.get("against_one")
        lines.append(
            f"| {c['d_model']} | {c['streams']} | {c['params']['non_embedding']:,} | {_pm(c)} | "
            f"{_pm(against, '+.4f')} | {'' if against is None else verdict(against)} |"
        )
    law = study["law"]
    if "params" not in law:
        return [*lines, "", f"No law: {law['reason']}."]
    spread = law["bootstrap"]["params"].get("k", {})
    ends = f" [{spread['lo']:.3g}, {spread['hi']:.3g}]" if spread.get("lo") is not None else ""
    told = f"k = {law['params']['k']:.3g}{ends}" if "k" in law["params"] else "no k"
    lines += [
        "",
        f"Fitted law (`parscale`, N without tables and with the streams' own parameters): {told}, "
        f"status {law['status']}. The paper has .39 and .33 at .5B to 4.7B parameters."
        + "".join(f" Warning: {w}." for w in law["warnings"]),
    ]
    return lines


def _table(study: dict[str, Any], first: str) -> list[str]:
    lines = [
        f"| layer | parameters | FLOPs, of {first} | loss | against {first} | | not done |",
        "|---|---|---|---|---|---|---|",
    ]
    base = study["cells"][0]
    for c in study["cells"]:
        against = c.get("against")
        lines.append(
            f"| {c['form']} | {c['params']['total']:,} | {c['flops'] / base['flops']:.2f} | "
            f"{_pm(c)} | {_pm(against, '+.4f')} | {'' if against is None else verdict(against)} | "
            f"{c['not_done']} |"
        )
    return lines


def _structured(study: dict[str, Any], sizes: dict[str, Any]) -> list[str]:
    return [
        "## Structured feed-forward layers",
        "",
        f"Width {sizes['structured_width']}, {sizes['structured_layers']} layers, "
        f"{sizes['tokens']:,} tokens each; the first layer's feed-forward stays dense. Claim: more "
        "rank or fewer blocks lose less; a dense guide over the first half of training gives back "
        "part of it.",
        "",
        *_table(study, "dense"),
        "",
        f"What guidance gives at rank 1/4: {_pm(study['guidance'], '+.4f')} nats "
        f"({verdict(study['guidance'])}). Whether a structured family's curve is steeper than that "
        "of dense is asked in [zoo.md](zoo.md), where every family has budgets.",
    ]


def _experts(study: dict[str, Any], sizes: dict[str, Any]) -> list[str]:
    loads = "; ".join(
        f"{c['form']} {_pm(c['expert_load'], '.2f')}"
        for c in study["cells"]
        if c["expert_load"] is not None
    )
    return [
        "## Chain-of-Experts against a mixture of experts",
        "",
        f"Width {sizes['experts_width']}, {sizes['tokens']:,} tokens, four expert calls a token "
        "(three of sixteen and one shared; two passes of one of sixteen and one shared). Claim: "
        "the chain is better at equal calls. `official_inner` is the authors' code: the stream "
        "goes on from the norm.",
        "",
        *_table(study, study["cells"][0]["form"]),
        "",
        f"Load of the fullest expert over the mean one, at the end of training: {loads}.",
    ]


def _growth(study: dict[str, Any], sizes: dict[str, Any]) -> list[str]:
    shallow, deep = sizes["growth_layers"]
    lines = [
        "## Growing by depth stacking (G_stack)",
        "",
        f"Width {sizes['growth_width']}: {shallow} layers for {sizes['growth_base']:,} tokens, "
        f"then {deep} layers, against {deep} layers from scratch. FLOPs hold the base's. Claim: a "
        "grown run reaches a loss with less compute.",
        "",
        "| | tokens at full depth | FLOPs in all | loss | not done |",
        "|---|---|---|---|---|",
    ]
    for side in ("scratch", "grown"):
        lines += [
            f"| {side} | {c['tokens']:,} | {c['flops']:.3g} | {_pm(c)} | {c['not_done']} |"
            for c in study[side]
        ]
    m = study["multiplier"]
    told = m["said"] if m["m"] is not None else f"No multiplier: {m['reason']}"
    return [*lines, "", f"{told}. (1/m of the compute: m above 1 is what growth saves.)"]


# -- the figure ------------------------------------------------------------------------------------


def draw(value: dict[str, Any], path: Path) -> Path:
    """One panel a study."""
    panels = {
        "streams": _draw_streams,
        "structured": _draw_forms,
        "experts": _draw_forms,
        "growth": _draw_growth,
    }
    studies = value["studies"]
    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=(10.5, 3.9 * -(-len(studies) // 2)), layout="constrained")
        grid = made.subplots(-(-len(studies) // 2), 2, squeeze=False).ravel()
        for axes in grid[len(studies) :]:
            axes.set_visible(False)
        for axes, (name, study) in zip(grid, studies.items(), strict=False):
            axes.set_title(name, loc="left", fontsize=10)
            panels[name](axes, study)
        return save(made, path)


def _draw_streams(axes: Axes, study: dict[str, Any]) -> None:
    widths = sorted({c["d_model"] for c in study["cells"]})
    for i, width in enumerate(widths):
        own = [c for c in study["cells"] if c["d_model"] == width and c["mean"] is not None]
        tint = colour(i, max(2, len(widths)))
        x = np.arange(len(own))
        axes.plot(x, [c["mean"] for c in own], "-", color=tint, lw=1.4, label=f"width {width}")
        for at, c in zip(x, own, strict=True):
            axes.plot([at] * len(c["by_seed"]), list(c["by_seed"].values()), "o", color=tint, ms=3)
        axes.set_xticks(x, [str(c["streams"]) for c in own])
    axes.set(xlabel="streams P", ylabel="validation loss, nats a byte")
    axes.legend(fontsize=8)


def _draw_forms(axes: Axes, study: dict[str, Any]) -> None:
    cells = [c for c in study["cells"] if c["mean"] is not None][::-1]
    for y, c in enumerate(cells):
        axes.plot(list(c["by_seed"].values()), [y] * len(c["by_seed"]), "o", color=MEASURED, ms=3.5)
        axes.plot([c["mean"]], [y], "|", color=MEASURED, ms=12, mew=1.6)
    if cells:
        axes.axvline(cells[-1]["mean"], color=MUTED, lw=0.8, ls=":")
    axes.set_yticks(range(len(cells)), [c["form"] for c in cells], fontsize=8)
    axes.set_xlabel("validation loss, nats a byte")


def _draw_growth(axes: Axes, study: dict[str, Any]) -> None:
    for i, side in enumerate(("scratch", "grown")):
        tint = colour(i, 2)
        own = [c for c in study[side] if c["mean"] is not None]
        axes.plot([c["flops"] for c in own], [c["mean"] for c in own], "-", color=tint, label=side)
        for c in own:
            losses = list(c["by_seed"].values())
            axes.plot([c["flops"]] * len(losses), losses, "o", color=tint, ms=3)
    log_x(axes, lambda value, _: f"{value:.0e}", most=6)
    axes.set(xlabel="FLOPs in all", ylabel="validation loss, nats a byte")
    axes.legend(fontsize=8)
