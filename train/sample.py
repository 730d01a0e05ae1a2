"""What has a run learned to say? Text after a prompt, from the newest checkpoint of a run."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.decoder import Model, build
from model.merge import merged
from parallelism.errors import InputError
from train import unmask
from train.data.task import TaskSpec
from train.data.tokenizers import Tokenizer, load_tokenizer
from train.draw import STREAM, Drawing, knobs_of, programs
from train.newest import newest, spec_of
from train.programs import resolved_execution
from train.spec import RunSpec


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's model as it stands at its newest checkpoint."""

    run_id: str
    spec: RunSpec
    step: int
    model: Model
    params: dict[str, jax.Array]
    tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What was drawn; `ids` and `texts` are of the tokens after the prompt, without the end of the
    document; `ended` where a row came to it."""

    run_id: str
    step: int
    prompt: str
    prompt_tokens: int
    drawing: Drawing
    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    ended: tuple[bool, ...]
    drawn: int  # tokens drawn in all, ends of documents too
    seconds: dict[str, float]  # compile, prefill, decode
    notes: tuple[str, ...]

    @property
    def tokens_per_second(self) -> float:
        return self.drawn / self.seconds["decode"]

    def to_json(self) -> dict[str, Any]:
        rows = zip(self.ids, self.texts, self.ended, strict=True)
        return {
            "run_id": self.run_id,
            "step": self.step,
            "prompt": self.prompt,
            "prompt_tokens": self.prompt_tokens,
            **dataclasses.asdict(self.drawing),
            "samples": [
                {"text": text, "tokens": list(ids), "stop": "end_of_document" if end else "length"}
                for ids, text, end in rows
            ],
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """What is said after the samples themselves."""
        took = f"{self.drawn} tokens, {self.tokens_per_second:,.0f} tokens/s"
        head = f"-- {self.run_id} at step {self.step}, seed {self.drawing.seed}: {took}"
        return "\n".join([head, *(f"note: {note}" for note in self.notes)])


def sample(
    run: str,
    prompt: str,
    *,
    root: Path,
    tokens: int = 200,
    n: int = 1,
    drawing: Drawing | None = None,
    merge: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Sampled:
    """`n` texts that go on from `prompt`, or translate it where the run has an encoder; `say` gets
    pieces of text as they come (n = 1) or each text with its number. `merge` multiplies the factors
    of structured layers out first. Raises InputError on what cannot be."""
    trained = load(run, root=root)
    if merge:
        trained = multiplied_out(trained)
    ids = encode(prompt, trained)
    return generate(
        trained, ids, prompt=prompt, tokens=tokens, n=n, drawing=drawing or Drawing(), say=say
    )


def load(run: str, *, root: Path) -> Trained:
    """A run's spec, tokeniser and newest parameters, on the first device."""
    found, spec = spec_of(run, root=root)
    ids = [s.kind == "tokens" or isinstance(s, TaskSpec) for s in spec.data.sources]
    spelled = any(isinstance(s, TaskSpec) and s.spells for s in spec.data.sources)
    if all(ids) and not spelled and spec.data.tokenizer == "bytes":
        raise InputError(
            "RUN",
            found.run_id,
            "was trained on ids that no tokeniser made, so no text can be given to it; for token "
            "files, name their tokenizer.json in data.tokenizer when training",
        )
    if spec.model.series is not None:
        raise InputError("RUN", found.run_id, "forecasts real numbers, and draws no text")
    made = newest(run, root=root)
    tokenizer = load_tokenizer(spec.data.tokenizer)
    return Trained(made.run_id, made.spec, made.step, made.model, made.params, tokenizer)


def multiplied_out(trained: Trained) -> Trained:
    """The same function with a dense matrix for each product of factors."""
    old = trained.spec.model
    params, spec = merged({k: np.asarray(v) for k, v in trained.params.items()}, old)
    if spec == old:
        instead = "has no structured layer (lowrank, blockshuffle, blockdense); leave it out"
        raise InputError("--merge", trained.run_id, instead)
    return dataclasses.replace(
        trained,
        spec=dataclasses.replace(trained.spec, model=spec),
        model=build(spec),
        params={path: jnp.asarray(value) for path, value in params.items()},
    )


def encode(prompt: str, trained: Trained) -> np.ndarray:
    """Ids (T,) of a prompt, without the end of a document."""
    if not prompt:
        instead = "write at least one character: training asks for no first token of a document"
        raise InputError("--prompt", "''", instead)
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            "--prompt", f"no valid Unicode at character {error.start}", "write UTF-8 text"
        ) from None
    return np.asarray(trained.tokenizer.encode_document(prompt)[:-1], np.int32)


def generate(
    trained: Trained,
    ids_T: np.ndarray,
    *,
    prompt: str,
    tokens: int,
    n: int,
    drawing: Drawing,
    say: Callable[[str], None] = lambda _: None,
) -> Sampled:
    """Draw up to `tokens` ids after `ids_T` in each of `n` rows; a row stops with its document."""
    for flag, value in (("--tokens", tokens), ("--n", n)):
        if value < 1:
            raise InputError(flag, value, "write at least 1")
    notes = _room(trained.spec, given=len(ids_T), tokens=tokens)
    end = trained.tokenizer.end_of_document
    then = "" if trained.model.spec.encoder is None else " -> "  # a source is not gone on with
    if n == 1:
        say(f"{prompt}{then}")
    draw = _streamed if trained.model.spec.causal else _filled
    drawn_BT, shown, seconds = draw(trained, ids_T, tokens=tokens, n=n, drawing=drawing, say=say)

    rows = [row.tolist() for row in drawn_BT]
    kept = [row[: row.index(end)] if end in row else row for row in rows]
    texts = [trained.tokenizer.shown(row) for row in kept]
    if n == 1:
        say(f"{texts[0].removeprefix(shown)}\n")
    else:
        for i, text in enumerate(texts):
            say(f"[{i}] {prompt}{then}{text}\n")
    return Sampled(
        run_id=trained.run_id,
        step=trained.step,
        prompt=prompt,
        prompt_tokens=len(ids_T),
        drawing=drawing,
        ids=tuple(tuple(row) for row in kept),
        texts=tuple(texts),
        ended=tuple(end in row for row in rows),
        drawn=sum(len(k) + (end in r) for k, r in zip(kept, rows, strict=True)),
        seconds=seconds,
        notes=notes,
    )


