"""Do generated sources hold what they say, and are they served like every other source?"""

import json
import math

import numpy as np
import pytest

from parallelism.errors import InputError
from tests.data.corpora import equal, opened, texts, write_folder
from tests.train.tiny import at_step, ledger, tiny
from train.batches import HeldOut
from train.data.pipeline import WHOLE
from train.data.rows import Batch
from train.data.task import HELD_OUT, TRAIN, TaskRows, uniform_bits
from train.data.tasks import recall, state_tracking
from train.evaluate import evaluate
from train.loop import train
from train.paths import override, put
from train.record import RunDir
from train.spec import DataSpec, RunSpec, SourceSpec, canonical, from_dict, to_dict

TASKS = [
    recall.Spec(pairs=4, keys=9, values=6),
    recall.Spec(pairs=6, keys=6, values=6, power=1.0),
    state_tracking.Spec(group="parity"),
    state_tracking.Spec(group="s3"),
    state_tracking.Spec(group="s5"),
]
named = pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.kind}-{t.fingerprint[:4]}")


# -- what the rows hold ----------------------------------------------------------------------------


def solve_recall(task, tokens: list[int]) -> list[int | None]:
    """What follows each token, by looking up the first occurrence of a key."""
    pairs = dict(zip(tokens[0 : 2 * task.pairs : 2], tokens[1 : 2 * task.pairs : 2], strict=True))
    asked = range(2 * task.pairs, len(tokens))
    return [pairs.get(tokens[t]) if t in asked else None for t in range(len(tokens))]


def solve_state(task, tokens: list[int]) -> list[int | None]:
    """Things on a table, moved by each element in turn; the id is the arrangement's rank."""
    things = list(range(state_tracking.THINGS[task.group]))
    out: list[int | None] = []
    for token in tokens:
        move = unrank(token, len(things))
        # the product so far maps i to things[i]; the next element acts on what it gives
        things = [move[thing] for thing in things]
        out.append(rank(things))
    return out


def rank(permutation: list[int]) -> int:
    """Place in lexicographic order, by counting the smaller ones to the right (Lehmer's code)."""
    n = len(permutation)
    return sum(
        sum(b < a for b in permutation[i + 1 :]) * math.factorial(n - 1 - i)
        for i, a in enumerate(permutation)
    )


def unrank(number: int, n: int) -> list[int]:
    left, out = list(range(n)), []
    for i in range(n - 1, -1, -1):
        which, number = divmod(number, math.factorial(i))
        out.append(left.pop(which))
    return out


@named
@pytest.mark.parametrize("seq_len", [23, 32, 65])
def test_a_solver_that_reads_the_inputs_finds_every_answer_and_nothing_else_is_asked(task, seq_len):
    batch = TaskRows(task, seq_len, TRAIN).read(np.arange(50))
    solve = solve_recall if task.kind == "recall" else solve_state
    assert batch.tokens_BT.shape == (50, seq_len)
    assert set(np.unique(batch.weights_BT)) <= {0.0, 1.0}
    for tokens, targets, weights in zip(
        batch.tokens_BT.tolist(), batch.targets_BT.tolist(), batch.weights_BT.tolist(), strict=True
    ):
        answers = solve(task, tokens)
        assert [a is not None for a in answers] == [w == 1 for w in weights]
        assert [t for t, w in zip(targets, weights, strict=True) if w] == [
            a for a in answers if a is not None
        ]


def test_recall_asks_for_every_key_once_and_its_tokens_are_in_their_sets():
    task = recall.Spec(pairs=5, keys=8, values=7)
    batch = TaskRows(task, 40, TRAIN).read(np.arange(200))
    assert (batch.weights_BT.sum(1) == 5).all()
    for tokens, weights in zip(batch.tokens_BT, batch.weights_BT, strict=True):
        keys, values = tokens[0:10:2], tokens[1:10:2]
        assert len(set(keys)) == len(set(values)) == 5
        assert set(keys) <= set(range(1, 9)) and set(values) <= set(range(9, 16))
        assert sorted(tokens[weights == 1]) == sorted(keys)
        rest = tokens[10:][np.isin(tokens[10:], [*keys, *values], invert=True)]
        assert (rest == recall.FILLER).all()
    assert np.array_equal(batch.targets_BT[:, :-1], batch.tokens_BT[:, 1:])


