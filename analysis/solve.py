"""How is a law fitted? One batched solver: starts, bootstraps and folds are rows of one compiled
float64 program.

Minimises sum_i w_i huber(f_i(theta) - y_i; delta), f the output on its scale (the log of a loss).
A hold-out is a zero weight and a bootstrap a count, so every problem on the same rows has the
same shape and compiles once.
Levenberg-Marquardt on the exact Huber gradient: the model Hessian is Newton's (rows inside delta)
plus lambda times that of reweighted least squares (which majorises the objective, so enough
lambda always descends). Newton's part ends it fast, the other begins it safely.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from analysis.coordinates import Coordinates, features, output_of
from analysis.law import Law

MAX_ITERATIONS = 300  # guess: the Chinchilla fit takes 47 (median) to 95 from random starts
TOLERANCE = (
    1e-8  # of the scaled gradient: the cosine between residuals and any parameter's direction
)
SUFFICIENT = 1e-3  # of the decrease that the model promised (Nocedal and Wright 2006, section 4.1)
ROWS_PER_CALL = (
    64 * 512
)  # problems x points of one compiled call: fits a core's cache, bounds the memory
ROUND = 32  # iterations after which searches that have ended make room; guess
WRITTEN_OUT = 8  # parameters up to which a step's linear system is eliminated in line
# share of the largest curvature that damps a direction without any: its step would be unbounded
LEVENBERG = 1e-6
WALL = (
    1e-6  # stiffness of the soft bounds per row: far below the curvature of an identified parameter
)


@dataclass(frozen=True)
class Prior:
    """A normal belief about fit coordinates, in units of the objective: `precision_p` is the
    variance of the noise over that of the belief. The mean (p,), or (P, p) one a problem."""

    mean_Pp: np.ndarray
    precision_p: np.ndarray


@dataclass(frozen=True)
class Solutions:
    """P solved problems of p parameters."""

    theta_Pp: np.ndarray
    objective_P: np.ndarray  # sum of weighted Huber terms; inf where the law gave no finite loss
    converged_P: np.ndarray
    gram_Ppp: np.ndarray  # J^T W J of the log predictions, for identifiability


def solve(
    where: Coordinates,
    x: Mapping[str, np.ndarray],
    *,
    y: np.ndarray,
    weights: np.ndarray,
    starts_Pp: np.ndarray,
    delta: float | np.ndarray,
    prior: "Prior | None" = None,
) -> Solutions:
    """Solve P problems; `x` columns or features, `y` outputs on their scale (M,) or (P, M),
    `weights` (M,) or (P, M), `delta` scalar or (P,), `prior` a belief about the parameters."""
    problems, p = starts_Pp.shape
    rows = y.shape[-1]
    seen = dict(features(where.law, x))
    y_PM, w_PM = (np.broadcast_to(a, (problems, rows)) for a in (y, weights))
    delta_P = np.broadcast_to(np.asarray(delta, float), problems)
    bounds = np.stack(where.bound)
    mean_Pp = np.broadcast_to(np.zeros(p) if prior is None else prior.mean_Pp, (problems, p))
    precision = np.zeros(p) if prior is None else prior.precision_p
    # a fixed size, so that a fit's starts, bootstraps and folds share one compilation
    size = int(np.clip(ROWS_PER_CALL // rows, 1, 64))

    held = [np.array(a) for a in _at_start(starts_Pp)]
    out: list[np.ndarray] = []
    workers = min(8, _cores())
    with ThreadPoolExecutor(workers) as pool:
        left_P = np.arange(problems)
        # few problems run to their end at once; of many, those that end make room for the rest
        iterations = ROUND if problems > size else MAX_ITERATIONS
        while len(left_P):

            def part(first: int, left_P: np.ndarray = left_P) -> tuple[np.ndarray, list[Any]]:
                own_P = left_P[first : first + size]
                take = np.resize(own_P, size)  # a fixed shape: the last batch repeats its own
                with jax.enable_x64(True):
                    given = (
                        [a[take] for a in held],
                        np.asarray(y_PM[take], float),
                        np.asarray(w_PM[take], float),
                        delta_P[take],
                        mean_Pp[take],
                        precision,
                        seen,
                        where.centre,
                        bounds,
                    )
                    state, ends = _solve_batch(*given, iterations=iterations, law=where.law)
                    return own_P, [np.asarray(a)[: len(own_P)] for a in (*state, *ends)]

            firsts = range(0, len(left_P), size)
            head = [part(0)]  # compiles once, before the threads start
            for own_P, values in head + list(pool.map(part, firsts[1:])):
                state, ends = values[: len(held)], values[len(held) :]
                for whole, new in zip(held, state, strict=True):
                    whole[own_P] = new
                out = out or [np.empty((problems, *e.shape[1:]), e.dtype) for e in ends]
                for whole, new in zip(out, ends, strict=True):
                    whole[own_P] = new
            done_P, count_P = held[-1], held[-2]
            left_P = left_P[~done_P[left_P] & (count_P[left_P] < MAX_ITERATIONS)]
    objective_P, converged_P, gram_Ppp = out
    objective_P = np.where(np.isfinite(objective_P), objective_P, np.inf)
    return Solutions(held[0], objective_P, converged_P, gram_Ppp)


def _at_start(starts_Pp: np.ndarray) -> tuple[np.ndarray, ...]:
    """The state of P searches that have evaluated nothing; the first pass evaluates the start."""
    P, p = starts_Pp.shape
    return (
        np.asarray(starts_Pp, float),  # best point
        np.asarray(starts_Pp, float),  # trial
        np.zeros(P),  # decrease that the model promises of the trial
        np.full(P, np.inf),  # objective, gradient, Newton and reweighted Hessians at the best point
        np.zeros((P, p)),
        np.zeros((P, p, p)),
        np.zeros((P, p, p)),
        np.full(P, 0.05),  # damping
        np.zeros(P, int),  # iterations
        np.zeros(P, bool),  # done
    )


def _cores() -> int:
    """The cores this process may use, or all where the system cannot tell."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        return os.cpu_count() or 1


