"""How long a row fits in the memory that a way to rematerialise takes? As the compiler lays it out.

    pip install -e . && python benchmarks/stream_memory.py [--arch dense] [--base 1024]

Nothing is run: the gradient of one row's loss is compiled for each `execution.remat` and length,
layers scanned, and what is read is the temporary bytes of the program, which leave out parameters
and gradients. The row that `full` takes at --base is the budget; printed is the longest row of
`stream` that stays within it, of the multiples in TIMES.
"""

import argparse
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from model import archs
from model.context import unplaced
from model.count import count
from model.decoder import Model, build
from train.step import forward

TIMES = (1, 2, 2.5, 3, 4, 5, 6, 8)  # the base length


def temporary(model: Model, remat: str, length: int, chunk: int | None) -> int:
    kinds = {"tokens": np.int32, "targets": np.int32, "segments": np.int32, "weights": np.float32}
    data = {f"{k}_BT": jax.ShapeDtypeStruct((1, length), kind) for k, kind in kinds.items()}
    params = {p: jax.ShapeDtypeStruct(d.shape, jnp.float32) for p, d in model.declarations.items()}
    loss = partial(
        forward,
        model,
        constrain=unplaced,
        layers="scan",
        remat=remat,
        remat_chunk=chunk,
        dtype=jnp.float32,
        isolate=True,
    )
    compiled = jax.jit(jax.grad(lambda p, d: loss(p, d)[0])).lower(params, data).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="dense")
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--base", type=int, default=1024)
    parser.add_argument("--chunk", type=int, default=None)
    given = parser.parse_args()
    spec = archs.build(given.arch, given.d_model)
    model = build(replace(spec, n_layers=given.layers, vocab=given.vocab))
    print(f"{given}, jax {jax.__version__}, {jax.devices()[0].device_kind}")
    budget = 0
    for remat in ("none", "dots", "full"):
        budget = temporary(model, remat, given.base, None)
        hardware = count(model.spec, seq_len=given.base, remat=remat).flops_per_token["hardware"]
        print(f"{remat:8} T {given.base:6} {budget / 2**20:9.1f} MiB  {hardware:.3g} FLOPs a token")
    longest = 0
    for times in TIMES:
        length = round(times * given.base)
        found = temporary(model, "stream", length, given.chunk)
        hardware = count(
            model.spec, seq_len=length, remat="stream", remat_chunk=given.chunk
        ).flops_per_token["hardware"]
        print(f"stream   T {length:6} {found / 2**20:9.1f} MiB  {hardware:.3g} FLOPs a token")
        if found > budget:
            break
        longest = length
    print(f"in the memory of full at {given.base}: {longest / given.base:g} times its length")


if __name__ == "__main__":
    main()
