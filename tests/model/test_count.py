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
