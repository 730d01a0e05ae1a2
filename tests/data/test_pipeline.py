import json
import math
from collections import Counter

import numpy as np
import pytest

from model.archs import build
from parallelism.errors import InputError
from tests.data.corpora import (
    as_rows,
    equal,
    in_order,
    is_held_out,
    naive_rows,
    opened,
    texts,
    write_folder,
)
from train.data.pipeline import open_data
from train.data.rows import Batch
from train.data.tokens import write_tokens
from train.spec import RunSpec, SourceSpec


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("corpus"), texts(200))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_batch_is_the_same_for_1_2_and_4_processes(source, cache):
    data = opened(source, cache)
    for step in (0, 3, 77):
        whole = data.batch(step)
        for count in (2, 4):
            parts = [data.batch(step, process_index=p, process_count=count) for p in range(count)]
            assert all(len(p.tokens_BT) == 8 // count for p in parts)
            assert equal(whole, Batch(*(np.concatenate(a) for a in zip(*parts, strict=True))))


def test_batch_is_a_function_of_seed_and_step_alone(source, cache, tmp_path):
    steps = [40, 0, 7, 7, 1, 1000]
    first = {s: opened(source, cache, seed=5).batch(s) for s in steps}
    # another object, another cache folder, another order of asking
    again = opened(source, tmp_path, seed=5)
    assert all(equal(first[s], again.batch(s)) for s in sorted(steps))


def test_seeds_differ_and_no_seed_is_another_one_an_epoch_later(source, cache):
    def epochs(seed):
        data = opened(source, cache, batch=1, seed=seed)
        n = data.rows_per_epoch
        return [
            b"".join(data.batch(e * n + i).tokens_BT.tobytes() for i in range(n)) for e in (0, 1)
        ]

    seen = [order for seed in range(4) for order in epochs(seed)]
    assert len(set(seen)) == len(seen)


def test_an_epoch_visits_every_training_row_exactly_once_as_the_naive_account_says(source, cache):
    data = opened(source, cache, batch=1, seq_len=32, validation=0.2)
    kept = [t for t in in_order(texts(200)) if not is_held_out(t, 0.2)]
    expected = naive_rows([[*t.encode(), 255] for t in kept], 32)
    assert data.rows_per_epoch == len(expected) > 100
    for epoch in (0, 1, 2):
        start = epoch * len(expected)
        seen = [as_rows(data.batch(start + i))[0] for i in range(len(expected))]
        assert seen != expected, "not shuffled"
        assert sorted(seen) == sorted(expected)


def test_validation_serves_every_held_out_row_in_order_and_pads_with_weight_0(source, cache):
    data = opened(source, cache, seed=1, validation=0.2)
    kept = [t for t in in_order(texts(200)) if is_held_out(t, 0.2)]
    expected = naive_rows([[*t.encode(), 255] for t in kept], 32)
    batches = list(data.validation(10**9))
    assert {b.tokens_BT.shape for b in batches} == {(8, 32)}
    seen = [row for b in batches for row in as_rows(b)]
    assert len(expected) % 8 and seen[: len(expected)] == expected
    assert all(sum(row[3]) == 0 for row in seen[len(expected) :])


def test_validation_is_the_same_for_every_seed_batch_size_and_process_count(source, cache):
    def served(batch, seed, count):
        data = opened(source, cache, batch=batch, seed=seed, validation=0.2)
        parts = [data.validation(1000, process_index=p, process_count=count) for p in range(count)]
        rows = [r for step in zip(*parts, strict=True) for b in step for r in as_rows(b)]
        return [r for r in rows if sum(r[3])]

    reference = served(8, 0, 1)
    assert len(reference) == math.ceil(1000 / 32)
    assert len({json.dumps(r) for r in reference}) == len(reference)
    assert reference == served(12, 3, 1) == served(8, 1, 4)


def test_validation_rows_are_spread_over_all_held_out_documents(source, cache):
    data = opened(source, cache, validation=0.3)
    everything = [r for b in data.validation(10**9) for r in as_rows(b) if sum(r[3])]
    few = [r for b in data.validation(8 * 32) for r in as_rows(b)]
    places = [everything.index(r) for r in few]
    assert places == [len(everything) * i // 8 for i in range(8)]


def test_sources_of_one_length_are_not_shuffled_alike(tmp_path):
    same = [f"{i:031d}" for i in range(100)]  # with its end, each document is one row
    a = write_folder(tmp_path / "a", same)
    b = write_folder(tmp_path / "b", same)
    data = opened((a, b), tmp_path / "c", batch=2)
    drawn = [as_rows(data.batch(i)) for i in range(data.train[0].n_rows)]
    alike = sum(first == second for first, second in drawn)
    assert alike < 0.1 * len(drawn)


def test_mixture_draws_rows_in_proportion_to_weight_and_visits_each_source_evenly(tmp_path):
    a = write_folder(tmp_path / "a", texts(120, seed=1))
    b = write_folder(tmp_path / "b", texts(60, seed=2))
    weighted = (
        SourceSpec(kind="text", path=a.path, weight=3.0),
        SourceSpec(kind="text", path=b.path, weight=1.0),
    )
    data = opened(weighted, tmp_path / "c", batch=1)
    rows_a = opened(a, tmp_path / "c", batch=1)
    known = {rows_a.batch(i).tokens_BT.tobytes() for i in range(rows_a.rows_per_epoch)}
    n = 4 * rows_a.rows_per_epoch  # three epochs of a
    drawn = [data.batch(i).tokens_BT.tobytes() for i in range(n)]
    from_a = [d for d in drawn if d in known]
    assert abs(len(from_a) - 0.75 * n) < 1
    assert len(known) == rows_a.rows_per_epoch
    assert set(Counter(from_a).values()) == {3}


def test_mixture_validates_all_together_and_each_source(tmp_path):
    a = write_folder(tmp_path / "a", texts(120, seed=1))
    b = write_folder(tmp_path / "b", texts(60, seed=2))
    data = opened((a, b), tmp_path / "c", validation=0.2)
    assert data.validation_sets == ("val", "val/0", "val/1")

    def rows(name):
        return [r for b in data.validation(10**9, name=name) for r in as_rows(b) if sum(r[3])]

    assert rows("val/0") and rows("val/1")
    assert rows("val") == rows("val/0") + rows("val/1")
    assert opened(a, tmp_path / "c", validation=0.2).validation_sets == ("val",)


def test_bytes_per_token_is_held_out_bytes_over_the_tokens_the_loss_asks_for(source, cache):
    data = opened(source, cache, validation=0.2)
    assert data.bytes_per_token() == 1.0
    kept = [t for t in texts(200) if is_held_out(t, 0.2)]
    assert data.manifest["bytes"]["validation"] == sum(len(t.encode()) for t in kept)
    assert data.manifest["documents"]["validation"] == len(kept)
    asked = sum(b.weights_BT.sum() for b in data.validation(10**9))
    missed = data.held_out[0].n_predicted - asked
    assert 0 <= missed <= 32  # the last piece, shorter than a row


def test_manifest_is_json_and_position_is_checked_against_the_corpus(tmp_path):
    source = write_folder(tmp_path / "a", texts(50))
    data = opened(source, tmp_path / "c")
    assert json.loads(json.dumps(data.manifest)) == data.manifest
    position = json.loads(json.dumps(data.position(12)))
    assert position["step"] == 12
    opened(source, tmp_path / "elsewhere").check_position(position)

    (tmp_path / "a" / "part0" / "0000.txt").write_text("changed")
    with pytest.raises(InputError, match="changed since the checkpoint"):
        opened(source, tmp_path / "c").check_position(position)
    with pytest.raises(InputError, match="seed: 1"):
        opened(write_folder(tmp_path / "a", texts(50)), tmp_path / "c", seed=1).check_position(
            position
        )


@pytest.mark.parametrize(
    "seq_len, validation, side", [(200_000, 0.05, "training"), (20_000, 0.05, "validation")]
)
def test_side_shorter_than_one_sequence_is_named(source, cache, seq_len, validation, side):
    with pytest.raises(
        InputError, match=f"data.sources.0: .* of {side} text.*data.seq_len {seq_len}"
    ):
        opened(source, cache, seq_len=seq_len, validation=validation)


def test_batch_that_processes_do_not_divide_is_an_error(source, cache):
    with pytest.raises(InputError, match="budget.batch_tokens: 8 sequences for 3 processes"):
        opened(source, cache).batch(0, process_count=3)


def test_vocabulary_larger_than_the_models_is_an_error(source, cache):
    with pytest.raises(InputError, match="model.vocab: 255; data.sources.0 has 256 ids"):
        opened(source, cache, vocab=255)


def test_sources_with_different_vocabularies_are_an_error(source, cache, tmp_path):
    write_tokens(np.tile([1, 2, 3, 9], 50), path=tmp_path / "t.bin", vocab=10, end_of_document=9)
    tokens = SourceSpec(kind="tokens", path=str(tmp_path / "t.bin"))
    with pytest.raises(InputError, match="data.sources.1: vocabulary 10 ending documents with 9"):
        opened((source, tokens), cache)


def test_standard_library_is_the_default_corpus(cache):
    default = RunSpec(model=build("dense")).data
    data = open_data(default, seed=0, sequences_per_batch=8, cache=cache, vocab=256)
    documents = data.manifest["documents"]
    assert documents["train"] > 300 and documents["validation"] > 10
    share = documents["validation"] / sum(documents.values())
    assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / sum(documents.values()))
    assert data.rows_per_epoch * 256 > 5_000_000
    row = data.batch(0).tokens_BT[0]
    assert row.max() <= 255 and b"\n" in bytes(row[row < 255].astype(np.uint8))
