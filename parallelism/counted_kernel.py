"""What does an attention kernel cost on a chip that is not here? A stand-in for the cost model, of
the arrays that a kernel takes and gives and of its products, which nothing can run.

A kernel's own code is traced for its chip alone. In a step that is traced to be counted
(train/estimate.py) it is one operation forward and one backward, for which
parallelism/partition_rules.py has a rule.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching

from parallelism import kernels

Arrays = tuple[jax.Array, ...]

FORWARD, BACKWARD = Primitive("attention_kernel"), Primitive("attention_kernel_backward")
# products of T x S pairs: scores and values; scores anew, and the gradients of all four
PRODUCTS = {FORWARD: 2, BACKWARD: 5}


@dataclass(frozen=True)
class Kernel(kernels.Kernel):
    masks: bool = False  # documents, prefixes and learned keys are an array (rows, 1, T, S)

    def local(
        self,
        q_BTHK: jax.Array,
        k_BSJK: jax.Array,
        v_BSJK: jax.Array,
        segments_BT: jax.Array | None,
        prefix_BT: jax.Array | None,
        *,
        scale: float,
        window: int | None,
    ) -> jax.Array:
        B, T, S = *q_BTHK.shape[:2], k_BSJK.shape[1]
        causal = prefix_BT is None and S == T
        arrays = (q_BTHK, k_BSJK, v_BSJK)
        if self.masks and (segments_BT is not None or not causal):
            # made of the documents, so that it is made where they are known
            mark_BT = jnp.zeros((B, T), jnp.int32) if segments_BT is None else segments_BT
            key_BS = jnp.pad(mark_BT, ((0, 0), (S - T, 0)))
            same_BTS = mark_BT[:, :, None] == key_BS[:, None]
            arrays = (*arrays, jnp.where(same_BTS[:, None], 0, -1e9).astype(q_BTHK.dtype))
        seen = window if window is not None else T
        pairs = seen * (seen + 1) / 2 + (T - seen) * seen if causal else T * S
        return _attend(pairs, arrays)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(pairs: float, arrays: Arrays) -> jax.Array:
    return FORWARD.bind(*arrays, pairs=pairs)[0]


def _forward(pairs: float, arrays: Arrays):
    y, lse = FORWARD.bind(*arrays, pairs=pairs)
    return y, (arrays, y, lse)


def _backward(pairs: float, kept: Any, dy: jax.Array):
    arrays, y, lse = kept
    return (tuple(BACKWARD.bind(*arrays, y, lse, dy, pairs=pairs)),)


_attend.defvjp(_forward, _backward)


def _gives(q: Any, *_: Any, pairs: float) -> list[ShapedArray]:
    return [ShapedArray(q.shape, q.dtype), ShapedArray(q.shape[:-1], jnp.dtype("float32"))]


def _gives_back(*given: Any, pairs: float) -> list[ShapedArray]:
    return [ShapedArray(x.shape, x.dtype) for x in given[:-3]]  # without y, lse and dy


def _mapped(primitive: Primitive, given: Any, dims: Any, *, pairs: float):
    """Over the stages of a pipeline."""
    (n, *_) = (x.shape[d] for x, d in zip(given, dims, strict=True) if d is not None)
    moved = [
        jnp.broadcast_to(x[None], (n, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(given, dims, strict=True)
    ]
    outs = primitive.bind(*moved, pairs=pairs)
    return outs, [0] * len(outs)


for _primitive, _shapes in ((FORWARD, _gives), (BACKWARD, _gives_back)):
    _primitive.multiple_results = True
    _primitive.def_abstract_eval(_shapes)
    batching.primitive_batchers[_primitive] = partial(_mapped, _primitive)


def flops(name: str, pairs: float, queries: tuple[int, ...]) -> float:
    """Of the operation of this name on queries (..., T, H, K)."""
    (products,) = (n for primitive, n in PRODUCTS.items() if primitive.name == name)
    *rows, _, H, K = queries
    return 2.0 * products * pairs * math.prod(rows) * H * K
