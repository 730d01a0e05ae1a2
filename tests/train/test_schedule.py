"""Is the learning rate at every step what the words say? Against exact arithmetic."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.archs import build
from train.paths import put
from train.schedule import hyper, learning_rate
from train.spec import RunSpec, ScheduleSpec

rates = jax.jit(jax.vmap(learning_rate, in_axes=(0, None)))


def reference(schedule: ScheduleSpec, *, peak: float, steps: int) -> list[float]:
    """Step by step, in Python, with the fractions as they were written (0.1 is a tenth)."""
    warm = math.ceil(_exact(schedule.warmup) * steps)
    falling = max(1, math.ceil(_exact(schedule.decay) * steps))
    out = []
    for step in range(steps):
        rise = min(1.0, (step + 1) / warm) if warm else 1.0
        shape = 1.0
        if schedule.kind == "cosine":
            through = min(1.0, max(0.0, (step - warm) / max(1, steps - warm)))
            shape = schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * through)) / 2
        if schedule.kind == "wsd":
            left = min(1.0, (steps - step) / falling)
            shape = schedule.final + (1 - schedule.final) * left
        out.append(peak * rise * shape)
    return out


def _exact(value: float) -> Fraction:
    return Fraction(str(value))


def run(schedule: ScheduleSpec, *, steps: int, peak: float = 3e-3) -> RunSpec:
    base = RunSpec(model=build("dense", 32))
    changes = {"budget.tokens": steps * 256, "budget.batch_tokens": 256, "optim.lr": peak}
    named = {f"schedule.{k}": getattr(schedule, k) for k in ("kind", "warmup", "decay", "final")}
    return put(base, {**changes, **named})


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 30, 1000])
@pytest.mark.parametrize("warmup, decay, final", [(0.05, 0.2, 0.1), (0.0, 1.0, 0.0), (1, 0, 1)])
def test_rates_equal_the_reference(kind, steps, warmup, decay, final):
    schedule = ScheduleSpec(kind=kind, warmup=warmup, decay=decay, final=final)
    spec = run(schedule, steps=steps)
    assert spec.steps == steps
    found = np.asarray(rates(jnp.arange(steps), hyper(spec)))
    # float32 of the peak: the foot of a cosine is what is left of numbers as large as the peak
    expected = reference(schedule, peak=3e-3, steps=steps)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * 3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.1, 0.2, 0.3, 0.7])
def test_fractions_of_a_run_are_whole_steps_as_written(fraction: float):
    """A tenth of 30 steps is 3 steps: rounding to float32 must not make it 4."""
    wrong = []
    for steps in [*range(1, 400), *range(400, 200_000, 997)]:
        schedule = ScheduleSpec(kind="wsd", warmup=fraction, decay=fraction, final=0.0)
        numbers = hyper(run(schedule, steps=steps, peak=1.0))
        whole = math.ceil(_exact(fraction) * steps)
        if {float(numbers["warmup_steps"]), float(numbers["decay_steps"])} != {whole}:
            wrong.append(steps)
    assert not wrong


def test_the_peak_is_reached_and_held_until_the_decay():
    schedule = ScheduleSpec(kind="wsd", warmup=0.1, decay=0.2, final=0.0)
    found = np.asarray(rates(jnp.arange(100), hyper(run(schedule, steps=100, peak=1.0))))
    assert np.all(np.diff(found[:10]) > 0) and found[9] == 1.0
    assert np.all(found[9:81] == 1.0)
    assert np.all(np.diff(found[80:]) < 0) and found[-1] > 0


def test_a_trunk_and_its_branches_share_their_rates_until_the_decay():
    """The rate before the decay depends on no step after it, given the same warm-up steps."""
    long = ScheduleSpec(kind="wsd", warmup=0.05, decay=0.2)
    short = ScheduleSpec(kind="wsd", warmup=0.1, decay=0.2)
    found = [
        np.asarray(rates(jnp.arange(80), hyper(run(s, steps=n))))
        for s, n in ((long, 200), (short, 100))
    ]
    np.testing.assert_array_equal(found[0], found[1])
