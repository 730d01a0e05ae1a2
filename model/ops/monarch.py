"""What is an order-2 Monarch matrix here? Two block-diagonal products with a permutation between.

Fu et al. 2023 (arXiv 2310.12109). The discrete Fourier transform of N = a b is one, up to the order
of frequencies: a matrix of a x a on columns, phases, one of b x b on rows; as products of matrices
it costs N (a + b) instead of N log N and runs where those are fast. A projection is one with
weights that are learned, D (a + b) of them instead of D^2.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from model.ops.long_convolution import Transform


def factors(n: int) -> tuple[int, int]:
    """(a, b) with a b = n, a <= b, as near to each other as n allows."""
    a = math.isqrt(n)
    while n % a:
        a -= 1
    return a, n // a


def monarch_dft(x: jax.Array) -> jax.Array:
    """Frequencies (..., a, b) of real x (..., a b): frequency f + a g at entry (f, g)."""
    a, b = factors(x.shape[-1])
    columns_AA, phase_AB, rows_BB = _tables(a, b, x.dtype)
    x = x.reshape(*x.shape[:-1], a, b)
    # products of reals: there is no faster unit for complex ones
    re, im = (jnp.einsum("fs,...st->...ft", f, x) for f in (columns_AA.real, columns_AA.imag))
    return _times(jax.lax.complex(re, im) * phase_AB, rows_BB)


def monarch_inverse(spectrum: jax.Array, length: int) -> jax.Array:
    """Real x (..., length) of the frequencies that `monarch_dft` gives."""
    a, b = spectrum.shape[-2:]
    columns_AA, phase_AB, rows_BB = _tables(a, b, spectrum.real.dtype)
    h = _times(spectrum, rows_BB.conj()) * phase_AB.conj() / length
    # the real part of conj(F_a) h
    x = jnp.einsum("fs,...ft->...st", columns_AA.real, h.real)
    x = x + jnp.einsum("fs,...ft->...st", columns_AA.imag, h.imag)
    return x.reshape(*spectrum.shape[:-2], length)


def _flops(length: int) -> float:
    a, b = factors(length)
    return length * (4.0 * a + 8.0 * b)


MONARCH = Transform(forward=monarch_dft, inverse=monarch_inverse, flops=_flops)


def _times(x: jax.Array, matrix_BB: jax.Array) -> jax.Array:
    """Complex x (..., b) on a complex matrix, as one product of reals."""
    re_BB, im_BB = matrix_BB.real, matrix_BB.imag
    both = jnp.block([[re_BB, im_BB], [-im_BB, re_BB]])
    y = jnp.concatenate([x.real, x.imag], axis=-1) @ both
    return jax.lax.complex(*jnp.split(y, 2, axis=-1))


def _tables(a: int, b: int, dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
    """F_a, the phases between the two products, F_b."""

    def turn(rows: int, columns: int, period: int) -> jax.Array:
        # the product of indices modulo the period, so that large ones keep their digits
        steps = np.outer(np.arange(rows), np.arange(columns)) % period
        return jnp.asarray(np.exp(-2j * np.pi * steps / period), jnp.result_type(dtype, 1j))

    return turn(a, a, a), turn(a, b, a * b), turn(b, b, b)
