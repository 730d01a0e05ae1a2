"""Is a grown model the shallow one stacked, and does everything else begin anew?"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from model.archs import build as arch
from model.decoder import build
from model.spec import BlockSpec
from parallelism.errors import InputError
from tests.train.tiny import STEPS, ledger, tiny
from train.grow import grown, sources
from train.loop import open_text, train
from train.paths import put
from train.record import RunDir
from train.sample import load
from train.spec import RunSpec, SourceSpec
from train.start import first_state, origin


def test_the_index_map_tiles_and_does_not_repeat():
    assert sources(6, 24).tolist() == [0, 1, 2, 3, 4, 5] * 4
    assert sources(2, 4).tolist() == [0, 1, 0, 1] != np.repeat([0, 1], 2).tolist()
    assert sources(3, 5).tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("name", ["dense", "gpt2", "moe"])
def test_layer_i_starts_as_layer_i_mod_l_and_what_is_no_layer_is_copied(name: str):
    shallow = build(replace(arch(name, 32), n_layers=3))
    deep = build(replace(arch(name, 32), n_layers=3 * shallow.spec.n_repeats + 1))
    params = shallow.initialise(0)
    stacked = grown(params, deep)
    assert set(stacked) == set(deep.declarations) == set(params)
    if name == "gpt2":
        assert "readout" not in stacked, "a tied table stays one table"
    layered = 0
    for path, value in stacked.items():
        assert value.shape == deep.declarations[path].shape
        if deep.declarations[path].dims[0] != "Z":
            assert np.array_equal(value, params[path])
            continue
        layered += 1
        for z in range(len(value)):
            assert np.array_equal(value[z], params[path][z % len(params[path])]), path
    assert layered > 5
    out = deep.declarations["repeat.0.mixer.out"].scaling.std
    assert out < shallow.declarations["repeat.0.mixer.out"].scaling.std, "the rule knows the depth"


def test_a_unit_of_several_blocks_is_stacked_as_a_whole():
    spec = arch("dense", 32)
    (block,) = spec.repeat
    unit = (block, BlockSpec(mixer=None, ffn="gelu"))
    shallow, deep = (build(replace(spec, repeat=unit, n_layers=n)) for n in (4, 8))
    stacked = grown(shallow.initialise(0), deep)
    assert stacked["repeat.1.ffn.up"].shape[0] == 4
    assert np.array_equal(stacked["repeat.1.ffn.up"][2:], shallow.initialise(0)["repeat.1.ffn.up"])


@pytest.fixture(scope="module")
def base(corpus: SourceSpec, new_root: Callable[[str], Path]):
    """A finished run of two layers: (its root, its spec)."""
    root = new_root("base")
    spec = tiny(corpus)
    assert train(spec, root=root).status == "done"
    return root, spec


def larger(spec: RunSpec, n_layers: int, **start) -> RunSpec:
    begin = {"kind": "grow", "run": spec.run_id, **start}
    return put(spec, {"model.n_layers": n_layers, "start": begin})


@pytest.mark.slow
def test_a_run_of_two_layers_grows_to_four_and_then_to_eight(base):
    root, spec = base
    small = {k: np.asarray(v) for k, v in load(spec.run_id, root=root).params.items()}
    four = put(larger(spec, 4), {"evaluation.every": 1})
    model = build(four.model)
    state = first_state(four, model, root=root)
    for path, value in state["params"].items():
        tiled = model.declarations[path].dims[0] == "Z"
        assert np.array_equal(value, np.tile(small[path], (2,) + (1,) * (value.ndim - 1))
                              if tiled else small[path])  # fmt: skip
    adam = state["opt"][1]
    assert int(state["step"]) == int(adam.count) == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves((adam.mu, adam.nu)))
    assert set(adam.mu) == set(state["params"])

    outcome = train(four, root=root)
    assert outcome.status == "done"
    losses = [row["loss/val"] for row in ledger(root, four)]
    assert losses[-1] < losses[0], "what stacking broke does not recover"

    eight = larger(four, 8)
    begun = origin(eight, RunDir(root / "none"))
    counts = [RunDir(root / r.run_id).read().counts["flops_per_token"] for r in (spec, four)]
    assert begun is not None
    assert begun.rows == 2 * STEPS * 8 and begun.tokens == 2 * 128 * STEPS
    assert begun.flops == 128 * STEPS * sum(c["causal_attn"] for c in counts)


def test_the_data_begins_where_the_base_stopped(base):
    root, spec = base
    run = larger(spec, 4)
    whole = open_text(spec, cache=root / ".cache")
    begun = origin(run, RunDir(root / "none"))
    assert begun is not None
    onward = begun.onward(open_text(run, cache=root / ".cache"))
    for step in (0, 3):
        found, expected = onward.batch(step), whole.batch(spec.steps + step)
        assert np.array_equal(found.tokens_BT, expected.tokens_BT)
        assert not np.array_equal(found.tokens_BT, whole.batch(step).tokens_BT)
    wider = put(run, {"budget.batch_tokens": 256})  # rows are counted, not steps
    doubled = begun.onward(open_text(wider, cache=root / ".cache")).batch(0).tokens_BT
    assert np.array_equal(doubled[:8], onward.batch(0).tokens_BT)
    assert np.array_equal(doubled[8:], onward.batch(1).tokens_BT)
    fresh = origin(larger(spec, 4, data="fresh"), RunDir(root / "none"))
    assert fresh is not None and fresh.rows == 0


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model.d_model": 64}, "model.d_model: 64; .* is of another family, with 32"),
        ({"model.repeat.0.mixer.qk_norm": False}, "mixer.qk_norm: False; .* of another family"),
        ({"model.n_layers": 2}, "model.n_layers: 2; .* has 2; write more to grow it"),
        ({"model.tied": True}, "model.tied: True; .* is of another family"),
    ],
)
def test_another_family_is_refused_before_anything_is_compiled(
    base, changes: dict, said: str, monkeypatch
):
    root, spec = base
    monkeypatch.setattr("train.loop.programs", lambda *_, **__: pytest.fail("compiled"))
    with pytest.raises(InputError, match=said) as caught:
        train(put(larger(spec, 4), changes), root=root)
    assert "\n" not in str(caught.value)
