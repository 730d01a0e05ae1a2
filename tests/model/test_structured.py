"""Do factors have the published sizes, does a guide lead and leave, and does a merge keep the
function?
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.context import Context
from model.count import count
from model.decoder import build
from model.merge import merged, unguided
from model.spec import BlockSpec, ModelSpec, resolve
from model.structured import guide_share
from tests import properties as p
from tests.properties import assert_close

KINDS = ("lowrank", "blockshuffle", "blockdense")
every = pytest.mark.parametrize("kind", KINDS)
GUIDED = 0.5
SCOPE = "repeat.0.ffn."  # of the only layer


def spec_of(kind: str, **knobs: Any) -> Any:
    return resolve(kind, room="ffns").Spec(**knobs)


# -- sizes -----------------------------------------------------------------------------------------

PUBLISHED = [  # Wei et al. 2024, table 1, Transformer-xl: millions in all, in feed-forward matrices
    ("gelu", {}, 1274, 805),
    ("lowrank", {"rank": 1024}, 985, 516),
    ("blockdense", {"blocks": 4, "rank": 1536}, 955, 486),
    ("blockshuffle", {"blocks": 2}, 985, 516),
    ("lowrank", {"rank": 512}, 744, 275),
    ("blockdense", {"blocks": 4, "rank": 768}, 728, 260),
    ("blockshuffle", {"blocks": 4}, 744, 275),
]


@pytest.mark.parametrize("kind, knobs, whole, feed_forward", PUBLISHED)
def test_published_sizes_come_back(kind: str, knobs, whole: int, feed_forward: int):
    attention = resolve("attention", room="mixers").Spec(d_head=128, bias=True)
    first, rest = (
        BlockSpec(mixer=attention, ffn=spec_of(k, bias=True, **more))
        for k, more in (("gelu", {}), (kind, knobs))
    )
    spec = ModelSpec(
        d_model=2048,
        n_layers=24,
        vocab=32000,
        first=(first,),
        repeat=(rest,),
        norm="layernorm",
        tied=True,
    )
    found = build(spec).declarations
    layers = sum(d.size for path, d in found.items() if ".ffn." in path and d.contract)
    total = count(spec, seq_len=1024).params["total"]
    assert (round(total / 1e6), round(layers / 1e6)) == (whole, feed_forward)


@pytest.mark.parametrize(
    "kind, knobs, share",
    [
        ("lowrank", {}, 0.625),
        ("blockdense", {}, 0.625),
        ("blockshuffle", {}, 0.625),
        ("lowrank", {"rank_ratio": 0.25}, 0.3125),
        ("blockdense", {"rank_ratio": 1 / 3}, 0.3125),
        ("blockshuffle", {"blocks": 4}, 0.3125),
    ],
)
def test_a_layer_has_the_papers_share_of_parameters_and_flops(kind: str, knobs, share: float):
    """63 % and 32 % in the paper's words; at 768, its smallest width."""
    sums = {}
    for name, more in ((kind, knobs), ("gelu", {})):
        found = declared(spec_of(name, **more), d_model=768)
        sums[name] = sum(d.size for d in found), sum(d.forward_flops for d in found)
    assert [a / b for a, b in zip(sums[kind], sums["gelu"], strict=True)] == [share, share]


def declared(ffn: Any, d_model: int) -> list[Any]:
    block = BlockSpec(mixer=None, ffn=ffn)
    found = build(ModelSpec(d_model=d_model, n_layers=1, repeat=(block,))).declarations
    return [d for path, d in found.items() if ".ffn." in path]


@every
def test_a_guide_costs_the_dense_products_while_it_takes_part(kind: str):
    """Over the run as a whole in the count, and by the compiler's count of one guided step."""
    sizes = {g: declared(spec_of(kind, guided=g), 64) for g in (0.0, GUIDED, 1.0)}
    dense = sum(d.forward_flops for d in declared(spec_of("gelu"), 64))
    flops = {g: sum(d.forward_flops for d in found) for g, found in sizes.items()}
    assert flops[1.0] - flops[0.0] == dense
    assert flops[GUIDED] - flops[0.0] == GUIDED * dense

    block = BlockSpec(mixer=None, ffn=spec_of(kind, guided=1.0))
    spec = ModelSpec(d_model=512, n_layers=2, vocab=64, repeat=(block,))
    model, rows, length = build(spec), 2, 32
    params = {k: jax.ShapeDtypeStruct(d.shape, jnp.float32) for k, d in model.declarations.items()}
    data = jax.eval_shape(lambda: p.batch(rows, length))
    forward = partial(p.mean_loss, model, layers="unroll")
    counted = count(spec, seq_len=length).flops_per_token["full_attn"] / 3
    plain = counted - sum(
        d.forward_flops for path, d in model.declarations.items() if path.endswith(".guide")
    )
    for progress, expected in ((None, plain), (jnp.float32(0.25), counted)):
        analysis = jax.jit(forward(progress=progress)).lower(params, data).cost_analysis()
        assert analysis is not None
        assert analysis["flops"] == pytest.approx(expected * rows * length, rel=0.01)


