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
