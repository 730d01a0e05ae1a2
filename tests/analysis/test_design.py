"""Which runs next: what they buy is conditioning done slowly, and limits hold."""

import dataclasses
import json

import numpy as np
import pytest

from analysis.artefact import from_json
from analysis.candidates import Costs
from analysis.design import next_runs
from analysis.design_figure import design_figure
from analysis.devices import Devices
from analysis.discrepancy import Discrepancy
from analysis.fit import fit
from analysis.information import Belief
from analysis.laws.chinchilla import EPOCH
from analysis.planner import size
from analysis.predict import predict
from analysis.svg import svg
from parallelism.errors import InputError
from tests.analysis.synthetic import Truth, observations

TRUTH = Truth(**EPOCH)
TARGET, COST, NOISE = 1e22, 6e20, 0.003
BUDGETS = (1e18, 10**18.5, 1e19)


def isoflop_rows():
    return np.array(
        [(n, C / 6 / n) for C in BUDGETS for n in TRUTH.optimum(C)[0] * np.geomspace(1 / 4, 4, 5)]
    ).T


def noisy(N, D, seed):
    return TRUTH.loss(N, D) * np.exp(NOISE * np.random.default_rng(seed).standard_normal(len(N)))


def fitted(N, D, *, seed=0, **options):
    rows = observations(N, D, noisy(N, D, seed))
    return fit(rows, bootstrap=400, **options), rows


@pytest.fixture(scope="module")
def measured():
    return fitted(*isoflop_rows())


@pytest.fixture(scope="module")
def design(measured):
    found, rows = measured
    return next_runs(found, cost=COST, target=TARGET, observations=rows)


# -- what a run teaches ----------------------------------------------------------------------------


def test_purchases_one_by_one_are_the_conditional_covariance_of_all():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((9, 9))
    K, noise, seen = root @ root.T, 0.3, [1, 4, 4, 0]
    now = Belief(K, noise)
    for k in seen:
        now = now.after(k)
    goals = [7, 8]
    observed = K[np.ix_(seen, seen)] + noise * np.eye(len(seen))
    left = K[np.ix_(goals, goals)] - K[np.ix_(goals, seen)] @ np.linalg.solve(
        observed, K[np.ix_(seen, goals)]
    )
    assert (now.loss, now.size) == pytest.approx(tuple(np.diag(left)), rel=1e-10)
    loss_Q, size_Q = now.gains()
    for k in range(7):
        assert loss_Q[k] == pytest.approx(now.loss - now.after(k).loss, rel=1e-9, abs=1e-12)
        assert size_Q[k] == pytest.approx(now.size - now.after(k).size, rel=1e-9, abs=1e-12)


def test_a_run_on_the_way_leaves_the_error_of_the_rest_of_the_way():
    error = Discrepancy(form=1e-3, log_C=(0.0, 10.0), log_ratio=(2.0, 4.0))
    far = 6.0
    for share in (0.2, 0.35, 0.5, 0.65, 0.8, 0.9):
        K = error.kernel(10 + far * np.array([share, 1.0]), np.array([3.0, 3.0]))
        left = np.sqrt(K[1, 1] - K[0, 1] ** 2 / K[0, 0])
        if share * far > 1:
            assert left == pytest.approx(1e-3 * far * (1 - share), rel=0.12)
    assert error.sd(np.array([16.0]), np.array([3.0]))[0] == pytest.approx(6e-3)


def test_the_kernel_is_a_covariance_and_grows_outside_what_is_measured():
    error = Discrepancy(form=1e-3, log_C=(0.0, 10.0), log_ratio=(2.0, 4.0))
    rng = np.random.default_rng(0)
    C, ratio = rng.uniform(-5, 20, 60), rng.uniform(-2, 9, 60)
    assert np.linalg.eigvalsh(error.kernel(C, ratio)).min() > -1e-15
    inside, above, below, aside = error.sd(
        np.array([5.0, 14.0, -4.0, 5.0]), np.array([3.0, 3.0, 3.0, 10.0])
    )
    assert inside == pytest.approx(1e-3)
    assert above == pytest.approx(4e-3) and below == pytest.approx(4e-3)
    assert aside == pytest.approx(3e-3)


