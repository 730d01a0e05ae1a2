"""What is a generated source? A task that turns random bits into rows with answers.

A task is one file in tasks/, or anybody's module: its `Spec` has the task's knobs, says which
sequence lengths it can fill, and makes rows from uniform 64-bit numbers. A row is a function of
its number alone (counter-based bits, the same on every machine and numpy), so the order of rows,
resuming and sharing among processes are those of every other source. The loss and the accuracy
ask for the answers only.
"""

import hashlib
import importlib
import json
import pkgutil
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as frozen
from pydantic_core import PydanticCustomError

from parallelism.axes import SPEC
from parallelism.errors import nearest
from train.data.rows import Batch
from train.data.windows import ValueSource

# Rows of the two sides: practically endless for training, what an evaluation can want of the other.
# A training row and a held-out one are drawn apart; of a task with few different rows some agree.
TRAIN, HELD_OUT = "train", "held out"
N_ROWS = {TRAIN: 2**28, HELD_OUT: 2**14}


@frozen(frozen=True, kw_only=True, config=SPEC)
class TaskSpec:
    """Abstract: a generated source's own knobs."""

    kind: str
    weight: float = Field(default=1.0, gt=0)  # share of rows in a mixture, relative to the others

    gives: ClassVar[str] = "answers"  # which kind of rows, as objectives take them
    spells: ClassVar[bool] = False  # whether its ids are bytes of text, as of the tokeniser `bytes`

    @property
    def n_vocab(self) -> int:
        """Ids of the task: 0 up to this."""
        raise NotImplementedError

    def check(self, seq_len: int) -> None:
        """Raises ValueError, with what to write instead, for a length that cannot be filled."""

    def n_bits(self, seq_len: int) -> int:
        """Uniform 64-bit numbers that one row is made of."""
        raise NotImplementedError

    def make(
        self, bits_BN: np.ndarray, *, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, targets (B, T), and weights (B, T): 1 where the target is an answer."""
        raise NotImplementedError

    def rows(self, bits_BN: np.ndarray, *, seq_len: int, source_len: int) -> Any:
        """The batch, of rows that are one document each; `source_len` is that of pairs."""
        tokens_BT, targets_BT, weights_BT = self.make(bits_BN, seq_len=seq_len)
        return Batch(
            np.ascontiguousarray(tokens_BT, np.int32),
            np.ascontiguousarray(targets_BT, np.int32),
            np.zeros(tokens_BT.shape, np.int32),
            np.ascontiguousarray(weights_BT, np.float32),
        )

    @property
    def fingerprint(self) -> str:
        tree = TypeAdapter(type(self)).dump_python(self, mode="json")
        del tree["weight"]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TaskRows:
    """One side of a task: rows by number, without end in practice."""

    task: TaskSpec
    seq_len: int
    side: str
    source_len: int = 0  # of pairs
    text_bytes: None = None  # a task is no text

    @property
    def n_rows(self) -> int:
        return N_ROWS[self.side]

    @property
    def n_documents(self) -> int:
        return self.n_rows

    @property
    def n_tokens(self) -> int:
        return self.n_rows * self.seq_len

    @property
    def n_predicted(self) -> int:
        raise NotImplementedError("a task has no text bytes to share among its answers")

    def read(self, rows_B: np.ndarray) -> Any:
        """The batch of the rows with these numbers, in their order."""
        n = self.task.n_bits(self.seq_len)
        bits_BN = uniform_bits(f"{self.task.kind} {self.side}", rows_B, n)
        return self.task.rows(bits_BN, seq_len=self.seq_len, source_len=self.source_len)


def uniform_bits(stream: str, rows_B: np.ndarray, n: int) -> np.ndarray:
    """Uniform numbers (B, n) uint64 of rows by their number: SplitMix64 (Steele et al. 2014), one
    stream a row."""
    key = np.frombuffer(hashlib.sha256(stream.encode()).digest()[:8], np.uint64)
    start_B = _mixed(np.asarray(rows_B, np.uint64) + key)
    step_N = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mixed(start_B[:, None] + step_N)


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def fractions(bits: np.ndarray) -> np.ndarray:
    """Uniform numbers in (0, 1), float64."""
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


# files here are kinds of sources: tasks, and series of real numbers
ROOMS = ("train.data.tasks", "train.data.values")


def names() -> list[str]:
    """The kinds that have a file of their own."""
    return sorted(m.name for room in ROOMS for m in pkgutil.iter_modules(_path(room)))


def _path(room: str) -> Any:
    return importlib.import_module(room).__path__


def resolve(kind: str, *, others: tuple[str, ...]) -> Any:
    """The Spec of a kind: of a file in tasks/ or values/, or of a dotted module of the user's
    own.
    """
    held = [room for room in ROOMS if kind in {m.name for m in pkgutil.iter_modules(_path(room))}]
    name = kind if "." in kind else f"{(held or ROOMS)[0]}.{kind}"
    hint = {"hint": nearest(kind, [*others, *names()])}
    unknown = "unknown kind; {hint}, or the dotted name of a module of your own"
    if not all(part.isidentifier() for part in name.split(".")):
        raise PydanticCustomError("unknown_kind", unknown, hint)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # the file exists, and lacks a package of its own
        raise PydanticCustomError("unknown_kind", unknown, hint) from None
    spec = vars(module).get("Spec")
    if not (isinstance(spec, type) and issubclass(spec, TaskSpec | ValueSource)):
        raise PydanticCustomError(
            "unknown_kind",
            "module {name} has no Spec that is a TaskSpec or a ValueSource, so it is no source; "
            "{hint}",
            {"name": name, **hint},
        )
    return spec
