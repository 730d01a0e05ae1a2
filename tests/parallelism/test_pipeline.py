"""Do stages in turn give what layers in turn give?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelism.axes import MeshSpec
from parallelism.mesh import make_mesh
from parallelism.pipeline import Pipeline, pipeline, wire_bytes
from parallelism.wire import by_axis, collectives

LAYERS, ROWS, D, TOGETHER = 8, 16, 4, 2


def arrays() -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = [(LAYERS, D, D), (ROWS, D), (ROWS, D)]
    weight_ZDD, x_BD, held_BD = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
    return weight_ZDD, x_BD, held_BD


def run(weight_ZDD: Any, x_BD: Any, held_BD: Any) -> tuple[Any, Any]:
    """Layers that mix the rows of a pair, read what is held, and say something of each row."""

    def layer(x_BD: Any, weight_DD: Any):
        pairs = x_BD.reshape(-1, TOGETHER, D)
        mixed = jnp.flip(pairs, axis=1).reshape(x_BD.shape)
        x_BD = jnp.tanh((x_BD + 0.5 * mixed) @ weight_DD + held_BD)
        return x_BD, {"sum_B": jnp.sum(x_BD, axis=-1)}

    return jax.lax.scan(layer, x_BD, weight_ZDD)


def total(out: Any) -> jax.Array:
    """With a square of a sum over rows, which no mean over parts gives."""
    x_BD, sums = out
    return jnp.sum(jnp.sin(x_BD)) + jnp.sum(jnp.sum(sums["sum_B"], axis=1) ** 2)


def whole(weight_ZDD: Any, x_BD: Any, held_BD: Any) -> Any:
    out = run(weight_ZDD, x_BD, held_BD)
    return total(out), out


def in_stages(stages: Pipeline) -> Any:
    def staged(weight_ZDD: Any, x_BD: Any, held_BD: Any) -> Any:
        out = stages(run, weight_ZDD, x_BD, held_BD, together=TOGETHER)
        return total(out), out

    return staged


CASES = [(4, 4, 1), (2, 8, 2), (4, 4, 2), (2, 1, 1)]


@pytest.mark.parametrize("stages, parts, rounds", CASES)
def test_stages_give_what_layers_give(stages: int, parts: int, rounds: int):
    made = pipeline(make_mesh(MeshSpec(pipeline=stages)), microbatches=parts, rounds=rounds)
    assert made is not None and made.turns == rounds * parts + stages - 1
    results = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))(*arrays())
        for f in (in_stages(made), whole)
    ]
    for a, b in zip(*(jax.tree.leaves(result) for result in results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(b))))


def test_one_device_has_no_pipeline():
    assert pipeline(make_mesh(MeshSpec(data=2)), microbatches=4, rounds=1) is None


def test_a_turn_sends_one_part_to_the_next_stage():
    made = Pipeline(make_mesh(MeshSpec(pipeline=4)), microbatches=4)

    def forward(weight_ZDD: Any, x_BD: Any, held_BD: Any) -> jax.Array:
        return made(run, weight_ZDD, x_BD, held_BD, together=TOGETHER)[0]

    text = jax.jit(forward).lower(*arrays()).compile().as_text()
    found = collectives(text or "", n_devices=4)
    sent = by_axis(found, made.mesh.shape)
    assert sent == {"pipeline": wire_bytes(made, part_bytes=ROWS // 4 * D * 4)}
    assert {one.kind for one in found} == {"collective-permute", "all-reduce"}
