import numpy as np
import pytest

from parallelism.errors import InputError
from tests.data.corpora import is_held_out, opened, texts, write_folder
from train.data.split import held_out


def sides(data):
    """The held-out and the training texts, read back from the tokens."""

    def read(side):
        flat = np.concatenate(
            [
                side.files[f][o : o + n]
                for f, o, n in zip(
                    side.file_E,
                    side.offset_E,
                    np.diff([*side.extents_E, side.n_tokens]),
                    strict=True,
                )
            ]
        )
        pieces = np.split(flat, side.ends_N[:-1])
        return [bytes(p[:-1].astype(np.uint8)).decode() for p in pieces]

    return [sorted(t for s in group for t in read(s)) for group in (data.held_out, data.train)]


def test_every_document_is_on_exactly_one_side_and_its_text_alone_decides(tmp_path):
    contents = texts(300)
    out, kept = sides(
        opened(write_folder(tmp_path / "a", contents), tmp_path / "c", validation=0.2)
    )
    assert out == sorted(t for t in contents if is_held_out(t, 0.2))
    assert sorted(out + kept) == sorted(contents)
    assert 0.1 < len(out) / 300 < 0.3


def test_adding_documents_moves_no_other(tmp_path):
    before = sides(opened(write_folder(tmp_path / "a", texts(100)), tmp_path / "c", validation=0.2))
    more = texts(100) + texts(50, seed=9)
    after = sides(opened(write_folder(tmp_path / "b", more), tmp_path / "c", validation=0.2))
    assert set(before[0]) <= set(after[0]) and set(before[1]) <= set(after[1])


def test_identical_texts_land_on_one_side_within_and_across_sources(tmp_path):
    contents = texts(60)
    a = write_folder(tmp_path / "a", contents + contents[:30])
    b = write_folder(tmp_path / "b", contents[15:])
    out, kept = sides(opened((a, b), tmp_path / "c", validation=0.3))
    assert out and kept and not set(out) & set(kept)


def test_a_small_corpus_still_has_a_document_on_each_side():
    high = np.array([2**63, 2**63 + 9, 2**63 + 9, 2**62], np.uint64)
    (mask,) = held_out([high], share=0.01, fields=["s"])
    assert mask.tolist() == [False, False, False, True]
    (mask,) = held_out([high], share=0.99, fields=["s"])
    assert mask.tolist() == [True, False, False, True]


def test_a_text_moved_for_one_source_moves_in_all():
    shared = 2**60
    small = np.array([shared, 2**63], np.uint64)
    large = np.array([5, shared, 2**62], np.uint64)
    masks = held_out([large, small], share=2**-10, fields=["a", "b"])
    assert [m.tolist() for m in masks] == [[True, True, False], [True, False]]


def test_a_text_moved_for_one_source_is_not_moved_back_for_the_next():
    masks = held_out(
        [np.array([2**62, 2**63], np.uint64), np.array([2, 2**62], np.uint64)],
        share=2**-10,
        fields=["a", "b"],
    )
    assert [m.tolist() for m in masks] == [[True, False], [False, True]]


def test_one_text_however_often_cannot_be_split(tmp_path):
    source = write_folder(tmp_path / "a", ["the same text, long enough for a row of tokens"] * 3)
    with pytest.raises(
        InputError, match="data.sources.0: 3 documents, 1 different; .*at least two"
    ):
        opened(source, tmp_path / "c")


def test_sources_that_force_one_text_to_both_sides_are_refused():
    pair = np.array([1, 2], np.uint64)
    with pytest.raises(InputError, match="s1|s2|s0"):
        held_out(
            [pair, np.array([2, 3], np.uint64), np.array([1, 3], np.uint64)],
            share=2**-64 * 0.5,
            fields=["s0", "s1", "s2"],
        )
