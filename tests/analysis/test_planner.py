"""Sizes for a budget: closed forms, first-order conditions, flatness, demand, devices."""

import dataclasses

import numpy as np
import pytest

from analysis.coordinates import Coordinates, evaluate
from analysis.devices import parse
from analysis.fit import fit
from analysis.laws import catalogue
from analysis.plan_figure import plan_figure
from analysis.planner import optimum, size
from analysis.predict import flops_per_token
from parallelism.accelerators import ACCELERATORS
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


def test_hours_under_demand_are_those_of_the_training_that_is_done(found):
    plan = size(found, 1e16, inference_tokens=1e11, devices=parse("h100:8", mfu=0.4))
    assert plan.inference is not None and plan.devices is not None
    spent = plan.inference["train_flops"]
    assert spent == pytest.approx(6 * plan.inference["N"] * plan.inference["D"], rel=1e-9)
    assert spent > 1.05e16
    hours = spent / (8 * 989.4e12 * 0.4) / 3600
    assert plan.devices["device_hours"] == pytest.approx(8 * hours, rel=1e-12)
    assert plan.devices["wall_hours_lo"] < hours < plan.devices["wall_hours_hi"]
    assert plan.chosen["N"] == plan.inference["N"]


def test_the_chosen_size_is_that_of_least_regret_and_its_upper_quantile_is_the_draws(found):
    plan = size(found, 1e17)
    assert plan.chosen["N"] == plan.regret["N"] and plan.chosen["rule"] == "least expected regret"
    chosen = np.array([plan.regret["N"]])
    each = []
    for row in found.samples_Sp:
        p = {k: float(v) for k, v in found.where.natural(row).items()}
        s, K = p["alpha"] + p["beta"], 1e17 / 6
        G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / s)

        def loss(N, p=p, K=K):
            return p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * (K / N) ** -p["beta"]

        each.append(float(loss(chosen)[0] / loss(G * K ** (p["beta"] / s)) - 1))
    assert plan.regret["expected"] == pytest.approx(np.mean(each), rel=1e-6)
    assert plan.regret["upper"] == pytest.approx(np.quantile(each, 0.95), rel=1e-6)
    assert plan.ratio["lo"] < plan.ratio["value"] == plan.tokens_per_parameter < plan.ratio["hi"]


@pytest.mark.slow
def test_unique_tokens_cap_the_plan_of_a_law_that_knows_repetition_and_are_said_of_others(found):
    plan = size(found, 1e17, unique_tokens=1e8)
    assert plan.data is not None and plan.data["epochs"] == pytest.approx(plan.chosen["D"] / 1e8)
    assert any("epochs" in w and "each token as new" in w for w in plan.warnings)
    law = catalogue()["repetition_data"]
    N, D, U = (
        a.ravel()
        for a in np.meshgrid(
            np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5), np.geomspace(1e9, 1e11, 3)
        )
    )
    truth = next(iter(law.published.values()))
    where = Coordinates(law, np.array([np.log(c).mean() for c in (N, D, U)]), 1.0)
    loss = evaluate(where, where.coordinates(truth), {"N": N, "D": D, "U": U})[0]
    seen = observations(N, D, loss * np.exp(1e-3 * np.random.default_rng(2).standard_normal(75)))
    seen = dataclasses.replace(seen, columns={**seen.columns, "U": U})
    own = fit(seen, law="repetition_data", bootstrap=20, starts=16)
    few = size(own, 1e21, unique_tokens=2e9, anyway=True)
    many = size(own, 1e21, unique_tokens=1e13, anyway=True)
    assert few.N["value"] > many.N["value"] and few.loss["value"] > many.loss["value"]
    assert few.data is not None and few.data["needed"]["value"] > 2e9
    assert few.fixed == {"U": 2e9}
    # the least loss of every size along the budget with this U, by plain search
    sizes = np.geomspace(1e7, 1e12, 20001)
    at = {"N": sizes, "D": 1e21 / 6 / sizes, "U": np.full(20001, 2e9)}
    losses = evaluate(own.where, own.theta_p, at)[0]
    assert few.N["value"] == pytest.approx(sizes[losses.argmin()], rel=1e-2)
    assert few.loss["value"] == pytest.approx(losses.min(), rel=1e-8)
    with pytest.raises(InputError, match="needs it") as error:
        size(own, 1e21, anyway=True)
    assert error.value.field == "--unique-tokens"


def test_an_interval_of_a_hundred_is_no_statement_about_the_size():
    n = np.repeat(np.geomspace(1e5, 4e6, 7), 2)
    loss = Truth().loss(n, 20 * n) * np.exp(0.003 * np.random.default_rng(0).standard_normal(14))
    ray = fit(observations(n, 20 * n, loss), prior=True, bootstrap=60)
    plan = size(ray, 1e19, anyway=True)
    assert ray.status == "ILL_POSED" and plan.N["hi"] / plan.N["lo"] > 100
    assert not plan.known and "N     not fixed by the data" in plan.text()
    assert any(w.startswith("missing: ") for w in plan.warnings)
    assert any("do not fix N" in w for w in plan.warnings)


def test_inputs_that_the_law_has_not_are_refused(found):
    with pytest.raises(InputError, match="N and D alone") as error:
        size(found, 1e16, fixed={"P": 4.0})
    assert error.value.field == "--at"
    with pytest.raises(InputError, match="--unique-tokens"):
        size(found, 1e16, unique_tokens=0.0)


def test_a_law_without_tokens_is_refused_in_one_line(found):
    streams = dataclasses.replace(found, law="parscale", theta=[0.0] * 4, samples=[])
    with pytest.raises(InputError, match="law of N and D") as error:
        size(streams, 1e20)
    assert "\n" not in str(error.value)


def test_a_figure_of_a_plan_draws_its_numbers(found):
    plan = size(found, 1e17)
    left, right = plan_figure(found, plan).axes
    assert left.get_xlim()[0] < plan.flat["N_lo"] < plan.flat["N_hi"] < left.get_xlim()[1]
    (curve,) = [line for line in right.lines if str(line.get_label()).startswith("expected")]
    N, regret = (np.asarray(a, float) for a in curve.get_data())
    at = np.interp(np.log(plan.regret["N"]), np.log(N), regret)
    assert at == pytest.approx(100 * plan.regret["expected"], rel=0.05)


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
    assert plan["device_hours_lo"] is None and "one number" in plan["interval_absent"]
    assert plan["mfu_origin"] == "given" and parse("h100").mfu_origin == "assumed"
    guessed = parse("h100:1024", dollars_per_hour=2.0).hours(1e24, between=(0.9e24, 1.2e24))
    peak = 1024 * 989.4e12 * 3600
    assert guessed["wall_hours_lo"] == pytest.approx(0.9e24 / (peak * 0.55))
    assert guessed["wall_hours_hi"] == pytest.approx(1.2e24 / (peak * 0.3))
    assert guessed["dollars_hi"] == pytest.approx(2 * guessed["device_hours_hi"])
    with pytest.raises(InputError, match="--dollars-per-hour"):
        parse("h100:8", dollars_per_hour=-1.0)
    assert all(1e13 < a.flops_per_second < 1e16 for a in ACCELERATORS.values())


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