def test_recall_queries_lie_near_the_pairs_as_the_power_says():
    def share(power: float) -> np.ndarray:
        task = recall.Spec(pairs=1, power=power)
        batch = TaskRows(task, 41, TRAIN).read(np.arange(20_000))
        place = (batch.weights_BT.argmax(1) - 2) // 2
        return np.bincount(place, minlength=20) / len(place)

    for power in (0.01, 1.0):
        weight = np.arange(1, 21) ** (power - 1)
        np.testing.assert_allclose(share(power), weight / weight.sum(), atol=0.015)
    assert share(0.01)[0] > 4 * share(1.0)[0]


@pytest.mark.parametrize(("group", "n"), [("parity", 2), ("s3", 6), ("s5", 120)])
def test_products_are_a_group_with_identity_0(group, n):
    table = state_tracking.products(group)
    assert table.shape == (n, n)
    everyone = np.arange(n)
    assert (table[0] == everyone).all() and (table[:, 0] == everyone).all()
    assert all((np.sort(row) == everyone).all() for row in (*table, *table.T))
    a, b, c = np.random.default_rng(0).integers(n, size=(3, 200))
    assert (table[table[a, b], c] == table[a, table[b, c]]).all()
    assert (table == table.T).all() == (group == "parity")


def test_elements_and_states_are_uniform():
    batch = TaskRows(state_tracking.Spec(group="s3"), 32, TRAIN).read(np.arange(3000))
    for ids in (batch.tokens_BT, batch.targets_BT[:, 3:]):
        share = np.bincount(ids.ravel(), minlength=6) / ids.size
        np.testing.assert_allclose(share, 1 / 6, atol=0.005)


# -- how they are served ---------------------------------------------------------------------------


def test_bits_are_those_of_the_published_generator_and_of_no_other_row():
    def slow(stream: str, row: int, n: int) -> list[int]:
        import hashlib

        mask = 2**64 - 1

        def mixed(z: int) -> int:
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
            return z ^ (z >> 31)

        key = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")
        state, out = mixed((row + key) & mask), []
        for _ in range(n):
            state = (state + 0x9E3779B97F4A7C15) & mask
            out.append(mixed(state))
        return out

    bits = uniform_bits("a", np.array([0, 7, 2**28]), 5)
    assert bits.tolist() == [slow("a", row, 5) for row in (0, 7, 2**28)]
    assert len(np.unique(uniform_bits("a", np.arange(1000), 20))) == 20_000
    assert not np.isin(uniform_bits("b", np.arange(100), 5), bits).any()


@named
def test_a_row_depends_on_its_number_and_side_alone(task):
    side = TaskRows(task, 32, TRAIN)
    whole = side.read(np.arange(40))
    some = side.read(np.array([31, 2, 2]))
    assert equal(some, Batch(*(a[[31, 2, 2]] for a in whole)))
    other = TaskRows(task, 32, HELD_OUT).read(np.arange(40))
    assert not any((row == whole.tokens_BT).all(1).any() for row in other.tokens_BT)


@named
def test_batches_are_a_function_of_seed_and_step_whatever_the_processes(task, tmp_path):
    data = opened(task, tmp_path, seed=3)
    steps = {s: data.batch(s) for s in (5, 0, 1000)}
    again = opened(task, tmp_path / "other", seed=3)
    for step, batch in sorted(steps.items()):
        parts = [again.batch(step, process_index=p, process_count=4) for p in range(4)]
        assert equal(batch, Batch(*(np.concatenate(a) for a in zip(*parts, strict=True))))
    assert not equal(steps[0], opened(task, tmp_path, seed=4).batch(0))
    assert not equal(steps[0], steps[5])
    held = [b for seed in (3, 9) for b in opened(task, tmp_path, seed=seed).validation(1024)]
    assert len(held) == 8 and all(equal(a, b) for a, b in zip(held[:4], held[4:], strict=True))


