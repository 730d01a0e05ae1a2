"""What does each sequence mixer cost against the length of the sequence?

    python -m benchmarks.mixers [--d-model 128] [--lengths 256,1024,4096,16384] [--rounds 5]

One layer of every named architecture's mixer, one row of T tokens: forward and backward (gradients
of parameters and input), beside its naive twin and beside attention, in float32 on CPU and bfloat16
elsewhere. `--attention cudnn` (or pallas) puts the softmax attention of the fast forms to the
device's kernel. Sides take turns within a round; figures are medians over rounds, with the
quartiles in the JSON. Memory is the compiler's own count of temporaries. What would need more than
`--memory` GiB is not run and says so.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import archs
from model.block import base_sizes
from model.context import Context
from model.param import Declare, initial
from model.spec import LayerSpec, Parametrisation, resolve
from parallelism import kernels
from parallelism.axes import MeshSpec
from parallelism.mesh import make_mesh

HERE = Path(__file__).resolve().parent
LEAST_SECONDS = 0.05  # of one timing: shorter calls are repeated
ATTENTION = (kernels.PLAIN, *kernels.names())
NAIVE_SECONDS = 1.0  # a naive form that takes longer at one length is not tried at the next


def mixers(names: list[str], d_model: int) -> dict[str, LayerSpec]:
    """The mixer of each name's first block that has one; names that share one are one."""
    found: dict[str, LayerSpec] = {}
    for name in names:
        spec = next(b.mixer for b in archs.build(name, d_model).blocks if b.mixer is not None)
        if spec not in found.values():
            found[name] = spec
    return found


def layer(spec: LayerSpec, d_model: int) -> tuple[Any, dict[str, jax.Array], Any]:
    """(graph, parameters, tree) of one layer by itself."""
    shared = {"D": d_model, "V": 256, "Z": 1}
    declare = Declare(
        sizes={**shared, **spec.sizes(shared)},
        base={**shared, **base_sizes(spec, shared, width_multiple=1)},
        rule=Parametrisation(kind="standard"),
        n_layers=1,
        tied=False,
    )
    graph, state = nnx.split(resolve(spec.kind, room="mixers").Layer(spec, declare))
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    paths = [leaf.decl.path for leaf in leaves]
    values = {p: jnp.asarray(initial(d, 0)) for p, d in declare.made.items()}
    return graph, {p: values[p] for p in paths}, jax.tree.structure(state)


def program(
    spec: LayerSpec,
    *,
    d_model: int,
    length: int,
    naive: bool,
    dtype: Any,
    kernel: kernels.Kernel | None = None,
):
    """The compiled gradient of one layer at one length, and its arguments."""
    graph, params, tree = layer(spec, d_model)
    paths = list(params)  # in the order of the tree; jit sorts a dict by key

    def loss(params: dict[str, jax.Array], x_BTD: jax.Array) -> jax.Array:
        module = nnx.merge(graph, jax.tree.unflatten(tree, [params[path] for path in paths]))
        positions_BT = jnp.arange(x_BTD.shape[1])[None]
        ctx = Context(positions_BT=positions_BT, segments_BT=None, naive=naive, kernel=kernel)
        return jnp.sum(module(x_BTD, ctx)[0].astype(jnp.float32) ** 2)

    x_BTD = jnp.asarray(np.random.default_rng(0).standard_normal((1, length, d_model)), dtype)
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, x_BTD).compile()
    return compiled, (params, x_BTD)


def refusal(
    spec: LayerSpec, attention: str, *, d_model: int, length: int, dtype: Any
) -> str | None:
    """Why a kernel does not compute this mixer, if it does not."""
    sizes = spec.sizes({"D": d_model, "V": 256, "Z": 1})
    layers = [
        kernels.Asked(
            what=spec.kind,
            length=length,
            per_head=sizes["K"],
            dtype=jnp.dtype(dtype).name,
            documents=False,
            band=band,
        )
        for _, _, band in spec.attentions(sizes)
    ]
    made, chip = kernels.resolve(attention), kernels.here()
    reasons = [made.refusal(layer, chip) for layer in layers] or ["no softmax attention"]
    return next((reason for reason in reasons if reason is not None), None)


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call, over as many as take LEAST_SECONDS."""
    n, begun = 0, time.perf_counter()
    while n == 0 or time.perf_counter() - begun < LEAST_SECONDS:
        jax.block_until_ready(run())
        n += 1
    return (time.perf_counter() - begun) / n


def at_length(
    specs: dict[str, LayerSpec],
    *,
    d_model: int,
    length: int,
    rounds: int,
    limit: float,
    tried: set,
    attention: str = kernels.PLAIN,
) -> list[dict[str, Any]]:
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    rows, runs = [], {}
    for name, spec in specs.items():
        for form in ("fast", "naive"):
            row = {"mixer": name, "form": form, "length": length}
            rows.append(row)
            if form == "naive" and name not in tried:
                row["absent"] = f"took over {NAIVE_SECONDS:g} s at the length before"
                continue
            naive = form == "naive"
            kernel = None
            if attention != kernels.PLAIN and not naive:
                refused = refusal(spec, attention, d_model=d_model, length=length, dtype=dtype)
                row["attention"] = refused or attention
                if refused is not None:
                    print(f"{name} at {length}: without the kernel; {attention} {refused}")
                if refused is None:
                    kernel = kernels.resolve(attention)(make_mesh(MeshSpec()))
            made, args = program(
                spec, d_model=d_model, length=length, naive=naive, dtype=dtype, kernel=kernel
            )
            analysis = made.memory_analysis()
            assert analysis is not None, "this backend does not count memory"
            row["temporary_bytes"] = analysis.temp_size_in_bytes
            if row["temporary_bytes"] > limit:
                row["absent"] = f"needs {row['temporary_bytes'] / 2**30:.1f} GiB of temporaries"
                continue
            seconds = timed(partial(made, *args))
            if naive and seconds > NAIVE_SECONDS:
                tried.discard(name)
            runs[len(rows) - 1] = (partial(made, *args), [])
    for _ in range(rounds):
        for run, seconds in runs.values():
            seconds.append(timed(run))
    for i, (_, seconds) in runs.items():
        quartiles = np.percentile(seconds, [25, 75]).tolist()
        rows[i] |= {"seconds": statistics.median(seconds), "quartiles": quartiles}
    return rows


def machine() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "commit": commit,
    }


def slope(rows: list[dict[str, Any]], name: str) -> float | None:
    """Growth of the fast form's time between its two longest lengths: 1 is linear."""
    own = [r for r in rows if r["mixer"] == name and r["form"] == "fast" and "seconds" in r]
    if len(own) < 2:
        return None
    a, b = sorted(own, key=lambda r: r["length"])[-2:]
    return float(np.log(b["seconds"] / a["seconds"]) / np.log(b["length"] / a["length"]))


