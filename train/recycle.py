"""How does a dense run become ParScale (arXiv 2505.10475)? Prefixes and what weighs the streams are
new, the rest is the run's own, trained on or frozen.

There is no start that keeps the function: even a prefix of zeros takes a share of every softmax.
Expect the loss to jump at the first step, and to recover.
"""

from dataclasses import replace
from functools import lru_cache

from model.decoder import build
from model.spec import ModelSpec
from parallelism.errors import InputError
from train.paths import differences
from train.spec import RunSpec

LABELS = ("arch", "objective")


def check(base: ModelSpec, spec: ModelSpec, *, run: str) -> None:
    """Raises InputError unless `spec` is `base` in several streams."""
    if base.n_streams > 1:
        raise InputError(
            "start.run", run, f"has {base.n_streams} streams already; name a run of one stream"
        )
    if spec.n_streams == 1:
        raise InputError(
            "model.streams", 1, "recycling gives a run streams; write two or more, as in parscale"
        )
    for path, (there, here) in differences(base, spec).items():
        if path not in LABELS and not f"{path}.".startswith("streams."):
            raise InputError(
                f"model.{path}",
                here,
                f"{run} does not fit, with {there}; only model.streams may differ from it",
            )


def frozen(spec: RunSpec) -> frozenset[str]:
    """Paths of the parameters that a run never changes: no gradient, no moments, no update."""
    if spec.start is None or not spec.start.frozen:
        return frozenset()
    return _of_one_stream(spec.model)


@lru_cache(maxsize=256)
def _of_one_stream(spec: ModelSpec) -> frozenset[str]:
    return frozenset(build(replace(spec, streams=None)).declarations)
