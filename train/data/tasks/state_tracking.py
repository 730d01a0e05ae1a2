"""State tracking: elements of a group, and after each of them their product so far.

Parity is the group of two elements (Grazzi et al. 2024, arXiv 2411.12537, for what linear
recurrences need to track it); S3 and S5 are the permutations of three and five things, the word
problem of Merrill et al. 2024 (arXiv 2404.08819), where S5 is beyond constant depth. Token t is
the t-th element, uniform over the group; its target is (element t) o ... o (element 1), an id of
the same group with 0 the identity. Every position asks. Guessing is right once in 2, 6, 120.
"""

from functools import lru_cache
from itertools import permutations
from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass

from parallelism.axes import SPEC
from train.data.task import TaskSpec

THINGS = {"parity": 2, "s3": 3, "s5": 5}  # S2 is parity


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Spec(TaskSpec):
    kind: Literal["state_tracking"] = "state_tracking"  # pyright: ignore[reportIncompatibleVariableOverride]
    group: Literal["parity", "s3", "s5"] = "parity"

    @property
    def n_vocab(self) -> int:
        return len(products(self.group))

    def n_bits(self, seq_len: int) -> int:
        return seq_len

    def make(
        self, bits_BN: np.ndarray, *, seq_len: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table = products(self.group)
        # a remainder of 64 bits by 120 is even to one part in 10^17
        elements_BT = (bits_BN % np.uint64(len(table))).astype(np.int64)
        states_BT = np.empty_like(elements_BT)
        state_B = np.zeros(len(bits_BN), np.int64)
        for t in range(seq_len):
            state_B = table[elements_BT[:, t], state_B]
            states_BT[:, t] = state_B
        return elements_BT, states_BT, np.ones(elements_BT.shape)


@lru_cache
def products(group: str) -> np.ndarray:
    """(n, n) ids of a o b, "b, then a", with elements in the order of itertools.permutations."""
    elements = list(permutations(range(THINGS[group])))
    number = {element: i for i, element in enumerate(elements)}
    return np.array([[number[tuple(a[i] for i in b)] for b in elements] for a in elements])
