"""What is the learning rate at a step? A pure function of arrays, so one compilation serves every
schedule.
"""

import math
from collections.abc import Mapping
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from train.spec import RunSpec

COSINE, WSD, CONSTANT = range(3)
KINDS = {"cosine": COSINE, "wsd": WSD, "constant": CONSTANT}
Hyper = Mapping[str, jax.Array]


def hyper(spec: RunSpec) -> dict[str, np.ndarray]:
    """Every number of a run that enters the compiled step as data, as 0-d arrays."""
    floats = {
        "lr": spec.optim.lr,
        "weight_decay": spec.optim.weight_decay,
        "beta1": spec.optim.beta1,
        "beta2": spec.optim.beta2,
        "eps": spec.optim.eps,
        "clip_norm": spec.optim.clip_norm,
        "steps": spec.steps,
        "warmup_steps": _whole_steps(spec.schedule.warmup, spec.steps),
        "decay_steps": _whole_steps(spec.schedule.decay, spec.steps),
        "final": spec.schedule.final,
    }
    floats |= {f"penalty/{name}": weight for name, weight in spec.model.penalties().items()}
    out = {name: np.asarray(value, np.float32) for name, value in floats.items()}
    return {**out, "kind": np.asarray(KINDS[spec.schedule.kind], np.int32)}


def _whole_steps(fraction: float, steps: int) -> int:
    """The fraction as it was written, rounded up: 0.3 of 50 is 15, though 0.3 in float32 is more
    than three tenths.
    """
    return math.ceil(Fraction(str(fraction)) * steps)


def learning_rate(step: jax.Array, hyper: Hyper) -> jax.Array:
    """Learning rate of the update made at `step` (0-based) out of hyper["steps"].

    Linear warm-up over `warmup` of the run, then cosine to `final`, or the peak held and then
    linear to `final` over the last `decay` (warm-up-stable-decay), or constant. Multiplied by the
    peak.
    """
    step, steps = step.astype(jnp.float32), hyper["steps"]
    warm = hyper["warmup_steps"]
    rise = jnp.minimum(1.0, (step + 1) / jnp.maximum(warm, 1.0))
    through = jnp.clip((step - warm) / jnp.maximum(steps - warm, 1.0), 0.0, 1.0)
    cosine = hyper["final"] + (1 - hyper["final"]) * 0.5 * (1 + jnp.cos(jnp.pi * through))
    falling = jnp.maximum(hyper["decay_steps"], 1.0)
    left = jnp.clip((steps - step) / falling, 0.0, 1.0)
    wsd = hyper["final"] + (1 - hyper["final"]) * left
    shape = jnp.select(
        [hyper["kind"] == COSINE, hyper["kind"] == WSD], [cosine, wsd], jnp.ones_like(cosine)
    )
    return hyper["lr"] * rise * shape
