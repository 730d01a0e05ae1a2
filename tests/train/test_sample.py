"""Is what a run says drawn from what it has learned, and only as the flags ask?"""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ladder
from model.archs import build as build_arch
from model.context import Context
from model.decoder import build
from parallelism.errors import InputError
from tests.data.corpora import texts, write_folder
from tests.properties import trained_params
from tests.train.tiny import tiny
from train.draw import Drawing, knobs_of, narrowed
from train.loop import train
from train.paths import put
from train.record import RunDir
from train.sample import Trained, encode, generate, load, multiplied_out, sample

PROMPT = "the law of "


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, new_root: Callable[[str], Path]) -> Path:
    """A root with one run, trained on short documents until it spells and ends them."""
    root = new_root("said")
    # five or six letters a document, so that its end is soon learned
    source = write_folder(tmp_path_factory.mktemp("short"), texts(300, words=1))
    changes = {"budget.tokens": 128 * 60, "data.seq_len": 32}
    outcome = train(tiny(source, changes, checkpoint_every=40, log_every=60), root=root)
    assert outcome.status == "done"
    return root


@pytest.fixture(scope="module")
def trained(runs: Path) -> Trained:
    return load(next(runs.glob("*/spec.json")).parent.name, root=runs)


def full_logits(trained: Trained, ids: list[int]) -> np.ndarray:
    """Logits (T, V) after each of `ids`, from one forward pass over all of them."""
    tokens_BT = jnp.asarray([ids])
    ctx = Context(positions_BT=jnp.arange(len(ids))[None], segments_BT=None)
    return np.asarray(trained.model(trained.params, tokens_BT, ctx, dtype=jnp.float32)[0][0])


@pytest.mark.slow
def test_greedy_is_the_argmax_of_the_full_forward_pass_at_every_step(trained: Trained):
    ids_T = encode(PROMPT, trained)
    drawing = Drawing(temperature=0)
    found = generate(trained, ids_T, prompt=PROMPT, tokens=24, n=1, drawing=drawing)
    drawn = [*found.ids[0], *([255] if found.ended[0] else [])]
    expected_T = full_logits(trained, [*ids_T.tolist(), *drawn[:-1]]).argmax(-1)
    assert drawn == expected_T[len(ids_T) - 1 :].tolist()
    assert len(set(drawn)) > 1 and (found.ended[0] or len(drawn) == 24)
    assert found.texts[0] == trained.tokenizer.shown(drawn)


def test_the_checkpoint_is_the_newest_and_its_numbers_are_the_runs(trained: Trained):
    assert trained.step == 60
    fresh = trained.model.initialise(0)
    assert any(not np.allclose(trained.params[p], fresh[p]) for p in fresh)


def test_a_seed_gives_the_same_texts_again_and_another_seed_others(trained: Trained):
    def drawn(seed: int, n: int = 3):
        drawing = Drawing(temperature=1.0, seed=seed)
        ids_T = encode(PROMPT, trained)
        return generate(trained, ids_T, prompt=PROMPT, tokens=20, n=n, drawing=drawing).ids

    first = drawn(4)
    assert drawn(4) == first and drawn(5) != first
    assert len(set(first)) == 3, "rows draw apart"
    assert drawn(4, n=1)[0] == first[0], "a text does not depend on how many are asked for"


def test_top_k_of_one_is_greedy_at_any_temperature(trained: Trained):
    ids_T = encode(PROMPT, trained)

    def drawn(drawing: Drawing):
        return generate(trained, ids_T, prompt=PROMPT, tokens=20, n=1, drawing=drawing).ids

    greedy = drawn(Drawing(temperature=0))
    assert drawn(Drawing(temperature=2.0, top_k=1, seed=9)) == greedy
    assert drawn(Drawing(temperature=2.0, seed=9)) != greedy


# -- the distribution ------------------------------------------------------------------------------


def slow_distribution(logits: np.ndarray, drawing: Drawing) -> np.ndarray:
    """Probabilities by the words of `Drawing`, one token at a time."""
    if drawing.temperature == 0:
        return np.eye(len(logits))[int(np.argmax(logits))]
    scaled = logits.astype(np.float64) / drawing.temperature
    ranked = sorted(range(len(logits)), key=lambda i: (-scaled[i], i))
    kept = ranked[: drawing.top_k]
    weight = {i: np.exp(scaled[i] - scaled[ranked[0]]) for i in kept}
    total = sum(weight.values())
    if drawing.top_p is not None:
        nucleus, mass = [], 0.0
        for i in kept:
            nucleus.append(i)
            mass += weight[i] / total
            if mass >= drawing.top_p:
                break
        kept = nucleus
    out = np.zeros(len(logits))
    for i in kept:
        out[i] = weight[i] / sum(weight[j] for j in kept)
    return out


