"""Do pairs of texts become rows whole, in order, and beside one another?"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parallelism.errors import InputError
from train.data.pipeline import Data, open_data
from train.data.rows import PADDING
from train.data.task import TaskRows
from train.data.tasks.translation import END, FIRST, Spec
from train.spec import DataSpec, SourceSpec

T, S = 24, 20


def pairs(n: int = 60) -> list[tuple[str, str]]:
    """Words of 1 to 9 letters, and said twice in capitals backwards where that is short."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdef"), rng.integers(1, 10))) for _ in range(n)]
    return [(word, word[::-1].upper() + ("!" if len(word) % 2 else "")) for word in words]


def written(folder: Path, rows: list[tuple[str, str]], name: str = "pairs.jsonl") -> SourceSpec:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps({"en": source, "de": target}) for source, target in rows]
    (folder / name).write_text("\n".join(lines))
    return SourceSpec(kind="jsonl", path=str(folder), column="de", source_column="en")


def opened(source: SourceSpec, *, cache: Path, seq_len: int = T, source_len: int = S) -> Data:
    spec = DataSpec(sources=(source,), seq_len=seq_len, source_len=source_len, validation=0.2)
    return open_data(spec, seed=0, sequences_per_batch=4, cache=cache, vocab=256)


def said(ids: np.ndarray) -> str:
    return bytes(ids.tolist()).decode()


def read(batch: Any) -> list[list[tuple[str, str]]]:
    """The pairs of each row, in order; everything that a row must be is asserted on the way."""
    out = []
    for b in range(len(batch.tokens_BT)):
        row, here_T, here_S = [], batch.segments_BT[b], batch.source_segments_BS[b]
        assert np.array_equal(batch.weights_BT[b] > 0, here_T != PADDING)
        for segment in range(max(here_T.max(), here_S.max()) + 1):
            targets, tokens = (
                x_BT[b][here_T == segment] for x_BT in (batch.targets_BT, batch.tokens_BT)
            )
            source = batch.source_BS[b][here_S == segment]
            assert source[-1] == targets[-1] == tokens[0] == END
            assert np.array_equal(tokens[1:], targets[:-1])
            row.append((said(source[:-1]), said(targets[:-1])))
        real_T = here_T[here_T != PADDING]
        assert np.all(np.diff(real_T) >= 0) and np.all(here_T[len(real_T) :] == PADDING)
        out.append(row)
    return out


def test_every_pair_is_in_one_row_whole_and_rows_are_as_full_as_the_order_allows(tmp_path: Path):
    rows = pairs()
    source = written(tmp_path / "corpus", [*rows, ("", "NOTHING"), ("nothing", "")])
    data = opened(source, cache=tmp_path / "cache")
    found = []
    for side in (data.train[0], data.held_out[0]):
        read_rows = read(side.read(np.arange(side.n_rows)))
        for row, then in zip(read_rows[:-1], read_rows[1:], strict=True):
            more = [*row, then[0]]
            lengths = [sum(len(x) + 1 for x in some) for some in zip(*more, strict=True)]
            assert lengths[0] > S or lengths[1] > T, "the next pair would have fitted"
        assert side.n_tokens == sum(len(t) + 1 for row in read_rows for _, t in row)
        found += [pair for row in read_rows for pair in row]
    assert sorted(found) == sorted(rows)
    # a source is on one side, whatever its targets
    sides = [{s for r in read(x.read(np.arange(x.n_rows))) for s, _ in r}
             for x in (data.train[0], data.held_out[0])]  # fmt: skip
    assert not sides[0] & sides[1] and all(sides)
    targets = [t for row in read(data.held_out[0].read(np.arange(data.held_out[0].n_rows)))
               for _, t in row]  # fmt: skip
    asked = sum(len(t) + 1 for t in targets)
    assert data.bytes_per_token() == pytest.approx(sum(map(len, targets)) / asked)
    assert not data.has_answers()


def test_parquet_and_jsonl_hold_the_same_pairs(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    rows = pairs()
    first = opened(written(tmp_path / "a", rows), cache=tmp_path / "cache")
    (tmp_path / "b").mkdir()
    table = pyarrow.table({"en": [s for s, _ in rows], "de": [t for _, t in rows]})
    parquet.write_table(table, tmp_path / "b/pairs.parquet")
    source = SourceSpec(kind="parquet", path=str(tmp_path / "b"), column="de", source_column="en")
    second = opened(source, cache=tmp_path / "cache")
    batches = [data.train[0].read(np.arange(data.train[0].n_rows)) for data in (first, second)]
    assert all(np.array_equal(a, b) for a, b in zip(*batches, strict=True))
    exchanged = SourceSpec(kind="jsonl", path=str(tmp_path / "a"), column="en", source_column="de")
    other = opened(exchanged, cache=tmp_path / "cache", seq_len=S, source_len=T)
    assert other.fingerprint != first.fingerprint
    assert {pair for row in read(other.batch(0)) for pair in row} <= {(t, s) for s, t in rows}


def test_pairs_that_are_too_long_are_counted_or_refused(tmp_path: Path):
    rows = [*pairs(100), ("x" * S, "short"), ("short", "X" * T)]
    data = opened(written(tmp_path / "few", rows), cache=tmp_path / "cache")
    left_out = data.manifest["sources"][0]["left_out"]
    assert sum(left_out.values()) == 2
    assert sum(data.manifest["documents"].values()) == 100
    source = written(tmp_path / "many", pairs(100))
    with pytest.raises(InputError, match=r"data.sources.0: \d+ of \d+ pairs are longer") as error:
        opened(source, cache=tmp_path / "cache", seq_len=6)
    assert "write data.seq_len of at least" in str(error.value)


def test_mistakes_are_one_line(tmp_path: Path):
    source = written(tmp_path / "corpus", pairs())
    for changes, words in (
        ({"column": "fr"}, "data.sources.0.column: fr; no such column"),
        ({"source_column": "fr"}, "data.sources.0.source_column: fr; no such column"),
    ):
        spec = SourceSpec(**{"kind": "jsonl", "path": source.path, "column": "de",
                             "source_column": "en", **changes})  # fmt: skip
        with pytest.raises(InputError, match=words):
            opened(spec, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="write kind jsonl or parquet, or source_column null"):
        SourceSpec(kind="text", path="x", source_column="en")


# -- the generated ones ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["reversal", "sort", "cipher"])
@pytest.mark.parametrize("lengths", [(40, 40), (40, 33), (33, 40)], ids=str)
def test_generated_pairs_follow_their_rule_and_fill_their_rows(rule, lengths):
    task = Spec(rule=rule, shortest=2, longest=5, letters=6)
    side = TaskRows(task, lengths[0], "train", lengths[1])
    found = read(side.read(np.arange(300)))
    words = [pair for row in found for pair in row]
    assert {len(s) for s, _ in words} == {2, 3, 4, 5}
    letters = {chr(FIRST + i) for i in range(6)}
    assert set("".join(s for s, _ in words)) == letters
    if rule == "cipher":
        key = {a: b for s, t in words for a, b in zip(s, t, strict=True)}
        assert set(key.values()) == letters
        assert all("".join(key[c] for c in s) == t for s, t in words)
    else:
        rules = {"reversal": lambda s: s[::-1], "sort": lambda s: "".join(sorted(s))}
        assert all(rules[rule](s) == t for s, t in words)
    room = min(lengths)
    for row in found:
        used = sum(len(s) + 1 for s, _ in row)
        assert room - used < 6, "another word would have fitted"
    again = read(side.read(np.array([7, 3])))
    assert again == [found[7], found[3]]
