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
