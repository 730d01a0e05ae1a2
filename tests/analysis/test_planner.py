"""Sizes for a budget: closed forms, first-order conditions, flatness, demand, devices."""

import dataclasses

import numpy as np
import pytest

from analysis.devices import PEAK, parse
from analysis.fit import fit
from analysis.planner import optimum, size
from analysis.predict import flops_per_token
from parallelism.errors import InputError
from tests.analysis.synthetic import Truth, grid, observations, write_sweep


@pytest.fixture(scope="module")
def found():
    N, D = grid(Truth(), budgets=4, sizes=6)
    rng = np.random.default_rng(0)
    return fit(
        observations(N, D, Truth().loss(N, D) * np.exp(0.003 * rng.standard_normal(len(N)))),
        bootstrap=100,
    )


@pytest.mark.parametrize("C", [1e14, 1e18, 1e24])
def test_optimum_is_the_closed_form(found, C):
    p = found.params
    s, K = p["alpha"] + p["beta"], C / 6
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / s)
    best = optimum(found, C)
    assert best["N"] == pytest.approx(G * K ** (p["beta"] / s), rel=1e-8)
    assert best["D"] == pytest.approx(K ** (p["alpha"] / s) / G, rel=1e-8)
    amplitude = p["A"] * G ** -p["alpha"] + p["B"] * G ** p["beta"]
    assert best["loss"] == pytest.approx(
        p["E"] + amplitude * K ** (-p["alpha"] * p["beta"] / s), rel=1e-8
    )
    # equal marginal returns
    assert p["alpha"] * p["A"] * best["N"] ** -p["alpha"] == pytest.approx(
        p["beta"] * p["B"] * best["D"] ** -p["beta"], rel=1e-8
    )


def test_sizing_brackets_the_truth_and_states_its_flat_region(found):
    C = 1e16
    plan = size(found, C)
    N, D = Truth().optimum(C)
    assert plan.N["lo"] < N < plan.N["hi"] and plan.N["lo"] < plan.N["value"] < plan.N["hi"]
    assert plan.D["lo"] < D < plan.D["hi"]
    assert plan.loss["lo"] < Truth().loss(N, D) < plan.loss["hi"]
    assert plan.extrapolation == pytest.approx(C / 2.7e14, rel=1e-6)
    p = found.params
    for end in ("N_lo", "N_hi"):
        n = plan.flat[end]
        loss = p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * (C / 6 / n) ** -p["beta"]
        assert 1 < loss / plan.loss["value"] <= 1.001
    assert plan.flat["N_lo"] < plan.N["value"] < plan.flat["N_hi"]


def test_least_regret_is_no_worse_than_the_optimum(found):
    plan = size(found, 1e17)
    assert 0 <= plan.regret["expected"] <= plan.regret["of_optimum"] * (1 + 1e-6) + 1e-12
    assert 0.5 < plan.regret["N"] / plan.N["value"] < 2


def test_inference_demand_meets_its_first_order_condition(found):
    p = found.params
    sizes = []
    for tokens in (1e9, 1e10, 1e12):
        plan = size(found, 1e16, inference_tokens=tokens)
        i = plan.inference
        assert i is not None
        returns = (
            p["alpha"]
            * p["A"]
            * i["N"] ** -p["alpha"]
            / (p["beta"] * p["B"] * i["D"] ** -p["beta"])
        )
        assert returns == pytest.approx(1 + tokens / (3 * i["D"]), rel=1e-10)
        loss = p["E"] + p["A"] * i["N"] ** -p["alpha"] + p["B"] * i["D"] ** -p["beta"]
        assert loss == pytest.approx(plan.loss["value"], rel=1e-10)
        assert 0 < i["saving"] < 1
        sizes.append(i["N"])
    assert sizes == sorted(sizes, reverse=True)


def test_next_to_no_inference_is_the_compute_optimum(found):
    plan = size(found, 1e16, inference_tokens=1e-3)
    assert plan.inference is not None
    assert plan.inference["N"] == pytest.approx(plan.N["value"], rel=1e-8)
    assert size(found, 1e16, inference_tokens=0).inference is None


def test_a_family_with_its_own_flops_per_token_spends_the_budget(tmp_path):
    from analysis.observations import observe

    write_sweep(tmp_path, Truth())
    own = fit(observe(tmp_path), bootstrap=20)
    plan = size(own, 3e14)
    N, D = plan.N["value"], plan.D["value"]
    assert float(flops_per_token(own, N)) * D == pytest.approx(3e14, rel=1e-9)
    assert float(flops_per_token(own, N)) != pytest.approx(6 * N, rel=0.01)
    # no neighbouring size does better on the same compute
    p = own.params

    def loss(n):
        return (
            p["E"]
            + p["A"] * n ** -p["alpha"]
            + p["B"] * (3e14 / float(flops_per_token(own, n))) ** -p["beta"]
        )

    assert loss(N) <= min(loss(N * 1.01), loss(N / 1.01))
    assert "family" in plan.flops_per_token_origin


def test_an_optimum_the_data_do_not_fix_is_said():
    N, D = grid(Truth(), budgets=3, sizes=6, span=1.25)
    rng = np.random.default_rng(1)
    vague = fit(
        observations(N, D, Truth().loss(N, D) * np.exp(0.01 * rng.standard_normal(len(N)))),
        bootstrap=60,
    )
    assert any("factor of 4" in w or "fit is" in w for w in size(vague, 1e18).warnings)


def test_device_hours_are_flops_over_rate():
    plan = parse("h100:1024", mfu=0.5).hours(1e24)
    assert plan["wall_hours"] == pytest.approx(1e24 / (1024 * 989.4e12 * 0.5) / 3600)
    assert plan["device_hours"] == pytest.approx(1024 * plan["wall_hours"])
    assert plan["mfu_origin"] == "given" and parse("h100").mfu_origin == "assumed"
    assert all(1e13 < peak < 1e16 for peak in PEAK.values())


@pytest.mark.parametrize("text", ["h10:8", "h100:0", "h100:many", "h100:-4"])
def test_devices_that_cannot_be_are_refused(text):
    with pytest.raises(InputError, match="--devices"):
        parse(text)


def test_budgets_that_cannot_be_and_unconfirmed_fits_are_refused(found):
    with pytest.raises(InputError, match="--flops"):
        size(found, -1.0)
    with pytest.raises(InputError, match="--inference-tokens"):
        size(found, 1e20, inference_tokens=float("nan"))
    with pytest.raises(InputError, match="FAILED"):
        size(dataclasses.replace(found, status="FAILED"), 1e20)