def test_a_task_shares_a_mixture_with_text(tmp_path):
    folder = write_folder(tmp_path / "text", texts(60))
    task = recall.Spec(pairs=2, weight=3.0)
    data = opened((folder, task), tmp_path / "cache", batch=40)
    batch = data.batch(0)
    # text asks for nearly all its tokens, this task for two a row
    assert (batch.weights_BT.sum(1) == 2).sum() == 30
    assert data.validation_sets == (WHOLE, "val/0", "val/1")
    assert [data.has_answers(name) for name in data.validation_sets] == [False, False, True]
    assert data.bytes_per_token("val/0") == 1 and data.bytes_per_token() is None
    manifest = data.manifest
    assert [s["kind"] for s in manifest["sources"]] == ["text", "recall"]
    assert manifest["sources"][1]["share"] == 0.75


def test_the_fingerprint_tells_tasks_apart_but_for_their_weight(tmp_path):
    def fingerprint(task):
        return opened(task, tmp_path).fingerprint

    assert fingerprint(recall.Spec(weight=2)) == fingerprint(recall.Spec())
    assert len({fingerprint(t) for t in TASKS}) == len(TASKS)


# -- as a field of a run ---------------------------------------------------------------------------


def test_a_task_is_a_source_in_json_in_a_setting_and_in_the_run_id(corpus: SourceSpec):
    spec = tiny(corpus)
    made = override(spec, ['data.sources.0={"kind": "recall", "pairs": 3}'])
    assert made.data.sources == (recall.Spec(pairs=3),)
    assert from_dict(to_dict(made)) == made
    assert len({s.run_id for s in (spec, made, override(made, ["data.sources.0.pairs=2"]))}) == 3
    # the kind alone: what it leaves over of a text source is let go
    bare = override(put(spec, {"data.sources": [{}]}), ["data.sources.0.kind=state_tracking"])
    assert bare.data.sources == (state_tracking.Spec(),)
    by_module = {"kind": "train.data.tasks.recall"}
    with pytest.raises(InputError, match="data.sources.0.kind"):
        put(spec, {"data.sources": [by_module]})  # a module's own Literal has the last word


def test_text_sources_are_written_as_they_were():
    tree = to_dict(RunSpec(model=tiny(SourceSpec()).model))
    as_it_was = {"kind": "stdlib", "path": None, "column": "text", "weight": 1.0}
    assert tree["data"]["sources"] == [{**as_it_was, "source_column": None}]
    assert json.loads(canonical(from_dict(tree)))["data"]["sources"] == [as_it_was]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"kind": "recal"}, "data.sources.0: .*did you mean recall"),
        ({"kind": "os.path"}, "data.sources.0: .*no Spec that is a TaskSpec"),
        ({"kind": "recall", "pair": 3}, "data.sources.0.pair: .*did you mean data.sources.0.pairs"),
        ({"kind": "recall", "path": "x"}, "data.sources.0.path: .*no such field"),
        ({"kind": "recall", "pairs": 40}, "40 pairs of 32 keys and 32 values; write .* at most 32"),
        ({"kind": "recall", "pairs": 5}, "data.seq_len 16 has no room for 5 pairs.*at least 19"),
        ({"kind": "state_tracking", "group": "s4"}, "data.sources.0.group: s4; .*'s3' or 's5'"),
        ({"kind": "txt", "path": "x"}, "data.sources.0: .*did you mean text"),
        ("recall", 'data.sources.0: recall; a source is an object; write {"kind"'),
    ],
)
def test_what_cannot_be_is_said_in_one_line(corpus: SourceSpec, source, told):
    with pytest.raises(InputError, match=told) as caught:
        put(tiny(corpus), {"data.sources": [source]})
    assert "\n" not in str(caught.value)


def test_a_vocabulary_too_small_for_the_task_is_refused(tmp_path):
    with pytest.raises(InputError, match="model.vocab: 64; data.sources.0 has 65 ids"):
        opened(recall.Spec(), tmp_path, vocab=64)


def test_the_shortest_length_that_recall_names_is_enough():
    for pairs in (1, 2, 5):
        task = recall.Spec(pairs=pairs)
        DataSpec(sources=(task,), seq_len=max(2, 4 * pairs - 1))
        if pairs > 1:
            with pytest.raises(ValueError, match=f"at least {4 * pairs - 1}"):
                DataSpec(sources=(task,), seq_len=4 * pairs - 2)


# -- what is measured ------------------------------------------------------------------------------


