"""Is attention over a shared sequence that of one device, in value and gradient, and does it send
what its formula says?
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np
import pytest

from model.ops.banded_attention import Reach
from parallelism.axes import MeshSpec
from parallelism.sequence import SOFTMAX, names, resolve
from parallelism.sharded_softmax import SoftmaxScheme
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
    for what, knobs, some in [
        ("wide", WIDE, SCHEMES),
        ("both ways", BOTH_WAYS, SCHEMES),
        ("window", WINDOW, ["ring", "striped", "token_ring", "all_gather"]),
        ("sinks", SINKS, ["zigzag", "ulysses"]),
        ("spans", SPANS, ["ring", "ulysses"]),
        ("lone", LONE, ["ring", "ulysses"]),
        ("large", LARGE, ["zigzag", "ring_self_attention"]),
    ]
    for name in some
]


@pytest.mark.parametrize("name, knobs", CASES)
def test_a_scheme_is_exact_and_sends_what_it_says(name: str, knobs: dict):
    """In float64: value and gradients, zeros where nothing is seen, and bytes of the program."""
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
        nothing_leaks(case, lambda dy: program(arrays, case.place({"q": dy})["q"])[1])
    mesh = dict(case.made.mesh.shape)
    found = collectives(str(program.as_text()), n_devices=case.made.mesh.size)
    sent = by_axis(found, mesh)
    formula = case.made.traffic(case.layer)
    assert sent.get("sequence", 0) == formula.forward + formula.backward
    assert set(sent) <= {"sequence"}


def nothing_leaks(case: Case, grads: Callable[[np.ndarray], Mapping[str, jax.Array]]) -> None:
    """Outputs up to a position give exactly no gradient to keys after it, on either side of every
    edge between devices; outputs of a document none to the others.
    """
    # a softmax of one key is 1 whatever the key
    chosen = case.seen & (case.seen.sum(axis=2, keepdims=True) > 1)
    edge, rows = case.length // max(case.mesh.sequence, 2), np.arange(case.rows)
    for last in (edge - 1, edge, case.length // 2 + 1):
        seen = case.seen[:, : last + 1].any(axis=1)
        moves = {"k": chosen[:, : last + 1].any(axis=1), "v": seen}
        asked = case.probe * (np.arange(case.length) <= last)[None, :, None, None]
        found = grads(asked)
        for key in ("k", "v"):
            grad = np.abs(case.in_order(key, found[key])).max(axis=(2, 3))
            assert np.all(grad[~seen] == 0)
            assert np.all(grad[moves[key]] > 0), "what is seen has a gradient"
        assert case.prefix or not seen.all()
    one = case.segments == case.segments[:, -1:]
    found = grads(case.probe * one[:, :, None, None])
    grad = np.abs(case.in_order("v", found["v"])).max(axis=(2, 3))
    assert np.all(grad[~one] == 0) and np.all(grad[rows, -1] > 0)


# -- balance ---------------------------------------------------------------------------------------


def pairs(name: str, *, length: int, ways: int) -> np.ndarray:
    """(hop, device): pairs of a query and a key that it sees."""
    places = resolve(name).order(length, ways=ways).reshape(ways, -1)
    return np.array(
        [
            [np.sum(places[r][:, None] >= places[(r - t) % ways]) for r in range(ways)]
            for t in range(ways)
        ]
    )


@pytest.mark.parametrize(
    "name, slowest", [("ring", 904), ("striped", 544), ("zigzag", 520), ("token_ring", 520)]
)
def test_zigzag_gives_all_devices_the_same_work_in_every_hop(name: str, slowest: int):
    found = pairs(name, length=64, ways=4)
    assert found.sum() == 64 * 65 // 2 == 4 * 520
    assert found.max(axis=1).sum() == slowest
    assert np.all(found == found[:, :1]) == (slowest == 520)
    assert sorted(resolve(name).order(64, ways=4)) == list(range(64))


def test_the_program_computes_positions_as_the_host_does():
    for name in SCHEMES:
        made = Case(name).made
        np.testing.assert_array_equal(made.positions(24), made.order(24, ways=4))


# -- memory ----------------------------------------------------------------------------------------


@SLOW
@pytest.mark.parametrize("name", ["ring", "striped", "zigzag", "token_ring"])
def test_memory_does_not_grow_with_the_ring_as_autodiff_would_let_it(name: str):
    """Temporary bytes at one length of a device's own part, by the compiler's count."""

    def temporary(ways: int, *, by_hand: bool) -> int:
        knobs = {"length": 32 * ways, "rows": 1, "documents": False, "per_head": 64}
        case = Case(name, mesh=MeshSpec(sequence=ways), **knobs)
        arrays = case.place({n: x.astype(np.float32) for n, x in case.arrays.items()})
        run = case.shared if by_hand else partial(by_autodiff, case)
        at = jax.tree.map(lambda x: x.sharding, arrays)
        program = jax.jit(run, out_shardings=(arrays["q"].sharding, at))
        memory = program.lower(arrays, arrays["q"]).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    ours, theirs = ({w: temporary(w, by_hand=hand) for w in (4, 8)} for hand in (True, False))
    assert ours[8] <= 1.05 * ours[4], ours
    assert theirs[8] >= 1.5 * theirs[4] and theirs[8] > ours[8], (ours, theirs)


def by_autodiff(case: Case, arrays: Mapping[str, jax.Array], dy: jax.Array):
    """The same forward pass, differentiated by JAX."""
    made = case.made
    assert isinstance(made, SoftmaxScheme)
    sight = made.sight(case.length, scale=case.scale, band=None, causal=True)
    tokens = made.tokens_spec(case.kv_heads)

    def forward(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return made.forward(sight, q, k, v, None, {})[0]

    whole = made.manual(forward, (tokens, tokens, tokens), tokens)
    y, back = jax.vjp(lambda a: whole(a["q"], a["k"], a["v"]), dict(arrays))
    return y, back(dy)[0]
