"""How does a run grow deeper? By depth stacking: G_stack of Du et al. 2024, arXiv 2405.15319.

Layer i of the deep model starts as layer i mod L of the shallow one, whose L layers so come one
after another, several times; embedding, final norm and readout are copied. Repeating each layer in
its place would be another operator, which they found worse. The function is not kept. When to
stack, and what it saves: analysis/laws/growth.py, analysis/growth.py.
"""

from collections.abc import Mapping

import numpy as np

from model.decoder import Model
from model.spec import ModelSpec
from parallelism.errors import InputError
from train.paths import differences

FREE = ("n_layers", "arch", "objective")  # the depth is what grows; the others are labels


def check(base: ModelSpec, spec: ModelSpec, *, run: str) -> None:
    """Raises InputError unless `spec` is `base` with more layers."""
    for path, (there, here) in differences(base, spec).items():
        if path not in FREE:
            raise InputError(
                f"model.{path}",
                here,
                f"{run} is of another family, with {there}; only model.n_layers may grow",
            )
    if spec.n_layers <= base.n_layers:
        raise InputError(
            "model.n_layers", spec.n_layers, f"{run} has {base.n_layers}; write more to grow it"
        )


def sources(base_repeats: int, repeats: int) -> np.ndarray:
    """(Z,) which of the shallow model's repeats each of the deep one's starts from."""
    return np.arange(repeats) % base_repeats


def grown(params: Mapping[str, np.ndarray], model: Model) -> dict[str, np.ndarray]:
    """The shallow run's parameters as those of `model`, which is deeper."""

    def one(path: str) -> np.ndarray:
        declaration, value = model.declarations[path], params[path]
        if declaration.dims[0] != "Z":
            return value
        return value[sources(len(value), declaration.shape[0])]

    return {path: one(path) for path in model.declarations}
