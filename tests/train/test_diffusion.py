"""Is masked diffusion's loss the bound it claims to be, and is it trained on what it should be?"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.data.rows import Batch
from train.objectives import next_token, normaliser
from train.objectives.masked_diffusion import Spec, hide

L, V = 4, 3
MASK = V
PATTERNS = [np.array(m, bool) for m in itertools.product([0, 1], repeat=L)][1:]  # something hidden
TEXTS = list(itertools.product(range(V), repeat=L))


def text(rows: int, length: int, *, vocab: int = 50, seed: int = 0) -> Batch:
    """Rows of two documents each."""
    tokens_BT = np.random.default_rng(seed).integers(0, vocab, (rows, length)).astype(np.int32)
    segments_BT = np.repeat([[0] * 3 + [1] * (length - 3)], rows, axis=0).astype(np.int32)
    weights_BT = np.ones((rows, length), np.float32)
    weights_BT[:, 2] = 0
    return Batch(tokens_BT, np.roll(tokens_BT, -1, 1), segments_BT, weights_BT)


def joint() -> np.ndarray:
    """A distribution of texts, (V,) * L, with nothing independent in it."""
    p = np.random.default_rng(3).gamma(0.7, size=(V,) * L)
    return p / p.sum()


def conditionals(p: np.ndarray, seen: list[int | None]) -> np.ndarray:
    """Log-probabilities (L, V) of each position's token given the ones that are not None."""
    given = p[tuple(slice(None) if s is None else slice(s, s + 1) for s in seen)]
    marginals = [given.sum(tuple(a for a in range(L) if a != t)) for t in range(L)]
    out = np.zeros((L, V))
    for t in range(L):
        if seen[t] is None:
            out[t] = np.log(marginals[t] / marginals[t].sum())
    return out


def nats(logits_LV: np.ndarray, x: tuple[int, ...], hidden_L: np.ndarray, rate: float) -> float:
    """What the objective's own code charges a text with these tokens hidden, in float64."""
    x_1L = np.array([x], np.int32)
    batch = Batch(x_1L, x_1L, np.zeros((1, L), np.int32), np.ones((1, L), np.float32))
    made = hide(batch, rate_B=np.array([rate]), u_BT=np.where(hidden_L, 0.0, 1.0)[None], mask=MASK)
    assert (made["tokens_BT"][0] == np.where(hidden_L, MASK, x)).all()
    with jax.enable_x64(True):
        arrays = {k: jnp.asarray(v) for k, v in made.items()}
        total, counted = next_token(jnp.asarray(logits_LV[None]), arrays)
    assert float(counted) == L
    return float(total)


def beta(k: int) -> float:
    """The integral of t^(k-1) (1-t)^(L-k) over rates: the weight of one set of k hidden tokens."""
    return math.factorial(k - 1) * math.factorial(L - k) / math.factorial(L)


def bound(logits_of, x: tuple[int, ...]) -> float:
    """The objective at epsilon 0, every set of hidden tokens enumerated."""
    total, rate = 0.0, 0.5  # weighs by 2, which is taken out again
    for hidden_L in PATTERNS:
        seen = [None if h else t for h, t in zip(hidden_L, x, strict=True)]
        total += beta(int(hidden_L.sum())) * rate * nats(logits_of(seen), x, hidden_L, rate)
    return total


def test_the_bound_of_the_true_conditionals_is_the_negative_log_likelihood():
    p = joint()
    for x in TEXTS[::7]:
        assert bound(lambda seen: conditionals(p, seen), x) == pytest.approx(
            -math.log(p[x]), abs=1e-12
        )


def wrong(seen: list[int | None]) -> np.ndarray:
    """A model that is consistent with no joint distribution."""
    code = [V if s is None else s for s in seen]
    return np.random.default_rng([7, *code]).standard_normal((L, V))


def test_the_bound_of_any_other_model_lies_above_the_entropy():
    p = joint()
    entropy = -float((p * np.log(p)).sum())
    mean = sum(p[x] * bound(wrong, x) for x in TEXTS)
    assert mean > entropy + 0.5


