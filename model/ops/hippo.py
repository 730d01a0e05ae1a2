"""Which state matrices do state spaces start from? HiPPO-LegS and its diagonal relatives, float64.

HiPPO-LegS keeps the coefficients of the past in Legendre polynomials stretched over it (Gu et al.
2020); S4 is it as diagonal plus rank one (Gu et al. 2022a), S4D diagonals that resemble it (Gu et
al. 2022b). Host arithmetic: in float32 the eigenvectors are of no use.
"""

import math
from functools import cache
from typing import Literal

import numpy as np

Diagonal = Literal["lin", "inv", "inv2", "quad", "real", "legs"]
B_LARGEST = 2.0  # state-spaces/s4 clips the imaginary part of LegS's input vector here


def legs(order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HiPPO-LegS: A (N, N), B (N), and P (N) with A + P P^T = -1/2 + a skew matrix."""
    n = np.arange(order)
    root = np.sqrt(2.0 * n + 1)
    a_NN = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0)
    return a_NN, root, np.sqrt(n + 0.5)


@cache
def legs_diagonal_plus_rank_one(order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lam, p, b), one of each conjugate pair: LegS in the basis where A + P P^T is diagonal."""
    a_NN, b_N, p_N = legs(order)
    skew_NN = a_NN + np.outer(p_N, p_N) + 0.5 * np.eye(order)
    frequency_N, basis_NN = np.linalg.eigh(-1j * skew_NN)
    half_NN = basis_NN[:, frequency_N > 0]
    lam_N = -0.5 + 1j * frequency_N[frequency_N > 0]
    return lam_N, half_NN.conj().T @ p_N, half_NN.conj().T @ b_N


def diagonal(init: Diagonal, order: int) -> tuple[np.ndarray, np.ndarray]:
    """(a, b), N / 2 complex modes of an S4D initialisation of N = `order` dimensions."""
    n = np.arange(order // 2)
    flat = np.ones(order // 2)
    if init == "real":
        return -(n + 1.0) + 0j, flat
    if init == "legs":
        lam_N, _, b_N = legs_diagonal_plus_rank_one(order)
        # the size alone: the phase of an eigenvector is the solver's choice, and C's is random
        return lam_N, np.minimum(np.abs(b_N), B_LARGEST)
    frequency_N = {
        "lin": math.pi * n,
        "inv": order / math.pi * (order / (2 * n + 1) - 1),
        "inv2": order / math.pi * (order / (n + 1) - 1),
        "quad": (2 * n + 1) ** 2 / math.pi,
    }[init]
    return -0.5 + 1j * frequency_N, flat
