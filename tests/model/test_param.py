"""Does an initial value depend on anything but its own line, the seed and the layer?"""

from dataclasses import replace

import jax
import numpy as np
import pytest

from model import archs
from model.decoder import build
from model.param import Declaration, Declare, initial, linear
from model.spec import ModelSpec, Parametrisation
from parallelism.axes import MeshSpec
from parallelism.errors import InputError
from parallelism.mesh import make_mesh
from train.programs import state_shardings
from train.spread import spread
from train.step import initial_state


def dense(**changes) -> ModelSpec:
    return replace(archs.build("dense", 32), **changes)


def declare(**sizes: int) -> Declare:
    rule = Parametrisation(kind="standard")
    return Declare(sizes=sizes, base=sizes, rule=rule, n_layers=1, tied=False)


def drawn(declaration: Declaration, seed: int = 0) -> np.ndarray:
    """The value in units of its own spread."""
    return initial(declaration, seed) / declaration.scaling.std


def test_values_do_not_depend_on_other_parameters():
    plain, more = build(dense()), build(dense(tied=True, norm="layernorm", vocab=300))
    same = [p for p in plain.declarations if p.startswith("repeat.0") and "norm" not in p]
    assert len(same) >= 7
    for path in same:
        np.testing.assert_array_equal(
            initial(plain.declarations[path], 3), initial(more.declarations[path], 3)
        )


def test_layers_of_a_deeper_model_begin_like_those_of_a_shallow_one():
    short, long = (build(dense(n_layers=n)).declarations["repeat.0.mixer.q"] for n in (2, 4))
    np.testing.assert_array_equal(initial(short, 0), initial(long, 0)[:2])
    assert np.any(initial(long, 0)[0] != initial(long, 0)[1])


def test_values_do_not_depend_on_the_mesh():
    model = build(dense())
    state = initial_state(model, 5)
    spreads = []
    for sizes in ({"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {}):
        mesh = make_mesh(MeshSpec(**sizes))
        spreads.append(spread(state, state_shardings(model, state, mesh))["params"])
    layouts = {str(s["embed"].sharding.spec) for s in spreads}
    assert len(layouts) == 3
    for placed in spreads:
        for path, value in model.initialise(5).items():
            np.testing.assert_array_equal(np.asarray(jax.device_get(placed[path])), value)


def test_seeds_paths_and_roles_draw_their_own_values():
    found = build(dense()).declarations
    q, gate = found["repeat.0.mixer.q"], found["repeat.0.ffn.gate"]
    draws = [drawn(q), drawn(q, 1), drawn(found["repeat.0.mixer.k"]), drawn(gate)]
    firsts = [d.ravel()[:64] for d in draws]
    for i, one in enumerate(firsts):
        for other in firsts[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.5
    assert np.all(initial(found["norm.gain"], 0) == 1)


def test_values_have_the_declared_spread():
    for path, d in build(archs.build("dense", 128)).declarations.items():
        value = initial(d, 0)
        assert value.dtype == np.float32 and value.shape == d.shape
        if d.init == "normal":
            n = value.size
            assert np.std(value) == pytest.approx(d.scaling.std, rel=5 / np.sqrt(n)), path
            assert abs(np.mean(value)) <= 5 * d.scaling.std / np.sqrt(n), path


def test_a_dim_that_the_axis_table_lacks_is_refused():
    with pytest.raises(InputError, match="dims: D Q; Q is not in the axis table"):
        declare(D=4, Q=3).matrix("w", "D Q", contract="D")


def test_a_matrix_contracts_its_leading_dims():
    with pytest.raises(ValueError, match="contracted dims lead"):
        declare(D=4, F=3).matrix("w", "F D", contract="D")


def test_a_name_is_declared_once():
    scope = declare(D=4)
    scope.vector("gain", "D", init="ones")
    with pytest.raises(ValueError, match="gain is declared twice"):
        scope.vector("gain", "D", init="ones")


def test_linear_contracts_trailing_dims_with_leading_dims():
    weight = declare(D=6, H=2, K=3).matrix("out", "H K D", contract="H K")
    value = np.random.default_rng(0).standard_normal((2, 3, 6), np.float32)
    x_BTHK = np.random.default_rng(1).standard_normal((2, 5, 2, 3), np.float32)
    weight.set_value(value)
    expected = np.einsum("bthk,hkd->btd", x_BTHK, value)
    np.testing.assert_allclose(linear(jax.numpy.asarray(x_BTHK), weight), expected, atol=1e-5)
