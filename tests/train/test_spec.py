"""Is a run one value: JSON both ways, one id, fields that can be added later?"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from model.archs import build
from parallelism.errors import InputError
from train.paths import override, put
from train.spec import (
    ADDED_SINCE_FORMAT_1,
    FORMAT,
    RunSpec,
    canonical,
    from_dict,
    migrate,
    to_dict,
    to_json,
)

RULE = (
    "Run ids changed. Finished runs of users would be trained again. A new field goes into "
    "ADDED_SINCE_FORMAT_1 with the value that reproduces old runs, and these ids stand. Only a "
    "deliberate change of the science's meaning may rewrite tests/golden/run_ids.json, with a line "
    "in CHANGELOG.md that says why."
)


GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden/run_ids.json").read_text())


def made(entry: dict) -> RunSpec:
    """From a whole file of format 1, not from `archs`: a better default is not a change of ids."""
    return override(from_dict(GOLDEN["files"][entry["file"]]), entry["set"])


def test_golden_run_ids_stand():
    wrong = []
    for entry in GOLDEN["runs"]:
        if (found := made(entry).run_id) != entry["run_id"]:
            wrong.append(f"{entry['file']} {entry['set']}: {entry['run_id']} -> {found}")
    assert not wrong, "\n".join([RULE, *wrong])
    assert len({e["run_id"] for e in GOLDEN["runs"]}) == len(GOLDEN["runs"]) >= 6


@pytest.mark.parametrize("entry", GOLDEN["runs"], ids=lambda e: e["run_id"])
def test_a_spec_survives_json(entry: dict):
    spec = made(entry)
    again = from_dict(json.loads(to_json(spec)))
    assert again == spec and again.run_id == spec.run_id and hash(again) == hash(spec)


def test_execution_and_label_are_not_part_of_the_id():
    spec = RunSpec(model=build("dense"))
    execution = replace(
        spec.execution, layers="scan", remat="full", log_every=7, checkpoint_every=3
    )
    other = replace(spec, execution=execution)
    other = put(other, {"execution.mesh.fsdp": 8, "model.arch": "another name"})
    assert other != spec and other.run_id == spec.run_id


def changed(value):
    """Another value of the same kind, valid for most fields."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2 if value else 1
    if isinstance(value, float):
        return value / 2 if value else 0.5
    return None


def test_every_number_of_the_science_changes_the_id():
    from train.paths import flatten

    spec, seen = RunSpec(model=build("dense")), {}
    needed = {
        "model.causal": {"objective": "masked_diffusion", "model.extra_inputs": 2},
        "data.carry_state": {"data.order": "contiguous", "model.repeat.0.mixer": "quasi_lstm"},
    }
    for path, value in flatten(to_dict(spec)).items():
        if path.startswith("execution.") or changed(value) is None:
            continue
        other = put(spec, {path: changed(value), **needed.get(path, {})})
        assert other.run_id not in seen, f"{path} and {seen[other.run_id]} give one id"
        seen[other.run_id] = path
    assert spec.run_id not in seen and len(seen) > 25


def test_a_field_left_out_by_hand_is_read_with_its_default():
    spec = RunSpec(model=build("dense"))
    tree = to_dict(spec)
    del tree["optim"]["beta2"], tree["execution"], tree["model"]["norm"]
    assert from_dict(tree) == spec


# -- a field that is added later -------------------------------------------------------------------

# As if these had been added now, each with the value that old runs had.
ADDED = {
    **ADDED_SINCE_FORMAT_1,
    "optim.beta1": 0.9,
    "evaluation.every": None,
    "model.repeat.*.mixer:attention.qk_norm": False,
    "model.first.*.ffn:gelu.bias": False,
}


PLAIN = put(RunSpec(model=build("dense", 128)), {"model.repeat.0.mixer.qk_norm": False})


def test_ids_survive_an_added_field_that_holds_its_legacy_value():
    spec = PLAIN
    old = json.loads(canonical(spec))
    del old["optim"]["beta1"], old["evaluation"]["every"]
    del old["model"]["repeat"][0]["mixer"]["qk_norm"]
    assert json.loads(canonical(spec, ADDED)) == old
    assert canonical(spec, ADDED) != canonical(spec), "the table was not looked at"


@pytest.mark.parametrize(
    "path, value",
    [
        ("optim.beta1", 0.8),
        ("evaluation.every", 5),
        ("model.repeat.0.mixer.qk_norm", True),
    ],
)
def test_an_added_field_with_another_value_changes_the_id(path: str, value):
    assert canonical(put(PLAIN, {path: value}), ADDED) != canonical(PLAIN, ADDED)


def test_an_old_file_is_read_with_the_legacy_value_and_a_new_one_as_it_stands():
    tree = to_dict(put(RunSpec(model=build("dense")), {"model.repeat.0.mixer.qk_norm": True}))
    del tree["optim"]["beta1"]
    read = migrate(tree, {"optim.beta1": 0.5, "model.repeat.*.mixer:attention.qk_norm": False})
    assert read["optim"]["beta1"] == 0.5
    assert read["model"]["repeat"][0]["mixer"]["qk_norm"] is True
    assert "beta1" not in tree["optim"], "the caller's tree is its own"