def test_accuracy_counts_answers_whose_logit_lies_above_every_other():
    import jax.numpy as jnp

    from train.objectives import NextToken, next_token, scored

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 8, 5)).astype(np.float32)
    batch = {
        "targets_BT": rng.integers(5, size=(3, 8)).astype(np.int32),
        "weights_BT": (rng.random((3, 8)) < 0.6).astype(np.float32),
    }
    says = rng.random((3, 8)) < 0.5
    batch["targets_BT"] = np.where(says, logits.argmax(-1), batch["targets_BT"]).astype(np.int32)
    logits[0, 0] = 0.0  # a tie tells nothing apart
    batch["weights_BT"][0, 0] = 1.0
    right = sum(
        float(batch["weights_BT"][b, t])
        for b in range(3)
        for t in range(8)
        if (b, t) != (0, 0) and logits[b, t].argmax() == batch["targets_BT"][b, t]
    )
    arrays = {k: jnp.asarray(v) for k, v in batch.items()}
    nats, weights, found = scored(jnp.asarray(logits), arrays)
    assert float(found) == right and 0 < right < batch["weights_BT"].sum()
    assert (float(nats), float(weights)) == tuple(map(float, next_token(logits, arrays)))  # pyright: ignore[reportArgumentType]
    batches = [arrays, {**arrays, "weights_BT": jnp.zeros((3, 8))}]
    measure = HeldOut(name="val", bytes_per_token=None, answers=True, batches=batches)  # pyright: ignore[reportArgumentType]
    told = evaluate(lambda _, b: scored(jnp.asarray(logits), b), None, measure, NextToken())
    assert told["accuracy/val"] == pytest.approx(right / float(weights))


def of_task(corpus: SourceSpec, **more) -> RunSpec:
    source = {"kind": "state_tracking", "group": "parity"}
    return tiny(corpus, {"data.sources": [source], **more}, checkpoint_every=4)


@pytest.mark.slow
def test_the_accuracy_of_a_run_is_the_share_of_answers_its_checkpoint_gets_right(root, corpus):
    """Products of two bits: whoever ignores the first of them is right in three of four."""
    import jax
    import jax.numpy as jnp

    from model.context import Context
    from model.decoder import build
    from train.checkpoint import read_params

    spec = of_task(corpus, **{"data.seq_len": 2, "optim.lr": 0.01, "budget.tokens": 128 * 60})
    outcome = train(spec, root=root)
    model = build(spec.model)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        path: jax.ShapeDtypeStruct(d.shape, jnp.float32, sharding=here)
        for path, d in model.declarations.items()
    }
    step, params = read_params(RunDir(root / spec.run_id).checkpoints, abstract, say=print)
    data = opened(spec.data.sources, root, batch=64, seq_len=2)
    batches = list(data.validation(spec.evaluation.tokens))
    tokens_BT, targets_BT, _, weights_BT = (np.concatenate(a) for a in zip(*batches, strict=True))
    ctx = Context(positions_BT=jnp.arange(2)[None], segments_BT=None)
    logits_BTV, _ = model(params, jnp.asarray(tokens_BT), ctx, dtype=jnp.float32)
    right = np.asarray(logits_BTV).argmax(-1) == targets_BT
    assert step == 60 and weights_BT.sum() == 256 == weights_BT.size
    assert outcome.metrics["accuracy/val"] == pytest.approx(right.mean())
    assert 0.8 < right.mean() < 1 and "bpb/val" not in outcome.metrics


def test_text_has_no_accuracy_and_a_resumed_task_equals_an_uninterrupted_one(root, corpus):
    import signal

    text = train(tiny(corpus), root=root)
    assert not [name for name in text.metrics if name.startswith("accuracy")]
    spec = of_task(corpus)
    whole = root.parent / "whole"
    whole.mkdir()
    (whole / ".cache").symlink_to(root / ".cache")
    train(spec, root=whole)
    stop = at_step(6, lambda: signal.raise_signal(signal.SIGINT))
    assert train(spec, root=root, progress=stop).status == "interrupted"
    assert train(spec, root=root).status == "done"
    assert ledger(root, spec) == ledger(whole, spec)
    assert "accuracy/val" in ledger(root, spec)[-1]
