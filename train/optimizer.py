"""How is a parameter updated? AdamW with each parameter's own learning-rate and weight-decay
multiplier.

W <- W - lr(step) * m_lr * (adam(g) + weight_decay * m_wd * W), after clipping the global norm of g;
multipliers come from the declarations (model/scaling.py). Built inside the traced step from arrays,
so hyper-parameters are data.
"""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from model.param import Declaration
from train.schedule import Hyper


def adamw(
    hyper: Hyper, declarations: Mapping[str, Declaration], *, learning_rate: jax.Array
) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(hyper["clip_norm"]),  # pyright: ignore[reportArgumentType]  arrays are fine
        optax.scale_by_adam(b1=hyper["beta1"], b2=hyper["beta2"], eps=hyper["eps"]),
        _decay_and_scale(hyper["weight_decay"], declarations, learning_rate=learning_rate),
    )


def _decay_and_scale(
    weight_decay: jax.Array, declarations: Mapping[str, Declaration], *, learning_rate: jax.Array
) -> optax.GradientTransformation:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        def one(path):
            rule = declarations[path].scaling
            change = updates[path]
            if rule.weight_decay:
                change = change + weight_decay * rule.weight_decay * params[path]
            return -learning_rate * rule.lr * change

        return {path: one(path) for path in updates}, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
