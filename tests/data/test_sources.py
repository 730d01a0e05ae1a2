import gzip
import json
import sysconfig
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from parallelism.errors import InputError
from train.data import corpus
from train.data.sources import documents, files_of
from train.data.tokenizers import Bytes
from train.spec import SourceSpec

TEXTS = ["first über", "second\r\nline\x00", "third 🙂"]


def read(**source):
    return [(d.id, d.text) for d in documents(SourceSpec(**source), field="data.sources.0")]


def fails(match: str, **source):
    with pytest.raises(InputError, match=match) as caught:
        read(**source)
    assert "\n" not in str(caught.value)


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_text_documents_are_files_by_relative_path_byte_for_byte(tmp_path):
    for name, text in zip(("b/2.txt", "a.txt", "b/1.md"), TEXTS, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / ".hidden").write_bytes(b"\xff")
    (tmp_path / "empty.txt").write_text("")
    expected = [("a.txt", TEXTS[1]), ("b/1.md", TEXTS[2]), ("b/2.txt", TEXTS[0])]
    assert read(kind="text", path=str(tmp_path)) == expected
    assert read(kind="text", path=str(tmp_path / "**/*.txt")) == [expected[0], expected[2]]
    assert read(kind="text", path=str(tmp_path / "b" / "?.txt")) == [("2.txt", TEXTS[0])]
    assert read(kind="text", path=str(tmp_path / "a.txt")) == expected[:1]


def test_jsonl_documents_are_rows_of_the_named_column(tmp_path):
    path = jsonl(tmp_path / "c.jsonl", [{"body": t, "n": 1} for t in (*TEXTS, "")])
    expected = [(f"c.jsonl:{i + 1}", t) for i, t in enumerate(TEXTS)]
    assert read(kind="jsonl", path=str(path), column="body") == expected
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "c.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    zipped = [(f"c.jsonl.gz:{i + 1}", t) for i, t in enumerate(TEXTS)]
    assert read(kind="jsonl", path=str(tmp_path / "z"), column="body") == zipped


def test_parquet_documents_are_rows_of_the_named_column(tmp_path):
    table = pyarrow.table({"n": [1, 2, 3], "body": TEXTS})
    parquet.write_table(table, tmp_path / "c.parquet", row_group_size=2)
    expected = [(f"c.parquet:{i + 1}", t) for i, t in enumerate(TEXTS)]
    assert read(kind="parquet", path=str(tmp_path), column="body") == expected


def test_standard_library_is_the_python_files_that_every_install_shares():
    root = Path(sysconfig.get_path("stdlib"))
    ids = [f.id for f in files_of(SourceSpec(), field="data.sources.0")]
    assert ids == sorted(ids) and {"argparse.py", "json/decoder.py"} <= set(ids)
    assert all((root / i).is_file() and i.endswith(".py") for i in ids)
    folders = {part for i in ids for part in i.split("/")[:-1]}
    assert not folders & {"site-packages", "test", "tests", "idlelib"}
    assert not [i for i in ids if i.startswith(("_sysconfigdata", "config-"))]


def test_missing_path_and_empty_folder_name_the_field(tmp_path):
    fails(
        "data.sources.0.path: .*nowhere.*no such file", kind="text", path=str(tmp_path / "nowhere")
    )
    fails("data.sources.0.path: .*empty corpus", kind="text", path=str(tmp_path))
    fails("empty corpus: no .jsonl", kind="jsonl", path=str(tmp_path))
    fails("empty corpus", kind="text", path=str(tmp_path / "*.txt"))


def test_corpus_of_empty_documents_is_empty(tmp_path):
    (tmp_path / "a.txt").write_text("")
    source = SourceSpec(kind="text", path=str(tmp_path))
    with pytest.raises(InputError, match="data.sources.0.path: .*empty corpus"):
        corpus.open_corpus(source, tokenizer=Bytes(), cache=tmp_path / "cache")


def test_non_utf8_names_the_file_and_the_byte(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"fine \xe9t\xe9")
    fails(r"bad.txt: not UTF-8 at byte 5 \(0xe9\)", kind="text", path=str(tmp_path))
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    fails("bad.jsonl:2: not UTF-8 at byte 24 ", kind="jsonl", path=str(tmp_path / "bad.jsonl"))


def test_unreadable_file_is_named(tmp_path):
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    fails("gone.txt: cannot be read", kind="text", path=str(tmp_path))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}' * 999)[:30])
    fails("cut.jsonl.gz: cannot be read", kind="jsonl", path=str(tmp_path))
    (tmp_path / "not.parquet").write_text("text")
    fails("not.parquet: not a Parquet file", kind="parquet", path=str(tmp_path))


def test_missing_column_names_the_columns_there_are(tmp_path):
    path = jsonl(tmp_path / "c.jsonl", [{"body": "a", "id": 1}])
    fails(
        "data.sources.0.column: text; no such column in .*c.jsonl:1; it has body, id",
        kind="jsonl",
        path=str(path),
    )
    parquet.write_table(pyarrow.table({"texts": ["a"]}), tmp_path / "c.parquet")
    fails("it has texts; did you mean texts", kind="parquet", path=str(tmp_path / "c.parquet"))


@pytest.mark.parametrize(
    "line, match",
    [
        ("{", "c.jsonl:1: not JSON"),
        ("[1]", "c.jsonl:1: .*one JSON object a line"),
        ('{"text": null}', "c.jsonl:1: text is None"),
    ],
)
def test_bad_jsonl_row_is_named(tmp_path, line, match):
    (tmp_path / "c.jsonl").write_text(line + "\n")
    fails(match, kind="jsonl", path=str(tmp_path))


def test_lone_surrogate_is_named(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"text": "ok"}\n{"text": "a\\ud800"}\n')
    source = SourceSpec(kind="jsonl", path=str(tmp_path))
    with pytest.raises(InputError, match="c.jsonl:2: a lone surrogate at character 1"):
        corpus.open_corpus(source, tokenizer=Bytes(), cache=tmp_path / "cache")


def test_parquet_null_is_named(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["a", None]}), tmp_path / "c.parquet")
    fails("c.parquet:2: text is None", kind="parquet", path=str(tmp_path))
