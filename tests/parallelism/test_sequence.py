"""Is attention over a shared sequence that of one device, in value and gradient, and does it send
what its formula says?
"""

import jax
import pytest

from model.ops.banded_attention import Reach
from parallelism.axes import MeshSpec
from parallelism.sequence import SOFTMAX, names, resolve
from parallelism.wire import by_axis, collectives
from tests.parallelism.shared import Case, assert_same

SCHEMES = [name for name in names() if SOFTMAX in resolve(name).forms]
SLOW = pytest.mark.slow

MIXED = MeshSpec(data=2, tensor=2, sequence=2)
WIDE = {"mesh": MeshSpec(sequence=8), "kv_heads": 8, "length": 32}
BOTH_WAYS = {"prefix": True, "ahead": 2, "mesh": MIXED}
WINDOW = {"band": Reach(blocks=5), "length": 32}
SINKS = {"band": Reach(blocks=5, sinks=3), "length": 32}
SPANS = {"band": Reach(blocks=2, block=3, sinks=3), "length": 48, "mesh": MIXED}
LONE = {"mesh": MeshSpec(sequence=1)}
LARGE = {"documents": False, "scale": 40.0}  # a softmax of few keys, exponents that overflow

CASES = [pytest.param(name, {"ahead": 3}, id=name) for name in SCHEMES]
CASES += [pytest.param("ring", SINKS, id="ring-sinks")]
CASES += [
    pytest.param(name, knobs, id=f"{name}-{what}", marks=SLOW)
    for what, knobs in {
        "wide": WIDE,
        "both ways": BOTH_WAYS,
        "window": WINDOW,
        "sinks": SINKS,
        "spans": SPANS,
        "lone": LONE,
        "large": LARGE,
    }.items()
    for name in SCHEMES
    if (name, what) != ("ring", "sinks")
]


@pytest.mark.parametrize("name, knobs", CASES)
def test_a_scheme_is_exact_and_sends_what_it_says(name: str, knobs: dict):
    """In float64: value and gradients, and the bytes of the compiled program."""
    case = Case(name, **knobs)
    with jax.enable_x64(True):
        arrays = case.place(case.arrays)
        dy = case.place({"q": case.probe})["q"]
        at = jax.tree.map(lambda x: x.sharding, arrays)
        jitted = jax.jit(case.shared, out_shardings=(dy.sharding, at))
        program = jitted.lower(arrays, dy).compile()
        y, grads = program(arrays, dy)
        wanted, back = jax.vjp(case.single, dict(case.arrays))
        assert_same(case.in_order("y", y), wanted, what="outputs")
        for key, grad in back(case.probe)[0].items():
            assert_same(case.in_order(key, grads[key]), grad, what=f"gradient of {key}")
    mesh = dict(case.made.mesh.shape)
    found = collectives(str(program.as_text()), n_devices=case.made.mesh.size)
    sent = by_axis(found, mesh)
    formula = case.made.traffic(case.layer)
    assert sent.get("sequence", 0) == formula.forward + formula.backward
    assert set(sent) <= {"sequence"}