# -- the answer ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_before_any_run_the_intervals_are_those_of_predict_and_size(measured, design):
    found, _ = measured
    at = {"N": design.target["N"], "D": design.target["D"]}
    made = predict(found, at)
    assert design.before.half == pytest.approx(np.log(made.hi / made.lo) / 2, rel=1e-9)
    sizing = size(found, TARGET)
    factor = np.sqrt(sizing.N["hi"] / sizing.N["lo"])
    assert design.before.N_factor == pytest.approx(factor, rel=1e-6)


def test_limits_hold(measured, design):
    _, rows = measured
    paid = design.cost + design.validation["cost"]
    assert 0.9 * COST < paid <= COST * (1 + 1e-9)
    assert design.cost == pytest.approx(sum(c.C for c in design.cells))
    points = {}
    for c in design.cells:
        assert 3 <= c.tokens_per_parameter <= 400
        assert c.C == pytest.approx(6 * c.N * c.D, rel=1e-9)
        old = (abs(np.log(rows.values("N") / c.N)) < 0.02) & (
            abs(np.log(rows.values("D") / c.D)) < 0.02
        )
        key = (round(c.N), round(c.D))
        points[key] = points.get(key, int(old.sum())) + 1
        assert c.replicate == points[key] - 1
    assert max(points.values()) <= 2
    assert max(c.C for c in design.cells) >= 0.9 * COST / 4


def test_every_purchase_narrows_the_interval_and_all_beat_the_isoflop(design):
    half = [design.before.half, *(c.after.half for c in design.cells)]
    assert all(b < a for a, b in zip(half, half[1:], strict=False))
    assert half[-1] < 0.5 * half[0]
    iso = design.isoflop
    assert iso["cost"] == pytest.approx(design.cost, rel=1e-9)
    assert half[-1] < iso["after"]["half"]
    assert design.after.N_factor < iso["after"]["N_factor"]


def test_a_cap_on_the_ratio_and_on_replicates_is_kept(measured):
    found, rows = measured
    made = next_runs(
        found, cost=COST, target=TARGET, observations=rows, ratio=(10, 60), replicates=1, runs=9
    )
    assert len(made.cells) == 9 and "9 runs" in made.stopped
    assert all(10 * (1 - 1e-9) <= c.tokens_per_parameter <= 60 * (1 + 1e-9) for c in made.cells)
    assert len({(c.N, c.D) for c in made.cells}) == 9
    assert all(c.replicate == 0 for c in made.cells)


def test_an_over_trained_target_widens_the_trust_region(measured):
    found, _ = measured
    made = next_runs(found, cost=COST, target=TARGET, target_ratio=1000)
    assert made.target["D"] / made.target["N"] == pytest.approx(1000, rel=1e-6)
    assert 6 * made.target["N"] * made.target["D"] == pytest.approx(TARGET, rel=1e-6)
    assert made.ratio == pytest.approx((3, 2000), rel=1e-6)
    assert any(c.tokens_per_parameter > 400 for c in made.cells)
    assert any("1e+03 tokens a parameter" in note for note in made.notes)


def test_it_stops_at_the_tolerance_or_when_runs_are_not_worth_their_cost(measured):
    found, rows = measured
    near = next_runs(found, cost=COST, target=TARGET, observations=rows, tolerance=0.012)
    assert near.after.half <= 0.012 < near.cells[-2].after.half
    assert "tolerance" in near.stopped
    dear = next_runs(found, cost=COST, target=TARGET, observations=rows, value=2.0)
    assert "worth its cost" in dear.stopped and dear.cost < 0.5 * COST
    late = [c for c in dear.cells if c.why == "buys most for its cost"]
    assert late and max(c.cost for c in late) < 0.05 * COST


