"""Do P streams through one decoder do what ParScale says? Against loops over streams in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.context import Context
from model.count import count
from model.decoder import Model, build
from model.spec import BlockSpec, ModelSpec, Parametrisation, StreamsSpec
from parallelism.mesh import make_mesh
from parallelism.place import batch_sharding
from tests import properties as p
from tests.properties import assert_close
from train.paths import put
from train.programs import state_shardings, traced
from train.schedule import hyper
from train.spec import RunSpec
from train.step import initial_state

T, D, P, S = 9, 32, 3, 5
MIXER = {"kind": "attention", "d_head": 8, "queries_per_kv": 2, "qk_norm": True}


def spec_of(streams: StreamsSpec | None, **mixer) -> ModelSpec:
    return ModelSpec(
        d_model=D,
        n_layers=2,
        vocab=p.VOCAB,
        repeat=(BlockSpec(mixer={**MIXER, **mixer}, ffn={"kind": "swiglu"}),),
        parametrisation=Parametrisation(base_d_model=16),
        streams=streams,
    )


DENSE = build(spec_of(None))
MODEL = build(spec_of(StreamsSpec(count=P, prefix=S)))
TOKENS_BT = np.random.default_rng(0).integers(0, p.VOCAB, (2, T))


def params_of(model: Model, seed: int = 0) -> dict[str, jax.Array]:
    """Far from the start: prefixes of 0.02 would leave streams almost alike."""
    rng = np.random.default_rng(seed)
    start = model.initialise(seed)
    return {
        path: jnp.asarray(value + 0.3 * rng.standard_normal(value.shape), jnp.float32)
        for path, value in start.items()
    }


PARAMS = params_of(MODEL)


@partial(jax.jit, static_argnums=0, static_argnames=("layers", "naive"))
def logits_of(model, params, tokens_BT, segments_BT=None, *, layers="unroll", naive=False):
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
    ctx = Context(positions_BT=positions_BT, segments_BT=segments_BT, layers=layers, naive=naive)
    return model(params, tokens_BT, ctx, dtype=jnp.float32)[0]


# -- against a loop over streams -------------------------------------------------------------------


def normed(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * gain


def turned(x_THK: np.ndarray) -> np.ndarray:
    """Rotary positions."""
    half = x_THK.shape[-1] // 2
    out = np.empty_like(x_THK)
    for t in range(len(x_THK)):
        for k in range(half):
            angle = t * 10_000.0 ** (-k / half)
            a, b = x_THK[t, :, k], x_THK[t, :, k + half]
            out[t, :, k] = a * np.cos(angle) - b * np.sin(angle)
            out[t, :, k + half] = b * np.cos(angle) + a * np.sin(angle)
    return out


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def one_stream(spec: ModelSpec, params: dict, tokens_T, segments_T, prefixes) -> np.ndarray:
    """The final norm's output (T, D) of the decoder whose layers see `prefixes` first."""
    x_TD = params["embed"][tokens_T]
    for z in range(spec.n_layers):
        w = {k.removeprefix("repeat.0."): v[z] for k, v in params.items() if k[:6] == "repeat"}
        h_TD = normed(x_TD, w["mixer_norm.gain"])
        q, k, v = (np.einsum("td,dhk->thk", h_TD, w[f"mixer.{n}"]) for n in "qkv")
        q = turned(normed(q, w["mixer.q_gain"]))
        k = turned(normed(k, w["mixer.k_gain"]))
        k, v = (np.concatenate([a, b]) for a, b in zip(prefixes[z], (k, v), strict=True))
        ahead, y_THK = len(prefixes[z][0]), np.zeros_like(q)
        for t in range(len(tokens_T)):
            own = [s for s in range(t + 1) if segments_T[s] == segments_T[t]]
            seen = [*range(ahead), *(ahead + s for s in own)]
            for h in range(q.shape[1]):
                j = h // 2  # two query heads share keys
                score = k[seen, j] @ q[t, h] * q.shape[-1] ** -0.5
                weight = np.exp(score - score.max())
                y_THK[t, h] = weight / weight.sum() @ v[seen, j]
        x_TD = x_TD + np.einsum("thk,hkd->td", y_THK, w["mixer.out"])
        h_TD = normed(x_TD, w["ffn_norm.gain"])
        x_TD = x_TD + (silu(h_TD @ w["ffn.gate"]) * (h_TD @ w["ffn.up"])) @ w["ffn.out"]
    return normed(x_TD, params["norm.gain"])


