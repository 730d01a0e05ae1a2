"""Are parameters and FLOPs counted right? Against formulas written out by hand."""

from dataclasses import replace

import pytest

from model import archs
from model.count import CONVENTIONS, count
from model.decoder import build
from model.show import show
from model.spec import ModelSpec
from parallelism.axes import MeshSpec
from parallelism.errors import InputError

T = 256


def dense_by_hand(d: int, layers: int, vocab: int, seq_len: int) -> dict[str, float]:
    """SwiGLU, RMSNorm, QK-norm with heads of 16, an untied readout."""
    hidden = round(8 / 3 * d / 8) * 8
    attention = 4 * d * d
    ffn = 3 * d * hidden
    vectors = 2 * d + 2 * 16
    blocks = layers * (attention + ffn)
    non_embedding = blocks + layers * vectors + d
    products = 2 * (blocks + d * vocab)
    scores = layers * 2 * 2 * seq_len * d  # q.k and weights.v, two FLOPs a multiply-add
    return {
        "total": non_embedding + 2 * vocab * d,
        "non_embedding": non_embedding,
        "six_nd": 6 * (non_embedding + 2 * vocab * d),
        "six_nd_non_embedding": 6 * non_embedding,
        "causal_attn": 3 * (products + scores / 2),
        "full_attn": 3 * (products + scores),
        "hardware full": 4 * (2 * blocks + scores) + 3 * 2 * d * vocab,
        "hardware dots": 3 * products + 4 * scores,
        "state": layers * 2 * d,
    }


def gpt2_by_hand(d: int, layers: int, vocab: int, seq_len: int) -> dict[str, float]:
    """GELU of four times the width, LayerNorm, biases, learned positions, a tied readout."""
    matrices = 4 * d * d + 2 * d * 4 * d
    biases = 4 * d + 4 * d + d
    norms = 4 * d
    non_embedding = layers * (matrices + biases + norms) + 2 * d
    products = 2 * (layers * matrices + d * vocab)
    scores = layers * 2 * 2 * seq_len * d
    return {
        "total": non_embedding + vocab * d + 1024 * d,
        "non_embedding": non_embedding,
        "six_nd": 6 * (non_embedding + vocab * d + 1024 * d),
        "six_nd_non_embedding": 6 * non_embedding,
        "causal_attn": 3 * (products + scores / 2),
        "full_attn": 3 * (products + scores),
        "hardware full": 4 * (2 * layers * matrices + scores) + 3 * 2 * d * vocab,
        "hardware dots": 3 * products + 4 * scores,
        "state": layers * 2 * d,
    }


HANDS = {"dense": dense_by_hand, "gpt2": gpt2_by_hand}


@pytest.mark.parametrize("name", HANDS)
@pytest.mark.parametrize("d_model, layers, vocab", [(64, 2, 256), (256, 4, 1000)])
def test_counts_equal_the_formula_by_hand(name: str, d_model: int, layers: int, vocab: int):
    spec = replace(archs.build(name, d_model), n_layers=layers, vocab=vocab)
    expected = HANDS[name](d_model, layers, vocab, T)
    found = count(spec, seq_len=T)
    assert found.params["total"] == found.params["active"] == expected["total"]
    assert found.params["non_embedding"] == expected["non_embedding"]
    for convention in ("six_nd", "six_nd_non_embedding", "causal_attn", "full_attn"):
        assert found.flops_per_token[convention] == expected[convention], convention
    assert found.flops_per_token["hardware"] == expected["full_attn"]
    for remat in ("full", "dots"):
        again = count(spec, seq_len=T, remat=remat).flops_per_token["hardware"]
        assert again == expected[f"hardware {remat}"], remat
    assert found.decode_state == {"per_token": expected["state"], "fixed": 0}


def test_gpt2_small_has_its_published_parameters():
    """124,439,808 with 50257 tokens: Radford et al. 2019 as released (117M in the paper)."""
    spec = replace(archs.build("gpt2", 768), n_layers=12, vocab=50257)
    assert count(spec, seq_len=1024).params["total"] == 124_439_808


@pytest.mark.parametrize("name", archs.names())
def test_counted_parameters_are_those_that_exist(name: str):
    spec = archs.build(name, 64)
    values = build(spec).initialise(0)
    assert count(spec, seq_len=T).params["total"] == sum(v.size for v in values.values())


def test_a_row_of_blocks_is_counted_wherever_it_stands():
    spec = archs.build("dense", 64)
    (block,) = spec.repeat
    split = replace(spec, n_layers=4, first=(block,), last=(block,))
    assert count(split, seq_len=T) == count(replace(spec, n_layers=4), seq_len=T)


# -- of one expert ---------------------------------------------------------------------------------