def test_the_validation_run_is_predicted_before_it_is_trained(measured, design):
    found, _ = measured
    v = design.validation
    made = predict(found, {"N": v["N"], "D": v["D"]})
    assert v["prediction"] == made.to_json()
    assert v["C"] == pytest.approx(min(TARGET / 10, 0.1 * COST))
    near = next_runs(found, cost=COST, target=1e20)
    assert near.validation is not None and near.validation["C"] == pytest.approx(1e19)


def test_compute_that_is_spread_without_budgets_needs_none_bought():
    rng = np.random.default_rng(0)
    C, ratio = np.exp(rng.uniform(np.log(1e18), np.log(3e20), 15)), rng.uniform(3, 200, 15)
    N = np.sqrt(C / 6 / ratio)
    found, _ = fitted(N, C / 6 / N)
    assert found.status == "CONVERGED" and not found.budgets
    made = next_runs(found, cost=COST, target=TARGET, runs=6)
    assert not any(c.why == "a budget is missing" for c in made.cells)
    assert len(made.cells) == 6 and made.cells[0].C >= 0.9 * COST / 4


# -- fits that cannot tell -------------------------------------------------------------------------


def test_a_ray_gets_runs_off_the_ray():
    N = np.geomspace(2e7, 5e8, 15)
    found, rows = fitted(N, 20 * N, prior=True)
    assert found.status == "ILL_POSED"
    made = next_runs(found, cost=6e20, target=TARGET, observations=rows)
    off = [abs(np.log(c.tokens_per_parameter / 20)) for c in made.cells]
    assert sum(o > np.log(2) for o in off) >= 10
    assert min(c.tokens_per_parameter for c in made.cells) < 10
    assert max(c.tokens_per_parameter for c in made.cells) > 40
    whole = budgets_with_valleys(made, rows)
    assert len(whole) >= 3
    assert made.after.half < 0.5 * made.before.half
    assert made.after.N_factor < made.before.N_factor


def test_one_budget_gets_two_others():
    C = 1e19
    N = TRUTH.optimum(C)[0] * np.geomspace(1 / 4, 4, 15)
    found, rows = fitted(N, C / 6 / N, prior=True)
    assert found.status == "ILL_POSED"
    for given in (rows, None):
        made = next_runs(found, cost=6e20, target=TARGET, observations=given)
        whole = budgets_with_valleys(made, rows)
        assert len(whole) >= 3
        assert all(b / a > 2 for a, b in zip(whole, whole[1:], strict=False))
        assert made.after.half < 0.5 * made.before.half


def test_budgets_that_cannot_be_had_are_said_to_be_missing():
    C = 1e19
    N = TRUTH.optimum(C)[0] * np.geomspace(1 / 4, 4, 15)
    found, rows = fitted(N, C / 6 / N, prior=True)
    made = next_runs(found, cost=6e20, target=TARGET, observations=rows, runs=8)
    assert len(made.cells) == 8
    assert any("1 of 3 budgets" in note for note in made.notes)


def budgets_with_valleys(made, rows):
    """Compute levels, old and new, that hold at least three sizes between two others."""
    C = np.concatenate([rows.values("C"), [c.C for c in made.cells]])
    N = np.concatenate([rows.values("N"), [c.N for c in made.cells]])
    level = np.round(np.log(C), 1)
    return [
        float(np.exp(k))
        for k in np.unique(level)
        if len(np.unique(np.round(np.log(N[level == k]), 2))) >= 5
    ]


# -- costs -----------------------------------------------------------------------------------------