def test_the_mean_over_held_out_draws_is_the_enumerated_bound():
    x, n = (2, 0, 1, 1), 40_000
    x_BT = np.repeat([x], n, 0).astype(np.int32)
    batch = Batch(x_BT, x_BT, np.zeros((n, L), np.int32), np.ones((n, L), np.float32))
    objective, draws = Spec(samples=4), []
    # nats of each hidden position, by which tokens are hidden
    table = np.zeros((2**L, L))
    for hidden_L in PATTERNS:
        logits_LV = wrong([None if h else t for h, t in zip(hidden_L, x, strict=True)])
        log_LV = logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))
        table[hidden_L @ 2 ** np.arange(L)] = -log_LV[np.arange(L), x]
    for name, made in objective.held_out(batch, rows_B=np.arange(n), vocab=V):
        assert name == ""
        which_B = (made["tokens_BT"] == MASK) @ 2 ** np.arange(L)
        draws.append((table[which_B] * made["weights_BT"]).sum(-1))
    row_B = np.mean(draws, axis=0)
    error = row_B.std() / math.sqrt(n)
    expected = bound(wrong, x)
    assert len(draws) == 4 and error < 0.01 * expected
    assert abs(row_B.mean() - expected) < 4 * error


def test_rates_are_one_a_row_and_one_in_each_stratum():
    batch, objective = text(64, 200), Spec(samples=5)
    rates = []
    for _, made in objective.held_out(batch, rows_B=np.arange(64), vocab=50):
        weights_BT, hidden_BT = made["weights_BT"], made["tokens_BT"] == 50
        rate_B = 1 / weights_BT.max(1, initial=1e-9)
        assert (weights_BT[hidden_BT] > 0).all() and (weights_BT[~hidden_BT] == 0).all()
        assert np.allclose(
            np.where(hidden_BT, weights_BT, 1 / rate_B[:, None]) * rate_B[:, None], 1
        )
        assert np.abs(hidden_BT.mean(1) - rate_B)[hidden_BT.any(1)].max() < 0.2
        rates.append(np.where(hidden_BT.any(1), rate_B, 0))
    assert (np.sort(np.floor(np.array(rates) * 5), axis=0) == np.arange(5)[:, None]).all()


def test_training_hides_at_least_epsilon_and_counts_every_token():
    batch, objective = text(256, 100), Spec(epsilon=0.5)
    made = objective.prepare(batch, rows_B=np.arange(256), seed=0, vocab=50)
    hidden_BT = made["tokens_BT"] == 50
    assert (made["targets_BT"] == batch.tokens_BT).all()
    assert (made["tokens_BT"][~hidden_BT] == batch.tokens_BT[~hidden_BT]).all()
    assert 1 < made["weights_BT"][hidden_BT].min() and made["weights_BT"].max() < 2
    assert hidden_BT.mean() == pytest.approx(0.75, abs=0.03)  # the mean of rates from 0.5 to 1
    arrays = {k: jnp.asarray(v) for k, v in made.items()}
    assert float(normaliser(arrays)) == 256 * 100 != float(arrays["weights_BT"].sum())


def test_rows_that_fill_up_a_batch_count_for_nothing():
    rows = text(4, 10)
    padded = Batch(*(np.concatenate([a, np.zeros_like(a[:2])]) for a in rows))
    for _, made in Spec(samples=2).held_out(padded, rows_B=np.arange(6), vocab=50):
        assert made["counted_BT"].sum() == 40 and not made["weights_BT"][4:].any()


def test_what_is_hidden_is_nowhere_but_in_the_targets():
    batch = text(32, 40)
    first = Spec().prepare(batch, rows_B=np.arange(32), seed=0, vocab=50)
    hidden_BT = first["tokens_BT"] == 50
    other = batch._replace(
        tokens_BT=np.where(hidden_BT, (batch.tokens_BT + 1) % 50, batch.tokens_BT)
    )
    second = Spec().prepare(other, rows_B=np.arange(32), seed=0, vocab=50)
    assert hidden_BT.any() and (first["targets_BT"] != second["targets_BT"]).any()
    for name in set(first) - {"targets_BT"}:
        assert (first[name] == second[name]).all(), name
