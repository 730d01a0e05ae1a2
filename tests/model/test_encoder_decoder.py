"""Does a decoder read what its encoder made of its own source, all of it and nothing else?"""

import functools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import archs
from model.context import Context
from model.count import count
from model.decoder import Model, build
from model.spec import ModelSpec
from parallelism.errors import InputError
from tests.properties import assert_close, batch, trained_params
from train.objectives import next_token
from train.paths import put
from train.spec import RunSpec

WIDTH, T, S = 32, 9, 7


def deep(width: int, *, encoder: int, decoder: int) -> ModelSpec:
    spec = archs.build("encoder_decoder", width)
    assert spec.encoder is not None
    return replace(spec, n_layers=decoder, encoder=replace(spec.encoder, n_layers=encoder))


@functools.cache
def small() -> tuple[Model, dict[str, jax.Array]]:
    model = build(deep(WIDTH, encoder=3, decoder=2))
    return model, trained_params(model)


@jax.jit
def said(params, tokens_BT, segments_BT, source_BS, source_segments_BS):
    """Logits; compiled once for each pair of lengths."""
    ctx = Context(
        positions_BT=jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape),
        segments_BT=segments_BT,
        source_BS=source_BS,
        source_segments_BS=source_segments_BS,
    )
    return small()[0](params, tokens_BT, ctx, dtype=jnp.float32)[0]


def packed() -> tuple[jax.Array, ...]:
    """Two rows: two pairs and padding in the first, one pair in the second."""
    rng = np.random.default_rng(0)
    tokens_BT, source_BS = (jnp.asarray(rng.integers(0, 256, (2, n))) for n in (T, S))
    segments_BT = jnp.asarray([[0] * 4 + [1] * 3 + [-1] * 2, [0] * T])
    source_segments_BS = jnp.asarray([[0] * 3 + [1] * 2 + [-1] * 2, [0] * S])
    return tokens_BT, segments_BT, source_BS, source_segments_BS


# -- a slow reference, float64 ---------------------------------------------------------------------


def reference(params, source_S, tokens_T, *, encoder: int, decoder: int) -> np.ndarray:
    """Logits (T, V) of one pair: every head, query and key by themselves."""
    p = {path: np.asarray(value, np.float64) for path, value in params.items()}

    def norm(x_TD, path, *z):
        mean = x_TD.mean(axis=-1, keepdims=True)
        spread = np.sqrt(x_TD.var(axis=-1, keepdims=True) + 1e-6)
        return (x_TD - mean) / spread * p[f"{path}.gain"][z] + p[f"{path}.bias"][z]

    def attend(x_TD, y_SD, path, z, *, causal):
        q, k, v, out = (p[f"{path}.{name}"][z] for name in ("q", "k", "v", "out"))
        K = q.shape[-1]
        made_TD = np.zeros(x_TD.shape)
        for h in range(q.shape[1]):
            for t in range(len(x_TD)):
                last = t + 1 if causal else len(y_SD)
                scores = np.array([(x_TD[t] @ q[:, h]) @ (y_SD[s] @ k[:, h]) for s in range(last)])
                # muP's scale: K^-1/2 at the base's width of a head
                weights = np.exp(scores * 16**0.5 / K)
                value_K = sum(w * (y_SD[s] @ v[:, h]) for s, w in enumerate(weights))
                made_TD[t] += value_K / weights.sum() @ out[h]
        return made_TD

    def feed(x_TD, path, z):
        h_TF = x_TD @ p[f"{path}.up"][z]
        tanh = np.tanh(math.sqrt(2 / math.pi) * (h_TF + 0.044715 * h_TF**3))
        return (0.5 * h_TF * (1 + tanh)) @ p[f"{path}.out"][z]

    x_SD = p["embed"][source_S] + p["encoder.positions"][: len(source_S)]
    for z in range(encoder):
        at = "encoder.repeat.0"
        n_SD = norm(x_SD, f"{at}.mixer_norm", z)
        x_SD = x_SD + attend(n_SD, n_SD, f"{at}.mixer", z, causal=False)
        x_SD = x_SD + feed(norm(x_SD, f"{at}.ffn_norm", z), f"{at}.ffn", z)
    x_SD = norm(x_SD, "encoder.norm")

    y_TD = p["embed"][tokens_T] + p["positions"][: len(tokens_T)]
    for z in range(decoder):
        n_TD = norm(y_TD, "repeat.0.mixer_norm", z)
        y_TD = y_TD + attend(n_TD, n_TD, "repeat.0.mixer", z, causal=True)
        n_TD = norm(y_TD, "repeat.0.cross_norm", z)
        y_TD = y_TD + attend(n_TD, x_SD, "repeat.0.cross", z, causal=False)
        y_TD = y_TD + feed(norm(y_TD, "repeat.0.ffn_norm", z), "repeat.0.ffn", z)
    # muP: an output multiplier of 4 over the width multiple
    return norm(y_TD, "norm") @ p["readout"] * 4 / (WIDTH / 64)


