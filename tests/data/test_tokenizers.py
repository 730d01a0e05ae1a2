import json
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from parallelism.errors import InputError
from tests.data.corpora import is_held_out, opened, texts, write_folder
from train.data.sources import documents
from train.data.tokenizers import load_tokenizer, train_bpe
from train.spec import SourceSpec

HARD = [
    "",
    " leading and trailing  ",
    "\r\n\t\x00\x7f",
    "<|endoftext|> spelled out</s>",
    "é e\u0301 \ufeff 東京 🙂\u200d",
    "".join(chr(i) for i in range(0x3000) if unicodedata.category(chr(i)) != "Cs"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("corpus"), texts(100, words=20))


@pytest.fixture(scope="module")
def bpe(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_bpe(source, vocab=400, out=path)
    return path


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, bpe):
    return load_tokenizer("bytes" if request.param == "bytes" else str(bpe))


def test_every_text_round_trips_and_ends_in_the_only_end_of_document(tokenizer):
    for text, ids in zip(HARD, tokenizer.encode_documents(HARD), strict=True):
        assert tokenizer.decode(ids) == text
        assert np.flatnonzero(ids == tokenizer.end_of_document).tolist() == [len(ids) - 1]
        assert ids.max() < tokenizer.n_vocab
        assert np.array_equal(tokenizer.encode_document(text), ids)


def test_bytes_end_of_document_is_no_byte_of_utf8():
    every = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    assert load_tokenizer("bytes").end_of_document not in set(every.encode())


def test_trained_bpe_has_the_asked_size_and_shortens_the_text(bpe, source):
    tokenizer = load_tokenizer(str(bpe))
    assert tokenizer.n_vocab == 400
    some = [d.text for d in documents(source, field="source")]
    tokens = sum(len(ids) - 1 for ids in tokenizer.encode_documents(some))
    assert tokens < 0.7 * sum(len(t.encode()) for t in some)


def test_training_bpe_is_deterministic_also_across_processes_and_threads(bpe, source, tmp_path):
    script = """
import sys
from train.data.tokenizers import train_bpe
from train.spec import SourceSpec
train_bpe(SourceSpec(kind="text", path=sys.argv[1]), vocab=400, out=sys.argv[2])
"""
    out = tmp_path / "again.json"
    env = {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script, source.path, str(out)]
    subprocess.run(command, check=True, env=env, timeout=60)
    assert out.read_bytes() == bpe.read_bytes()


def test_training_bpe_reads_no_held_out_document(tmp_path):
    contents = texts(60)
    source = write_folder(tmp_path / "a", contents)
    kept = [t for t in contents if not is_held_out(t, 0.5)]
    alone = write_folder(tmp_path / "b", kept)
    a = train_bpe(source, vocab=300, out=tmp_path / "a.json", validation=0.5)
    train_bpe(alone, vocab=300, out=tmp_path / "all.json", validation=1e-9)
    everything = train_bpe(source, vocab=300, out=tmp_path / "e.json", validation=1e-9)
    assert a.fingerprint != everything.fingerprint
    vocab = json.loads((tmp_path / "a.json").read_text())["model"]["merges"]
    others = json.loads((tmp_path / "all.json").read_text())["model"]["merges"]
    # the second corpus holds one document out, as every corpus does
    assert len(set(map(tuple, vocab)) & set(map(tuple, others))) > 0.8 * len(vocab)


def test_bits_per_byte_is_nats_over_the_bytes_of_the_text_for_any_tokeniser(bpe, source, tmp_path):
    data = opened(source, tmp_path, tokenizer=str(bpe), validation=0.3, vocab=400)
    assert data.n_vocab == 400 and data.tokenizer == str(bpe)
    tokenizer = load_tokenizer(str(bpe))
    kept = [d.text for d in documents(source, field="s") if is_held_out(d.text, 0.3)]
    asked = sum(len(ids) - 1 for ids in tokenizer.encode_documents(kept))
    size = sum(len(t.encode()) for t in kept)
    assert data.bytes_per_token() == size / asked > 1.3
    # a guess at random costs ln(vocab) a token: in all, and per byte
    total = asked * np.log(400)
    bits_per_byte = np.log(400) / (np.log(2) * data.bytes_per_token())
    np.testing.assert_allclose(bits_per_byte, total / np.log(2) / size, rtol=1e-12)


def test_tokenizer_errors_say_how_to_get_one(tmp_path, source):
    with pytest.raises(InputError, match="data.tokenizer: .*nowhere.*ladder tokenizer train"):
        load_tokenizer(str(tmp_path / "nowhere.json"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match="data.tokenizer: .*not a Hugging Face.*tokenizer train"):
        load_tokenizer(str(tmp_path / "bad.json"))
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "plain.json"))
    with pytest.raises(InputError, match="no special token that ends a document.*tokenizer train"):
        load_tokenizer(str(tmp_path / "plain.json"))
    with pytest.raises(InputError, match="--vocab: 256; write at least 257"):
        train_bpe(source, vocab=256, out=tmp_path / "t.json")
    with pytest.raises(InputError, match="--vocab: 100000; the corpus has only enough text for"):
        train_bpe(source, vocab=100_000, out=tmp_path / "t.json")
    with pytest.raises(InputError, match="source.kind: tokens"):
        train_bpe(SourceSpec(kind="tokens", path="x"), vocab=300, out=tmp_path / "t.json")
