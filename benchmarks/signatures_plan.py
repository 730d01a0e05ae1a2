"""Which small studies show what the papers of the feed-forward layers, streams and growth claim?

Every study is plans of ordinary runs on the embedded corpus, at one learning rate, batch and
schedule; what is compared has equal tokens unless it says so.
"""

from dataclasses import dataclass, replace
from typing import Any

from sweeps.grid import Cell, axis, product
from sweeps.make import grid
from sweeps.plan import Plan, PlannedRun

COMMON = {
    "data.seq_len": 128,
    "budget.batch_tokens": 256,
    "optim.lr": 0.006,  # the demo's, chosen for `dense`
    "evaluation.tokens": 65_536,
    "execution.checkpoint_every": 100_000,
    "execution.log_every": 50,
}
FFN = "model.repeat.0.ffn"


@dataclass(frozen=True)
class Sizes:
    """How large the studies are; `tokens` are those of every run but growth's."""

    seeds: tuple[int, ...] = (0, 1, 2)
    tokens: int = 600_000
    stream_widths: tuple[int, ...] = (16, 24, 32)
    streams: tuple[int, ...] = (1, 2, 4)
    prefix: int = 8  # 48 of the paper would be most of the parameters of these bodies
    structured_width: int = 64
    structured_layers: int = 4
    experts_width: int = 32
    growth_width: int = 64
    growth_layers: tuple[int, int] = (2, 8)
    growth_base: int = 100_000
    growth_tokens: tuple[int, ...] = (100_000, 180_000, 320_000, 560_000, 1_000_000)
    grown_tokens: tuple[int, ...] = (150_000, 300_000, 600_000)


TINY = Sizes(
    seeds=(0,),
    tokens=20_000,
    stream_widths=(16,),
    streams=(1, 2),
    structured_width=16,
    structured_layers=2,
    experts_width=16,
    growth_width=16,
    growth_layers=(2, 4),
    growth_base=5_000,
    growth_tokens=(10_000, 20_000),
    grown_tokens=(10_000,),
)


def streams(sizes: Sizes) -> Plan:
    """ParScale: P streams at equal parameters of the body and equal tokens."""
    counts = [{"count": P, "prefix": sizes.prefix} for P in sizes.streams]
    cells = product(
        axis("model.d_model", sizes.stream_widths),
        axis("model.streams", counts),
        axis("seed", sizes.seeds),
    )
    tokens = {"budget.tokens": sizes.tokens}
    return grid(
        name="signature-streams",
        why="loss against streams",
        arch="dense",
        cells=cells,
        set={**COMMON, **tokens},
    )


# label -> (architecture, what is changed in the repeated feed-forward layer)
STRUCTURED: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "lowrank 1/2": ("lowrank", {}),
    "lowrank 1/4": ("lowrank", {"rank_ratio": 0.25}),
    "lowrank 1/4, guided": ("lowrank", {"rank_ratio": 0.25, "guided": 0.5}),
    "blockshuffle 2": ("blockshuffle", {}),
    "blockshuffle 4": ("blockshuffle", {"blocks": 4}),
    "blockdense 5/8": ("blockdense", {}),
    "blockdense 5/16": ("blockdense", {"rank_ratio": 0.3125}),
}
EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "moe 3 of 16": ("moe", {}),
    "chain 2 x 1 of 16": ("chain_of_experts", {}),
    "chain 2 x 1 of 16, official_inner": ("chain_of_experts", {"residual": "official_inner"}),
    "dense": ("dense", {}),
}


def structured(sizes: Sizes) -> Plan:
    """Structured feed-forward layers by their rank, and with a dense guide."""
    more = {"model.n_layers": sizes.structured_layers}
    return _named("structured", STRUCTURED, sizes.structured_width, sizes, more)


def experts(sizes: Sizes) -> Plan:
    """Chain-of-Experts against a mixture of experts: as many expert calls a token, four."""
    return _named("experts", EXPERTS, sizes.experts_width, sizes, {})


def _named(
    name: str,
    forms: dict[str, tuple[str, dict[str, Any]]],
    width: int,
    sizes: Sizes,
    more: dict[str, Any],
) -> Plan:
    runs: list[PlannedRun] = []
    for label, (arch, knobs) in forms.items():
        changes = {f"{FFN}.{knob}": value for knob, value in knobs.items()}
        made = grid(
            name=f"signature-{name}",
            arch=arch,
            width=width,
            cells=axis("seed", sizes.seeds),
            set={**COMMON, "budget.tokens": sizes.tokens, **more, **changes},
        )
        runs += [replace(run, labels={**run.labels, "form": label}) for run in made.runs]
    return Plan(f"signature-{name}", f"{name} at equal tokens", tuple(runs), {"kind": "grid"})


def growth(sizes: Sizes) -> tuple[Plan, Plan]:
    """Runs from scratch at several lengths and the shallow bases; then the runs grown from those,
    whose identity holds the base's.
    """
    shallow, deep = sizes.growth_layers

    def cells(layers: int, tokens: tuple[int, ...]) -> list[Cell]:
        return product(
            axis("model.n_layers", [layers]),
            axis("budget.tokens", tokens),
            axis("seed", sizes.seeds),
        )

    first = grid(
        name="signature-growth",
        why="from scratch, and shallow",
        arch="dense",
        width=sizes.growth_width,
        cells=[*cells(deep, sizes.growth_tokens), *cells(shallow, (sizes.growth_base,))],
        set=COMMON,
    )
    bases = {r.spec.seed: r.run_id for r in first.runs if r.spec.model.n_layers == shallow}
    grown = [
        {**cell, "start": {"kind": "grow", "run": bases[cell["seed"]]}}
        for cell in cells(deep, sizes.grown_tokens)
    ]
    second = grid(
        name="signature-grown",
        why="grown by depth stacking",
        arch="dense",
        width=sizes.growth_width,
        cells=grown,
        set=COMMON,
    )
    return first, second