def test_each_pair_of_a_packed_row_has_the_logits_of_a_slow_numpy_model_of_it_alone():
    model, params = small()
    tokens_BT, segments_BT, source_BS, source_segments_BS = packed()
    found = np.asarray(said(params, tokens_BT, segments_BT, source_BS, source_segments_BS))
    for row, source, target in ((0, (0, 3), (0, 4)), (0, (3, 5), (4, 7)), (1, (0, S), (0, T))):
        wanted_TV = reference(
            params,
            np.asarray(source_BS[row, slice(*source)]),
            np.asarray(tokens_BT[row, slice(*target)]),
            encoder=3,
            decoder=model.spec.n_layers,
        )
        assert_close(found[row, slice(*target)], wanted_TV, what=f"row {row} {source}")


# -- who sees what ---------------------------------------------------------------------------------


def test_a_source_changes_every_token_of_its_target_and_nothing_else():
    _, params = small()
    tokens_BT, segments_BT, source_BS, source_segments_BS = packed()
    before = said(params, tokens_BT, segments_BT, source_BS, source_segments_BS)
    for row, place, segment in ((0, 1, 0), (0, 4, 1), (0, 6, -1), (1, 2, 0)):
        changed_BS = source_BS.at[row, place].add(1) % 256
        after = said(params, tokens_BT, segments_BT, changed_BS, source_segments_BS)
        moved_BT = np.asarray(jnp.any(before != after, axis=-1))
        expected_BT = np.asarray(segments_BT == segment) & (np.arange(2) == row)[:, None]
        assert np.array_equal(moved_BT, expected_BT), (row, place)


def test_padding_after_a_source_changes_nothing():
    _, params = small()
    tokens_BT, _, source_BS, _ = packed()
    segments_BT = jnp.zeros(tokens_BT.shape, jnp.int32)
    plain = said(params, tokens_BT, segments_BT, source_BS, jnp.zeros((2, S), jnp.int32))
    for pad in (0, 255):
        more_BS = jnp.pad(source_BS, ((0, 0), (0, 5)), constant_values=pad)
        real_BS = jnp.pad(jnp.zeros((2, S), jnp.int32), ((0, 0), (0, 5)), constant_values=-1)
        assert_close(said(params, tokens_BT, segments_BT, more_BS, real_BS), plain)
        unmarked = said(params, tokens_BT, segments_BT, more_BS, jnp.zeros((2, S + 5), jnp.int32))
        assert np.all(np.any(unmarked != plain, axis=-1)), "padding that is not marked is read"


def test_a_targets_token_changes_later_ones_of_its_pair_only():
    _, params = small()
    tokens_BT, segments_BT, source_BS, source_segments_BS = packed()
    before = said(params, tokens_BT, segments_BT, source_BS, source_segments_BS)
    changed_BT = tokens_BT.at[:, 5].add(1) % 256
    after = said(params, changed_BT, segments_BT, source_BS, source_segments_BS)
    moved_BT = np.asarray(jnp.any(before != after, axis=-1))
    assert np.array_equal(moved_BT, np.asarray([[False] * 5 + [True] * 2 + [False] * 2,
                                                [False] * 5 + [True] * 4]))  # fmt: skip


def test_gradients_flow_into_every_parameter_of_both_sides():
    model, params = small()
    data = batch(4, T, vocab=256, source=S)

    def loss(params):
        ctx = Context(
            positions_BT=jnp.broadcast_to(jnp.arange(T), (4, T)),
            segments_BT=data["segments_BT"],
            source_BS=data["source_BS"],
            source_segments_BS=data["source_segments_BS"],
        )
        logits_BTV, _ = model(params, data["tokens_BT"], ctx, dtype=jnp.float32)
        return next_token(logits_BTV, data)[0]

    grads = jax.jit(jax.grad(loss))(params)
    still = {path for path, grad in grads.items() if not np.any(np.asarray(grad))}
    assert not still
    assert any(path.startswith("encoder.") for path in grads)


# -- decoding --------------------------------------------------------------------------------------


def test_keys_and_values_of_the_source_are_computed_once():
    model, params = small()
    tokens_BT, _, source_BS, _ = packed()
    pads_BS = jnp.asarray([[0] * 4 + [-1] * 3, [0] * S])
    state = model.read(params, source_BS, pads_BS, length=T, dtype=jnp.float32)
    # without these the source cannot be read again
    gone = {k: v * jnp.nan if k.startswith("encoder.") else v for k, v in params.items()}
    for name in ("cross.k", "cross.v"):
        gone[f"repeat.0.{name}"] = gone[f"repeat.0.{name}"] * jnp.nan
    segments_BT = jnp.zeros(tokens_BT.shape, jnp.int32)
    whole = said(params, tokens_BT, segments_BT, source_BS, pads_BS)
    step = jax.jit(lambda p, t, s: model.extend(p, t, s, dtype=jnp.float32))
    for t in range(T):
        logits_BTV, after = step(gone, tokens_BT[:, t : t + 1], state)
        assert_close(logits_BTV[:, 0], whole[:, t])
        for held, kept in zip(state["repeat"], after["repeat"], strict=True):
            assert all(np.array_equal(held[k], kept[k]) for k in held if k.startswith("cross/"))
        state = after
    with pytest.raises(ValueError, match="starts from a source; call read"):
        model.start(2, length=T, dtype=jnp.float32)


