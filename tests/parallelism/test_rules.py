"""Where does each dimension lie, and what is refused?"""

import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from parallelism import axes, rules
from parallelism.axes import AXES, MESH_AXES, Axis, MeshSpec, letters
from parallelism.errors import InputError, nearest
from parallelism.mesh import make_mesh, start_processes
from parallelism.place import (
    batch_sharding,
    constrainer,
    parameter_sharding,
    partition,
    report,
)


def sizes(**given: int) -> dict[str, int]:
    return {**dict.fromkeys(MESH_AXES, 1), **given}


@pytest.mark.parametrize(
    "dims, shape, mesh, expected",
    [
        ("D F", (16, 32), {"fsdp": 4, "tensor": 2}, P("fsdp", "tensor")),
        ("F D", (32, 16), {"fsdp": 4, "tensor": 2}, P("tensor", "fsdp")),
        ("D H K", (16, 4, 8), {"fsdp": 4, "tensor": 2}, P("fsdp", "tensor", None)),
        ("V D", (256, 16), {"tensor": 2}, P("tensor", None)),
        ("D F", (16, 32), {"data": 8}, P(None, None)),
        ("D", (16,), {"fsdp": 8}, P("fsdp")),
        ("K", (16,), {"fsdp": 8, "tensor": 2}, P(None)),
        ("Z D F", (2, 16, 32), {"fsdp": 2}, P(None, "fsdp", None)),
        ("D D", (16, 16), {"fsdp": 4}, P("fsdp", None)),  # a mesh axis once per tensor
        ("E D F", (8, 16, 32), {"expert": 4, "fsdp": 2}, P("expert", "fsdp", None)),
    ],
)
def test_parameters_lie_where_the_rules_say(dims, shape, mesh, expected):
    found = partition(
        tuple(dims.split()), shape, rules=rules.PARAMETERS, mesh=sizes(**mesh), what="w"
    )
    assert found == expected


def test_activations_lie_on_all_replicas():
    found = partition(
        ("B", "T", "D"),
        (8, 4, 16),
        rules=rules.ACTIVATIONS,
        mesh=sizes(data=2, fsdp=2, expert=2, sequence=2),
        what="x",
    )
    assert found == P(("data", "fsdp", "expert"), "sequence", None)


@pytest.mark.parametrize(
    "dims, shape, mesh, said",
    [
        ("D F", (10, 32), {"fsdp": 4}, "execution.mesh.fsdp: 4; does not divide d_model .D = 10."),
        ("D J K", (16, 2, 8), {"tensor": 4}, "execution.mesh.tensor: 4; .* kv_heads .J = 2."),
        ("V D", (257, 16), {"tensor": 2}, "does not divide vocab .V = 257. of embed; write a div"),
    ],
)
def test_a_size_that_does_not_divide_is_refused_by_field(dims, shape, mesh, said):
    with pytest.raises(InputError, match=said):
        partition(
            tuple(dims.split()), shape, rules=rules.PARAMETERS, mesh=sizes(**mesh), what="embed"
        )


def test_more_devices_than_there_are_is_refused_with_both_numbers():
    with pytest.raises(InputError, match="mesh.fsdp: 8; the mesh needs 16 devices and there are 8"):
        make_mesh(MeshSpec(data=2, fsdp=8))


@pytest.mark.parametrize("given", [{"data": 0}, {"fsdp": -1}, {"model": 2}])
def test_a_mesh_that_is_no_mesh_is_refused(given: dict):
    with pytest.raises(ValueError):
        MeshSpec(**given)


