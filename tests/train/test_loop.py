"""How does a run end, what does it leave, and what does it compile?"""

import errno
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from parallelism.axes import MeshSpec
from parallelism.errors import InputError
from tests.train.tiny import STEPS, at_step, ledger, tiny
from train.loop import Progress, train
from train.paths import put
from train.programs import programs, shape_key
from train.record import RunDir, read_runs
from train.spec import SourceSpec, from_dict


def test_a_run_leaves_the_directory_of_the_contract(root: Path, corpus: SourceSpec):
    spec = tiny(corpus)
    seen: list[Progress] = []
    outcome = train(spec, root=root, progress=seen.append)
    run = RunDir(root / spec.run_id).read()
    names = {p.name for p in run.path.iterdir()}
    wanted = {"spec.json", "env.json", "counts.json", "metrics.jsonl", "result.json", "ckpt"}
    assert wanted <= names
    assert from_dict(run.spec) == spec
    assert run.status == outcome.status == "done"
    assert run.counts["tokens_planned"] == 128 * STEPS
    assert run.counts["loss_unit"] == "nats/token"
    assert {"total", "non_embedding", "active"} <= set(run.counts["params"])
    assert run.env["devices"]["count"] == 8 and run.env["versions"]["jax"]
    assert run.env["resolved"] == {
        "compute_dtype": "float32",
        "layers": "unroll",
        "sequence": "none",
        "attention": "plain",
        "mesh": MeshSpec().sizes,
    }
    last = run.metrics()[-1]
    assert last["flops"] == last["tokens"] * run.counts["flops_per_token"]["causal_attn"]
    # bytes: one token a byte, so bits are nats over ln 2
    assert last["bpb/val"] == pytest.approx(last["loss/val"] / math.log(2))
    assert [p.step for p in seen if p.phase == "train"] == [3, 6, 8, 9, 12]
    assert {p.phase for p in seen} == {"compile", "train", "evaluate"}


def test_a_huge_learning_rate_ends_as_diverged_with_its_reason(root: Path, corpus: SourceSpec):
    spec = tiny(corpus, {"optim.lr": 1e6, "schedule.warmup": 0.0})
    outcome = train(spec, root=root)
    assert outcome.status == "diverged"
    assert outcome.reason and ("exploding loss" in outcome.reason or "non-finite" in outcome.reason)
    (run,) = read_runs(root)
    assert run.status == "diverged" and run.result is not None
    assert run.result["reason"] == outcome.reason
    assert "loss/val" not in run.result["metrics"], "a diverged run has no final loss"
    assert train(spec, root=root).skipped


def test_a_loss_that_is_not_finite_ends_as_diverged_and_writes_no_nan(root, corpus):
    spec = tiny(corpus, {"optim.lr": 1e38, "schedule.warmup": 0.0})
    outcome = train(spec, root=root)
    assert outcome.status == "diverged"
    assert outcome.reason is not None and "non-finite loss or gradient at step" in outcome.reason
    text = (root / spec.run_id / "metrics.jsonl").read_text()
    assert text and "NaN" not in text and "Infinity" not in text
    assert all(math.isfinite(v) for row in ledger(root, spec) for v in row.values())


def test_hyper_parameters_are_data_and_share_one_compilation(root: Path, corpus: SourceSpec):
    spec = tiny(corpus)
    programs(spec, cache=root / ".cache")
    changed = put(
        spec,
        {
            "optim.lr": 1e-3,
            "optim.weight_decay": 0.3,
            "optim.beta1": 0.8,
            "optim.beta2": 0.99,
            "optim.eps": 1e-6,
            "optim.clip_norm": 0.5,
            "schedule.kind": "wsd",
            "schedule.warmup": 0.5,
            "schedule.decay": 0.4,
            "schedule.final": 0.0,
            "seed": 5,
            "budget.tokens": 128 * 4,
            "evaluation.tokens": 300,
            "model.arch": "another name",
            "execution.checkpoint_every": 2,
        },
    )
    assert shape_key(changed) == shape_key(spec)
    before = train(spec, root=root)
    after = train(changed, root=root)
    assert before.compilations == [] and after.compilations == []
    assert after.run_id != before.run_id
    assert after.metrics["loss/train"] != before.metrics["loss/train"]


@pytest.mark.parametrize(
    "path, value",
    [
        ("model.d_model", 48),
        ("data.seq_len", 8),
        ("data.isolate_documents", False),
        ("budget.batch_tokens", 256),
        ("execution.accumulate", 2),
        ("execution.remat", "full"),
        ("execution.layers", "scan"),
        ("execution.compute_dtype", "bfloat16"),
        ("execution.mesh.fsdp", 8),
        ("model.parametrisation.base_d_model", 16),
    ],
)
def test_what_changes_the_program_changes_the_shape_key(corpus: SourceSpec, path: str, value):
    spec = tiny(corpus)
    assert shape_key(put(spec, {path: value})) != shape_key(spec)


@pytest.mark.slow
def test_the_persistent_cache_serves_a_second_process(root: Path, corpus: SourceSpec):
    from tests.train.tiny import python
    from train.spec import to_json

    own = root.parent / "own"
    own.mkdir()
    path = own / "spec.json"
    path.write_text(to_json(tiny(corpus, {"budget.tokens": 128 * 2})))
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom train.programs import *\n"
        "from train.spec import from_dict\n"
        "spec, cache = from_dict(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2])\n"
        "use_cache(cache)\n"
        "print(json.dumps([c.cached for c in programs(spec, cache=cache)[1]]))\n"
    )
    found = []
    for _ in range(2):
        process = python(code, str(path), str(own / ".cache"))
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        found.append(json.loads(out.splitlines()[-1]))
    assert found == [[False, False], [True, True]]


# -- the disk --------------------------------------------------------------------------------------


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["replace", "fsync", "checkpoint"])
def test_a_full_disk_is_said_in_one_line_and_the_run_resumes(root, corpus, monkeypatch, where):
    spec = tiny(corpus)
    whole = root.parent / "whole"
    whole.mkdir()
    (whole / ".cache").symlink_to(root / ".cache")
    train(spec, root=whole)

    def fill() -> None:
        if where == "checkpoint":
            from orbax.checkpoint import CheckpointManager

            monkeypatch.setattr(CheckpointManager, "save", full)
        else:
            monkeypatch.setattr(os, where, full)

    with pytest.raises(InputError, match="the disk is full; free some space") as caught:
        train(spec, root=root, progress=at_step(6, fill))
    assert "\n" not in str(caught.value) and str(root) in str(caught.value)
    monkeypatch.undo()
    assert [r["step"] for r in ledger(root, spec)][:2] == [3, 6], "what was written is there"
    assert train(spec, root=root).status == "done"
    assert ledger(root, spec) == ledger(whole, spec)


def test_a_full_disk_under_the_checkpoints_own_writer_is_said_in_one_line(root, corpus, tmp_path):
    """A real file system of two megabytes, where one may be mounted."""
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "ladder-test", str(small)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        (small / ".cache").symlink_to(root / ".cache")
        spec = tiny(corpus, {"model.d_model": 128, "budget.tokens": 128 * STEPS})
        with pytest.raises(InputError, match="the disk is full; free some space"):
            train(spec, root=small)
        assert ledger(small, spec)[0]["step"] == 3
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        assert train(spec, root=small).status == "done"
        assert train(replace(spec), root=small).skipped
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