# -- costs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder, decoder", [(1, 3), (4, 2)])
def test_layers_have_the_published_parameters(encoder: int, decoder: int):
    """4 D^2 + 2 D F and 8 D^2 + 2 D F weights, beside the gains and biases of norms."""
    D = 64
    found = count(deep(D, encoder=encoder, decoder=decoder), seq_len=32).params
    F = 4 * D
    assert found["encoder"] == encoder * (4 * D**2 + 2 * D * F + 4 * D) + 2 * D
    assert found["decoder"] == decoder * (8 * D**2 + 2 * D * F + 6 * D) + 2 * D
    assert found["non_embedding"] == found["encoder"] + found["decoder"]
    tables = 256 * D + D * 256 + 2 * 1024 * D  # of tokens, the readout, positions of either side
    assert found["total"] == found["non_embedding"] + tables


def test_flops_are_those_of_each_side_at_its_own_length():
    found = count(deep(64, encoder=2, decoder=3), seq_len=32, source_len=96)
    n_e, n_d = found.params["encoder"], found.params["decoder"]
    per_pair = 32 * found.flops_per_token["six_nd_non_embedding"]
    assert per_pair == pytest.approx(6 * (n_e * 96 + n_d * 32))
    D = 64
    source = 2 * (4 * D**2 + 2 * D * 4 * D) * 2 + 2 * 3 * 2 * D**2  # encoder; keys and values
    target = 3 * 2 * (6 * D**2 + 2 * D * 4 * D) + 2 * D * 256
    scores = 2 * 96 * 4 * 96 * D + 3 * 32 * 4 * D * (32 / 2 + 96)
    assert 32 * found.flops_per_token["causal_attn"] == pytest.approx(
        3 * (96 * source + 32 * target + scores)
    )
    assert found.decode_state == {"per_token": 3 * 2 * D, "fixed": 3 * 2 * D * 96}


# -- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model.encoder.n_layers": 0}, "model.encoder.n_layers"),
        ({"model.encoder": None}, "reads a source and the model has no encoder; write one"),
        ({"model.repeat.0.cross": None}, "no block of the decoder reads the encoder; write cross"),
        ({"model.repeat.0.cross": "attention"}, "reads no source; write it in `mixer`"),
        ({"model.repeat.0.mixer": "cross_attention"}, "write it in `cross`"),
        ({"model.encoder.repeat.0.mixer": "ssd"}, "sees earlier positions only; write a mixer"),
        ({"model.encoder.repeat.0.cross": "cross_attention"}, "no other source to read; write cr"),
        ({"model.repeat.0.cross.d_head": 7}, "d_head 7 does not divide d_model 32; write"),
        ({"model.causal": False}, "write causal true, or encoder null"),
        ({"model.extra_inputs": 1}, "write extra_inputs 0 and series null"),
        ({"model.streams": {"count": 2}}, "parallel streams have one text"),
        ({"objective": "next_token"}, "asks for text and not for pairs; write objective=translat"),
        ({"data.sources": [{"kind": "stdlib"}]}, "asks for pairs and not for text; write objecti"),
        ({"data.sources.0.longest": 64}, "no room for 64 letters and their end; write at least 65"),
        ({"data.source_len": 8}, "no room for 12 letters and their end; write at least 13"),
        ({"data.source_len": 2048}, "data.source_len 2048 exceeds model.learned_positions 1024"),
        ({"data.isolate_documents": False}, "write data.isolate_documents=true"),
        (
            {"execution.mesh.pipeline": 2},
            "has an encoder beside it; write 1, and data",
        ),
        ({"start": {"kind": "grow", "run": "a" * 12}}, "begins from a decoder alone"),
        ({"data.order": "contiguous"}, "reads one source of text"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(changes: dict, words: str):
    with pytest.raises(InputError) as error:
        put(RunSpec(model=archs.build("encoder_decoder", WIDTH)), changes)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_plain_model_reads_no_pairs():
    dense = RunSpec(model=archs.build("dense", WIDTH))
    for changes, words in (
        (
            {"objective": "translation", "data.sources": [{"kind": "translation"}]},
            "encoder_decoder",
        ),
        ({"data.source_len": 64}, "write data.source_len=null"),
        ({"data.sources": [{"kind": "translation"}]}, "write objective=translation, or sources of"),
    ):
        with pytest.raises(InputError, match=words):
            put(dense, changes)
