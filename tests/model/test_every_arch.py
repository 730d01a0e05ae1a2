"""Does every named architecture do as a whole what its layers do alone?"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import archs
from model.context import Context
from model.decoder import Model, build
from model.spec import ModelSpec
from tests.properties import assert_close, inputs, trained_params

T, WIDTH = 12, 32
OFTEN = (
    "dense",
    "encoder_decoder",
    "hybrid",
    "rwkv7",
    "moe",
    "parscale",
)  # the others run with the slow tests
causal = pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in OFTEN else pytest.mark.slow)
        for n in archs.names()
        if archs.build(n).causal
    ],
)


def small(name: str) -> Model:
    return build(archs.build(name, WIDTH))


def source(spec: ModelSpec) -> dict[str, Any]:
    """What an encoder reads, where there is one: a source for each of two documents, and padding.
    Of two rows, so that they are read alike whether documents are told apart or not.
    """
    if spec.encoder is None:
        return {}
    rng = np.random.default_rng(1)
    segments_BS = jnp.asarray([[0, 0, 0, 1, 1, -1, -1], [0, 1, 1, 1, 1, 1, -1]])
    tokens_BS = jnp.asarray(rng.integers(0, spec.vocab, segments_BS.shape))
    return {"source_BS": tokens_BS, "source_segments_BS": segments_BS}


def start(model: Model, params):
    """A model that has said nothing, of two rows."""
    if model.spec.encoder is None:
        return model.start(2, length=T, dtype=jnp.float32)
    read = source(model.spec)
    return model.read(params, *read.values(), length=T, dtype=jnp.float32)


@partial(jax.jit, static_argnums=0)
def forward(model: Model, params, inputs_BT, segments_BT=None):
    positions_BT = jnp.broadcast_to(jnp.arange(inputs_BT.shape[1])[None], inputs_BT.shape)
    ctx = Context(
        positions_BT=positions_BT, segments_BT=segments_BT, layers="scan", **source(model.spec)
    )
    return model(params, inputs_BT, ctx, dtype=jnp.float32)[0]


@partial(jax.jit, static_argnums=0)
def extend(model: Model, params, inputs_BT, state):
    return model.extend(params, inputs_BT, state, dtype=jnp.float32)


@causal
def test_a_prefill_and_single_steps_give_the_logits_of_the_whole_text(name: str):
    model = small(name)
    params = trained_params(model)
    inputs_BT = inputs(model.spec, 2, T)
    state, out = start(model, params), []
    for begin, end in ((0, 7), *((t, t + 1) for t in range(7, T))):
        logits_BTV, state = extend(model, params, inputs_BT[:, begin:end], state)
        out.append(logits_BTV)
    assert int(state["position"]) == T
    assert_close(jnp.concatenate(out, axis=1), forward(model, params, inputs_BT))


@causal
def test_a_token_changes_its_own_logits_and_later_ones_and_none_of_another_document(name: str):
    model = small(name)
    params = trained_params(model)
    inputs_BT = inputs(model.spec, 2, T)
    segments_BT = jnp.asarray([[0] * 8 + [1] * 4, [0] * 3 + [1] * 9])
    changed_BT = inputs_BT.at[:, 5].set((inputs_BT[:, 5] + 1) % model.spec.vocab)
    before = forward(model, params, inputs_BT, segments_BT)
    after = forward(model, params, changed_BT, segments_BT)
    moved_BT = np.asarray(jnp.any(before != after, axis=-1))
    assert not moved_BT[:, :5].any() and not moved_BT[0, 8:].any()
    assert moved_BT[0, 5:8].all() and moved_BT[1, 5:].all()


@pytest.mark.parametrize("name", [n for n in archs.names() if not archs.build(n).causal])
def test_both_ways_a_token_changes_the_logits_of_its_document_and_of_no_other(name: str):
    model = small(name)
    params = trained_params(model)
    inputs_BT = inputs(model.spec, 2, T)
    segments_BT = jnp.asarray([[0] * 8 + [1] * 4, [0] * 3 + [1] * 9])
    changed_BT = inputs_BT.at[:, 5].set((inputs_BT[:, 5] + 1) % model.spec.vocab)
    before = forward(model, params, inputs_BT, segments_BT)
    moved_BT = np.asarray(
        jnp.any(before != forward(model, params, changed_BT, segments_BT), axis=-1)
    )
    assert moved_BT[0, :8].all() and not moved_BT[0, 8:].any()
    assert moved_BT[1, 3:].all() and not moved_BT[1, :3].any()
    with pytest.raises(ValueError, match="not causal"):
        model.extend(
            params, inputs_BT, model.start(2, length=T, dtype=jnp.float32), dtype=jnp.float32
        )