DRAWINGS = [
    Drawing(temperature=1.0),
    Drawing(temperature=0.5),
    Drawing(temperature=0),
    Drawing(temperature=1.3, top_k=5),
    Drawing(temperature=0.9, top_p=0.7),
    Drawing(temperature=1.1, top_k=6, top_p=0.6),
    Drawing(temperature=1.0, top_p=1.0),
    Drawing(temperature=1.0, top_p=1e-60),
    Drawing(temperature=1.0, top_k=10**12),
]


def test_narrowed_logits_are_the_slow_distribution():
    rng = np.random.default_rng(0)
    logits_BV = rng.normal(size=(6, 40)).astype(np.float32) * 3
    logits_BV[0, 7] = logits_BV[0, 3] = logits_BV[0].max()  # equal ones rank by id
    told = []
    for drawing in DRAWINGS:
        knobs = {k: v for k, v in knobs_of(drawing).items() if k != "seed"}
        probs_BV = np.asarray(jax.nn.softmax(narrowed(jnp.asarray(logits_BV), **knobs)))
        expected_BV = np.stack([slow_distribution(row, drawing) for row in logits_BV])
        np.testing.assert_allclose(probs_BV, expected_BV, rtol=1e-4, atol=1e-7)
        assert ((probs_BV == 0) == (expected_BV == 0)).all()
        told.append(expected_BV)
    assert all(not np.allclose(told[0], other) for other in told[1:6])


def test_draws_come_as_often_as_the_distribution_says(trained: Trained):
    drawing = Drawing(temperature=1.0, top_k=4)
    ids_T = encode(PROMPT, trained)
    expected_V = slow_distribution(full_logits(trained, ids_T.tolist())[-1], drawing)
    n = 2000
    found = generate(trained, ids_T, prompt=PROMPT, tokens=1, n=n, drawing=drawing)
    counts = Counter(row[0] if row else 255 for row in found.ids)
    share_V = np.array([counts[i] / n for i in range(len(expected_V))])
    # five standard errors of a share
    assert np.abs(share_V - expected_V).max() < 5 * np.sqrt(0.25 / n)
    assert set(counts) == set(np.flatnonzero(expected_V).tolist())


# -- ends ------------------------------------------------------------------------------------------


def test_a_row_stops_at_the_end_of_its_document_and_others_go_on(trained: Trained):
    ids_T = encode(PROMPT, trained)
    drawing = Drawing(temperature=1.0, seed=1)
    found = generate(trained, ids_T, prompt=PROMPT, tokens=60, n=8, drawing=drawing)
    assert any(found.ended)
    lengths = [len(row) for row in found.ids]
    assert len(set(lengths)) > 1 and all(255 not in row for row in found.ids)
    assert all(end or n == 60 for end, n in zip(found.ended, lengths, strict=True))
    assert found.drawn == sum(lengths) + sum(found.ended)


def test_text_is_streamed_whole_and_what_is_no_utf8_is_replaced(trained: Trained):
    pieces: list[str] = []
    ids_T = encode(PROMPT, trained)
    hot = Drawing(temperature=50.0, seed=2)  # near uniform over bytes
    found = generate(trained, ids_T, prompt=PROMPT, tokens=40, n=1, drawing=hot, say=pieces.append)
    assert "".join(pieces) == f"{PROMPT}{found.texts[0]}\n"
    assert "\ufffd" in found.texts[0] and len(pieces) > 3


def test_a_table_of_positions_bounds_prompt_and_tokens(runs: Path, trained: Trained):
    from dataclasses import replace

    spec = put(trained.spec, {"model.learned_positions": 64})
    short = replace(trained, spec=spec)
    ids_T = encode(PROMPT, trained)
    with pytest.raises(InputError, match=r"--tokens: 60; .*write at most 53"):
        generate(short, ids_T, prompt=PROMPT, tokens=60, n=1, drawing=Drawing())
    with pytest.raises(InputError, match="--prompt: 70 tokens; .*shorter prompt"):
        generate(short, np.zeros(70, np.int32), prompt="", tokens=1, n=1, drawing=Drawing())


# -- the verb --------------------------------------------------------------------------------------