@pytest.mark.parametrize(
    "given", [{}, {"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2}, {"tensor": 3}]
)
def test_a_mesh_has_every_axis_and_the_devices_it_asks_for(given: dict):
    mesh = make_mesh(MeshSpec(**given))
    assert mesh.axis_names == MESH_AXES
    assert dict(mesh.shape) == sizes(**given)
    assert mesh.size == math.prod(given.values()) == len(set(mesh.devices.flat))
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


def test_shards_of_a_parameter_hold_its_parts():
    mesh = make_mesh(MeshSpec(fsdp=4, tensor=2))
    value = np.arange(16 * 6, dtype=np.float32).reshape(16, 6)
    placed = jax.device_put(value, parameter_sharding(("D", "F"), (16, 6), mesh, what="w"))
    assert {s.data.shape for s in placed.addressable_shards} == {(4, 3)}
    assert len({str(s.index) for s in placed.addressable_shards}) == 8
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, value[shard.index])


def test_rows_of_a_batch_are_spread_over_data_and_fsdp():
    mesh = make_mesh(MeshSpec(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(np.arange(8)[:, None] * np.ones((1, 4)), batch_sharding(mesh))
    assert {s.data.shape for s in placed.addressable_shards} == {(2, 4)}
    assert len({str(s.index) for s in placed.addressable_shards}) == 4


def test_constraints_reach_the_program_on_a_mesh_and_say_nothing_on_one_device():
    def program(**given: int) -> str:
        constrain = constrainer(make_mesh(MeshSpec(**given)))
        return str(jax.make_jaxpr(lambda x: constrain(x, "B T D"))(np.zeros((8, 4, 16))))

    assert "sharding_constraint" not in program()
    assert "sharding_constraint" in program(fsdp=8)


def test_the_report_says_how_many_devices_hold_a_copy():
    declared = {"w": (("D", "F"), (16, 32)), "gain": (("D",), (16,)), "k": (("K",), (8,))}
    placed = report(declared, sizes(data=2, fsdp=4, tensor=2))
    rows = placed.rows
    assert {path: row["copies"] for path, row in rows.items()} == {"w": 2, "gain": 4, "k": 16}
    assert rows["w"]["partition"] == "('fsdp', 'tensor')"


# -- the axis table --------------------------------------------------------------------------------


def test_letters_and_names_are_unique_and_rules_speak_of_the_table_alone():
    names = [a.name for a in AXES.values()]
    assert len(set(names)) == len(names) and all(k == a.letter for k, a in AXES.items())
    for table in (rules.PARAMETERS, rules.ACTIVATIONS):
        assert set(table) <= set(names)
        assert {axis for used in table.values() for axis in used} <= set(MESH_AXES)


def test_a_letter_that_the_table_lacks_is_refused():
    with pytest.raises(InputError, match="dims: D Q; Q is not in the axis table"):
        letters("D Q")


def test_the_tables_take_another_axis_without_change(monkeypatch):
    """A new dimension and its strategy are one line each; `partition` is not touched."""
    monkeypatch.setitem(axes.AXES, "C", Axis("C", "chunks", "chunks of a sequence"))
    table = {**rules.PARAMETERS, "chunks": ("sequence", "pipeline")}
    mesh = sizes(sequence=2, pipeline=2, fsdp=2)
    found = partition(letters("C D"), (8, 16), rules=table, mesh=mesh, what="w")
    assert found == P(("sequence", "pipeline"), "fsdp")


# -- errors ----------------------------------------------------------------------------------------


def test_an_input_error_is_one_line_of_field_given_instead():
    error = InputError("optim.lr", "a\nb", "write\na number")
    assert str(error) == "optim.lr: a b; write a number"
    assert (error.field, error.instead) == ("optim.lr", "write\na number")
    assert str(InputError("", None, "write it")) == "write it"
    assert len(str(InputError("data", "x" * 1000, "shorten"))) < 200


def test_a_mistyped_name_is_answered_with_the_nearest_or_the_list():
    assert nearest("dens", ["dense", "gpt2"]) == "did you mean dense?"
    assert nearest("zzz", ["dense", "gpt2"]) == "choose one of dense, gpt2"
    assert nearest("zzz", [f"n{i:02}" for i in range(20)]).endswith("n11, ...")


def test_half_of_the_variables_of_a_process_are_refused_by_name(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(InputError, match="--distributed: .*; set JAX_NUM_PROCESSES too"):
        start_processes()