def by_loop(model: Model, params: dict, tokens_T, segments_T) -> np.ndarray:
    spec, w = model.spec, {k: np.asarray(v, np.float64) for k, v in params.items()}
    assert spec.streams is not None
    n, eps = spec.streams.count, spec.streams.smoothing
    k_ZPSJK, v_ZPSJK = (w.pop(f"repeat.0.mixer.prefix_{name}") for name in "kv")
    hs = []
    for s in range(n):
        prefixes = [(k_ZPSJK[z, s], v_ZPSJK[z, s]) for z in range(spec.n_layers)]
        hs.append(one_stream(spec, w, tokens_T, segments_T, prefixes))
    forward = {path: d.scaling.forward for path, d in model.declarations.items()}
    out = []
    for t in range(len(tokens_T)):
        # feature-major: h_0[0], h_1[0], ..., h_0[1], ...
        joined = np.array([hs[s][t, d] for d in range(D) for s in range(n)])
        first_XD = w["streams.hidden"].reshape(D * n, D)
        hidden = silu(joined @ first_XD + w["streams.hidden_bias"])
        score = hidden @ w["streams.weight"] * forward["streams.weight"] + w["streams.weight_bias"]
        share = np.exp(score - score.max()) / np.exp(score - score.max()).sum()
        share = (1 - eps) * share + eps / n
        together = sum(share[s] * hs[s][t] for s in range(n))
        out.append(together @ w["readout"] * forward["readout"])
    return np.array(out)


@pytest.mark.parametrize("documents", [1, 2])
def test_logits_equal_a_loop_over_streams_with_joined_keys(documents: int):
    segments_BT = np.repeat(np.arange(T)[None] * documents // T, 2, axis=0)
    given = jnp.asarray(segments_BT) if documents > 1 else None
    expected = np.stack(
        [by_loop(MODEL, PARAMS, TOKENS_BT[b], segments_BT[b]) for b in range(len(TOKENS_BT))]
    )
    assert_close(logits_of(MODEL, PARAMS, TOKENS_BT, given), expected)
    dense = {k: v for k, v in PARAMS.items() if k in DENSE.declarations}
    without = logits_of(DENSE, dense, TOKENS_BT, given)
    assert float(jnp.max(jnp.abs(without - expected))) > 0.1, "the prefixes do nothing"


def test_the_fast_form_and_scanned_layers_equal_the_naive_one_in_gradients_too():
    rows = p.batch(2, T)
    results, programs = [], set()
    for execution in ({"naive": True}, {"layers": "unroll"}, {"layers": "scan"}):
        made = jax.jit(jax.value_and_grad(p.mean_loss(MODEL, **execution))).trace(PARAMS, rows)
        programs.add(str(made.jaxpr))
        results.append(made.lower().compile()(PARAMS, rows))
    assert len(programs) == 3
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])
    for path, grad in results[0][1].items():
        if "prefix" in path or "streams" in path:
            assert bool(jnp.all(jnp.any(grad != 0, axis=tuple(range(1, grad.ndim))))), path


# -- what ParScale is equal to ---------------------------------------------------------------------


def test_one_stream_is_the_dense_model_to_the_bit():
    one = build(spec_of(StreamsSpec(count=1)))
    assert one.declarations == DENSE.declarations
    start = {k: jnp.asarray(v) for k, v in one.initialise(3).items()}
    assert all(bool(jnp.all(v == DENSE.initialise(3)[k])) for k, v in start.items())
    params = params_of(DENSE)
    both = [logits_of(m, params, TOKENS_BT) for m in (one, DENSE)]
    assert bool(jnp.all(both[0] == both[1]))
    assert count(one.spec, seq_len=64) == count(DENSE.spec, seq_len=64)


def equal_prefixes(params: dict) -> dict:
    return {
        k: jnp.broadcast_to(v[:, :1], v.shape) if "prefix" in k else v for k, v in params.items()
    }


def test_equal_prefixes_are_one_stream_whatever_weighs_them():
    alike = equal_prefixes(PARAMS)
    other = {k: 3 * v + 1 if k.startswith("streams") else v for k, v in alike.items()}
    both = [logits_of(MODEL, params, TOKENS_BT) for params in (alike, other)]
    assert_close(both[0], both[1])
    w = {k: np.asarray(v, np.float64) for k, v in alike.items()}
    k_ZPSJK, v_ZPSJK = (w.pop(f"repeat.0.mixer.prefix_{name}") for name in "kv")
    prefixes = [(k_ZPSJK[z, 0], v_ZPSJK[z, 0]) for z in range(2)]
    h_TD = one_stream(MODEL.spec, w, TOKENS_BT[0], np.zeros(T), prefixes)
    scale = MODEL.declarations["readout"].scaling.forward
    assert_close(both[0][0], h_TD @ w["readout"] * scale)
    moved = {k: 3 * v + 1 if k.startswith("streams") else v for k, v in PARAMS.items()}
    apart = [logits_of(MODEL, params, TOKENS_BT) for params in (PARAMS, moved)]
    assert float(jnp.max(jnp.abs(apart[0] - apart[1]))) > 0.1, "nothing weighs the streams"