def test_a_knob_of_one_kind_of_layer_is_added_to_that_kind_alone():
    added = {"model.repeat.*.mixer:other.knob": 1, "model.repeat.*.mixer:attention.knob": 2}
    tree = migrate(to_dict(RunSpec(model=build("dense"))), added)
    (block,) = tree["model"]["repeat"]
    assert block["mixer"]["knob"] == 2 and "knob" not in block["ffn"]


# -- what is refused -------------------------------------------------------------------------------


def test_a_newer_format_is_refused():
    tree = json.loads(to_json(RunSpec(model=build("dense"))))
    with pytest.raises(InputError, match=f"file.json: format: {FORMAT + 1}; .* upgrade ladder"):
        from_dict({**tree, "format": FORMAT + 1}, source="file.json")


@pytest.mark.parametrize(
    "settings, said",
    [
        ("optim.lr=abc", "optim.lr: abc; write a number"),
        ("optim.lr=true", "optim.lr: true; write a number"),
        ("optim.lr=-1", "optim.lr: -1; input should be greater than 0"),
        ("optim.lr=NaN", "optim.lr: nan; input should be a finite number"),
        ("optim.lr=Infinity", "optim.lr: inf; input should be a finite number"),
        ("budget.tokens=20M", "budget.tokens: 20M; write a whole number"),
        ("budget.tokens=100", "budget.tokens 100 is less than one batch; write at least 8192"),
        ("budget.batch_tokens=1000", "is not a whole number of sequences .* write 768"),
        ("schedule.kind=cos", "schedule.kind: cos; input should be 'cosine', 'wsd' or 'constant'"),
        ("seed=4294967296", "seed: 4294967296; input should be less than 2147483648"),
        ("data.sources.0.path=x", "the embedded corpus takes no path"),
        ("data.sources.0.kind=text", "a text source needs a path"),
        ("execution.mesh.data=3", "execution.mesh data x fsdp x expert = 3 does not divide the 32"),
        ("execution.accumulate=5", "execution.accumulate 5 does not divide the 32"),
        ("model.d_model=100", "d_head 16 does not divide d_model 100; write a divisor of 100"),
        ("model.repeat.0.mixer.queries_per_kv=3", "queries_per_kv 3 does not divide the 8 heads"),
        # one mistake is one mistake, though the tuple that holds it is incomplete, too
        ("model.repeat.0.mixer.d_head=0", "mixer.d_head: 0; .* greater than or equal to 2$"),
        (
            "model.repeat.0.mixer.d_head=null",
            "mixer.d_head: null; input should be a valid integer$",
        ),
        ("model.repeat.0.mixer.d_head=x", "mixer.d_head: x; write a whole number$"),
        ("model.repeat.0.ffn.ratio=1e30", "dimension F of a swiglu layer would be 1.28e.32 long"),
        ("model.vocab=1e12", "model.vocab: .*; input should be less than or equal to 1000000000"),
        ("model.repeat.0.mixer.kind=atention", "did you mean attention"),
        ("model.repeat.0.ffn=swigglu", "did you mean swiglu"),
        ("model.learned_positions=8", "data.seq_len 256 exceeds model.learned_positions 8"),
    ],
)
def test_a_wrong_value_is_one_line_that_says_what_to_write(settings: str, said: str):
    with pytest.raises(InputError, match=said) as caught:
        override(RunSpec(model=build("dense", 128)), [settings])
    assert "\n" not in str(caught.value)


def test_a_block_pattern_that_does_not_fill_the_depth_is_refused():
    spec = build("dense")
    two = replace(spec, repeat=spec.repeat * 2, n_layers=4)
    tree = to_dict(RunSpec(model=two))
    with pytest.raises(InputError, match="n_layers 5 less 0 .* not a multiple of the repeated 2"):
        from_dict({**tree, "model": {**tree["model"], "n_layers": 5}})


@pytest.mark.parametrize("tree", [[], 3, "text", None, {}, {"model": 3}, {"format": "one"}])
def test_json_that_is_no_spec_is_refused_in_one_line(tree):
    with pytest.raises(InputError) as caught:
        from_dict(tree, source="file.json")
    assert str(caught.value).startswith("file.json") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arch, setting, said",
    [
        ("moe", "model.repeat.0.ffn.chosen=100", "model.repeat.0.ffn: chosen 100 is more than"),
        ("blockdense", "model.first.0.mixer.d_head=10", "model.first.0.mixer: d_head 10 does not"),
        ("encoder_decoder", "model.repeat.0.cross.d_head=10", "model.repeat.0.cross: d_head 10"),
        (
            "encoder_decoder",
            "model.encoder.repeat.0.mixer.d_head=10",
            "model.encoder.repeat.0.mixer: d_head 10",
        ),
    ],
)
def test_a_size_that_a_layer_refuses_names_the_layer(arch, setting, said):
    with pytest.raises(InputError) as caught:
        override(RunSpec(model=build(arch)), [setting])
    assert str(caught.value).startswith(said)