def test_the_verb_writes_its_json_and_takes_the_beginning_of_an_id(runs, trained, capsys):
    arguments = ["sample", trained.run_id[:5], f"--root={runs}", f"--prompt={PROMPT}"]
    status = ladder.main([*arguments, "--tokens=20", "--n=2", "--seed=3", "--json=-"])
    told = capsys.readouterr()
    value = json.loads(told.out)
    assert status == 0 and PROMPT in told.err
    assert value["run_id"] == trained.run_id and value["step"] == 60
    assert value["prompt"] == PROMPT and value["prompt_tokens"] == len(PROMPT)
    assert (value["temperature"], value["top_k"], value["top_p"], value["seed"]) == (
        0.8,
        None,
        None,
        3,
    )
    assert value["tokens_per_second"] > 0 and {"prefill", "decode"} <= set(value["seconds"])
    assert len(value["samples"]) == 2
    for one in value["samples"]:
        assert one["stop"] in ("length", "end_of_document")
        assert one["text"] == bytes(one["tokens"]).decode(errors="replace")
    again = sample(
        str(runs / trained.run_id), PROMPT, root=runs, tokens=20, n=2, drawing=Drawing(seed=3)
    )
    assert list(again.texts) == [one["text"] for one in value["samples"]]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nosuchrun"], "RUN: 'nosuchrun'; no such run"),
        ([""], "RUN: ''; no such run"),
        (["{id}", "--prompt="], "--prompt: ''; write at least one character"),
        (["{id}", "--temperature=-1"], "--temperature: -1.0; write 0"),
        (["{id}", "--temperature=nan"], "--temperature: nan; write 0"),
        (["{id}", "--temperature=1e-9"], "--temperature: 1e-09; write 0"),
        (["{id}", "--top-k=0"], "--top-k: 0; write at least 1"),
        (["{id}", "--top-p=1.5"], "--top-p: 1.5; write a probability"),
        (["{id}", "--tokens=0"], "--tokens: 0; write at least 1"),
        (["{id}", "--n=0"], "--n: 0; write at least 1"),
        (["{id}", "--seed=1e12"], "--seed: 1000000000000; write a whole number"),
        (["bare"], "RUN: bare; has no checkpoint that can be read (unfinished)"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(runs, trained, capsys, arguments, told):
    bare = RunDir(runs / "bare")
    bare.path.mkdir(exist_ok=True)
    shutil.copy(runs / trained.run_id / "spec.json", bare.path)
    arguments = [text.replace("{id}", trained.run_id) for text in arguments]
    status = ladder.main(["sample", "--prompt=a", f"--root={runs}", *arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(lines) == 1
    assert lines[0].startswith(f"error: {told}")


def test_two_runs_that_begin_alike_are_named(tmp_path: Path, trained: Trained, runs: Path):
    for name in ("ab1", "ab2"):
        shutil.copytree(runs / trained.run_id, tmp_path / name)
    with pytest.raises(InputError, match="RUN: ab; 2 runs begin so .ab1, ab2.; write more"):
        load("ab", root=tmp_path)


def test_reading_a_damaged_newest_checkpoint_takes_the_one_before_and_changes_nothing(
    tmp_path: Path, trained: Trained, runs: Path, capsys
):
    run = tmp_path / "damaged"
    shutil.copytree(runs / trained.run_id, run)
    shutil.rmtree(run / "ckpt" / "60" / "state")
    before = sorted(str(p) for p in run.rglob("*"))
    assert load("damaged", root=tmp_path).step == 40
    assert "checkpoint 60 cannot be read" in capsys.readouterr().err
    assert sorted(str(p) for p in run.rglob("*")) == before


def test_a_run_on_bare_token_files_is_refused(tmp_path: Path, trained: Trained, runs: Path):
    run = tmp_path / "ids"
    shutil.copytree(runs / trained.run_id, run)
    spec = json.loads((run / "spec.json").read_text())
    spec["data"]["sources"] = [{**spec["data"]["sources"][0], "kind": "tokens", "path": "x.bin"}]
    (run / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match="no tokeniser made"):
        load("ids", root=tmp_path)


# -- structured layers as dense ones ---------------------------------------------------------------


def test_merged_layers_say_the_same(trained: Trained):
    spec = build_arch("lowrank", 32)
    model = build(spec)
    made = replace(
        trained, model=model, params=trained_params(model), spec=replace(trained.spec, model=spec)
    )
    dense = multiplied_out(made)
    factors = [path for path in made.params if path.endswith((".first", ".second"))]
    assert factors and not set(factors) & set(dense.params), "the two multiply differently"
    ids_T = encode(PROMPT, made)
    say = [
        generate(t, ids_T, prompt=PROMPT, tokens=24, n=1, drawing=Drawing(temperature=0)).ids
        for t in (made, dense)
    ]
    assert say[0] == say[1] and len(set(say[0][0])) > 1


def test_a_run_without_structured_layers_is_not_merged(runs: Path, trained: Trained, capsys):
    flags = ["sample", trained.run_id, "--prompt", "a", "--root", str(runs), "--merge"]
    assert ladder.main(flags) == 2
    err = capsys.readouterr().err
    assert "--merge" in err and "has no structured layer" in err
    assert len(err.strip().splitlines()) == 1
