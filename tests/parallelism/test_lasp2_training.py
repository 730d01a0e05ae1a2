"""Does a run of linear recurrences, or a hybrid, learn over shared sequences what it learns on one
device?
"""

import pytest

from tests.parallelism import test_sequence_training as shared

SLOW = pytest.mark.slow
HYBRID = {"model__n_layers": 4}
CASES = [
    pytest.param(arch, mesh, {"optim__lr": 1e-3, **knobs}, id=what, marks=SLOW)
    for arch, mesh, knobs, what in [
        ("gated_deltanet", shared.MIXED, {}, "mixed"),
        ("retnet", shared.SEQUENCE, {"length": 13}, "filled"),
        ("linear", {"sequence": 8}, {}, "eight"),
        ("ssd", {"data": 2, "sequence": 4}, {"length": 13}, "ssd"),
        ("lightning", shared.SEQUENCE, {}, "lightning"),
        ("gla", shared.SEQUENCE, {}, "gla"),
        ("deltanet", {"sequence": 8}, {}, "delta"),
        # its layers begin with nothing to say, so their gradients are small for all ten steps
        ("rwkv7", shared.MIXED, {"model__n_layers": 3, "optim__eps": 1e-6}, "rwkv7"),
        ("hybrid", {"data": 2, "sequence": 4}, HYBRID, "hybrid"),
        ("hybrid", {"data": 2, "sequence": 4}, {**HYBRID, "execution__remat": "stream"}, "stream"),
    ]
]


@pytest.mark.parametrize("arch, mesh, knobs", CASES)
def test_ten_steps_of_recurrences_are_those_of_one_device(arch: str, mesh: dict, knobs: dict):
    shared.test_ten_steps_on_a_shared_sequence_are_those_of_one_device("lasp2", mesh, arch, knobs)
