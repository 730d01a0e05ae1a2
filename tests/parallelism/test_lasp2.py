"""Is a linear recurrence over a shared sequence that of one device, and what does it send?"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from model.ops.channel_decay import channel_decay, naive_channel_decay
from model.ops.delta import delta_rule, naive_delta_rule
from model.ops.dplr import dplr, naive_dplr
from model.ops.over_devices import over_devices
from model.ops.scalar_decay import naive_scalar_decay, scalar_decay
from parallelism.axes import MeshSpec
from parallelism.mesh import make_mesh
from parallelism.sequence import CHANNEL_DECAY, DELTA, SCALAR_DECAY, Recurrent, resolve
from parallelism.wire import by_axis, collectives
from tests.parallelism.shared import assert_same

B, H, K, M, CHUNK = 2, 2, 4, 3, 3
SLOW = pytest.mark.slow
# form, fast op, its slow twin, place of v
OPS = {
    "scalar": (SCALAR_DECAY, scalar_decay, naive_scalar_decay, 2),
    "channel": (CHANNEL_DECAY, channel_decay, naive_channel_decay, 2),
    "delta": (DELTA, delta_rule, naive_delta_rule, 2),
    "dplr": (DELTA, dplr, naive_dplr, 3),
}


def arrays(op: str, length: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)

    def normal(*width: int) -> np.ndarray:
        return rng.standard_normal((B, length, H, *width))

    def unit() -> np.ndarray:
        x = normal(K)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    q, k, v = normal(K), unit(), normal(M)
    if op == "scalar":
        return [q, k, v, -rng.random((B, length, H))]
    if op == "channel":
        return [q, k, v, -rng.random((B, length, H, K))]
    if op == "delta":
        return [q, k, v, rng.random((B, length, H)), -0.3 * rng.random((B, length, H))]
    a = unit()
    return [q, -0.6 * rng.random((B, length, H, K)), k, v, -a, a * rng.random((B, length, H, 1))]


def segments(length: int) -> np.ndarray:
    """One document, and several: one ends where a device's positions do, one lies in them."""
    found = np.zeros((B, length), np.int32)
    for cut in (1, length // 2, length // 2 + 1, length - 2):
        found[1, cut:] += 1
    return found


def scheme(mesh: MeshSpec):
    return resolve("lasp2")(make_mesh(mesh))


def compiled(op: str, mesh: MeshSpec, length: int, *, documents: bool):
    """The program of y and gradients, its arguments and results on one device."""
    form, fast, slow, values = OPS[op]
    made, given = scheme(mesh), arrays(op, length)
    marks = jnp.asarray(segments(length)) if documents else None
    probe = np.random.default_rng(1).standard_normal((B, length, H, M))
    heads = "tensor" if H % mesh.tensor == 0 else None
    place = NamedSharding(made.mesh, PartitionSpec(made.batch_axes, "sequence", heads))
    run = over_devices(partial(fast, chunk=CHUNK), made, form=form, values=values)

    def both(run, given, dy):
        y, back = jax.vjp(lambda *given: run(*given, marks)[0], *given)
        return y, back(dy)

    put = [jax.device_put(x, place) for x in given]
    out = (place, (place,) * len(put))
    program = jax.jit(partial(both, run), out_shardings=out).lower(
        put, jax.device_put(probe, place)
    )
    wanted = both(slow, [jnp.asarray(x) for x in given], jnp.asarray(probe))
    return made, program.compile(), (put, jax.device_put(probe, place)), wanted


MIXED = MeshSpec(data=2, sequence=2, tensor=2)
CASES = [
    pytest.param(op, mesh, marks=() if mesh is MIXED and op in ("scalar", "delta") else SLOW)
    for op in OPS
    for mesh in (MIXED, MeshSpec(sequence=4), MeshSpec(sequence=8), MeshSpec(sequence=2, tensor=4))
]


@pytest.mark.parametrize("op, mesh", CASES)
def test_values_gradients_and_bytes(op: str, mesh: MeshSpec):
    with jax.enable_x64(True):
        made, program, given, wanted = compiled(op, mesh, 16, documents=True)
        assert_same(program(*given), wanted, what=op)
    sent = by_axis(
        collectives(str(program.as_text()), n_devices=made.mesh.size), dict(made.mesh.shape)
    )
    layer = Recurrent(form=OPS[op][0], rows=B, length=16, heads=H, key=K, value=M, item=8, wide=8)
    formula = made.traffic(layer)
    assert sent.get("sequence", 0) == formula.forward + formula.backward > 0
    # where heads do not divide, the devices of `tensor` all do the same, and gradients are averaged
    assert set(sent) <= {"sequence", *(("tensor",) if H % mesh.tensor else ())}


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_bytes_do_not_depend_on_the_length(op: str):
    found = []
    with jax.enable_x64(True):
        for length in (16, 64):
            made, program, given, wanted = compiled(
                op, MeshSpec(sequence=4), length, documents=False
            )
            assert_same(program(*given), wanted, what=op)
            traffic = collectives(str(program.as_text()), n_devices=made.mesh.size)
            found.append(by_axis(traffic, dict(made.mesh.shape))["sequence"])
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("op", OPS)
def test_nothing_leaks_to_earlier_positions_or_other_documents(op: str):
    """An output gives a gradient to the values before it in its document, on whichever device, and
    exactly none to any argument elsewhere. In the second row a document begins with a device's
    positions, and one that began within them goes on to the next device.
    """
    length, made, (form, fast, _, values) = 16, scheme(MeshSpec(sequence=4)), OPS[op]
    marks = segments(length)
    run = over_devices(partial(fast, chunk=CHUNK), made, form=form, values=values)
    given = [jnp.asarray(x, jnp.float32) for x in arrays(op, length)]

    @jax.jit
    def read(given, at):
        return jax.grad(lambda given: jnp.sum(run(*given, jnp.asarray(marks))[0][:, at]))(given)

    for at in (8, 9, 13, 15):
        felt = [np.abs(x).reshape(B, length, -1).max(axis=2) for x in read(given, at)]
        seen = (marks == marks[:, at : at + 1]) & (np.arange(length) <= at)
        assert all(np.all(x[~seen] == 0) for x in felt)
        assert np.all(felt[values][seen] > 0)