# -- guidance --------------------------------------------------------------------------------------


@cache
def run(kind: str, **knobs: Any):
    """A layer as it starts: its parameters and y of (parameters, x, progress)."""
    spec = spec_of(kind, guided=GUIDED, activation="swiglu", **knobs)
    block = BlockSpec(mixer=None, ffn=spec)
    model = build(ModelSpec(d_model=p.D_MODEL, n_layers=1, repeat=(block,)))
    params = {path: jnp.asarray(value[0]) for path, value in model.initialise(0).items()}
    params = {path.removeprefix(SCOPE): v for path, v in params.items() if path.startswith(SCOPE)}

    @jax.jit
    def apply(params: p.Params, x_BTD: jax.Array, progress: jax.Array | None) -> jax.Array:
        positions_BT = jnp.zeros(x_BTD.shape[:2], jnp.int32)
        ctx = Context(positions_BT=positions_BT, segments_BT=None, progress=progress)
        whole = {path: jnp.zeros(d.shape) for path, d in model.declarations.items()}
        whole |= {SCOPE + path: value[None] for path, value in params.items()}
        module = model.module(whole).repeat[0].ffn
        graph, state_Z = nnx.split(module)
        return nnx.merge(graph, jax.tree.map(lambda x_Z: x_Z[0], state_Z))(x_BTD, ctx)[0]

    return params, apply


def now(done: float) -> jax.Array:
    return jnp.float32(done)


def is_guide(path: str) -> bool:
    return path.endswith(".guide")


@every
def test_guide_and_factors_are_one_function_at_the_start(kind: str):
    """Of the whole output; at progress 0 it is the guide's alone."""
    (params, apply), x_BTD = run(kind), p.stream(2, 5, p.D_MODEL)
    factored_BTD = apply(params, x_BTD, None)
    assert_close(apply(params, x_BTD, now(0)), factored_BTD)
    none = {k: v if is_guide(k) else jnp.zeros_like(v) for k, v in params.items()}
    assert_close(apply(none, x_BTD, now(0)), factored_BTD)
    assert not np.any(apply(none, x_BTD, None))


@every
def test_between_start_and_end_the_layer_is_dense_with_the_mean_of_both_matrices(kind: str):
    (params, apply), x_BTD = run(kind), p.stream(2, 5, p.D_MODEL)
    moved = {k: v + 0.1 * p.stream(*v.shape, seed=i) for i, (k, v) in enumerate(params.items())}
    share = 0.5 * (1 + np.cos(np.pi * 0.1 / GUIDED))
    product = resolve(kind, room="ffns").Product

    def matrix(name: str) -> np.ndarray:
        first, second, guide = (
            np.asarray(moved[f"{name}.{part}"], np.float64) for part in ("first", "second", "guide")
        )
        return share * guide + (1 - share) * product.matrix(first, second)

    x = np.asarray(x_BTD, np.float64)
    gate = x @ matrix("gate")
    expected = (gate / (1 + np.exp(-gate)) * (x @ matrix("up"))) @ matrix("out")
    assert_close(apply(moved, x_BTD, now(0.1)), expected)


@every
def test_a_guide_whose_time_is_over_is_not_computed(kind: str):
    """Not even multiplied by zero: a guide of NaN leaves no trace."""
    (params, apply), x_BTD = run(kind), p.stream(2, 5, p.D_MODEL)
    broken = {k: jnp.full_like(v, jnp.nan) if is_guide(k) else v for k, v in params.items()}
    assert not np.any(np.isfinite(apply(broken, x_BTD, now(0.49))))
    plain_BTD = apply(params, x_BTD, None)
    for progress in (None, now(GUIDED), now(1)):
        np.testing.assert_array_equal(apply(broken, x_BTD, progress), plain_BTD)