def _streamed(
    trained: Trained,
    ids_T: np.ndarray,
    *,
    tokens: int,
    n: int,
    drawing: Drawing,
    say: Callable[[str], None],
) -> tuple[np.ndarray, str, dict[str, float]]:
    """Ids one after another until every row's document has ended, what was shown of a single row,
    and seconds.
    """
    began = time.perf_counter()
    source_1S, end = None, trained.tokenizer.end_of_document
    if trained.model.spec.encoder is not None:  # as in training: a target begins with an end
        source_1S, ids_T = np.append(ids_T, end)[None], np.array([end], np.int32)
    made = programs(
        trained.model,
        trained.params,
        given=len(ids_T),
        tokens=tokens,
        rows=n,
        ids=trained.tokenizer.n_vocab,
        end=end,
        dtype=jnp.dtype(resolved_execution(trained.spec)["compute_dtype"]),
        source=None if source_1S is None else source_1S.shape[1],
    )
    knobs = knobs_of(drawing)
    compiled = time.perf_counter()

    prompt_BT = jnp.broadcast_to(jnp.asarray(ids_T), (n, len(ids_T)))
    source_BS = None if source_1S is None else jnp.tile(source_1S.astype(np.int32), (n, 1))
    state, token_B = jax.block_until_ready(made.prefill(trained.params, prompt_BT, source_BS))
    filled = time.perf_counter()

    ended_B = jnp.zeros((n,), bool)
    drawn_BT = np.empty((n, 0), np.int32)
    shown = ""
    while drawn_BT.shape[1] < tokens and not bool(ended_B.all()):
        limit = jnp.int32(min(STREAM, tokens - drawn_BT.shape[1]))
        state, token_B, ended_B, count, piece_BC = made.stream(
            trained.params, state, token_B, ended_B, limit, knobs
        )
        drawn_BT = np.concatenate([drawn_BT, np.asarray(piece_BC)[:, : int(count)]], axis=1)
        if n == 1:
            # a character may end in the next piece: what is open now is shown then
            whole = trained.tokenizer.shown(drawn_BT[0].tolist()).rstrip("\ufffd")
            if whole.startswith(shown):
                say(whole[len(shown) :])
                shown = whole
    seconds = {
        "compile": compiled - began,
        "prefill": filled - compiled,
        "decode": time.perf_counter() - filled,
    }
    return drawn_BT, shown, seconds


def _filled(
    trained: Trained,
    ids_T: np.ndarray,
    *,
    tokens: int,
    n: int,
    drawing: Drawing,
    say: Callable[[str], None],
) -> tuple[np.ndarray, str, dict[str, float]]:
    """The same of a model that sees both ways: no place is known to be final before the last is
    drawn, so nothing is shown on the way, and there is no prefill.
    """
    began = time.perf_counter()
    made = unmask.program(
        trained.model,
        trained.params,
        given=len(ids_T),
        tokens=tokens,
        rows=n,
        ids=trained.tokenizer.n_vocab,
        dtype=jnp.dtype(resolved_execution(trained.spec)["compute_dtype"]),
    )
    compiled = time.perf_counter()
    prompt_BT = jnp.broadcast_to(jnp.asarray(ids_T), (n, len(ids_T)))
    drawn_BT = np.asarray(made(trained.params, prompt_BT, knobs_of(drawing)))
    seconds = {"compile": compiled - began, "decode": time.perf_counter() - compiled}
    return drawn_BT, "", seconds


def _room(spec: RunSpec, *, given: int, tokens: int) -> tuple[str, ...]:
    """Refuse what a table of positions cannot hold; say what training has not seen."""
    table = spec.model.learned_positions
    if spec.model.encoder is not None:
        return _rooms(spec, given=given + 1, tokens=tokens + 1)
    if table is not None and given + tokens > table:
        instead = f"with {given} of the prompt, the run's table of {table} positions is too short; "
        if given < table:
            raise InputError("--tokens", tokens, f"{instead}write at most {table - given}")
        raise InputError("--prompt", f"{given} tokens", f"{instead}write a shorter prompt")
    if given + tokens > spec.data.seq_len:
        return (
            f"{given} + {tokens} tokens go beyond the {spec.data.seq_len} that the run was "
            "trained with",
        )
    return ()


def _rooms(spec: RunSpec, *, given: int, tokens: int) -> tuple[str, ...]:
    """The same of a source and its translation, which have a table each; both with an end."""
    notes = []
    trained_with = (spec.data.source_length, spec.data.seq_len)
    sides = (("--prompt", given), ("--tokens", tokens))
    for (flag, n), length in zip(sides, trained_with, strict=True):
        table = spec.model.learned_positions
        if table is not None and n > table:
            instead = (
                f"the run's table of {table} positions is too short; write at most {table - 1}"
            )
            raise InputError(flag, f"{n - 1} tokens", instead)
        if n > length:
            notes.append(
                f"{flag}: {n - 1} tokens and an end go beyond the {length} that the run was "
                "trained with"
            )
    return tuple(notes)
