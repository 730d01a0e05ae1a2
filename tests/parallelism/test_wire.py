"""Are the bytes that a compiled program sends read from it, by kind, loop and mesh axis?"""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from parallelism.axes import MeshSpec
from parallelism.mesh import make_mesh
from parallelism.wire import Collective, by_axis, collectives, kinds

SPEC = MeshSpec(data=2, fsdp=2, tensor=2)
X = 8 * 16 * 4  # bytes of the (8, 16) float32 that each device holds


@pytest.fixture(scope="module")
def found() -> list[Collective]:
    """One program with every kind, the permute inside a loop of five."""

    @partial(
        jax.shard_map,
        mesh=make_mesh(SPEC),
        in_specs=P("data"),
        out_specs=P("data"),
        check_vma=False,
    )
    def program(x_BD):
        ring = [(0, 1), (1, 0)]
        x_BD = jax.lax.fori_loop(0, 5, lambda i, x: jax.lax.ppermute(x * 1.5, "tensor", ring), x_BD)
        x_BD = jax.lax.psum(jnp.sin(x_BD), ("data", "fsdp"))
        y_BD = jax.lax.all_gather(jnp.cos(x_BD), "fsdp", tiled=True)
        x_BD = jax.lax.psum_scatter(jnp.tanh(y_BD), "data", tiled=True)
        return jax.lax.all_to_all(jnp.exp(x_BD), "tensor", 0, 1, tiled=True)

    x_BD = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    hlo = jax.jit(program).lower(x_BD).compile().as_text()
    assert hlo is not None
    return collectives(hlo, n_devices=8)


def test_each_kind_has_its_bytes_axes_and_executions(found):
    mesh = SPEC.sizes
    seen = {one.kind: (one.wire_bytes, one.axes(mesh), one.times) for one in found}
    assert seen == {
        "collective-permute": (5 * X, ("tensor",), 5),
        "all-reduce": (2 * 3 / 4 * X, ("data", "fsdp"), 1),
        "all-gather": (2 * X / 2, ("fsdp",), 1),
        "reduce-scatter": (X, ("data",), 1),
        "all-to-all": (X / 2, ("tensor",), 1),
    }
    assert kinds(found)["collective-permute"] == 5
    assert by_axis(found, mesh) == {
        "tensor": 5 * X + X / 2,
        "data+fsdp": 1.5 * X,
        "fsdp": float(X),
        "data": float(X),
    }


@pytest.mark.parametrize(
    "written, groups",
    [
        ("replica_groups={{0,2},{4,6},{1,3},{5,7}}", ((0, 2), (4, 6), (1, 3), (5, 7))),
        ("replica_groups=[4,2]<=[8]", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("replica_groups=[4,2]<=[4,2]T(1,0)", ((0, 2), (4, 6), (1, 3), (5, 7))),
        ("replica_groups={}", (tuple(range(8)),)),
        (
            "replica_groups=mesh['a'=2,'b'=4], device_ids=([2,2,2]T(1,0,2)) {'a'}",
            ((0, 2), (1, 3), (4, 6), (5, 7)),
        ),
        (
            "replica_groups=mesh['a'=4,'b'=1,'c'=2] {'a'}",
            ((0, 2, 4, 6), (1, 3, 5, 7)),
        ),
    ],
)
def test_groups_are_read_however_xla_writes_them(written: str, groups: tuple):
    hlo = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n  %a = f32[8]{{0}} all-reduce(%x), {written}\n}}"
    (one,) = collectives(hlo, n_devices=8)
    assert sorted(one.groups) == sorted(groups)
    assert one.wire_bytes == pytest.approx(2 * 32 * (one.ways - 1) / one.ways)


def test_an_asynchronous_pair_counts_its_result_once():
    hlo = (
        "ENTRY %main (x: f32[2]) -> f32[8] {\n"
        "  %s = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups=[1,4]<=[4]\n"
        "  %d = f32[8]{0} all-gather-done(%s)\n"
        "  %p = (bf16[2], bf16[2], u32[], u32[]) collective-permute-start(%x),"
        " source_target_pairs={{0,1},{1,0},{2,2}}\n}"
    )
    gather, permute = collectives(hlo, n_devices=4)
    assert (gather.result_bytes, gather.wire_bytes) == (32, 24)
    assert (permute.result_bytes, permute.groups) == (4, ((0, 1), (1, 0)))
