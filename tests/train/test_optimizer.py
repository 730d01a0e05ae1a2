"""Is an update what AdamW's paper says, times each parameter's own multipliers?"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model.decoder import build
from model.param import Declaration
from model.spec import Parametrisation
from tests.properties import Case, assert_close
from train.optimizer import adamw

MODEL = Case(room="mixers", kind="attention", knobs=(("d_head", 8), ("qk_norm", True))).model
STEPS = 4
NUMBERS = {
    "clip_norm": 0.7,
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "weight_decay": 0.1,
}
HYPER = {k: jnp.float32(v) for k, v in NUMBERS.items()}
RATES = [0.01, 0.02, 0.015, 0.001]


def declared(kind: str) -> dict[str, Declaration]:
    rule = Parametrisation(kind=kind, base_d_model=8)  # pyright: ignore[reportArgumentType]
    return dict(build(replace(MODEL, parametrisation=rule)).declarations)


def gradients(declarations: dict[str, Declaration]) -> list[dict[str, np.ndarray]]:
    """Some are clipped and some are not."""
    rng = np.random.default_rng(0)
    return [
        {k: size * rng.standard_normal(d.shape, np.float32) for k, d in declarations.items()}
        for size in (1.0, 1e-3, 0.1, 1e-4)
    ]


def start(declarations: dict[str, Declaration]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {k: rng.standard_normal(d.shape, np.float32) for k, d in declarations.items()}


def ours(declarations: dict[str, Declaration]) -> dict[str, np.ndarray]:
    params = start(declarations)
    state = adamw(HYPER, declarations, learning_rate=jnp.float32(0)).init(params)
    assert jax.tree.structure(state).num_leaves == 1 + 2 * len(params)

    @jax.jit
    def update(rate, grads, state, params):
        made = adamw(HYPER, declarations, learning_rate=rate)
        updates, state = made.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for rate, grads in zip(RATES, gradients(declarations), strict=True):
        params, state = update(np.float32(rate), grads, state, params)
    return params


def naive(declarations: dict[str, Declaration]) -> dict[str, np.ndarray]:
    """Every parameter by itself, in float64, from the formulas."""
    n = SimpleNamespace(**NUMBERS)
    params = {k: v.astype(np.float64) for k, v in start(declarations).items()}
    m = {k: np.zeros(v.shape) for k, v in params.items()}
    v = {k: np.zeros(value.shape) for k, value in params.items()}
    for t, (rate, grads) in enumerate(zip(RATES, gradients(declarations), strict=True), start=1):
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
        for path, declaration in declarations.items():
            g = grads[path] * min(1.0, n.clip_norm / norm)
            m[path] = n.beta1 * m[path] + (1 - n.beta1) * g
            v[path] = n.beta2 * v[path] + (1 - n.beta2) * g**2
            adam = (m[path] / (1 - n.beta1**t)) / (np.sqrt(v[path] / (1 - n.beta2**t)) + n.eps)
            rule = declaration.scaling
            decay = n.weight_decay * rule.weight_decay * params[path]
            params[path] = params[path] - rate * rule.lr * (adam + decay)
    return params


@pytest.mark.parametrize("kind", ["mup", "standard"])
def test_updates_equal_a_naive_adamw_with_multipliers(kind: str):
    declarations = declared(kind)
    multipliers = {(d.scaling.lr, d.scaling.weight_decay) for d in declarations.values()}
    assert len(multipliers) >= (3 if kind == "mup" else 2)
    assert_close(ours(declarations), naive(declarations))


def test_updates_equal_optax_adamw_when_every_multiplier_is_one():
    declarations = {
        k: replace(d, scaling=replace(d.scaling, lr=1.0, weight_decay=1.0))
        for k, d in declared("mup").items()
    }

    def theirs(rate) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(NUMBERS["clip_norm"]),
            optax.adamw(rate, 0.9, 0.95, 1e-8, weight_decay=0.1),
        )

    @jax.jit
    def update(rate, grads, state, params):
        updates, state = theirs(rate).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = start(declarations)
    state = theirs(0.0).init(params)
    for rate, grads in zip(RATES, gradients(declarations), strict=True):
        params, state = update(np.float32(rate), grads, state, params)
    assert_close(ours(declarations), params)
    multiplied = ours(declared("mup"))
    assert any(np.any(np.asarray(multiplied[k]) != params[k]) for k in params)


def test_vectors_and_tables_do_not_decay():
    declarations = declared("mup")
    zero = {k: np.zeros(d.shape, np.float32) for k, d in declarations.items()}
    params = start(declarations)
    made = adamw(HYPER, declarations, learning_rate=jnp.float32(0.1))
    updates: Any = made.update(zero, made.init(params), params)[0]
    for path, declaration in declarations.items():
        still = not np.any(np.asarray(updates[path]))
        assert still == (declaration.role in ("vector", "table")), path
