"""Which matrices are products of small factors? Three of them, each as the dense matrix it stands
for, and the shuffle between the blocks of one.

Wei et al. 2024: LowRank, BlockDense (block diagonal, then dense) and BlockShuffle (Monarch: two
block diagonals with a transposition after each). Rows are inputs. For a numpy or a jax array alike.
"""

from typing import Any, TypeVar

import numpy as np

Array = TypeVar("Array", bound=Any)


def low_rank_matrix(first_DR: Array, second_RF: Array) -> Array:
    return first_DR @ second_RF


def block_dense_matrix(first_GKR: Array, second_GRF: Array) -> Array:
    G, _, R = first_GKR.shape
    return _block_diagonal(first_GKR) @ second_GRF.reshape(G * R, -1)


def block_shuffle_matrix(first_GKR: Array, second_GRM: Array) -> Array:
    G, K, R = first_GKR.shape
    inner_GNR = shuffle(_block_diagonal(first_GKR).reshape(G * K, G, R)).swapaxes(0, 1)
    return unshuffle((inner_GNR @ second_GRM).swapaxes(0, 1))


def shuffle(h: Array) -> Array:
    """(..., G, R) to the same shape: entry j of the flat (G R) goes to block j mod G."""
    *lead, G, R = h.shape
    return h.reshape(*lead, R, G).swapaxes(-1, -2)


def unshuffle(y: Array) -> Array:
    """(..., G, M) to (..., M G): entry i of block g comes to i G + g."""
    return y.swapaxes(-1, -2).reshape(*y.shape[:-2], -1)


def _block_diagonal(blocks_GKR: Array) -> Array:
    """(G K, G R): each block at its own rows and columns."""
    G, K, R = blocks_GKR.shape
    own_G1G1 = np.eye(G, dtype=blocks_GKR.dtype)[:, None, :, None]
    return (own_G1G1 * blocks_GKR[:, :, None, :]).reshape(G * K, G * R)
