"""What is a law, as a value? A function, its named parameters, its inputs, its source.

A law predicts a positive number (a loss) from inputs. Its parameters are declared once with where
to start looking and how far they may go; the coordinates in which they are fitted follow from the
declaration. Fitting happens in logs of positive parameters, and an amplitude is fitted as the
size of its term at the centre of the data, because log A and alpha are almost perfectly
correlated while the term's size at the centre and alpha are not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from parallelism.errors import InputError

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Input:
    """An input column and its unit; the law sees it as `x["N"]` and its natural logarithm as
    `x["ln_N"]`."""

    name: str
    unit: str


@dataclass(frozen=True)
class Param:
    """One parameter: its name, fit coordinate, first guesses, and the bounds behind which a fit
    is not believed.

    `kind`: `positive` is fitted in logs, `real` as it is, `amplitude` as the log of its term at
    the data's centre. `relative`: ranges are multiples of the smallest loss. Bounds are soft: a
    quadratic wall outside, nothing inside.
    """

    name: str
    kind: Literal["positive", "real", "amplitude"]
    start: tuple[float, float]
    bound: tuple[float, float]
    relative: bool = False
    of: str | None = None  # amplitude: the input of its term
    exponent: str | None = None  # amplitude: the parameter that is its term's exponent


def floor(name: str) -> Param:
    """An irreducible loss: between a twentieth of the smallest loss and all of it."""
    return Param(name, "positive", (0.2, 0.99), (1e-4, 1.5), relative=True)


def amplitude(name: str, *, of: str, exponent: str) -> Param:
    """`name / of**exponent`: fitted as the size of this term at the centre of the data."""
    return Param(
        name, "amplitude", (0.01, 1.0), (1e-5, 20.0), relative=True, of=of, exponent=exponent
    )


def exponent(name: str, *, start: tuple[float, float] = (0.05, 1.5)) -> Param:
    """A positive exponent; published ones lie between 0.03 and 3."""
    return Param(name, "positive", start, (5e-3, 10.0))


def positive(name: str, *, start: tuple[float, float]) -> Param:
    return Param(name, "positive", start, (start[0] * 1e-4, start[1] * 1e4))


def real(name: str, *, start: tuple[float, float]) -> Param:
    width = start[1] - start[0]
    return Param(name, "real", start, (start[0] - 20 * width, start[1] + 20 * width))


@dataclass(frozen=True, kw_only=True)
class Law:
    """A family of curves. `predict(p, x)` returns the loss from parameters and inputs, with
    `jax.numpy` only."""

    name: str
    equation: str
    source: str
    inputs: tuple[Input, ...]
    params: tuple[Param, ...]
    predict: Callable[[Values, Values], Any]
    domain: str = ""  # for people: where the law was established

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.params)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(i.name for i in self.inputs)


@dataclass(frozen=True)
class Coordinates:
    """Where the data are: what turns a law's declaration into numbers to search over.

    `centre` (I,): mean log of each input; `scale`: the smallest loss; the other fields (p,) are
    in fit coordinates.
    """

    law: Law
    centre: np.ndarray
    scale: float

    def _range(self, which: Literal["start", "bound"]) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for p in self.law.params:
            low, high = p.start if which == "start" else p.bound
            if p.relative:
                low, high = low * self.scale, high * self.scale
            rows.append((low, high) if p.kind == "real" else (np.log(low), np.log(high)))
        low_p, high_p = np.array(rows, float).T
        return low_p, high_p

    @property
    def start(self) -> tuple[np.ndarray, np.ndarray]:
        return self._range("start")

    @property
    def bound(self) -> tuple[np.ndarray, np.ndarray]:
        return self._range("bound")

    def natural(self, theta_Sp: np.ndarray) -> dict[str, np.ndarray]:
        """Named parameters from fit coordinates; leading shape kept."""
        # plain numpy: each operation of jax outside a compiled function would be compiled by itself
        return natural(self.law, np.moveaxis(theta_Sp, -1, 0), self.centre, exp=np.exp)

    def coordinates(self, params: Mapping[str, float]) -> np.ndarray:
        """Fit coordinates of named parameters: the inverse of `natural`."""
        out = []
        for p in self.law.params:
            value = params[p.name]
            if p.kind == "real":
                out.append(value)
                continue
            log_value = np.log(value)
            if p.kind == "amplitude" and p.of is not None and p.exponent is not None:
                log_value -= params[p.exponent] * self.centre[self.law.input_names.index(p.of)]
            out.append(log_value)
        return np.array(out, float)

    def starts(self, count: int, *, seed: int) -> np.ndarray:
        """(count, p) points that fill the start box evenly: an additive recurrence, rotated by
        the seed.

        Steps are powers of the root of g^(p+1) = g + 1 (Roberts 2018, "the unreasonable
        effectiveness of quasirandom sequences"): nearly as even as Sobol for p <= 12 without its
        tables.
        """
        p = len(self.law.params)
        g = 2.0
        for _ in range(60):
            g = (1 + g) ** (1 / (p + 1))
        steps = g ** -np.arange(1, p + 1)
        offset = np.random.default_rng(seed).random(p)
        unit_Kp = (offset + np.arange(1, count + 1)[:, None] * steps) % 1.0
        low, high = self.start
        return low + unit_Kp * (high - low)


def centred(law: Law, x: Mapping[str, np.ndarray], loss: np.ndarray) -> Coordinates:
    centre = np.array([np.log(x[name]).mean() for name in law.input_names])
    return Coordinates(law, centre, float(np.min(loss)))


def natural(
    law: Law, theta: Any, centre: Any, *, exp: Callable[[Any], Any] = jnp.exp
) -> dict[str, Any]:
    """Named parameters from the p fit coordinates along the first axis of `theta`."""
    named: dict[str, Any] = {}
    later = []
    for i, p in enumerate(law.params):
        if p.kind == "real":
            named[p.name] = theta[i]
        elif p.kind == "positive":
            named[p.name] = exp(theta[i])
        else:
            later.append((i, p))
    for i, p in later:
        where = centre[law.input_names.index(p.of)]
        named[p.name] = exp(theta[i] + named[p.exponent] * where)
    return {name: named[name] for name in law.names}


def inputs_of(law: Law, log_x: Sequence[Any]) -> dict[str, Any]:
    x: dict[str, Any] = {}
    for name, log_value in zip(law.input_names, log_x, strict=True):
        x[name], x[f"ln_{name}"] = jnp.exp(log_value), log_value
    return x


@partial(jax.jit, static_argnames="law")
def _evaluate(theta_Sp: Any, log_x_IQ: Any, centre: Any, *, law: Law) -> Any:
    def one(theta: Any) -> Any:
        out_Q = law.predict(natural(law, theta, centre), inputs_of(law, log_x_IQ))
        return jnp.broadcast_to(out_Q, log_x_IQ.shape[1:])

    return jax.vmap(one)(theta_Sp)


def evaluate(where: Coordinates, theta_Sp: np.ndarray, x: Mapping[str, Any]) -> np.ndarray:
    """(S, Q) losses of S parameter sets at Q points, float64."""
    log_x_IQ = np.stack(
        [np.log(np.atleast_1d(np.asarray(x[n], float))) for n in where.law.input_names]
    )
    with jax.enable_x64(True):
        return np.asarray(_evaluate(np.atleast_2d(theta_Sp), log_x_IQ, where.centre, law=where.law))


def check(law: Any, *, field: str) -> Law:
    """A law that can be evaluated, or an InputError: users write these by hand."""
    if not isinstance(law, Law):
        raise InputError(
            field, f"a {type(law).__name__}", "name an object of type analysis.law.Law"
        )
    names = law.names
    if len(set(names)) != len(names) or not names:
        raise InputError(field, f"parameters {list(names)}", "declare each parameter once")
    for p in law.params:
        if p.kind == "amplitude" and (p.of not in law.input_names or p.exponent not in names):
            raise InputError(
                field, f"amplitude {p.name} of {p.of}", "name an input and an exponent of this law"
            )
    middle = Coordinates(law, np.zeros(len(law.inputs)), 1.0)
    low, high = middle.start
    try:
        out = evaluate(middle, (low + high)[None] / 2, {n: np.ones(3) for n in law.input_names})
    except Exception as error:  # a user's function can raise anything
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            field, f"predict raised {said}", "write predict(p, x) with jax.numpy"
        ) from None
    if out.shape != (1, 3):
        raise InputError(
            field, f"predict returned shape {out.shape[1:]}", "return one loss for each point"
        )
    return law
