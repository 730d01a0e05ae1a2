"""How does text become token ids, and back?

Bytes, or any Hugging Face `tokenizer.json`. Both name the token that ends a document; packing
relies on it, so a tokeniser without one is refused.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from parallelism.errors import InputError
from train.data.sources import documents
from train.data.split import held_out, identity_hash
from train.record import disk_error
from train.spec import SourceSpec

FIELD = "data.tokenizer"

# the end-of-text token as published tokenisers spell it, most explicit first
ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end▁of▁sentence|>",
    "</s>",
    "<eos>",
    "[EOS]",
    "[SEP]",
)


class Tokenizer(Protocol):
    """What the corpus needs of a tokeniser; `fingerprint` changes whenever any id would."""

    @property
    def name(self) -> str: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def end_of_document(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]: ...
    def encode_document(self, text: str) -> np.ndarray: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def shown(self, ids: Iterable[int]) -> str: ...


@dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes. 255 occurs in no valid UTF-8, so it is free to end documents."""

    name: str = "bytes"
    n_vocab: int = 256
    end_of_document: int = 255
    fingerprint: str = "bytes"

    def encode_document(self, text: str) -> np.ndarray:
        """Ids (length,) of the text and its end-of-document token."""
        return np.frombuffer(text.encode() + b"\xff", np.uint8)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode_document(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; end-of-document tokens are left out."""
        return bytes(i for i in ids if i != self.end_of_document).decode()

    def shown(self, ids: Iterable[int]) -> str:
        """As `decode`, of any ids: what is no valid UTF-8 becomes U+FFFD."""
        return bytes(i for i in ids if i != self.end_of_document).decode(errors="replace")


@dataclass(frozen=True)
class HuggingFace:
    """A `tokenizer.json`. Special tokens spelled out in the text are encoded as ordinary text."""

    name: str
    n_vocab: int
    end_of_document: int
    fingerprint: str
    backend: Any = field(repr=False, compare=False)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """For each text its ids (length,) and its end-of-document token."""
        dtype = np.uint16 if self.n_vocab <= 2**16 else np.uint32
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array([*e.ids, self.end_of_document], dtype) for e in encoded]

    def encode_document(self, text: str) -> np.ndarray:
        return self.encode_documents([text])[0]

    def decode(self, ids: Iterable[int]) -> str:
        """The text; end-of-document tokens are left out."""
        kept = [int(i) for i in ids if i != self.end_of_document]
        return self.backend.decode(kept, skip_special_tokens=False)

    def shown(self, ids: Iterable[int]) -> str:
        return self.decode(ids)  # byte-level decoders replace what is no valid UTF-8 by themselves


def load_tokenizer(name: str) -> Tokenizer:
    """`bytes`, or the path of a tokenizer.json; raises InputError when it cannot end documents."""
    if name == "bytes":
        return Bytes()
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            FIELD,
            name,
            "no such file; write bytes, or the path of a tokenizer.json "
            "(`ladder tokenizer train` makes one)",
        )
    import tokenizers  # 50 ms that the byte tokeniser does without

    try:
        raw = path.read_bytes()
        backend = tokenizers.Tokenizer.from_buffer(raw)
    # the Rust library raises bare Exception
    except Exception as error:
        raise InputError(
            FIELD,
            name,
            f"not a Hugging Face tokenizer.json ({error}); `ladder tokenizer train` makes one",
        ) from None
    backend.encode_special_tokens = True  # else "<|endoftext|>" in a text would end the document
    backend.no_truncation()
    backend.no_padding()
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    end = next((e for e in ENDS if e in special), None)
    end_id = None if end is None else backend.token_to_id(end)
    if end_id is None:
        raise InputError(
            FIELD,
            name,
            f"has no special token that ends a document ({', '.join(ENDS)}); add one, or make a "
            "tokeniser that has it with `ladder tokenizer train`",
        )
    return HuggingFace(
        name=name,
        n_vocab=1 + max(backend.get_vocab(with_added_tokens=True).values()),
        end_of_document=end_id,
        fingerprint=hashlib.sha256(raw).hexdigest(),
        backend=backend,
    )


def train_bpe(
    source: SourceSpec, *, vocab: int, out: Path, validation: float = 0.05, field: str = "source"
) -> Tokenizer:
    """Byte-level BPE of exactly `vocab` ids, written to `out`: lossless, same text, same file.

    Raises InputError when `vocab` cannot hold the 256 bytes and the end-of-document token, or the
    text has too few different pairs to fill it. Held-out documents are not read for training.
    """
    if source.kind == "tokens":
        raise InputError(f"{field}.kind", source.kind, "a tokeniser is trained on text; write text")
    if vocab < 257:
        raise InputError(
            "--vocab", vocab, "write at least 257: the bytes and the end-of-document token"
        )
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[ENDS[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_train_texts(source, validation=validation, field=field), trainer)
    if backend.get_vocab_size() < vocab:
        raise InputError(
            "--vocab",
            vocab,
            f"the corpus has only enough text for {backend.get_vocab_size()}; write that",
        )
    out = Path(out).expanduser()
    temporary = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(backend.to_str())
        temporary.replace(out)
    except OSError as error:
        raise disk_error(error, out) from error
    return load_tokenizer(str(out))


def _train_texts(source: SourceSpec, *, validation: float, field: str) -> Iterator[str]:
    # a first pass, outside the generator: errors must not surface inside the Rust trainer
    hashes = [
        identity_hash(hashlib.sha256(d.utf8(field)).digest())
        for d in documents(source, field=field)
    ]
    if not hashes:
        raise InputError(f"{field}.path", str(source.path), "empty corpus: no text; add some")
    (mask_N,) = held_out([np.array(hashes, np.uint64)], share=validation, fields=[field])
    return (
        d.text
        for d, out in zip(documents(source, field=field), mask_N.tolist(), strict=True)
        if not out
    )
