"""Is a chip found by its names, read from a user's file, and refused where it cannot be?"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from parallelism.accelerators import ACCELERATORS, find, of_device, parse
from parallelism.cost import Cost, rate
from parallelism.errors import InputError
from parallelism.layouts import reshaped

MESH = {"data": 4, "fsdp": 2, "tensor": 4, "sequence": 1, "expert": 1, "pipeline": 1}


def test_every_chip_says_where_its_numbers_are_from():
    for chip in ACCELERATORS.values():
        assert chip.source and 1e13 < chip.flops_per_second < 1e16
        assert chip.between < chip.inside < chip.memory_rate


def test_a_chip_of_ones_own_is_read_from_a_file(tmp_path: Path):
    path = tmp_path / "mine.json"
    tree = {k: v for k, v in find("h100").to_json().items() if k not in ("kind", "source")}
    path.write_text(json.dumps({**tree, "memory_bytes": 1e12}))
    chip, count = parse(f"{path}:16")
    assert (chip.kind, chip.memory_bytes, count) == ("mine", 1e12, 16)
    path.write_text(json.dumps({**tree, "memory_bytes": -1}))
    with pytest.raises(InputError, match="memory_bytes"):
        parse(f"{path}:16")
    with pytest.raises(InputError, match="h100"):
        parse("h10:8")


@pytest.mark.parametrize(
    "said, kind",
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("TPU v5 lite", "tpu_v5e"),
        ("TPU v4", "tpu_v4"),
        ("cpu", None),
    ],
)
def test_devices_are_known_by_what_their_driver_says(said: str, kind: str | None):
    found = of_device(said)
    assert (found.kind if found else None) == kind


def test_a_group_within_a_node_has_the_links_and_one_across_nodes_the_ports():
    chip = replace(find("h100"), node=8, inside=450e9, between=50e9)
    assert rate(("tensor",), MESH, chip) == 450e9  # four neighbours
    assert rate(("fsdp",), MESH, chip) == 450e9  # eight with tensor: a whole node
    assert rate(("data",), MESH, chip) == 50e9  # one member a node
    assert rate(("data", "fsdp"), MESH, chip) == 2 * 50e9  # two members a node share two ports


def test_a_step_takes_its_longest_part_and_what_nothing_hides():
    chip = find("h100")
    sent = {("data", "all-reduce"): 50e9, ("tensor", "all-reduce"): 450e9}
    one = Cost(mesh=MESH, flops=0.0, moved=0.0, held={}, temporary=0.0, sent=sent, unknown={})
    seconds = one.seconds(chip)
    assert seconds["wire_hidden"] == pytest.approx(1) == seconds["wire_waited"]
    assert seconds["step"] == pytest.approx(2)


def test_axes_follow_their_part_of_a_reshaped_size():
    mesh = {"data": 2, "sequence": 2, "tensor": 2}
    rows = (("data",), ("sequence",), ())
    flat = reshaped(rows, (16, 128, 8), (2048, 8), mesh)
    assert flat == (("data", "sequence"), ())
    assert reshaped(flat, (2048, 8), (16, 128, 2, 4), mesh) == (("data",), ("sequence",), (), ())
    assert reshaped(((), ("tensor",)), (3, 8), (3, 2, 4), mesh) == ((), ("tensor",), ())
