"""Does every named architecture build, at every width its family names?"""

import json

import pytest

from model import archs
from model.decoder import build
from parallelism.errors import InputError
from train.spec import RunSpec, from_dict, to_dict


@pytest.mark.parametrize("name", archs.names())
def test_a_named_architecture_builds_at_several_widths_and_survives_json(name: str):
    widths = archs.widths(name)
    assert widths == sorted(set(widths)) and widths[0] <= 32 and widths[-1] >= 16384
    for width in (widths[0], 64, 128, widths[len(widths) // 2], widths[-1]):
        spec = archs.build(name, width)
        assert (spec.arch, spec.d_model) == (name, width)
        model = build(spec)
        assert sorted(model.paths) == sorted(model.declarations)
        run = RunSpec(model=spec)
        assert from_dict(json.loads(json.dumps(to_dict(run)))).model == spec


def test_both_families_of_the_spine_have_a_name():
    assert {"dense", "gpt2"} <= set(archs.names())


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="--arch: dens; did you mean dense"):
        archs.build("dens")


def test_the_spec_of_an_architecture_is_its_identity():
    """Two builds are one value, so one compilation and one run id."""
    assert archs.build("dense", 64) is not archs.build("dense", 64)
    assert build(archs.build("dense", 64)) is build(archs.build("dense", 64))


OWN = """
from model import archs
from model.mixers.attention import Spec
from model.spec import BlockSpec, ModelSpec

three = 3

def raises(d_model=64):
    raise RuntimeError("boom\\nand more")

def no_default(d_model):
    return archs.dense(d_model)

def no_spec(d_model=64):
    return {"d_model": d_model}

def leaves(d_model=64):
    raise SystemExit(3)

def too_narrow(d_model=64):
    if d_model < 64:
        raise ValueError("too narrow")
    return archs.dense(d_model)

def odd(d_model=64):
    block = BlockSpec(mixer=Spec(d_head=48), ffn="swiglu")
    return ModelSpec(d_model=d_model, n_layers=2, repeat=(block,))
"""


def test_a_mistake_in_a_function_of_ones_own_is_one_line(tmp_path, monkeypatch, capsys):
    import ladder

    (tmp_path / "own_archs.py").write_text(OWN)
    (tmp_path / "leaving.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    narrow = ["--set", "model.d_model=32"]
    for argv, said in (
        (["own_archs:raises"], "own_archs:raises (RuntimeError: boom, own_archs.py line 9); write"),
        (["own_archs:no_default"], "required positional argument"),
        (["own_archs:no_spec"], "own_archs:no_spec (returned dict); write a function from a width"),
        (["own_archs:leaves"], "SystemExit: 3"),
        (["own_archs:three"], "own_archs has no function three"),
        (["own_archs:too_narrow", *narrow], "ValueError: too narrow"),
        (
            ["own_archs:odd"],
            "own_archs:odd: repeat.0.mixer: d_head 48 does not divide",
        ),
        (["leaving:model"], "leaving:model (SystemExit: 1); write module:function of a module"),
        (["no_such_module:model"], "No module named 'no_such_module'"),
    ):
        assert ladder.main(["show", *argv]) == 2, argv
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line, (said, line)