def test_streams_in_another_order_are_the_same_model():
    order = np.array([2, 0, 1])
    axis = {"prefix_k": 1, "prefix_v": 1, "hidden": 1, "weight": 1, "weight_bias": 0}
    moved = {
        k: jnp.take(v, order, axis=axis[k.rpartition(".")[2]])
        if k.rpartition(".")[2] in axis
        else v
        for k, v in PARAMS.items()
    }
    assert_close(logits_of(MODEL, moved, TOKENS_BT), logits_of(MODEL, PARAMS, TOKENS_BT))
    half = {k: moved[k] if "prefix" in k else v for k, v in PARAMS.items()}
    off = logits_of(MODEL, half, TOKENS_BT) - logits_of(MODEL, PARAMS, TOKENS_BT)
    assert float(jnp.max(jnp.abs(off))) > 0.05


@pytest.mark.parametrize("smoothing", [0.0, 0.01, 1.0])
def test_no_stream_falls_below_its_even_share(smoothing: float):
    model = build(spec_of(StreamsSpec(count=P, prefix=S, smoothing=smoothing)))
    one_wins = {**PARAMS, "streams.weight_bias": jnp.asarray([100.0, 0.0, 0.0])}
    rows = p.batch(2, T)
    grads = jax.jit(jax.grad(p.mean_loss(model, layers="scan")))(one_wins, rows)
    loser = float(jnp.max(jnp.abs(grads["repeat.0.mixer.prefix_v"][:, 1])))
    assert (loser > 0) == (smoothing > 0)


def test_decoding_equals_the_whole_and_holds_a_cache_for_each_stream():
    whole = logits_of(MODEL, PARAMS, TOKENS_BT)
    extend = jax.jit(partial(MODEL.extend, dtype=jnp.float32))
    for pieces in ((4, 1, 1, 3), (1,) * T):
        state, out, begin = MODEL.start(2, length=T, dtype=jnp.float32), [], 0
        for n in pieces:
            logits, state = extend(PARAMS, TOKENS_BT[:, begin : begin + n], state)
            out.append(logits)
            begin += n
        assert_close(jnp.concatenate(out, axis=1), whole)
    held = sum(leaf.size for leaf in jax.tree.leaves(state["repeat"])) / (2 * T)
    one, several = (count(m.spec, seq_len=64).decode_state for m in (DENSE, MODEL))
    assert several["per_token"] == P * one["per_token"] == held
    assert several["fixed"] == 0


def test_a_token_changes_no_earlier_logits():
    before = logits_of(MODEL, PARAMS, TOKENS_BT)
    changed = TOKENS_BT.copy()
    changed[:, 4] = (changed[:, 4] + 1) % p.VOCAB
    moved_BT = np.asarray(jnp.any(logits_of(MODEL, PARAMS, changed) != before, axis=-1))
    assert not moved_BT[:, :4].any() and moved_BT[:, 4:].all()


def test_training_on_a_mesh_equals_one_device_with_a_rows_streams_on_its_own_device():
    run = put(
        RunSpec(model=MODEL.spec),
        {"data.seq_len": 16, "budget.batch_tokens": 128, "budget.tokens": 256, "optim.eps": 1e-3},
    )
    single = trained(run)
    for mesh in ({"data": 8}, {"fsdp": 4, "tensor": 2}):
        spread = trained(put(run, {f"execution.mesh.{k}": v for k, v in mesh.items()}))
        assert_close(spread, single, what=str(mesh))
        prefix = spread["repeat.0.mixer.prefix_k"].sharding
        assert prefix.is_fully_replicated == ("tensor" not in mesh)
        # (Z, P, S, J, K): every stream wherever there are rows
        assert prefix.shard_shape((2, P, S, 2, 8)) == (2, P, S, 2 // mesh.get("tensor", 1), 8)
    start = MODEL.initialise(0)
    assert all(np.any(np.asarray(single[k]) != start[k]) for k in start)


def trained(run: RunSpec) -> dict[str, jax.Array]:
    """Parameters after two steps on one batch, compiled as a run's are."""
    mesh, state = make_mesh(run.execution.mesh), initial_state(MODEL, 0)
    shardings = state_shardings(MODEL, state, mesh)
    rows = batch_sharding(mesh)
    step = jax.jit(
        traced(run, MODEL, mesh)[0],
        in_shardings=(shardings, None, rows),
        out_shardings=(shardings, None),
    )
    state = jax.device_put(state, shardings)
    data = jax.device_put(p.batch(run.sequences_per_batch, run.data.seq_len), rows)
    for _ in range(2):
        state, loss = step(state, hyper(run), data)
        jax.block_until_ready(loss)
    return state["params"]
