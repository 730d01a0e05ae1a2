"""From which values does a parameter start that is not a matrix? Named draws, frozen like a spec.

An `Init` fills one layer's array. A matrix starts from a normal whose spread its role decides
(model/scaling.py); these are for poles, step sizes, decays, gates and short convolutions, whose
starts are part of an architecture.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Place:
    """Which layer a value is for: `layer` counts from 0 over all `n_layers` of the model."""

    layer: int
    n_layers: int


class Init(ABC):
    """Abstract: the initial value of one layer's parameter."""

    @abstractmethod
    def __call__(
        self, rng: np.random.Generator, shape: tuple[int, ...], place: Place
    ) -> np.ndarray:
        """An array of `shape`, of any float type."""

    def stream(self, path: str) -> str:
        """The name of the random stream: a parameter's own path. Parameters that are parts of one
        draw give the same name, and each makes the whole draw again.
        """
        return path


@dataclass(frozen=True)
class Constant(Init):
    value: float

    def __call__(self, rng, shape, place):
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Normal(Init):
    std: float
    mean: float = 0.0

    def __call__(self, rng, shape, place):
        return self.mean + self.std * rng.standard_normal(shape)


@dataclass(frozen=True)
class Uniform(Init):
    low: float
    high: float

    def __call__(self, rng, shape, place):
        return rng.uniform(self.low, self.high, shape)


@dataclass(frozen=True)
class LogOfUniform(Init):
    """log u with u uniform."""

    low: float
    high: float

    def __call__(self, rng, shape, place):
        return np.log(rng.uniform(self.low, self.high, shape))


@dataclass(frozen=True)
class LogUniform(Init):
    """log u with log u uniform: the logarithm of a step size between `low` and `high`."""

    low: float
    high: float

    def __call__(self, rng, shape, place):
        return rng.uniform(math.log(self.low), math.log(self.high), shape)


@dataclass(frozen=True)
class InverseSoftplusOfLogUniform(Init):
    """x with softplus(x) log-uniform between `low` and `high`, never below `floor` (Mamba's step
    bias).
    """

    low: float
    high: float
    floor: float = 1e-4

    def __call__(self, rng, shape, place):
        step = np.exp(rng.uniform(math.log(self.low), math.log(self.high), shape))
        step = np.maximum(step, self.floor)
        return step + np.log(-np.expm1(-step))


@dataclass(frozen=True)
class Orthogonal(Init):
    """`gain` times an orthogonal matrix: all but the last dim are its rows."""

    gain: float = 1.0

    def __call__(self, rng, shape, place):
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall = rng.standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(tall)
        q = q * np.sign(np.diag(r))
        return (self.gain * (q if rows >= columns else q.T)).reshape(shape)
