"""Do tokens reach their experts wherever those lie, without loss, for the bytes that are said?"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ops import experts as ops
from parallelism.axes import MeshSpec
from parallelism.expert import Exchange, wire_bytes
from parallelism.mesh import make_mesh
from parallelism.wire import by_axis, collectives

B, T, D, F, E, K = 8, 4, 8, 16, 8, 3
DIMS = (("E", "D", "F"), ("E", "D", "F"), ("E", "F", "D"))
MESHES = [
    {"expert": 8},
    {"data": 2, "expert": 2, "sequence": 2},
    {"fsdp": 2, "expert": 2, "tensor": 2},
    {"data": 4, "tensor": 2},  # experts are all at hand; tokens are not
]
LOADS = ("even", "one")


def case(load: str) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Choices, and tokens, weights and the experts' matrices in float64."""
    rng = np.random.default_rng(0)
    experts_BTK = np.argsort(rng.random((B, T, E)), axis=-1)[..., :K].astype(np.int32)
    if load == "one":  # every token goes to experts of one device
        experts_BTK[:] = rng.permuted(np.broadcast_to(np.arange(K), (B, T, K)), axis=-1)
    shapes = [(B, T, D), (B, T, K), (E, D, F), (E, D, F), (E, F, D)]
    return experts_BTK, tuple(rng.standard_normal(shape) for shape in shapes)


def exchanged(exchange: Exchange, experts_BTK: Any, x_BTD: Any, weights_BTK: Any, *matrices: Any):
    def compute(x_TD, experts_TK, weights_TK, matrices):
        weights = ops.Weights(*matrices)
        return ops.padded(x_TD, experts_TK, weights_TK, weights, block=2, shares=exchange.ways)

    return exchange(
        x_BTD, experts_BTK, weights_BTK, matrices, dims=DIMS, n_experts=E, compute=compute
    )


def by_definition(experts_BTK: Any, x_BTD: Any, weights_BTK: Any, *matrices: Any) -> jax.Array:
    x_TD, e_TK, w_TK = (a.reshape(B * T, -1) for a in (x_BTD, experts_BTK, weights_BTK))
    return ops.every_expert(x_TD, e_TK, w_TK, ops.Weights(*matrices)).reshape(B, T, D)


def with_gradients(run: Any, *arrays: Any) -> Any:
    def total(*arrays: Any):
        y_BTD = run(*arrays)
        return jnp.sum(jnp.sin(y_BTD)), y_BTD

    argnums = tuple(range(len(arrays)))
    return jax.jit(jax.value_and_grad(total, argnums=argnums, has_aux=True))(*arrays)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_token_reaches_its_experts_and_gradients_come_back(float64, mesh: dict):
    exchange = Exchange(make_mesh(MeshSpec(**mesh)), "sharded")
    for load in LOADS if mesh == MESHES[1] else LOADS[1:]:
        experts_BTK, arrays = case(load)
        expected = with_gradients(partial(by_definition, experts_BTK), *arrays)
        found = with_gradients(partial(exchanged, exchange, experts_BTK), *arrays)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * float(jnp.max(jnp.abs(b))))


def test_a_choice_of_no_expert_adds_nothing(float64):
    experts_BTK, arrays = case("even")
    exchange = Exchange(make_mesh(MeshSpec(expert=4, data=2)))
    none_BTK = np.where(experts_BTK % 3 == 0, E, experts_BTK)
    found = jax.jit(partial(exchanged, exchange, none_BTK))(*arrays)
    x_BTD, weights_BTK, *matrices = arrays
    expected = by_definition(experts_BTK, x_BTD, weights_BTK * (none_BTK < E), *matrices)
    assert np.any(none_BTK == E)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mesh", MESHES[:2], ids=str)
def test_the_first_choices_of_the_whole_batch_are_kept(mesh: dict):
    """By position, then by row, as one device counts them."""
    experts_BTK, _ = case("even")
    exchange = Exchange(make_mesh(MeshSpec(**mesh)))
    kept = jax.jit(partial(exchange.kept, n_experts=E, capacity=7))
    kept_BTK = kept(experts_BTK)
    by_position_TK = jnp.asarray(np.swapaxes(experts_BTK, 0, 1).reshape(T * B, K))
    expected_TK = ops.within_capacity(by_position_TK, n_experts=E, capacity=7)
    expected_BTK = np.swapaxes(np.asarray(expected_TK).reshape(T, B, K), 0, 1)
    np.testing.assert_array_equal(kept_BTK, expected_BTK)
    assert kept_BTK.any() and not kept_BTK.all()


@pytest.mark.parametrize("mesh", [{"expert": 4, "data": 2}, {"expert": 2, "sequence": 2}], ids=str)
def test_the_compiled_program_sends_the_bytes_that_are_said(mesh: dict):
    spec = MeshSpec(**mesh)
    exchange = Exchange(make_mesh(spec))
    experts_BTK, arrays = case("even")
    arrays = tuple(jnp.asarray(a, jnp.float32) for a in arrays)
    tokens = B * T // (spec.replicas * spec.sequence)
    said = wire_bytes(tokens=tokens, d_model=D, chosen=K, ways=spec.expert, number_bytes=4)

    def forward(experts_BTK: Any, *arrays: Any) -> jax.Array:
        return exchanged(exchange, experts_BTK, *arrays)

    def both(g_BTD: Any, experts_BTK: Any, *arrays: Any):
        y_BTD, back = jax.vjp(partial(exchanged, exchange, experts_BTK), *arrays)
        return y_BTD, back(g_BTD)

    def sent(run: Any, *args: Any) -> float:
        text = jax.jit(run).lower(*args).compile().as_text()
        found = by_axis(collectives(text or "", n_devices=exchange.mesh.size), exchange.mesh.shape)
        return found["expert"]

    # where the arrays enter they are whole on every device, so only the exchange sends along expert
    assert sent(forward, experts_BTK, *arrays) == said["forward"]
    assert sent(both, arrays[0], experts_BTK, *arrays) == said["forward"] + said["backward"]
