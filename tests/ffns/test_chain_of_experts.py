"""Is Chain-of-Experts what its paper and its code say? A float64 reference of each reading; one
pass is a mixture; a trained mixture becomes a chain that computes the same.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import archs
from model.context import Context
from model.count import count
from model.decoder import build
from model.ffns import moe
from model.ffns.chain_of_experts import Spec
from model.spec import BlockSpec, ModelSpec
from model.upcycle import moe_to_chain
from parallelism.errors import InputError
from tests import properties as p
from tests.ffns.test_moe import mixed, wide
from tests.properties import alone, assert_close, stream
from train.paths import put
from train.spec import RunSpec

# the first has blocks of one slot, so that the compiler counts no padding; the others pad
VARIANTS = [
    {"experts": 4, "chosen": 2, "shared": 1, "ratio": 0.5, "block": 1},
    {"experts": 4, "residual": "official_inner", "routers": "one", "ratio": 0.5, "block": 4},
    {"experts": 4, "residual": "upcycled", "passes": 3, "ratio": 0.5, "bias_rate": 0.01},
]


def chained(spec: Spec, params: dict[str, np.ndarray], h_D: np.ndarray) -> np.ndarray:
    """What the layer gives for one normalised token."""
    h0_D, y_D = h_D, np.zeros_like(h_D)
    for t in range(spec.passes):
        y_D = mixed(spec, params, h_D, "router" if spec.routers == "one" else f"router_{t}")
        if spec.residual != "upcycled":
            h_D = h_D + y_D
        elif t < spec.passes - 1:
            h_D = h0_D + params[f"mix_{t}"] * y_D
    return {"prenorm_inner": h_D - h0_D, "official_inner": h_D, "upcycled": y_D}[spec.residual]


@pytest.mark.parametrize("knobs", VARIANTS, ids=str)
def test_values_equal_the_reference(knobs: dict[str, Any]):
    spec = Spec(**knobs)
    layer, x_BTD = alone(spec, room="ffns"), stream(2, 9, 32)
    params, flat = wide(layer.params), np.asarray(x_BTD, np.float64).reshape(-1, 32)
    expected = np.stack([chained(spec, params, x_D) for x_D in flat]).reshape(2, 9, 32)
    assert_close(layer.apply(layer.params, x_BTD), expected)
    assert_close(layer.naive(layer.params, x_BTD), expected)


def test_the_fast_form_equals_every_expert_in_all_gradients_which_add_over_passes():
    layer, x_BTD = alone(Spec(**VARIANTS[0]), room="ffns"), stream(2, 9, 32)
    project_BTD = stream(2, 9, 32, seed=1)

    def gradients(form):
        value = lambda w, x: jnp.mean(form(w, x) * project_BTD)  # noqa: E731
        return jax.jit(jax.grad(value, argnums=(0, 1)))(layer.params, x_BTD)

    assert_close(gradients(layer.apply), gradients(layer.naive))
    # an expert's gradient along a direction, against the change of the output in float64
    spec, rng = Spec(**VARIANTS[0]), np.random.default_rng(0)
    params, name, step = wide(layer.params), "experts.up", 1e-6
    direction = rng.standard_normal(params[name].shape)

    def value(params: dict[str, np.ndarray], passes: int) -> float:
        flat = np.asarray(x_BTD, np.float64).reshape(-1, 32)
        one = replace(spec, passes=passes)
        y = np.stack([chained(one, params, x_D) for x_D in flat]).reshape(2, 9, 32)
        return float(np.mean(y * np.asarray(project_BTD, np.float64)))

    def slope(passes: int) -> float:
        ends = [{**params, name: params[name] + s * step * direction} for s in (1, -1)]
        return (value(ends[0], passes) - value(ends[1], passes)) / (2 * step)

    found = float(np.sum(np.asarray(gradients(layer.apply)[0][name], np.float64) * direction))
    assert found == pytest.approx(slope(2), rel=1e-3)
    assert abs(slope(2) - slope(1)) > 0.1 * abs(slope(2)), "the second pass adds to it"


# -- the block's wiring ----------------------------------------------------------------------------


def model(ffn: Any) -> ModelSpec:
    block = BlockSpec(mixer=p.PARTNER["mixers"], ffn=ffn)
    return ModelSpec(d_model=32, n_layers=2, vocab=64, repeat=(block,))


KNOBS = {"experts": 4, "chosen": 2, "shared": 1, "ratio": 0.5}
MOE = model(moe.Spec(**KNOBS))


def logits(spec: ModelSpec, params: Any) -> np.ndarray:
    tokens_BT = p.batch(2, 9)["tokens_BT"]
    positions_BT = jnp.broadcast_to(jnp.arange(9)[None], (2, 9))
    ctx = Context(positions_BT=positions_BT, segments_BT=None)
    return np.asarray(build(spec)(params, tokens_BT, ctx, dtype=jnp.float32)[0])


@pytest.mark.parametrize("residual", ["prenorm_inner", "upcycled"])
def test_one_pass_beside_the_stream_is_a_mixture_of_experts(residual: str):
    params = p.trained_params(build(MOE))
    chain = model(Spec(**KNOBS, passes=1, routers="one", residual=residual))  # pyright: ignore
    assert np.array_equal(logits(chain, params), logits(MOE, params))


def test_one_pass_in_the_official_reading_is_not_but_starts_again_from_the_norm():
    params = p.trained_params(build(MOE))
    chain = model(Spec(**KNOBS, passes=1, routers="one", residual="official_inner"))
    assert np.max(np.abs(logits(chain, params) - logits(MOE, params))) > 0.1
    # with experts that say nothing, a block's output is the norm of its stream and no more
    silent = {
        k: v * 0 if k.endswith(("experts.out", "shared.out")) else v for k, v in params.items()
    }
    module = build(chain).module(silent)
    tokens_BT = p.batch(2, 9)["tokens_BT"]
    positions_BT = jnp.broadcast_to(jnp.arange(9)[None], (2, 9))
    ctx = Context(positions_BT=positions_BT, segments_BT=None)
    out_BTD, _ = module.stream(tokens_BT, ctx, dtype=jnp.float32)
    gain_D = params["repeat.0.ffn_norm.gain"][-1]
    np.testing.assert_allclose(np.mean((out_BTD / gain_D) ** 2, axis=-1), 1.0, rtol=1e-3)


def test_passes_whose_experts_say_nothing_change_nothing():
    """Zero experts: C = 2 is C = 1; beside the stream, the block then is the mixer alone."""
    one, two = (model(Spec(**KNOBS, passes=n, routers="one")) for n in (1, 2))
    params = p.trained_params(build(two))
    assert np.max(np.abs(logits(one, params) - logits(two, params))) > 0.01
    silent = {
        k: v * 0 if k.endswith(("experts.out", "shared.out")) else v for k, v in params.items()
    }
    assert np.array_equal(logits(one, silent), logits(two, silent))


# -- counts ----------------------------------------------------------------------------------------


def test_only_routers_multiply_and_calls_are_those_of_the_mixture():
    d, layers = 64, 2
    chain = archs.build("chain_of_experts", d)
    (block,) = chain.repeat
    shared = replace(chain, repeat=(replace(block, ffn=replace(block.ffn, routers="one")),))
    mixture = archs.build("moe", d)
    found, one, parallel = (count(s, seq_len=64) for s in (chain, shared, mixture))
    assert found.params["total"] == one.params["total"] + layers * 16 * d
    assert one.params["total"] == parallel.params["total"]
    # two passes of one and the shared expert: four calls, as three and the shared one
    assert one.flops_per_token["full_attn"] == found.flops_per_token["full_attn"]
    products = found.flops_per_token["full_attn"] - parallel.flops_per_token["full_attn"]
    assert products == 3 * layers * 2 * 16 * d, "one more routing a layer"
    assert found.per_expert is not None and parallel.per_expert is not None
    each = found.per_expert.params
    assert each == parallel.per_expert.params
    # chosen once, an expert is called in both passes
    for name, flops in parallel.per_expert.flops_per_token.items():
        assert found.per_expert.flops_per_token[name] == 2 * flops
    met = (2 + 1) * each  # by one token, at most two experts and the shared one
    assert found.params["active"] == found.params["total"] - (16 + 1) * each + met


# -- from a mixture --------------------------------------------------------------------------------


@pytest.mark.parametrize("routers", ["each", "one"])
def test_an_upcycled_mixture_computes_the_same_until_its_mix_leaves_zero(routers):
    start = model(moe.Spec(**KNOBS, bias_rate=0.01))
    params = p.trained_params(build(start))
    spec, grown = moe_to_chain(start, params, passes=3, routers=routers)
    assert spec.repeat[0].ffn.residual == "upcycled" and spec.repeat[0].ffn.passes == 3
    assert set(grown) == set(build(spec).declarations)
    assert np.array_equal(logits(spec, grown), logits(start, params))
    moved = {k: v + 1.0 if ".mix_" in k else v for k, v in grown.items()}
    assert np.max(np.abs(logits(spec, moved) - logits(start, params))) > 0.1


@pytest.mark.slow
def test_the_mix_of_an_upcycled_chain_learns_and_so_do_all_routers_after_it():
    spec, grown = moe_to_chain(MOE, p.trained_params(build(MOE)), passes=2)
    gradient = jax.grad(p.mean_loss(build(spec)))(grown, p.batch(2, 9))
    assert np.any(gradient["repeat.0.ffn.mix_0"]) and np.any(
        gradient["repeat.0.ffn.router_1.weight"]
    )
    assert not np.any(gradient["repeat.0.ffn.router_0.weight"]), "while the mix is zero"


def test_only_a_mixture_becomes_a_chain():
    dense = archs.build("dense", 32)
    with pytest.raises(InputError, match="has no mixture of experts"):
        moe_to_chain(dense, build(dense).initialise(0), passes=2)
    with pytest.raises(InputError, match="passes: 1; write 2 or more"):
        moe_to_chain(MOE, {}, passes=1)
    with pytest.raises(InputError, match="lack repeat.0.ffn.experts.gate"):
        moe_to_chain(MOE, build(dense).initialise(0), passes=2)


# -- the reading is part of the run ----------------------------------------------------------------


def test_the_reading_is_a_field_of_the_run_and_of_its_identity():
    run = RunSpec(model=model(Spec(**KNOBS)))
    other = put(run, {"model.repeat.0.ffn.residual": "official_inner"})
    assert other.model.repeat[0].ffn.residual == "official_inner" and run.run_id != other.run_id
