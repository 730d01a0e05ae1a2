"""Does a run give the same numbers on every mesh, to the rounding of float64? What float32 cannot
tell from the order of sums (a term that is missing or counted twice, if it is small) is seen here.
"""

import jax
import numpy as np
import pytest

from tests.parallelism.test_meshes import BIAS, MESHES, of_arch, on, trained
from train import programs
from train.paths import put
from train.programs import resolved_execution

pytestmark = pytest.mark.slow
CLOSE = 1e-10  # of an array's largest entry
ALL_BUT_DATA = MESHES["fsdp x tensor x sequence"]
ALL_BUT_FSDP = {"data": 2, "tensor": 2, "sequence": 2}
ALL_BUT_TENSOR = {"data": 2, "fsdp": 2, "sequence": 2}
ALL_BUT_SEQUENCE = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.fixture(autouse=True)
def wide(no_float32: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers compute in float64, which no run may ask for."""
    monkeypatch.setattr(
        programs,
        "resolved_execution",
        lambda *args: {**resolved_execution(*args), "compute_dtype": "float64"},
    )


@pytest.mark.parametrize(
    ("name", "meshes", "more"),
    [
        (
            "dense",
            [
                (ALL_BUT_DATA, "zigzag"),
                (ALL_BUT_FSDP, "token_ring"),
                (ALL_BUT_TENSOR, "ulysses"),
                (ALL_BUT_SEQUENCE, "none"),
                (MESHES["pipeline x tensor"], "none"),
            ],
            {},
        ),
        ("moe", [(MESHES["data x expert x sequence"], "auto")], BIAS),
    ],
    ids=["dense", "moe"],
)
def test_ten_steps_in_float64_on_a_mesh_are_those_of_one_device(
    corpus, tmp_path, name, meshes, more
):
    run = of_arch(name, corpus, **more)
    with jax.enable_x64(True):
        single = trained(run, tmp_path, dtype=np.float64)
        assert single["losses"][-1] < 0.98 * single["losses"][0], "nothing was learned"
        for mesh, scheme in meshes:
            spread = put(on(run, mesh), {"execution.sequence": scheme})
            assert_same(trained(spread, tmp_path, dtype=np.float64), single)


def assert_same(found, single) -> None:
    differ = False  # in the order of sums
    for part in ("params", "mu", "nu", "window"):
        for name, value in single[part].items():
            a, b = np.asarray(found[part][name]), np.asarray(value)
            differ |= bool(np.any(a != b))
            off, size = np.max(np.abs(a - b)), np.max(np.abs(b))
            assert a.dtype == np.float64
            assert off <= CLOSE * size, f"{part} {name} differs by {off:.3g} of {size:.3g}"
    np.testing.assert_allclose(found["losses"], single["losses"], rtol=CLOSE)
    assert differ, "one program"
