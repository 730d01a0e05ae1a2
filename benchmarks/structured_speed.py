"""How much faster are structured feed-forward layers than the dense one, against their FLOPs?

    pip install -e . && python benchmarks/structured_speed.py [--widths 256 768] [--dtype float32]

One layer alone, GELU and 4 d_model wide, with the paper's ranks and blocks (Wei et al. 2024), on
the first device of the platform. Sides take turns within a round; a speed-up is the median over
rounds of dense time / structured time. `train` is a forward and a backward pass over --tokens.
Then a forward pass of few tokens: from which number on are the factors faster than the merged
(dense) form? On CPU give malloc the settings of ladder's workers (QUICK in step_against_torch.py).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.context import Context
from model.param import Declare
from model.spec import Parametrisation, resolve

SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("gelu", {}),
    "LowRank, R = D/2": ("lowrank", {"rank_ratio": 1 / 2}),
    "BlockShuffle, b = 2": ("blockshuffle", {"blocks": 2}),
    "BlockDense, b = 2, R = 2D/3": ("blockdense", {"blocks": 2, "rank_ratio": 2 / 3}),
    "LowRank, R = D/4": ("lowrank", {"rank_ratio": 1 / 4}),
    "BlockShuffle, b = 4": ("blockshuffle", {"blocks": 4}),
    "BlockDense, b = 2, R = D/3": ("blockdense", {"blocks": 2, "rank_ratio": 1 / 3}),
}
FEW = (1, 4, 16, 64, 256, 1024)  # tokens of a decode step or a short prefill
SHORTEST = 0.02  # seconds that one timing takes at least, by repeating the call
Timed = Callable[[], Any]


def layer(kind: str, knobs: dict[str, Any], d_model: int, dtype: str):
    """Parameters, FLOPs a token, and y of (parameters, x)."""
    module = resolve(kind, room="ffns")
    spec, shared = module.Spec(**knobs), {"D": d_model, "V": 1, "Z": 1}
    sizes = {**shared, **spec.sizes(shared)}
    declare = Declare(
        sizes=sizes, base=sizes, rule=Parametrisation(kind="standard"), n_layers=1, tied=False
    )
    graph, state = nnx.split(module.Layer(spec, declare))
    flops = sum(d.forward_flops for d in declare.made.values())
    rng, leaves = np.random.default_rng(0), jax.tree.leaves(state)
    params = jax.tree.unflatten(
        jax.tree.structure(state),
        [jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32)) for leaf in leaves],
    )

    def apply(params: Any, x_BTD: jax.Array) -> jax.Array:
        ctx = Context(positions_BT=jnp.zeros(x_BTD.shape[:2], jnp.int32), segments_BT=None)
        return nnx.merge(graph, params)(x_BTD.astype(dtype), ctx)[0]

    return params, flops, apply


def compared(sides: dict[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Seconds a call, one a round; every round starts with another side."""
    for call in sides.values():
        jax.block_until_ready(call())
    calls = {}
    for name, call in sides.items():
        calls[name] = max(1, round(SHORTEST / _seconds(call, 1)))
    found: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(_seconds(sides[name], calls[name]))
    return found


def _seconds(call: Timed, times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        out = call()
    jax.block_until_ready(out)  # pyright: ignore[reportPossiblyUnboundVariable]  times >= 1
    return (time.perf_counter() - begin) / times


def ratios(found: dict[str, list[float]], over: str, under: str) -> str:
    """Median and quartiles of the rounds' ratios."""
    each = [a / b for a, b in zip(found[over], found[under], strict=True)]
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} - {high:.2f})"


def training(d_model: int, tokens: int, dtype: str, rounds: int) -> None:
    x_BTD = jnp.asarray(np.random.default_rng(1).standard_normal((1, tokens, d_model)), jnp.float32)
    forward, train, flops = {}, {}, {}
    for name, (kind, knobs) in SIDES.items():
        params, flops[name], apply = layer(kind, knobs, d_model, dtype)

        def loss(params: Any, x_BTD: jax.Array, apply: Any = apply) -> jax.Array:
            return jnp.sum(apply(params, x_BTD).astype(jnp.float32) ** 2)

        forward[name] = _bound(jax.jit(apply), params, x_BTD)
        train[name] = _bound(jax.jit(jax.grad(loss, argnums=(0, 1))), params, x_BTD)
    timed = [compared(sides, rounds) for sides in (forward, train)]
    dense = [1e3 * statistics.median(one["dense"]) for one in timed]
    print(
        f"\nd_model {d_model}, {tokens} tokens, {dtype}; dense {dense[0]:.2f} and {dense[1]:.2f} ms"
    )
    print("| layer | dense FLOPs / its FLOPs | forward | train |\n|---|---|---|---|")
    for name in list(SIDES)[1:]:
        columns = " | ".join(ratios(one, "dense", name) for one in timed)
        print(f"| {name} | {flops['dense'] / flops[name]:.2f} | {columns} |", flush=True)


def few_tokens(d_model: int, dtype: str, rounds: int) -> None:
    print(f"\nd_model {d_model}, {dtype}: time of the merged (dense) form / time of the factors")
    print("| layer |", " | ".join(f"{n} tokens" for n in FEW), "|")
    print("|---" * (len(FEW) + 1) + "|")
    made = {name: layer(kind, knobs, d_model, dtype) for name, (kind, knobs) in SIDES.items()}
    columns = []
    for tokens in FEW:
        x_BTD = jnp.ones((1, tokens, d_model), jnp.float32)
        sides = {n: _bound(jax.jit(apply), params, x_BTD) for n, (params, _, apply) in made.items()}
        columns.append(compared(sides, rounds))
    for name in list(SIDES)[1:]:
        print(f"| {name} |", " | ".join(ratios(one, "dense", name) for one in columns), "|")


def _bound(call: Any, *given: Any) -> Timed:
    return lambda: call(*given)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 768])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for width in given.widths:
        training(width, given.tokens, given.dtype, given.rounds)
        few_tokens(width, given.dtype, given.rounds)