@pytest.mark.parametrize("remat", ["none", "full", "dots", "stream"])
@pytest.mark.parametrize("name", ["moe", "chain_of_experts", "time_moe"])
def test_one_more_expert_costs_what_is_said_of_each(name: str, remat: str):
    plain = archs.build(name, 64)
    ffn = plain.repeat[0].ffn

    def counts(**knobs):
        blocks = tuple(replace(b, ffn=replace(b.ffn, **knobs)) for b in plain.repeat)
        return count(replace(plain, repeat=blocks), seq_len=T, remat=remat)

    base, taken = counts(), counts(chosen=ffn.chosen + 1)
    more = counts(experts=ffn.experts + 1)
    each = base.per_expert
    assert each is not None and taken.params["total"] == base.params["total"]
    for convention, flops in each.flops_per_token.items():
        added = taken.flops_per_token[convention] - base.flops_per_token[convention]
        assert added == pytest.approx(flops, rel=1e-9) and flops > 0, convention
    assert set(each.flops_per_token) == {"causal_attn", "full_attn", "hardware"}
    # each of an expert's three matrices rounds its own active share
    assert taken.params["active"] - base.params["active"] == pytest.approx(
        each.params * getattr(ffn, "passes", 1), abs=len(plain.repeat) * 3
    )
    # one more expert is its matrices and a column of each router in every layer, with its bias
    routers = getattr(ffn, "passes", 1) if getattr(ffn, "routers", "each") == "each" else 1
    column = plain.n_layers * routers * (plain.d_model + (ffn.bias_rate is not None))
    assert more.params["total"] - base.params["total"] == each.params + column


def test_a_mixtures_parameters_are_its_experts_and_the_rest():
    spec = archs.build("moe", 64)
    ffn = spec.repeat[0].ffn
    found = count(spec, seq_len=T)
    assert found.per_expert is not None
    width = ffn.sizes({"D": 64})["F"]
    assert found.per_expert.params == spec.n_layers * 3 * 64 * width
    assert found.per_expert.flops_per_token["causal_attn"] == 6 * found.per_expert.params
    declared = build(spec).declarations.values()
    rest = sum(d.size for d in declared if "E" not in d.batch)
    assert found.params["total"] == rest + ffn.experts * found.per_expert.params
    assert count(archs.build("dense", 64), seq_len=T).per_expert is None


# -- the printed table -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", archs.names())
def test_show_keeps_the_contracts_keys_and_prints_every_parameter(name: str):
    spec: ModelSpec = archs.build(name, 64)
    shown = show(spec, seq_len=T)
    tree, text = shown.to_json(), shown.text()
    of_sides = {"encoder", "decoder"} if spec.encoder else set()
    assert set(tree["params"]) == {"total", "non_embedding", "active"} | of_sides
    assert set(tree["flops_per_token"]) == set(CONVENTIONS)
    assert set(tree["decode_state"]) == {"per_token", "fixed"}
    assert sum(_size(r["shape"]) for r in tree["parameters"]) == tree["params"]["total"]
    products = sum(r["forward_flops"] for r in tree["parameters"])
    others = tree["flops_per_token"]["full_attn"] / 3 - products
    if name in ("dense", "gpt2"):
        assert others == 4 * T * 64 * spec.n_layers  # scores and weighted values
    assert others >= 0
    for path in build(spec).declarations:
        assert path in text
    assert f"{tree['params']['total']:,}" in text


def test_show_says_what_one_stream_and_one_expert_cost():
    for name, key, label in (
        ("parscale", "per_stream", "of one more stream"),
        ("moe", "per_expert", "of one expert, all layers"),
    ):
        shown = show(archs.build(name, 64), seq_len=T)
        (each,) = shown.counts.each.values()
        assert shown.to_json()[key] == each
        lines = [line.split() for line in shown.text().splitlines() if label in line]
        figures = [each["params"], *each["flops_per_token"].values()]
        assert [line[-1] for line in lines] == [f"{n:,.0f}" for n in figures]
    tree = show(archs.build("dense", 64), seq_len=T).to_json()
    assert tree["per_stream"] is None and tree["per_expert"] is None


@pytest.mark.parametrize("residual", ["prenorm_inner", "official_inner", "upcycled"])
@pytest.mark.parametrize("routers", ["each", "one"])
def test_show_names_the_reading_of_a_chain(residual: str, routers: str):
    spec = archs.build("chain_of_experts", 64)
    (block,) = spec.repeat
    chain = replace(block.ffn, passes=3, residual=residual, routers=routers)
    shown = show(replace(spec, repeat=(replace(block, ffn=chain),)), seq_len=T)
    (note,) = shown.to_json()["notes"]
    assert note in shown.text().splitlines()
    for said in ("chain_of_experts: ", "passes 3", f"residual {residual},", f"routers {routers}:"):
        assert said in note
    assert show(archs.build("dense", 64), seq_len=T).notes == []


def _size(shape: list[int]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out


def test_show_says_how_a_mesh_shards_and_refuses_one_that_does_not_divide():
    spec = archs.build("dense", 64)
    mesh = MeshSpec(fsdp=4, tensor=2)
    rows = {r["path"]: r for r in show(spec, seq_len=T, mesh=mesh).rows}
    assert rows["repeat.0.mixer.q"]["partition"] == "(None, 'fsdp', 'tensor', None)"
    assert rows["repeat.0.mixer.q"]["copies"] == 1
    assert rows["norm.gain"]["copies"] == 2
    with pytest.raises(InputError, match="execution.mesh.tensor: 3; does not divide"):
        show(spec, seq_len=T, mesh=MeshSpec(tensor=3))
