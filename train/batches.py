"""What does the model get at a step, and when it is evaluated? Rows of text, as the objective asks
them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from train.data.pipeline import Data
from train.objectives import Arrays
from train.spec import RunSpec


@dataclass(frozen=True)
class HeldOut:
    """One measure of a model: the batches whose loss is `loss/<name>`."""

    name: str
    bytes_per_token: float | None  # of text, for each token that is asked for; None where unknown
    answers: bool  # the loss asks for answers only, so that the right ones can be counted
    batches: list[Arrays]


def training(
    spec: RunSpec, data: Data, step: int, *, process_index: int = 0, process_count: int = 1
) -> Arrays:
    """A process's rows of a step's global batch."""
    batch = data.batch(step, process_index=process_index, process_count=process_count)
    first = data.first + step * spec.sequences_per_batch + process_index * len(batch[0])
    rows_B = np.arange(first, first + len(batch[0]))
    return spec.objective.prepare(batch, rows_B=rows_B, seed=spec.seed, vocab=spec.model.vocab)


def held_out(
    spec: RunSpec, data: Data, *, process_index: int = 0, process_count: int = 1
) -> Iterator[HeldOut]:
    """Each set's measures: of one set after another, so that few of them are in memory at once."""
    objective = spec.objective
    for name in data.validation_sets:
        found: dict[str, list[Arrays]] = {}
        batches = data.validation(
            spec.evaluation.tokens,
            name=name,
            process_index=process_index,
            process_count=process_count,
        )
        for i, batch in enumerate(batches):
            first = i * spec.sequences_per_batch + process_index * len(batch[0])
            rows_B = np.arange(first, first + len(batch[0]))
            for measure, arrays in objective.held_out(batch, rows_B=rows_B, vocab=spec.model.vocab):
                found.setdefault(measure, []).append(arrays)
        for measure, some in found.items():
            yield HeldOut(
                name=f"{name}/{measure}" if measure else name,
                # another measure than the model's loss is asked for tokens of its own
                bytes_per_token=None
                if measure
                else data.bytes_per_token(name, every=objective.both_ways),
                answers=not measure and data.has_answers(name),
                batches=some,
            )
