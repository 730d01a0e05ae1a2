"""How long is a mixture of experts beside a dense layer of equal active FLOPs?

    python benchmarks/moe_step.py [--size NAME] [--rounds N] [--dtype bfloat16]

Value and gradient of one feed-forward layer in its tokens, weights and routers, compiled; the sides
take turns, figures are medians over rounds and ratios medians of ratios within a round. `padded N`
has blocks of N slots (`padded` the default), `every expert` is the definition, `capacity` drops.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.context import Context
from model.decoder import build
from model.ffns import moe, swiglu
from model.param import initial
from model.spec import BlockSpec, LayerSpec, ModelSpec


@dataclass(frozen=True)
class Size:
    d_model: int
    tokens: int
    experts: int
    chosen: int
    ratio: float  # hidden width of one expert over d_model


SIZES = {
    "arch 64": Size(d_model=64, tokens=2048, experts=16, chosen=4, ratio=2 / 3),
    "arch 128": Size(d_model=128, tokens=2048, experts=16, chosen=4, ratio=2 / 3),
    "fine 128": Size(d_model=128, tokens=2048, experts=64, chosen=8, ratio=1 / 3),
    "wide 128": Size(d_model=128, tokens=2048, experts=8, chosen=2, ratio=4.0),
    "gpu 2048": Size(d_model=2048, tokens=16384, experts=64, chosen=8, ratio=0.5),
}


def sides(size: Size, *, quick: bool) -> dict[str, tuple[LayerSpec, bool]]:
    """Layers by name, and whether in the naive form."""
    base = moe.Spec(experts=size.experts, chosen=size.chosen, ratio=size.ratio, multiple_of=1)
    width = base.sizes({"D": size.d_model})["F"] * size.chosen
    out: dict[str, tuple[LayerSpec, bool]] = {
        "dense": (swiglu.Spec(ratio=width / size.d_model, multiple_of=1), False),
        "padded": (base, False),
        **{f"padded {b}": (replace(base, block=b), False) for b in (16, 32, 64, 128, 256)},
        "capacity 1.25": (replace(base, capacity=1.25), False),
        "ragged_dot": (replace(base, product="ragged"), False),
    }
    return out if quick else {**out, "every expert": (base, True)}


def compiled(size: Size, layer: LayerSpec, *, naive: bool, dtype: Any) -> Any:
    """The step as a function of nothing, on arrays of its own."""
    spec = ModelSpec(
        d_model=size.d_model, n_layers=1, vocab=2, repeat=(BlockSpec(mixer=None, ffn=layer),)
    )
    built = build(spec)
    params = {k: jnp.asarray(initial(d, 0)) for k, d in built.declarations.items() if ".ffn." in k}
    rest = {k: jnp.zeros(d.shape) for k, d in built.declarations.items() if ".ffn." not in k}
    x_BTD = jax.random.normal(jax.random.key(0), (8, size.tokens // 8, size.d_model), dtype)
    positions_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1])[None], x_BTD.shape[:2])
    ctx = Context(positions_BT=positions_BT, segments_BT=None, naive=naive)

    def value(params: Any, x_BTD: jax.Array) -> jax.Array:
        stacked = nnx.state(built.module({**rest, **params}).repeat)
        graph, _ = nnx.split(built.module({**rest, **params}).repeat)
        (block,) = nnx.merge(graph, jax.tree.map(lambda w: w[0], stacked))
        y_BTD, aux = block.ffn(x_BTD, ctx)
        own = sum(v for k, v in aux.items() if k.startswith("loss/"))
        return jnp.sum(y_BTD.astype(jnp.float32) ** 2) + 0.01 * own

    step = jax.jit(jax.grad(value, argnums=(0, 1))).lower(params, x_BTD).compile()
    return lambda: jax.block_until_ready(step(params, x_BTD))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A mixture of experts beside a dense layer of equal active FLOPs."
    )
    parser.add_argument("--size", action="append", choices=SIZES, help="default: all but gpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="of a side in a round")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    for name in args.size or [n for n in SIZES if not n.startswith("gpu")]:
        size, seconds = SIZES[name], {}
        quick = name.startswith("gpu")  # every expert there is 8 times the work, and the memory
        runs = {
            side: compiled(size, layer, naive=naive, dtype=jnp.dtype(args.dtype))
            for side, (layer, naive) in sides(size, quick=quick).items()
        }
        for run in runs.values():
            run()
        for _ in range(args.rounds):
            for side, run in runs.items():
                begun = time.perf_counter()
                for _ in range(args.steps):
                    run()
                seconds.setdefault(side, []).append((time.perf_counter() - begun) / args.steps)
        for side, found in seconds.items():
            ratios = [a / b for a, b in zip(found, seconds["dense"], strict=True)]
            low, middle, high = statistics.quantiles(found, n=4)
            row = {
                "size": name,
                "side": side,
                "ms": round(1e3 * middle, 3),
                "quartiles": [round(1e3 * low, 3), round(1e3 * high, 3)],
                "over dense": round(statistics.median(ratios), 2),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