@every
def test_gradients_go_to_the_guide_then_to_both_then_to_the_factors(kind: str):
    (params, apply), x_BTD = run(kind), p.stream(2, 5, p.D_MODEL)
    gradient = jax.jit(jax.grad(lambda *given: jnp.sum(apply(*given) ** 2)))
    for progress, guides, factors in ((0.0, True, False), (0.2, True, True), (0.5, False, True)):
        for path, grad in gradient(params, x_BTD, now(progress)).items():
            learns = guides if is_guide(path) else factors
            assert bool(jnp.any(grad != 0)) == learns, (progress, path)


@pytest.mark.parametrize("schedule, quarter", [("cosine", 0.5 + 0.5**1.5), ("linear", 0.75)])
def test_the_share_of_the_guide_falls_from_one_to_zero(schedule: str, quarter: float):
    spec = spec_of("lowrank", guided=0.4, guide_schedule=schedule)
    shares = [float(guide_share(spec, now(0.4 * done))) for done in (0, 0.25, 0.5, 1, 2.5)]
    np.testing.assert_allclose(shares, [1, quarter, 0.5, 0, 0], atol=1e-6)


def test_runs_at_different_points_in_one_program_are_guided_each_by_its_own():
    (params, apply), x_BTD = run("lowrank"), p.stream(2, 5, p.D_MODEL)
    moved = {k: v + 0.1 for k, v in params.items()}
    points = (0.1, 0.3, 0.7)
    together = jax.vmap(partial(apply, moved, x_BTD))(jnp.asarray(points))
    apart = [apply(moved, x_BTD, now(progress)) for progress in points]
    assert len({float(np.sum(one)) for one in apart}) == 3
    assert_close(together, jnp.stack(apart))


def test_a_guided_model_is_the_same_scanned_unrolled_and_rematerialised():
    spec = model_of("blockshuffle", guided=GUIDED)
    params, data = p.trained_params(build(spec)), p.batch(2, 9)
    results = [
        jax.jit(jax.value_and_grad(p.mean_loss(build(spec), progress=now(0.2), **execution)))(
            params, data
        )
        for execution in ({"layers": "scan"}, {"layers": "unroll", "remat": "full"})
    ]
    assert_close(results[1], results[0])
    plain = jax.jit(p.mean_loss(build(spec)))(params, data)
    assert abs(float(plain - results[0][0])) > 1e-4, "the guide changed nothing"


# -- merging ---------------------------------------------------------------------------------------


def model_of(kind: str, **knobs: Any) -> ModelSpec:
    """A dense layer, then two structured ones; the sequence mixers have no part in this."""
    first, rest = (
        BlockSpec(mixer=None, ffn=f)
        for f in (spec_of("swiglu"), spec_of(kind, **{"activation": "swiglu", **knobs}))
    )
    return ModelSpec(d_model=p.D_MODEL, n_layers=3, vocab=p.VOCAB, first=(first,), repeat=(rest,))


def logits(spec: ModelSpec, params: p.Params) -> jax.Array:
    data = p.batch(2, 9)
    ctx = Context(positions_BT=jnp.zeros((2, 9), jnp.int32), segments_BT=data["segments_BT"])
    return build(spec)(params, data["tokens_BT"], ctx, dtype=jnp.float32)[0]


@every
@pytest.mark.parametrize(
    "knobs",
    [{}, {"activation": "gelu", "ratio": 1.75, "bias": True, "guided": GUIDED}],
    ids=["swiglu", "gelu"],
)
def test_a_merged_model_is_the_same_function_with_dense_layers(kind: str, knobs: dict[str, Any]):
    spec = model_of(kind, **knobs)
    params = p.trained_params(build(spec))
    dense_params, dense = merged({k: np.asarray(v) for k, v in params.items()}, spec)
    assert {layer.kind for b in dense.blocks for room, layer in b.layers if room == "ffns"} == {
        "swiglu",
        spec.repeat[0].ffn.activation,
    }
    shapes = {path: d.shape for path, d in build(dense).declarations.items()}
    assert {path: value.shape for path, value in dense_params.items()} == shapes
    assert_close(logits(dense, dense_params), logits(spec, params))  # pyright: ignore[reportArgumentType]
    again, same = merged(dense_params, dense)
    assert same == dense and all(again[k] is dense_params[k] for k in dense_params)


@every
def test_without_its_guide_a_model_is_the_same_in_use(kind: str):
    spec = model_of(kind, guided=GUIDED)
    params = p.trained_params(build(spec))
    kept, plain = unguided({k: np.asarray(v) for k, v in params.items()}, spec)
    assert plain == model_of(kind) and set(kept) == set(build(plain).declarations)
    assert len(params) - len(kept) == 3
    np.testing.assert_array_equal(logits(plain, kept), logits(spec, params))  # pyright: ignore[reportArgumentType]
