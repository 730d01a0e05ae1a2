"""Which forms of a named architecture stand beside it in the zoo? One function a form, from a width
to a ModelSpec, given to `--archs` as `benchmarks.zoo_variants:NAME`.
"""

from dataclasses import replace

from model import archs
from model.spec import ModelSpec


def deltanet_negative(d_model: int = 128) -> ModelSpec:
    """`deltanet` whose transitions have eigenvalues down to -1 (Grazzi et al. 2024, arXiv
    2411.12537), which is what parity needs.
    """
    spec = archs.deltanet(d_model)
    (block,) = spec.repeat
    mixer = replace(block.mixer, negative_eigenvalues=True)
    return replace(spec, repeat=(replace(block, mixer=mixer),))


def elastic_span_short(d_model: int = 128) -> ModelSpec:
    """`elastic_span` with spans of a row of 128 in blocks of 16, where its own reach over all of
    it: 16 positions and 64 in place of 128 and 512.
    """
    spec = archs.elastic_span(d_model)
    (block,) = spec.repeat
    mixer = replace(block.mixer, context=128, block=16)
    return replace(spec, repeat=(replace(block, mixer=mixer),))
