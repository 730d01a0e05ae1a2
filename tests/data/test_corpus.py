import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from parallelism.errors import InputError
from tests.data.corpora import texts, write_folder
from train.data import corpus as corpus_module
from train.data.corpus import open_corpus
from train.data.tokenizers import Bytes


def build(source, cache):
    return open_corpus(source, tokenizer=Bytes(), cache=cache)


def kept_folder(cache):
    (folder,) = [p for p in cache.iterdir() if p.is_dir()]
    return folder


def content(corpus) -> bytes:
    return b"".join(f.tobytes() for f in corpus.files)


@pytest.fixture
def source(tmp_path):
    return write_folder(tmp_path / "corpus", texts(40))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_second_opening_reads_no_content(source, cache, monkeypatch):
    first = build(source, cache)
    monkeypatch.setattr(corpus_module, "documents", None)
    second = build(source, cache)
    assert content(second) == content(first) and second.fingerprint == first.fingerprint


def test_tokens_are_memory_mapped_and_narrow(source, cache):
    (ids,) = build(source, cache).files
    base = ids
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    assert type(base).__name__ == "mmap" and ids.dtype == np.uint8


def test_fingerprint_follows_content_names_and_tokeniser_but_not_the_place(source, cache, tmp_path):
    first = build(source, cache).fingerprint
    shutil.copytree(tmp_path / "corpus", tmp_path / "moved")
    moved = write_folder(tmp_path / "moved", [])
    assert build(moved, cache).fingerprint == first

    path = tmp_path / "moved" / "part0" / "0000.txt"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))  # same size
    assert build(moved, cache).fingerprint != first
    path.write_bytes(before)
    assert build(moved, cache).fingerprint == first
    path.rename(path.with_name("0000a.txt"))  # still the first
    assert build(moved, cache).fingerprint != first
    other = Bytes(fingerprint="other")
    assert open_corpus(source, tokenizer=other, cache=cache).fingerprint != first


@pytest.mark.parametrize("name", ["tokens.bin", "ends.npy", "hashes.npy", "bytes.npy", "meta"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed"])
def test_damaged_cache_is_rebuilt(source, cache, name, damage):
    good = build(source, cache)
    # copies: `good` is mapped to the files that are damaged below
    expected, ends, fingerprint = content(good), good.ends_N.tolist(), good.fingerprint
    path = kept_folder(cache) / name
    raw = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "flipped":
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    else:
        path.unlink()
    again = build(source, cache)
    assert content(again) == expected and again.fingerprint == fingerprint
    assert again.ends_N.tolist() == ends


# argv: corpus, cache, a log that each tokenisation adds a line to, seconds it then waits
SCRIPT = """
import sys, time
from pathlib import Path
from train.data import corpus
from train.data.tokenizers import Bytes
from train.spec import SourceSpec
folder, cache, log, wait = sys.argv[1:]
tokenise = corpus._tokenise
def slowly(*args, **kwargs):
    with open(log, "a") as file:
        file.write("built\\n")
    time.sleep(float(wait))
    tokenise(*args, **kwargs)
corpus._tokenise = slowly
source = SourceSpec(kind="text", path=folder)
print(corpus.open_corpus(source, tokenizer=Bytes(), cache=Path(cache)).fingerprint)
"""


def start(source, cache, log, wait: float) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, source.path, str(cache), str(log), str(wait)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_start_together_tokenise_once(source, cache, tmp_path):
    log = tmp_path / "log"
    running = [start(source, cache, log, 1.0) for _ in range(3)]
    printed = {p.communicate(timeout=60)[0].strip() for p in running}
    assert all(p.returncode == 0 for p in running)
    assert printed == {build(source, cache).fingerprint}
    assert log.read_text() == "built\n"


def test_killed_builder_leaves_nothing_in_the_way(source, cache, tmp_path):
    log = tmp_path / "log"
    builder = start(source, cache, log, 60)
    deadline = time.monotonic() + 30
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    builder.send_signal(signal.SIGKILL)
    builder.communicate(timeout=30)
    assert any(p.name.endswith(".part") for p in cache.iterdir())
    assert build(source, cache).n_tokens > 0
    assert not any(p.name.endswith(".part") for p in cache.iterdir())


def test_failed_build_leaves_no_folder(source, cache, tmp_path):
    (tmp_path / "corpus" / "part2" / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(InputError):
        build(source, cache)
    assert not [p for p in cache.iterdir() if p.is_dir()]


def test_cache_that_cannot_be_written_is_one_line(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not writable .not a directory.*can be written"):
        build(source, tmp_path / "file" / "cache")