def test_branches_of_a_trunk_cost_the_trunk_once_and_each_its_decay(measured):
    found, rows = measured
    made = next_runs(found, cost=COST, target=TARGET, observations=rows, decay_share=0.1)
    longest: dict[float, float] = {}
    for c in made.cells:
        longest[c.N] = max(longest.get(c.N, 0.0), c.C)
    trunks = sum(longest.values())
    branches = 0.1 * (sum(c.C for c in made.cells) - trunks)
    assert branches > 0
    assert made.cost == pytest.approx(trunks + branches, rel=1e-9)
    assert all(c.replicate == 0 for c in made.cells if c.N not in rows.values("N"))
    assert made.validation is not None
    assert made.cost + made.validation["cost"] <= COST * (1 + 1e-9)


def test_device_hours_are_those_of_the_devices_plus_overhead(measured):
    found, _ = measured
    devices = Devices("h100", 64, mfu=0.4)
    limit = devices.hours(COST)["device_hours"]
    made = next_runs(found, cost=limit, target=TARGET, devices=devices, overhead=2.0)
    assert made.unit == "device hours" and made.cells
    costs = Costs(devices, 2.0)
    for c in made.cells:
        assert c.cost == pytest.approx(devices.hours(c.C)["device_hours"] + 2.0)
        assert costs.flops(c.cost) == pytest.approx(c.C)
    assert made.cost <= 0.9 * limit * (1 + 1e-9)
    plain = next_runs(found, cost=limit, target=TARGET, devices=devices, overhead=50.0)
    assert len(plain.cells) < len(made.cells)


def test_sizes_that_are_given_are_the_only_ones(measured):
    found, _ = measured
    family = {n: 6.6 * n for n in (3e7, 1e8, 3e8, 1e9, 3e9)}
    made = next_runs(found, cost=COST, target=TARGET, sizes=family)
    assert {c.N for c in made.cells} <= set(family)
    assert all(c.C == pytest.approx(6.6 * c.N * c.D) for c in made.cells)
    assert made.validation is not None and made.validation["N"] in family


# -- what is kept of it ----------------------------------------------------------------------------


def test_the_answer_is_the_same_from_the_stored_fit_and_is_json(measured, design):
    found, rows = measured
    again = next_runs(
        from_json(json.loads(json.dumps(found.to_json()))),
        cost=COST,
        target=TARGET,
        observations=rows,
    )
    assert again.to_json() == design.to_json()
    tree = json.loads(json.dumps(design.to_json()))
    assert tree["after"]["half"] == design.after.half
    assert "isoFLOP" in design.text() and "predicted now" in design.text()


def test_the_figure_shows_runs_validation_and_target(measured, design):
    drawn = svg(design_figure(design, measured[1]), name="design")
    for word in ("measured", "to train", "again", "validation", "target", "one isoFLOP"):
        assert word in drawn


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cost": 0.0}, "--cost"),
        ({"cost": float("nan")}, "--cost"),
        ({"cost": 1e16}, "--cost"),
        ({"target": -1.0}, "--flops"),
        ({"tolerance": 0.0}, "--tolerance"),
        ({"ratio": (400.0, 3.0)}, "--ratio"),
        ({"ratio": (1e12, 2e12)}, "--ratio"),
        ({"replicates": 0}, "--replicates"),
        ({"decay_share": 1.0}, "--decay-share"),
        ({"overhead": -1.0}, "--overhead"),
        ({"validation": 1.0}, "--validation"),
        ({"goal": "fame"}, "--goal"),
        ({"target_ratio": 0.0}, "--target-ratio"),
        ({"sizes": {}}, "sizes"),
        ({"runs": 0}, "--runs"),
        ({"level": 2.0}, "--level"),
    ],
)
def test_bad_input_names_its_field(measured, change, field):
    with pytest.raises(InputError) as error:
        next_runs(measured[0], **{"cost": COST, "target": TARGET, **change})
    assert error.value.field == field and "\n" not in str(error.value)


def test_a_fit_without_draws_or_of_another_law_is_refused(measured):
    bare = dataclasses.replace(measured[0], samples=[])
    with pytest.raises(InputError, match="--bootstrap 400"):
        next_runs(bare, cost=COST, target=TARGET)