def wins_from(rows: list[dict[str, Any]], name: str) -> int | None:
    """The least length from which on the mixer is faster than attention."""
    found = {
        (r["mixer"], r["length"]): r["seconds"]
        for r in rows
        if r["form"] == "fast" and "seconds" in r
    }
    lengths = sorted({n for _, n in found})
    wins = [n for n in lengths if found.get((name, n), np.inf) < found.get(("dense", n), np.inf)]
    return next((n for n in wins if all(m in wins for m in lengths if m >= n)), None)


def table(rows: list[dict[str, Any]], lengths: list[int]) -> str:
    """Markdown: milliseconds (MiB of temporaries) by mixer and length; naive / fast in brackets."""
    by = {(r["mixer"], r["form"], r["length"]): r for r in rows}
    head = "| mixer | " + " | ".join(map(str, lengths)) + " | growth | wins from |"
    lines = [head, "|---" * (len(lengths) + 3) + "|"]
    for name in dict.fromkeys(r["mixer"] for r in rows):
        cells = []
        for n in lengths:
            fast, naive = by[name, "fast", n], by[name, "naive", n]
            if "seconds" not in fast:
                cells.append(fast["absent"])
                continue
            ratio = f"{naive['seconds'] / fast['seconds']:.2g}" if "seconds" in naive else "-"
            memory = fast["temporary_bytes"] / 2**20
            cells.append(f"{1e3 * fast['seconds']:.3g} ({memory:.3g} MiB) x{ratio}")
        grown, wins = slope(rows, name), wins_from(rows, name)
        said = "-" if grown is None else f"{grown:.2f}"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {said} | {wins or '-'} |")
    return "\n".join(lines)


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    names = list(dict.fromkeys(r["mixer"] for r in rows))
    for i, name in enumerate(names):
        own = [r for r in rows if r["mixer"] == name and r["form"] == "fast" and "seconds" in r]
        heavy = name == "dense"
        look = {
            "color": "black" if heavy else plt.get_cmap("tab20")(i % 20),
            "linewidth": 2.5 if heavy else 1.2,
            "marker": "os^Dv"[i % 5],
            "markersize": 3.5,
            "label": "attention (dense)" if heavy else name,
        }
        lengths = [r["length"] for r in own]
        axes[0].loglog(lengths, [1e3 * r["seconds"] for r in own], **look)
        axes[1].loglog(lengths, [r["temporary_bytes"] / 2**20 for r in own], **look)
    for axis, what in zip(axes, ("forward and backward, ms", "temporaries, MiB"), strict=True):
        axis.set(xlabel="sequence length", ylabel=what)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5))
    fig.savefig(path)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--archs", default=",".join(archs.names()))
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--lengths", default="256,1024,4096,16384")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=float, default=4.0, help="GiB of temporaries at most")
    parser.add_argument("--attention", default=kernels.PLAIN, choices=ATTENTION)
    parser.add_argument("--out", type=Path, default=HERE / "mixers.json")
    parser.add_argument("--figure", type=Path, default=HERE / "figures" / "mixers.svg")
    given = parser.parse_args()
    names = sorted(given.archs.split(","), key=lambda n: n != "dense")
    specs = mixers(names, given.d_model)
    lengths = [int(n) for n in given.lengths.split(",")]
    rows: list[dict[str, Any]] = []
    tried = set(specs)
    for length in lengths:
        rows += at_length(
            specs,
            d_model=given.d_model,
            length=length,
            rounds=given.rounds,
            limit=given.memory * 2**30,
            tried=tried,
            attention=given.attention,
        )
        print(f"length {length} done", flush=True)
    result = {"machine": machine(), "d_model": given.d_model, "rounds": given.rounds, "rows": rows}
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    figure(rows, given.figure)
    print(table(rows, lengths))


if __name__ == "__main__":
    main()
