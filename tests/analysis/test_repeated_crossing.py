"""Repetition that stops paying, and families that change places under it."""

from dataclasses import dataclass

import numpy as np
import pytest

from analysis.coordinates import Coordinates, centred
from analysis.laws.chinchilla import LAW as CHINCHILLA
from analysis.laws.repetition import LAWS
from analysis.repeated_crossing import paying_epochs, repeated_crossing
from parallelism.errors import InputError

LAW = {law.name: law for law in LAWS}["repetition_data"]
AR = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37, "R_D": 15.0}
# sixteen times the compute for the same loss, and a half-life of tokens thirty times as long
DIFFUSION = AR | {"A": 480.0 * 4**0.35, "B": 2100.0 * 4**0.37, "R_D": 500.0}


@dataclass(frozen=True)
class Draws:
    where: Coordinates
    theta_p: np.ndarray
    samples_Sp: np.ndarray


def drawn(params, *, spread=0.0, seed=0, law=LAW):
    x = {name: np.array([1e9, 1e10]) for name in law.input_names}
    where = centred(law, x, np.ones(2))
    theta = where.coordinates(params)
    rng = np.random.default_rng(seed)
    samples = theta + spread * rng.standard_normal((40, len(theta)))
    return Draws(where, theta, samples)


def worth(D, U, R):
    """Tokens as if new, one point at a time."""
    return D if D <= U else U + U * R * (1 - np.exp(-(D / U - 1) / R))


def loss(p, N, D, U):
    return p["E"] + p["A"] / N ** p["alpha"] + p["B"] / worth(D, U, p["R_D"]) ** p["beta"]


def best(p, C, U):
    N = np.geomspace(1e6, 1e13, 20001)
    return min(loss(p, n, C / 6 / n, U) for n in N)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_tokens_stop_paying_where_the_derivative_of_the_definition_says(share):
    found = paying_epochs(drawn(AR), N=1e9, U=1e9, share=share)
    assert found is not None

    def ratio(epochs):
        """Gain of a repeated token over that of a new one at the same D."""
        value = worth(1e9 * epochs, 1e9, AR["R_D"]) / 1e9
        fading = np.exp(-(epochs - 1) / AR["R_D"])
        return fading * (value / epochs) ** -(AR["beta"] + 1)

    assert ratio(found.value) == pytest.approx(share, rel=1e-3)
    assert found.lo == pytest.approx(found.value) == found.hi


def test_repetition_that_is_free_always_pays():
    assert paying_epochs(drawn(AR | {"R_D": 1e9}), N=1e9, U=1e9) is None


def test_families_change_places_where_a_search_over_sizes_says():
    found = repeated_crossing(drawn(AR), drawn(DIFFUSION), unique=1e9, flops=(1e19, 1e23))
    below, above = found["at"] * 0.97, found["at"] * 1.03
    assert best(AR, below, 1e9) < best(DIFFUSION, below, 1e9)
    assert best(AR, above, 1e9) > best(DIFFUSION, above, 1e9)
    assert found["probability"] == 1.0 and found["is"] == "before the target"
    assert found["epochs"][0] > 1 and found["epochs"][1] > 1


def test_more_unique_tokens_put_the_crossing_off_until_there_is_none():
    pair = drawn(AR), drawn(DIFFUSION)
    few, more = (repeated_crossing(*pair, unique=u, flops=(1e18, 1e24)) for u in (1e9, 3e9))
    assert more["at"] > 4 * few["at"]
    none = repeated_crossing(*pair, unique=1e14, flops=(1e19, 1e22))
    assert none["at"] is None and none["probability"] == 0.0 and none["epochs"] is None


def test_doubt_about_the_laws_is_doubt_about_the_crossing():
    pair = (drawn(AR, spread=0.004), drawn(DIFFUSION, spread=0.004, seed=1))
    found = repeated_crossing(*pair, unique=1e9, flops=(1e19, 1e24))
    assert found["lo"] < 0.9 * found["at"] < 1.1 * found["at"] < found["hi"]


def test_other_laws_and_senseless_numbers_are_refused():
    plain = drawn({k: v for k, v in AR.items() if k != "R_D"}, law=CHINCHILLA)
    with pytest.raises(InputError, match="N, D and U"):
        paying_epochs(plain, N=1e9, U=1e9)
    with pytest.raises(InputError, match="share"):
        paying_epochs(drawn(AR), N=1e9, U=1e9, share=2.0)
    with pytest.raises(InputError, match="flops"):
        repeated_crossing(drawn(AR), drawn(AR), unique=1e9, flops=(1e22, 1e20))
    with pytest.raises(InputError, match="unique"):
        repeated_crossing(drawn(AR), drawn(AR), unique=-1.0, flops=(1e20, 1e22))
