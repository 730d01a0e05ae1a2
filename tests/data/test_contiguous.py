"""Does each row of a batch go on where the row before it in the same place ended?"""

import numpy as np
import pytest

from parallelism.errors import InputError
from tests.data.corpora import equal, in_order, is_held_out, opened, texts, write_folder
from train.data.pipeline import Data
from train.data.rows import Batch

SHARE, T = 0.2, 32


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    source = write_folder(tmp_path_factory.mktemp("corpus"), texts(120))
    return opened(source, tmp_path_factory.mktemp("cache"), order="contiguous", validation=SHARE)


def flat(*, held_out: bool) -> tuple[list[int], list[int]]:
    """Tokens of one side laid end to end, and the document of each."""
    kept = [t for t in in_order(texts(120)) if is_held_out(t, SHARE) == held_out]
    documents = [[*t.encode(), 255] for t in kept]
    which = [i for i, document in enumerate(documents) for _ in document]
    return [token for document in documents for token in document], which


def test_rows_of_consecutive_batches_are_one_text_and_number_their_documents(data: Data):
    tokens, which = flat(held_out=False)
    n, steps = (len(tokens) - 1) // T, 40
    batches = [data.batch(step) for step in range(steps)]
    begun = set()
    for b in range(8):
        at = T * next(i for i in range(n) if tokens[T * i :][:T] == list(batches[0].tokens_BT[b]))
        for batch in batches:
            assert list(batch.tokens_BT[b]) == tokens[at : at + T]
            assert list(batch.targets_BT[b]) == tokens[at + 1 : at + T + 1]
            # 0 is the document of the position before the row
            before = which[at - 1] if at else -1
            assert list(batch.segments_BT[b]) == [w - before for w in which[at : at + T]]
            begun.add(bool(batch.segments_BT[b, 0]))
            at = (at + T) % (n * T)
    assert begun == {True, False}, "no row began with its document, or every one did"


def test_an_epoch_of_every_place_in_the_batch_is_every_row_once(data: Data):
    n = data.rows_per_epoch
    for b in (0, 5):
        seen = {data.batch(step).tokens_BT[b].tobytes() for step in range(n)}
        assert len(seen) == n


def test_batch_is_a_function_of_seed_and_step_alone_for_any_number_of_processes(data: Data):
    forward = {step: data.batch(step) for step in (40, 0, 7, 1000)}
    for step in sorted(forward):
        assert equal(data.batch(step), forward[step])
        parts = [data.batch(step, process_index=i, process_count=4) for i in range(4)]
        assert equal(forward[step], Batch(*(np.concatenate(a) for a in zip(*parts, strict=True))))
    other = opened(data.spec.sources[0], data_cache(data), order="contiguous", seed=1)
    assert not np.array_equal(other.batch(0).tokens_BT, forward[0].tokens_BT)


def data_cache(data: Data):
    from pathlib import Path

    return Path(str(data.spec.sources[0].path)).parent / "another-cache"


def test_validation_reads_every_held_out_row_once_each_place_in_order(data: Data):
    tokens, _ = flat(held_out=True)
    n = (len(tokens) - 1) // T
    batches = list(data.validation(10**9))
    seen = []
    for b in range(8):
        rows = [batch.tokens_BT[b].tolist() for batch in batches if batch.weights_BT[b].any()]
        begin = next(i for i in range(n) if tokens[T * i :][:T] == rows[0])
        assert rows == [tokens[T * i :][:T] for i in range(begin, begin + len(rows))]
        seen += range(begin, begin + len(rows))
    assert seen == list(range(n)) and n % 8, "no batch was filled up"
    some = list(data.validation(3 * 8 * T))
    assert all(equal(a, b) for a, b in zip(some, batches[:3], strict=True))


def test_more_rows_than_the_text_has_are_refused(data: Data):
    with pytest.raises(InputError, match="budget.batch_tokens.*go on from step to step.*at most"):
        opened(data.spec.sources[0], data_cache(data), order="contiguous", batch=10**4)
