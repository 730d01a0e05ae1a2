"""Does a pattern become the blocks that it names, and is another one refused in a line?"""

import pytest

from model import archs
from model.spec import BlockSpec, ModelSpec
from parallelism.errors import InputError


def kinds(spec: ModelSpec) -> list[str]:
    return ["+".join(layer.kind for _, layer in block.layers) for block in spec.blocks]


def test_a_pattern_names_the_blocks_in_their_order():
    assert kinds(archs.hybrid(64)) == ["ssd", "ssd", "ssd", "attention"]
    assert kinds(archs.hybrid(64, pattern="M-*-")) == ["ssd", "swiglu", "attention", "swiglu"]
    deep = archs.hybrid(256)
    assert len(deep.repeat) == 4 and deep.n_layers == 8
    assert kinds(deep) == ["ssd", "ssd", "ssd", "attention"] * 2


def test_a_pattern_and_the_repeat_tuple_are_one_value():
    spec = archs.hybrid(64)
    ssd, attention = spec.repeat[0], spec.repeat[3]
    assert isinstance(ssd, BlockSpec)
    written = ModelSpec(
        arch="hybrid",
        d_model=64,
        n_layers=4,
        repeat=(ssd, ssd, ssd, attention),
        parametrisation=spec.parametrisation,
    )
    assert written == spec


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("MMX*", r"pattern: MMX\*; write one or more of M \(a linear recurrence\)"),
        ("", "pattern: .*write one or more of"),
        ("M*M", r"pattern: M\*M; has 3 blocks, which do not tile 4 layers; .* multiple of 3"),
    ],
)
def test_a_pattern_that_cannot_be_is_refused_in_a_line(pattern, message):
    with pytest.raises(InputError, match=message):
        archs.hybrid(64, pattern=pattern, n_layers=4)
