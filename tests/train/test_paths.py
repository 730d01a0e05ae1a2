"""Does one dotted path name a field everywhere, and say so when it does not?"""

import pytest

from model.archs import build
from parallelism.errors import InputError
from train.paths import flatten, get, known_paths, override, parse, put
from train.spec import RunSpec, to_dict

SPEC = RunSpec(model=build("dense"))


def test_every_leaf_can_be_read_and_written_by_its_path():
    leaves = flatten(to_dict(SPEC))
    assert len(leaves) > 40
    for path, value in leaves.items():
        assert get(SPEC, path) == value or (get(SPEC, path) in ([], {}) and value in ([], {}))
        assert put(SPEC, {path: value}) == SPEC
        assert path in known_paths(SPEC)


@pytest.mark.parametrize(
    "path, nearest",
    [
        ("optim.learning_rate", "choose one of|did you mean optim"),
        ("optim.lrr", "did you mean optim.lr?"),
        ("optm.lr", "did you mean optim.lr?"),
        ("model.repeat.1.mixer", "did you mean model.repeat.0.mixer?"),
        ("model.repeat.-1.mixer", "did you mean model.repeat.0.mixer?"),
        ("optim.lr.x", "did you mean optim.lr?"),
        ("", "choose one of"),
    ],
)
def test_an_unknown_path_names_the_nearest_valid_one(path: str, nearest: str):
    for act in (lambda: get(SPEC, path), lambda: put(SPEC, {path: 1})):
        with pytest.raises(InputError, match=nearest) as caught:
            act()
        assert caught.value.field == path


def test_changes_are_applied_together_and_then_validated():
    both = {"data.seq_len": 512, "budget.batch_tokens": 512}
    assert put(SPEC, both).sequences_per_batch == 1
    assert put(SPEC, dict(reversed(both.items()))) == put(SPEC, both)
    with pytest.raises(InputError, match="budget.batch_tokens 512"):
        put(SPEC, {"budget.batch_tokens": 512, "data.seq_len": 1024})
    assert get(SPEC, "data.seq_len") == 256, "the first spec stands"


@pytest.mark.parametrize(
    "text, path, value",
    [
        ("optim.lr=3e-3", "optim.lr", 3e-3),
        ("budget.tokens=1e6", "budget.tokens", 1_000_000),
        ("seed=7", "seed", 7),
        ("optim.lr=1", "optim.lr", 1.0),
        ('optim.lr="0.5"', "optim.lr", 0.5),
        ("data.isolate_documents=false", "data.isolate_documents", False),
        ("data.tokenizer=1e5", "data.tokenizer", "1e5"),
        ("data.tokenizer=007", "data.tokenizer", "007"),
        ("data.tokenizer=a=b.json", "data.tokenizer", "a=b.json"),
        ("evaluation.every=null", "evaluation.every", None),
        ("model.repeat.0.mixer.rotary_theta=null", "model.repeat.0.mixer.rotary_theta", None),
        ("execution.mesh.data=2", "execution.mesh.data", 2),
    ],
)
def test_values_given_as_text_are_parsed_by_the_field_they_go_to(text, path, value):
    found = get(override(SPEC, [text]), path)
    assert found == value and type(found) is type(value)


def test_a_layer_is_exchanged_by_its_kind():
    spec = override(SPEC, ["model.repeat.0.ffn=gelu"])
    assert get(spec, "model.repeat.0.ffn") == {"kind": "gelu", "ratio": 4.0, "bias": False}


def test_the_last_of_two_settings_of_one_path_holds():
    assert override(SPEC, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("text", ["optim.lr", "=3", ""])
def test_a_setting_that_is_no_assignment_is_refused(text: str):
    with pytest.raises(InputError, match="--set: .*write path=value"):
        parse(text)


@pytest.mark.parametrize("run_id", ["123456789012", "12345678e901", "abc123def456"])
def test_an_id_that_reads_as_a_number_is_a_text_in_an_object_that_was_not_there(run_id):
    made = override(SPEC, ["start.kind=recycle", f"start.run={run_id}"])
    assert made.start is not None and made.start.run == run_id
    with pytest.raises(InputError, match="start.frozen: 7"):
        override(SPEC, ["start.kind=recycle", "start.run=abc123def456", "start.frozen=7"])