def _terms(
    theta: Any,
    y: Any,
    w: Any,
    delta: Any,
    mean: Any,
    precision: Any,
    x: Any,
    centre: Any,
    bounds: Any,
    law: Law,
) -> Any:
    """Objective, gradient, Newton and reweighted Hessians at one point; J (M, p)."""

    def prediction(t: Any) -> Any:
        f = law.output.forward(output_of(law, t, x, centre))
        return f, f

    J_Mp, f_M = jax.jacfwd(prediction, has_aux=True)(theta)
    # a row of weight 0 must not poison the sums with its NaN
    live_M = w > 0
    r_M = jnp.where(live_M, f_M - y, 0.0)
    J_Mp = jnp.where(live_M[:, None], J_Mp, 0.0)
    size_M = jnp.abs(r_M)
    inside_M = size_M <= delta
    huber_M = jnp.where(inside_M, 0.5 * r_M * r_M, delta * (size_M - 0.5 * delta))
    wall = jnp.clip(theta - bounds[1], 0.0) + jnp.clip(theta - bounds[0], None, 0.0)
    stiff = WALL * jnp.sum(w)
    off = theta - mean
    wall_pp = jnp.diag(jnp.where(wall != 0, stiff, 0.0) + precision)
    objective = (
        jnp.sum(w * huber_M) + 0.5 * stiff * jnp.sum(wall**2) + 0.5 * jnp.sum(precision * off**2)
    )
    gradient = J_Mp.T @ (w * jnp.clip(r_M, -delta, delta)) + stiff * wall + precision * off
    newton = (J_Mp * (w * inside_M)[:, None]).T @ J_Mp + wall_pp
    robust_M = jnp.where(inside_M, 1.0, delta / jnp.maximum(size_M, 1e-300))
    reweighted = (J_Mp * (w * robust_M)[:, None]).T @ J_Mp + wall_pp
    return (objective, gradient, newton, reweighted), J_Mp


