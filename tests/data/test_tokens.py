import hashlib
import json

import numpy as np
import pytest

from parallelism.errors import InputError
from tests.data.corpora import as_rows, naive_rows, opened, texts, write_folder
from train.data import tokens
from train.data.corpus import open_corpus
from train.data.tokenizers import Bytes, train_bpe
from train.data.tokens import write_tokens
from train.spec import SourceSpec

END = 99


def random_documents(n: int, *, seed: int = 0, longest: int = 40) -> list[list[int]]:
    """Documents of 0 to `longest` ids below 99, each with its end."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(0, END, rng.integers(0, longest + 1)).tolist(), END] for _ in range(n)]


def write(path, documents, *, vocab=100, **more):
    flat = np.array([i for d in documents for i in d])
    write_tokens(flat, path=path, vocab=vocab, end_of_document=END, **more)
    return SourceSpec(kind="tokens", path=str(path))


def held_out(document: list[int], share: float) -> bool:
    digest = hashlib.sha256(np.array(document, "<u4").tobytes()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64 < share


@pytest.mark.parametrize("name", ["t.bin", "t.npy"])
@pytest.mark.parametrize("vocab", [100, 70_000])
def test_rows_of_token_files_are_the_naive_ones_for_every_way_documents_lie(tmp_path, name, vocab):
    documents = random_documents(400)
    source = write(tmp_path / name, documents, vocab=vocab)
    # half held out: most rows cross from one stretch of the file to another
    data = opened(source, tmp_path / "c", batch=16, vocab=vocab, validation=0.5)
    expected = naive_rows([d for d in documents if not held_out(d, 0.5)], 32)
    seen = [r for i in range(len(expected)) for r in as_rows(data.batch(i))][: len(expected)]
    assert sorted(seen) == sorted(expected)
    expected = naive_rows([d for d in documents if held_out(d, 0.5)], 32)
    seen = [r for b in data.validation(10**9) for r in as_rows(b)]
    assert seen[: len(expected)] == expected


def test_shards_are_read_as_one_corpus_and_a_shards_end_ends_its_document(tmp_path):
    documents = random_documents(90)
    documents[29] = [5, 6, 7]  # a shard that lacks the last end
    for i in range(3):
        write(tmp_path / f"s{i}.{'npy' if i == 1 else 'bin'}", documents[30 * i : 30 * i + 30])
    source = SourceSpec(kind="tokens", path=str(tmp_path))
    data = opened(source, tmp_path / "c", batch=16, vocab=100, validation=0.3)
    expected = naive_rows([d for d in documents if not held_out(d, 0.3)], 32)
    seen = [r for i in range(len(expected)) for r in as_rows(data.batch(i))][: len(expected)]
    assert sorted(seen) == sorted(expected)
    assert (
        len(
            open_corpus(
                SourceSpec(kind="tokens", path=str(tmp_path / "*")),
                tokenizer=Bytes(),
                cache=tmp_path / "c",
            ).files
        )
        == 3
    )


def test_documents_that_span_the_pieces_read_at_once_are_found(tmp_path, monkeypatch):
    source = write(tmp_path / "t.bin", random_documents(50))

    def index(cache):
        corpus = open_corpus(source, tokenizer=Bytes(), cache=tmp_path / cache)
        return corpus.ends_N.tolist(), corpus.hashes_N.tolist(), corpus.fingerprint

    whole = index("a")
    monkeypatch.setattr(tokens, "PIECE", 7)
    assert index("b") == whole


def test_token_files_stay_where_they_are(tmp_path):
    source = write(tmp_path / "t.bin", random_documents(2000))
    corpus = open_corpus(source, tokenizer=Bytes(), cache=tmp_path / "c")
    base = corpus.files[0]
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert type(base).__name__ == "mmap"
    kept = {p.name for p in (tmp_path / "c").glob("*/*")}
    assert kept == {"ends.npy", "hashes.npy", "meta"}


def test_bits_per_byte_needs_the_sidecars_bytes(tmp_path):
    documents = random_documents(100)
    without = write(tmp_path / "a.bin", documents)
    assert opened(without, tmp_path / "c", vocab=100).bytes_per_token() is None
    asked = sum(len(d) - 1 for d in documents)
    known = write(tmp_path / "b.bin", documents, text_bytes=4 * asked)
    data = opened(known, tmp_path / "c", vocab=100, validation=0.3)
    assert data.bytes_per_token() == pytest.approx(4.0, rel=1e-12)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"dtype": "int8"}, "t.bin.json: dtype: int8; write uint16 or uint32"),
        ({"vocab": 0}, "t.bin.json: vocab: 0; write a whole number"),
        ({"vocab": "100"}, "t.bin.json: vocab: 100; write a whole number"),
        ({"end_of_document": 100}, "end_of_document: 100; write an id below vocab 100"),
        ({"bytes": -1}, "bytes: -1; write"),
        ({"vocab": 60, "end_of_document": 3}, r"t.bin: id 99 at token \d+ is outside the vocab"),
    ],
)
def test_wrong_sidecar_is_named(tmp_path, change, match):
    source = write(tmp_path / "t.bin", random_documents(60))
    path = tmp_path / "t.bin.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=match):
        opened(source, tmp_path / "c", vocab=100)


def test_missing_sidecar_truncated_file_and_wrong_array_are_named(tmp_path):
    source = write(tmp_path / "t.bin", random_documents(60))
    with open(tmp_path / "t.bin", "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="t.bin: .* bytes; truncated"):
        opened(source, tmp_path / "c")
    (tmp_path / "t.bin.json").unlink()
    with pytest.raises(InputError, match="t.bin.json: missing; write the sidecar"):
        opened(source, tmp_path / "c")
    source = write(tmp_path / "n.npy", random_documents(60))
    np.save(tmp_path / "n.npy", np.zeros((3, 3)))
    with pytest.raises(InputError, match="n.npy: float64 array of shape .*write a vector"):
        opened(source, tmp_path / "c")
    (tmp_path / "n.npy").write_bytes((tmp_path / "n.npy").read_bytes()[:100])
    with pytest.raises(InputError, match="n.npy: cannot be read"):
        opened(source, tmp_path / "c")


def test_one_document_cannot_be_split_and_an_empty_file_is_empty(tmp_path):
    source = write(tmp_path / "t.bin", [[1] * 500])
    with pytest.raises(InputError, match="data.sources.0: 1 documents"):
        opened(source, tmp_path / "c")
    source = write(tmp_path / "t.bin", [])
    with pytest.raises(InputError, match="data.sources.0.path: .*empty corpus"):
        opened(source, tmp_path / "c")


def test_tokeniser_that_was_asked_for_must_agree_with_the_token_files(tmp_path):
    source = write(tmp_path / "t.bin", random_documents(60))
    assert opened(source, tmp_path / "c", vocab=100).tokenizer == "tokens"
    out = tmp_path / "bpe.json"
    train_bpe(write_folder(tmp_path / "x", texts(50)), vocab=300, out=out)
    with pytest.raises(InputError, match="data.sources.0: vocabulary 100 .*use one tokeniser"):
        opened(source, tmp_path / "c", tokenizer=str(out))
