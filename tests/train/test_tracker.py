"""Is wandb a mirror and nothing more?"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.tiny import ledger, python, tiny
from train.loop import train
from train.spec import to_json
from train.tracker import Silent, open_tracker, wanted

MIRRORED = """
import json, sys
from pathlib import Path
from train.loop import train
from train.spec import from_dict
spec = from_dict(json.loads(Path(sys.argv[1]).read_text()))
print(train(spec, root=Path(sys.argv[2])).status)
"""


@pytest.mark.parametrize(
    "env, expected",
    [
        ({}, False),
        ({"WANDB_API_KEY": "k"}, True),
        ({"WANDB_MODE": "offline"}, True),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, False),
        ({"WANDB_MODE": "online"}, False),
    ],
)
def test_wandb_is_asked_only_with_a_key_or_offline(monkeypatch, env: dict, expected: bool):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert wanted() == expected


def test_without_wandb_nothing_is_missing_and_it_is_not_even_imported(root, corpus, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)  # an import would raise
    spec = tiny(corpus)
    assert train(spec, root=root).status == "done"
    assert not list(root.rglob("wandb"))


@pytest.mark.slow
def test_offline_mode_mirrors_the_ledger(root, corpus):
    spec = tiny(corpus)
    path = root / "spec.json"
    path.write_text(to_json(spec))
    process = python(MIRRORED, str(path), str(root), WANDB_MODE="offline", WANDB_SILENT="true")
    out, err = process.communicate(timeout=240)
    assert out.splitlines()[-1] == "done", err[-3000:]
    (mirror,) = (root / spec.run_id / "wandb").glob(f"offline-run-*/run-{spec.run_id}.wandb")
    assert history(mirror) == ledger(root, spec)


def history(path: Path) -> list[dict]:
    """Rows of a wandb file, without its own fields and the times."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        record.ParseFromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        items = {(i.key or "/".join(i.nested_key)): i.value_json for i in record.history.item}
        named = {k: json.loads(v) for k, v in items.items()}
        rows.append({k: v for k, v in named.items() if not k.startswith(("_", "time/"))})
    return rows


def records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format after wandb's seven bytes: blocks of 32 KiB; checksum, size, part."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, part = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if part in (1, 4):  # whole, last
            yield parts
            parts = b""


def test_a_tracker_that_cannot_start_is_said_and_not_fatal(monkeypatch, capsys, tmp_path):
    import wandb

    def refuse(**_: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "init", refuse)
    tracker = open_tracker("0123456789ab", {}, folder=str(tmp_path))
    assert isinstance(tracker, Silent)
    assert "wandb does not mirror 0123456789ab: no network" in capsys.readouterr().err


def test_a_tracker_that_fails_in_mid_run_is_not_fatal(monkeypatch, capsys, tmp_path):
    import wandb

    class Broken:
        id = "0123456789ab"
        summary: dict = {}

        def log(self, *_: object, **__: object) -> None:
            raise RuntimeError("service is gone")

        finish = log

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    tracker = open_tracker("0123456789ab", {}, folder=str(tmp_path))
    tracker.log({"step": 1})
    tracker.close("done")
    assert capsys.readouterr().err.count("service is gone") == 2
