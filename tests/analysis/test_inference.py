"""Serving: its cost against loops over tokens, prices, memory traffic, and answers per request."""

import dataclasses

import numpy as np
import pytest

from analysis.fit import fit
from analysis.inference import Cache, InferenceCost, cache_of_family, priced, served
from analysis.planner import size
from analysis.serving import PassRates, serving_plan
from parallelism.errors import InputError
from tests.analysis.synthetic import Truth, grid, observations

COST = InferenceCost(
    requests=1e6, prompt_tokens=30, output_tokens=50, trials=4, cache=Cache(40.0, 0.5, 4.0)
)


@pytest.fixture(scope="module")
def found():
    N, D = grid(Truth(), budgets=4, sizes=6)
    rng = np.random.default_rng(0)
    loss = Truth().loss(N, D) * np.exp(0.003 * rng.standard_normal(len(N)))
    return fit(observations(N, D, loss), bootstrap=40)


@pytest.mark.parametrize("prefill", [False, True])
def test_eflops_are_those_of_every_trial_and_token(prefill):
    N = 1e8
    cost = dataclasses.replace(COST, prefill=prefill)
    kv, grouping = 40 * N**0.5, 4.0
    flops = traffic = 0.0
    for _ in range(4):
        for t in range(50):
            seen = 30 + t + 0.5  # tokens that a token attends to: the mean over its own
            flops += 2 * N + 2 * grouping * kv * seen
            traffic += 2 * kv * (t + 0.5)
    # one reading of the prompt's cache per written token serves all trials
    traffic += sum(2 * kv * 30 for _ in range(50))
    if prefill:
        flops += sum(2 * N + 2 * grouping * kv * (t + 0.5) for t in range(30))
    assert cost.eflops(N) == pytest.approx(1e6 * (flops + 562.5 * traffic), rel=1e-12)
    # as the planner sees it, at 6 N FLOPs per token
    assert cost.demand().flops(N, per_token=6 * N) == pytest.approx(cost.eflops(N), rel=1e-12)


def test_the_cache_of_a_family_is_that_of_its_shape():
    d_model, n_layers = 1024, 16
    N = 12 * d_model**2 * n_layers
    cache = cache_of_family(aspect=d_model / n_layers, grouping=8)
    assert cache.per_token(N) == pytest.approx(2 * d_model * n_layers / 8, rel=1e-12)


def test_equal_prices_are_plain_tokens_and_dear_decoding_is_more():
    even = priced(prefill_tokens=3e9, decode_tokens=1e9, prefill_mfu=0.4, decode_mfu=0.4)
    assert even.tokens == pytest.approx(served(4e9).tokens)
    dear = priced(prefill_tokens=3e9, decode_tokens=1e9, prefill_mfu=0.4, decode_mfu=0.05)
    assert dear.tokens == pytest.approx(3e9 + 8e9)


def test_no_memory_traffic_is_sardanas_plan_and_memory_asks_for_a_smaller_model(found):
    C = 1e16
    plain = size(found, C, inference_tokens=COST.tokens).inference
    none = size(found, C, inference=dataclasses.replace(COST, cache=Cache(0.0, 0.5))).inference
    heavy = size(found, C, inference=COST).inference
    assert plain is not None and none is not None and heavy is not None
    assert none["N"] == pytest.approx(plain["N"], rel=1e-9)
    assert heavy["N"] < plain["N"] * 0.99
    # no size on the line of equal loss costs less
    p = found.params

    def total(N):
        left = heavy["loss"] - p["E"] - p["A"] * N ** -p["alpha"]
        return 6 * N * (left / p["B"]) ** (-1 / p["beta"]) + float(COST.eflops(N))

    assert total(heavy["N"]) == pytest.approx(heavy["total_flops"], rel=1e-9)
    assert total(heavy["N"]) < min(total(heavy["N"] * 1.01), total(heavy["N"] / 1.01))


@pytest.mark.slow
def test_training_and_answers_share_a_budget_as_a_search_over_all_finds(found):
    """A dense search in plain numpy over N and whole k, coverage as a product over k answers."""
    C, link = 1e16, PassRates(6.0, -3.0, 2.0)
    cost = dataclasses.replace(COST, requests=1e6, cache=Cache(0.0, 0.5))
    plan = serving_plan(found, link, cost, flops=C, most=300)
    p = found.params
    N = np.geomspace(plan.N["value"] / 30, plan.N["value"] * 30, 4001)
    best = (-1.0, 0.0, 0)
    fails = np.ones_like(N)
    for k in range(1, 301):
        D = (C - 1e6 * k * 50 * 2 * N) / (6 * N)
        with np.errstate(invalid="ignore"):
            loss = p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"]
        mean = 1 / (1 + np.exp(-(6.0 - 3.0 * loss)))
        a, b = 2 * mean, 2 * (1 - mean)
        # P(all k fail) = prod_j (b + j) / (a + b + j), a and b of this k's loss
        fails = np.prod([(b + j) / (a + b + j) for j in range(k)], axis=0)
        covered = np.where(D > 0, 1 - fails, -1.0)
        i = int(np.nanargmax(covered))
        if covered[i] > best[0]:
            best = (float(covered[i]), float(N[i]), k)
    assert plan.coverage["value"] == pytest.approx(best[0], abs=1e-6)
    assert plan.k["value"] == best[2] and 1 < best[2] < 300
    assert plan.N["value"] == pytest.approx(best[1], rel=0.01)
    spent = 6 * plan.N["value"] * plan.D["value"] + 1e6 * best[2] * 50 * 2 * plan.N["value"]
    assert spent == pytest.approx(C, rel=1e-9) and not plan.at_edge
    assert 0 < plan.train_share < 1 and plan.coverage["lo"] < plan.coverage["hi"]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda fit: served(float("nan")), "--inference-tokens"),
        (lambda fit: size(fit, 1e16, inference_tokens=1.0, inference=COST), "--inference-tokens"),
        (
            lambda fit: priced(prefill_tokens=1, decode_tokens=1, prefill_mfu=2, decode_mfu=0.1),
            "prefill_mfu",
        ),
        (lambda fit: dataclasses.replace(COST, requests=-1.0), "requests"),
        (lambda fit: cache_of_family(aspect=0.0), "cache"),
        (
            lambda fit: serving_plan(
                fit, PassRates(6, -3, 2), dataclasses.replace(COST, requests=1e30), flops=1e16
            ),
            "--flops",
        ),
        (lambda fit: serving_plan(fit, PassRates(6, -3, 2), COST, flops=1e16, most=0), "most"),
    ],
)
def test_costs_that_cannot_be_are_refused(found, make, field):
    with pytest.raises(InputError) as error:
        make(found)
    assert error.value.field == field
