"""Is one step the same however its batch is cut, and does the state say what it saw?"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.context import unplaced
from model.decoder import build
from tests import properties as p
from tests.properties import Case, assert_close
from train.objectives import next_token
from train.paths import put
from train.schedule import hyper
from train.spec import RunSpec
from train.step import abstract_state, forward, initial_state, train_step

CASE = Case(room="mixers", kind="attention", knobs=(("d_head", 8),))
MODEL = build(CASE.model)
STEPS = 3
# eps well above the rounding of gradients, which Adam would turn into steps of size lr
RUN = put(RunSpec(model=CASE.model), {"optim.eps": 1e-3, "schedule.warmup": 0.0})
LOSS = partial(
    forward,
    MODEL,
    constrain=unplaced,
    layers="scan",
    remat="none",
    dtype=jnp.float32,
    isolate=True,
)


def trained(accumulate: int, data: p.Batch) -> tuple[dict, str]:
    step = jax.jit(train_step(MODEL, LOSS, accumulate=accumulate))
    state = initial_state(MODEL, 0)
    traced = step.trace(state, hyper(RUN), data)
    compiled, losses = traced.lower().compile(), []
    for _ in range(STEPS):
        state, loss = compiled(state, hyper(RUN), data)
        losses.append(loss)
    return {"params": state["params"], "window": state["window"], "loss": losses}, str(traced.jaxpr)


step = jax.jit(train_step(MODEL, LOSS, accumulate=1))


@pytest.mark.slow
def test_accumulated_micro_batches_equal_one_batch():
    data = p.batch(8, 9)
    # micro-batches of unequal weight: the mean is over tokens, not over micro-batches
    data["weights_BT"] = data["weights_BT"].at[::4].set(0.0)
    results, programs = zip(*(trained(n, data) for n in (1, 2, 8)), strict=True)
    assert len(set(programs)) == 3, "the programs do not differ"
    nats, weights, _ = LOSS(jax.tree.map(jnp.asarray, MODEL.initialise(0)), data)
    assert float(weights) < 8 * 9 - 8
    for result in results:
        assert_close(result, results[0])
        assert float(result["loss"][0]) == pytest.approx(float(nats / weights), rel=1e-6)


def test_a_batch_without_weight_changes_nothing_but_the_decay():
    data = p.batch(2, 9)
    data["weights_BT"] = jnp.zeros_like(data["weights_BT"])
    numbers = {**hyper(RUN), "weight_decay": np.float32(0)}
    state, loss = step(initial_state(MODEL, 0), numbers, data)
    assert float(loss) == 0 and int(state["bad"]) == 0
    start = MODEL.initialise(0)
    assert all(np.array_equal(state["params"][k], start[k]) for k in start)


def test_the_first_step_that_is_not_finite_is_kept():
    state, data = initial_state(MODEL, 0), p.batch(2, 9)
    bad_after = []
    for weights in (1.0, np.nan, 1.0):
        cut = {**data, "weights_BT": data["weights_BT"] * weights}
        state, _ = step(state, hyper(RUN), cut)
        bad_after.append(int(state["bad"]))
    assert bad_after == [0, 2, 2]


def test_the_abstract_state_describes_the_initial_state():
    real, described = initial_state(MODEL, 3), abstract_state(MODEL)
    assert jax.tree.structure(real) == jax.tree.structure(described)
    for a, b in zip(jax.tree.leaves(real), jax.tree.leaves(described), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_the_loss_is_cross_entropy_summed_with_the_weights():
    rng = np.random.default_rng(0)
    logits_BTV = 5 * rng.standard_normal((2, 3, 7))
    data = {
        "targets_BT": rng.integers(0, 7, (2, 3)),
        "weights_BT": np.array([[1, 0, 1], [0.5, 1, 1]], np.float32),
    }
    expected = 0.0
    for b in range(2):
        for t in range(3):
            chance = np.exp(logits_BTV[b, t]) / np.sum(np.exp(logits_BTV[b, t]))
            expected -= data["weights_BT"][b, t] * np.log(chance[data["targets_BT"][b, t]])
    arrays = {k: jnp.asarray(v) for k, v in data.items()}
    nats, weights = next_token(jnp.asarray(logits_BTV, jnp.float32), arrays)
    assert float(nats) == pytest.approx(expected, rel=1e-6) and float(weights) == 4.5


def test_the_loss_survives_logits_that_overflow_an_exponential():
    logits_BTV = jnp.asarray([[[1e4, 0.0, -1e4]]])
    data = {"targets_BT": jnp.asarray([[1]]), "weights_BT": jnp.ones((1, 1))}
    value, gradient = jax.value_and_grad(lambda x: next_token(x, data)[0])(logits_BTV)
    assert float(value) == pytest.approx(1e4)
    np.testing.assert_allclose(gradient[0, 0], [1, -1, 0], atol=1e-6)