def _solve_one(state: Any, y: Any, w: Any, *rest: Any, iterations: Any, law: Law) -> Any:
    p = len(law.params)
    # outputs carry rounding errors of 1e-16 of their size, so an objective below this is zero
    zero = jnp.sum(w * jnp.maximum(1.0, y * y)) * 1e-30

    def scaled_gradient(terms: Any) -> Any:
        return jnp.max(jnp.abs(terms[1]) / jnp.sqrt(jnp.diag(terms[3]) * terms[0] + 1e-300))

    def is_flat(terms: Any) -> Any:
        return (scaled_gradient(terms) < TOLERANCE) | (terms[0] < zero)

    def body(state: Any) -> Any:
        theta, trial, promised, *terms, damping, count, _ = state
        new, _ = _terms(trial, y, w, *rest, law=law)
        # a step that mirrors the residuals lowers nothing, and rounding alone may call it better
        better = new[0] < terms[0] - SUFFICIENT * promised
        damping = jnp.clip(jnp.where(better, damping * 0.2, damping * 5.0), 1e-10, 1e9)
        theta = jnp.where(better, trial, theta)
        terms = tuple(jnp.where(better, a, b) for a, b in zip(new, terms, strict=True))
        # past this damping no step improves: rounding has been reached
        done = is_flat(terms) | (damping > 1e8) | ~jnp.isfinite(terms[0])
        _, gradient, newton, reweighted = terms
        stiff_p = jnp.diag(reweighted)
        H = newton + damping * (reweighted + jnp.diag(stiff_p + LEVENBERG * jnp.max(stiff_p)))
        unit = 1 / jnp.sqrt(jnp.diag(H) + 1e-300)
        scaled = H * unit * unit[:, None] + 1e-15 * jnp.eye(p)
        step = -unit * _positive_solve(scaled, unit * gradient)
        step = jnp.clip(step, -3.0, 3.0)  # logs: a factor of 20 at most
        promised = jnp.clip(-(gradient @ step + 0.5 * step @ H @ step), 0.0)
        return theta, theta + step, promised, *terms, damping, count + 1, done

    limit = jnp.minimum(state[-2] + iterations, MAX_ITERATIONS)
    state = jax.lax.while_loop(lambda s: ~s[-1] & (s[-2] < limit), body, tuple(state))
    theta, terms = state[0], state[3:7]
    # a stall at rounding still counts as converged while the gradient is small for its residuals
    converged = (scaled_gradient(terms) < 1e3 * TOLERANCE) | (terms[0] < zero)
    J_Mp = _terms(theta, y, w, *rest, law=law)[1]
    gram = (J_Mp * w[:, None]).T @ J_Mp
    return state, (terms[0], converged & jnp.isfinite(terms[0]), gram)


def _positive_solve(H_pp: Any, g_p: Any) -> Any:
    """H^-1 g of a positive definite H by elimination, written out where p is small.

    A call of LAPACK for each of a batch's problems takes longer than the five terms of a law.
    """
    p = len(g_p)
    if p > WRITTEN_OUT:
        return jnp.linalg.solve(H_pp, g_p)
    rows = [[H_pp[i, j] for j in range(p)] + [g_p[i]] for i in range(p)]
    for i in range(p):
        # rounding may take a pivot of a nearly singular H below zero
        pivot = 1 / jnp.maximum(rows[i][i], 1e-18)
        for k in range(i + 1, p):
            factor = rows[k][i] * pivot
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    out: list[Any] = [None] * p
    for i in reversed(range(p)):
        left = rows[i][p] - sum((rows[i][j] * out[j] for j in range(i + 1, p)), start=0.0)
        out[i] = left / jnp.maximum(rows[i][i], 1e-18)
    return jnp.stack(out)


@partial(jax.jit, static_argnames="law")
def _solve_batch(
    state: Any,
    y: Any,
    w: Any,
    delta: Any,
    mean: Any,
    precision: Any,
    x: Any,
    centre: Any,
    bounds: Any,
    *,
    iterations: Any,
    law: Law,
) -> Any:
    one = partial(_solve_one, iterations=iterations, law=law)
    return jax.vmap(one, in_axes=(0, 0, 0, 0, 0, None, None, None, None))(
        state, y, w, delta, mean, precision, x, centre, bounds
    )
