"""What do streams cost, what are they refused with, and what is their id made of?"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from pydantic import ValidationError

from model import archs
from model.count import count
from model.decoder import build
from model.spec import BlockSpec, ModelSpec, StreamsSpec
from tests import properties as p
from tests.model.test_streams import DENSE, MODEL, D, P, S, spec_of
from train.spec import RunSpec, canonical, from_dict, to_dict


def published(width: int, streams: int | None) -> ModelSpec:
    """Sizes of the released models: 36 layers, one key-value head of an eighth of the width."""
    mixer = {"kind": "attention", "d_head": width // 8, "queries_per_kv": 8}
    return ModelSpec(
        d_model=width,
        n_layers=36,
        repeat=(BlockSpec(mixer=mixer, ffn={"kind": "swiglu"}),),
        streams=None if streams is None else StreamsSpec(count=streams),
    )


@pytest.mark.parametrize(
    "width, streams, more",
    [(896, 2, 2_382_466), (2560, 2, 15_326_722), (2560, 4, 30_650_884), (2560, 8, 61_299_208)],
)
def test_streams_add_the_published_parameters(width: int, streams: int, more: int):
    """Differences of the released lists of parameters (QwenLM/ParScale, parametric_fit.py)."""
    plain, several = (count(published(width, n), seq_len=64).params for n in (None, streams))
    assert several["total"] - plain["total"] == more
    assert several["non_embedding"] - plain["non_embedding"] == more


def test_flops_are_the_body_for_each_stream_and_the_head_once():
    one, several = (count(m.spec, seq_len=64) for m in (DENSE, MODEL))
    head, z = 2 * D * p.VOCAB, 2
    prefix = 4 * S * D * z
    weighing = 2 * (P * D * D + D * P)
    for name in ("causal_attn", "full_attn"):
        body = one.flops_per_token[name] / 3 - head
        assert several.flops_per_token[name] == 3 * (P * (body + prefix) + weighing + head)
    added = several.params["total"] - one.params["total"]
    in_blocks = one.params["total"] - D - 2 * p.VOCAB * D + 2 * z * P * S * 2 * 8
    expected = 6 * (one.params["total"] + added + (P - 1) * in_blocks)
    assert several.flops_per_token["six_nd"] == expected


@pytest.mark.parametrize("remat", ["none", "full", "dots", "stream"])
def test_one_more_stream_costs_what_is_said_of_each(remat: str):
    two, three, four = (
        count(spec_of(StreamsSpec(count=n, prefix=S)), seq_len=64, remat=remat) for n in (2, 3, 4)
    )
    assert two.per_stream is not None and three.per_stream is not None
    for less, more in ((two, three), (three, four)):
        each = less.per_stream
        assert each is not None
        assert more.params["total"] - less.params["total"] == each.params
        for name, flops in each.flops_per_token.items():
            added = more.flops_per_token[name] - less.flops_per_token[name]
            assert added == pytest.approx(flops, rel=1e-12), name
    assert set(two.per_stream.flops_per_token) == set(two.flops_per_token)
    # prefixes and a share of the aggregation, whose bias alone is of no stream
    assert two.per_stream.params == three.per_stream.params == 2 * 2 * S * 2 * 8 + D * D + D + 1
    body = count(spec_of(None), seq_len=64).params["total"]
    assert three.params["total"] == body + 3 * three.per_stream.params + D


def test_one_stream_has_no_share_of_several():
    assert count(DENSE.spec, seq_len=64).each == {}
    assert set(count(MODEL.spec, seq_len=64).each) == {"per_stream"}


def test_counted_flops_agree_with_the_compilers_count():
    spec = replace(spec_of(StreamsSpec(count=2), query_blocks=1), d_model=1024)
    model, seq_len = build(spec), 64
    params = {k: jax.ShapeDtypeStruct(d.shape, jnp.float32) for k, d in model.declarations.items()}
    data = jax.eval_shape(lambda: p.batch(2, seq_len))
    found = jax.jit(p.mean_loss(model, layers="unroll")).lower(params, data).cost_analysis()
    assert found is not None
    counted = count(spec, seq_len=seq_len).flops_per_token["full_attn"] / 3 * 2 * seq_len
    assert found["flops"] == pytest.approx(counted, rel=0.01)


# -- what is refused, what an id is made of --------------------------------------------------------


@pytest.mark.parametrize("kind", ["retnet", "sliding_window", "gated_deltanet"])
def test_a_mixer_without_a_prefix_is_refused_in_one_line(kind: str):
    plain = archs.build(kind, 32)
    with pytest.raises(ValidationError, match=f"a {kind} mixer takes no prefix") as caught:
        replace(plain, streams=StreamsSpec(count=2))
    assert replace(plain, streams=StreamsSpec(count=1)).n_streams == 1
    (error,) = caught.value.errors()
    assert "\n" not in error["msg"]


def test_a_model_without_streams_keeps_its_id_and_another_number_of_them_is_another_run():
    plain = RunSpec(model=archs.build("dense", 32))
    tree = to_dict(plain)
    del tree["model"]["streams"]
    assert from_dict(tree) == plain and '"streams"' not in canonical(plain)
    ids = {
        replace(plain, model=replace(plain.model, streams=s)).run_id
        for s in (None, StreamsSpec(count=2), StreamsSpec(count=4), StreamsSpec(smoothing=0.1))
    }
    assert len(ids) == 4
