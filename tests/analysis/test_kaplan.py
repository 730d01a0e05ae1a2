"""Kaplan's laws: limits, the loss at any batch, and the critical batch from runs."""

import dataclasses

import jax
import numpy as np
import pytest

from analysis import laws
from analysis.coordinates import Coordinates, centred, evaluate, features, output_of
from analysis.critical_batch import critical_batch, estimate
from analysis.iso_loss import descending, hyperbola
from analysis.laws.kaplan import PF_DAY
from analysis.observations import Observations
from analysis.solve import solve
from analysis.trajectory import loss_after, steps_to
from parallelism.errors import InputError

P = {"N_c": 6.5e13, "alpha_N": 0.077, "S_c": 2.1e3, "alpha_S": 0.76, "B_star": 2e8, "alpha_B": 0.21}
JOINT = {"N_c": 6.4e13, "alpha_N": 0.076, "D_c": 1.8e13, "alpha_D": 0.103}
BATCHES = np.geomspace(1e4, 5e6, 7)
STEPS = np.geomspace(300, 1e5, 60)


def value(name, params, x):
    law = laws.resolve(name)
    where = Coordinates(law, np.zeros(len(law.inputs)), 1.0)
    return evaluate(where, where.coordinates(params), x)[0]


def slow_loss(N, S, B):
    """The fixed point by plain bisection over a bracket that holds every loss."""
    low, high, L = 1e-6, 1e12, 1.0
    for _ in range(300):
        L = np.sqrt(low * high)
        S_min = S / (1 + P["B_star"] / L ** (1 / P["alpha_B"]) / B)
        right = (P["N_c"] / N) ** P["alpha_N"] + (P["S_c"] / S_min) ** P["alpha_S"]
        low, high = (L, high) if right > L else (low, L)
    return L


def grid(*, sizes=(1e6, 1e8, 1e9), steps=(3e3, 3e4, 3e5), batches=(1e3, 1e5, 1e7)):
    return [a.ravel() for a in np.meshgrid(sizes, steps, batches)]


# -- limits ----------------------------------------------------------------------------------------


def test_endless_data_leave_the_law_of_size_and_endless_size_that_of_data():
    N, D = np.geomspace(1e4, 1e12, 9), np.geomspace(1e6, 1e14, 9)
    of_N = (JOINT["N_c"] / N) ** JOINT["alpha_N"]
    np.testing.assert_allclose(
        value("kaplan", JOINT, {"N": N, "D": np.full(9, 1e80)}), of_N, rtol=1e-12
    )
    np.testing.assert_allclose(
        value("kaplan_n", {"N_c": 6.4e13, "alpha_N": 0.076}, {"N": N}), of_N, rtol=1e-12
    )
    of_D = value("kaplan_d", {"D_c": 1.8e13, "alpha_D": 0.103}, {"D": D})
    np.testing.assert_allclose(
        value("kaplan", JOINT, {"N": np.full(9, 1e200), "D": D}), of_D, rtol=1e-12
    )


def test_the_joint_law_is_its_formula_and_no_sum_of_the_two():
    N, D = np.geomspace(1e6, 1e9, 5), np.geomspace(1e7, 1e10, 5)
    bracket = (JOINT["N_c"] / N) ** (JOINT["alpha_N"] / JOINT["alpha_D"]) + JOINT["D_c"] / D
    got = value("kaplan", JOINT, {"N": N, "D": D})
    np.testing.assert_allclose(got, bracket ** JOINT["alpha_D"], rtol=1e-12)


def test_published_coefficients_give_the_overfitting_rule_of_the_paper():
    # its eq. 4.4: 2 % above the loss of endless data at D = 5e3 N^.74
    (published,) = laws.resolve("kaplan").published.values()
    N = np.geomspace(1e6, 1e9, 4)
    short = value("kaplan", published, {"N": N, "D": 5e3 * N**0.74})
    endless = value("kaplan", published, {"N": N, "D": np.full(4, 1e80)})
    np.testing.assert_allclose(short / endless - 1, 0.02, atol=0.002)


def test_the_law_of_compute_is_in_flops():
    (published,) = laws.resolve("kaplan_c").published.values()
    loss = value("kaplan_c", published, {"C": np.array([1.0, 10.0]) * PF_DAY})
    np.testing.assert_allclose(loss, (3.1e8 / np.array([1.0, 10.0])) ** 0.050, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in laws.names() if n.startswith("kaplan")])
def test_a_law_and_its_derivatives_do_not_overflow_from_1e3_to_1e14(name):
    law = laws.resolve(name)
    x = {n: np.array([1e3, 1e14]) for n in law.input_names}
    where = Coordinates(law, np.full(len(law.inputs), np.log(1e9)), 2.0)
    seen = dict(features(law, x))
    low, high = where.start
    with jax.enable_x64(True):
        for theta in (low, (low + high) / 2, high):
            for f in (output_of, jax.jacfwd(output_of, argnums=1)):
                assert np.isfinite(f(law, theta, seen, where.centre)).all()


# -- the loss at any batch -------------------------------------------------------------------------


def test_the_loss_is_the_fixed_point_that_bisection_finds():
    N, S, B = grid()
    slow = [slow_loss(*row) for row in zip(N, S, B, strict=True)]
    np.testing.assert_allclose(loss_after(P, N=N, S=S, B=B), slow, rtol=1e-13)


def test_the_fixed_point_is_the_only_one():
    for N, S, B in zip(*grid(), strict=True):
        floor = (P["N_c"] / N) ** P["alpha_N"]
        L = np.geomspace(floor, 1e9, 20001)[1:]
        S_min = S / (1 + P["B_star"] / L ** (1 / P["alpha_B"]) / B)
        above = L > floor + (P["S_c"] / S_min) ** P["alpha_S"]
        (crossing,) = np.flatnonzero(np.diff(above.astype(int)))
        assert L[crossing] <= loss_after(P, N=N, S=S, B=B) <= L[crossing + 1]


@pytest.mark.parametrize("axis", ["N", "S", "B"])
def test_the_loss_falls_with_size_steps_and_batch(axis):
    point = {"N": 1e7, "S": 1e4, "B": 1e5}
    loss = loss_after(P, **{**point, axis: point[axis] * np.geomspace(1e-2, 1e2, 60)})
    assert (np.diff(loss) < 0).all()


def test_steps_of_an_endless_batch_put_the_trajectory_on_the_law_of_steps():
    N, S, B = grid()
    L = loss_after(P, N=N, S=S, B=B)
    S_min = S / (1 + P["B_star"] / L ** (1 / P["alpha_B"]) / B)
    of_steps = {k: P[k] for k in laws.resolve("kaplan_steps").names}
    np.testing.assert_allclose(
        L, value("kaplan_steps", of_steps, {"N": N, "S_min": S_min}), rtol=1e-12
    )
    endless = value("kaplan_steps", of_steps, {"N": N, "S_min": S})
    assert (L > endless).all()
    np.testing.assert_allclose(loss_after(P, N=N, S=S, B=1e40), endless, rtol=1e-12)


def test_the_gradient_of_the_trajectory_is_that_of_finite_differences():
    law = laws.resolve("kaplan_trajectory")
    N, S, B = grid()
    seen = dict(features(law, {"N": N, "S": S, "B": B}))
    centre = np.log([1e8, 3e4, 1e5])
    theta = Coordinates(law, centre, 1.0).coordinates(P)

    def f(t):
        return output_of(law, t, seen, centre)

    with jax.enable_x64(True):
        J = np.asarray(jax.jit(jax.jacfwd(f))(theta))
        fast = jax.jit(f)
        e_pp = 1e-5 * np.eye(len(theta))
        slow = [(np.asarray(fast(theta + e)) - np.asarray(fast(theta - e))) / 2e-5 for e in e_pp]
    np.testing.assert_allclose(J, np.transpose(slow), rtol=1e-6, atol=1e-8)


def test_steps_to_a_loss_are_those_after_which_it_is_reached():
    for loss in (3.0, 4.0, 6.0):
        need = steps_to(P, loss, N=1e8, B=BATCHES)
        np.testing.assert_allclose(loss_after(P, N=1e8, S=need["S"], B=BATCHES), loss, rtol=1e-12)
        E_min = need["B_crit"] * need["S_min"]
        np.testing.assert_allclose(
            (need["S"] / need["S_min"] - 1) * (need["D"] / E_min - 1), 1, rtol=1e-9
        )


def test_a_loss_below_convergence_is_refused_with_that_of_convergence():
    with pytest.raises(InputError, match=r"write more than 2\.80"):
        steps_to(P, 2.5, N=1e8, B=1e6)


# -- the critical batch from runs ------------------------------------------------------------------


def curves(*, batches=BATCHES, noise=0.0, seed=0, N=3e6, steps=STEPS):
    rng = np.random.default_rng(seed)
    S, B = np.tile(steps, len(batches)), np.repeat(batches, len(steps))
    loss = loss_after(P, N=N, S=S, B=B) * np.exp(noise * rng.standard_normal(len(S)))
    run = np.repeat([f"{N:.0e}/{b:.0f}" for b in batches], len(steps))
    return {"S": S, "B": B, "loss": loss, "run": run, "N": np.full(len(S), N)}


def true_critical(loss):
    return P["B_star"] * np.asarray(loss) ** (-1 / P["alpha_B"])


def test_runs_at_several_batches_give_back_the_critical_batch():
    found = estimate(**curves())
    losses = [level.loss for level in found.levels]
    assert len(losses) == 5 and not found.warnings and not found.skipped
    # what is left is the interpolation between logged steps
    np.testing.assert_allclose(
        [level.B_crit for level in found.levels], true_critical(losses), rtol=2e-3
    )
    assert found.alpha_B == pytest.approx(P["alpha_B"], rel=2e-3)
    for level in found.levels:
        need = steps_to(P, level.loss, N=3e6, B=1e5)
        assert level.S_min == pytest.approx(need["S_min"], rel=2e-3)
        assert level.E_min == pytest.approx(need["S_min"] * need["B_crit"], rel=2e-3)


def test_standard_errors_between_runs_cover_the_critical_batch():
    at = np.array([4.6, 5.5, 6.5])
    inside = []
    for seed in range(60):
        found = estimate(**curves(noise=0.005, seed=seed))
        off = np.log(found.at(at) / true_critical(at)) / found.relative_se(at)
        inside.append(np.abs(off) < 2.45)  # 95 % of a t of 6 degrees of freedom
    assert 0.87 <= np.mean(inside) <= 0.99


def test_sizes_share_one_critical_batch_and_their_levels_are_kept_apart():
    both = {k: np.concatenate([curves()[k], curves(N=3e7)[k]]) for k in curves()}
    S, B, loss, run, N = (both[k] for k in ("S", "B", "loss", "run", "N"))
    found = estimate(S=S, B=B, loss=loss, run=run, N=N, levels=3)
    assert [level.N for level in found.levels] == [3e6] * 3 + [3e7] * 3
    assert found.alpha_B == pytest.approx(P["alpha_B"], rel=2e-3)


def test_the_recipe_predicts_another_size_at_another_batch():
    # B_crit at one size, S_min for all rows by it, the law of steps through them
    rows = [curves(N=n, batches=BATCHES[::3], steps=STEPS[::6]) for n in (1e6, 3e6, 1e7)]
    critical = estimate(**curves(noise=0.001))
    N, S, B, loss = (np.concatenate([r[k] for r in rows]) for k in ("N", "S", "B", "loss"))
    x = {"N": N, "S_min": critical.S_min(S, B=B, loss=loss)}
    law = laws.resolve("kaplan_steps")
    where = centred(law, x, loss)
    found = solve(
        where,
        x,
        y=np.log(loss),
        weights=np.ones(len(N)),
        starts_Pp=where.starts(8, seed=0),
        delta=0.01,
    )
    params = where.natural(found.theta_Pp[found.objective_P.argmin()])
    params = {k: float(v) for k, v in params.items()}
    params |= {"B_star": critical.B_star, "alpha_B": critical.alpha_B}
    S = np.geomspace(1e4, 1e5, 5)
    np.testing.assert_allclose(
        loss_after(params, N=1e9, S=S, B=4e5), loss_after(P, N=1e9, S=S, B=4e5), rtol=5e-3
    )


def test_at_the_critical_batch_a_loss_costs_twice_both_minima():
    found = estimate(**curves())
    cost = found.cost(found.at(5.0), loss=5.0)
    assert cost["steps"] == pytest.approx(2) and cost["tokens"] == pytest.approx(2)
    assert found.cost(1e12, loss=5.0)["steps"] == pytest.approx(1, abs=1e-6)


def test_warm_up_is_left_out():
    rows = curves()
    early = rows["S"] <= 2 * 500
    spoiled = {**rows, "loss": np.where(early, 30.0, rows["loss"])}
    S, B, loss, run, N = (rows[k][~early] for k in ("S", "B", "loss", "run", "N"))
    kept = estimate(S=S, B=B, loss=loss, run=run, N=N)
    S, B, loss, run, N = (spoiled[k] for k in ("S", "B", "loss", "run", "N"))
    whole = estimate(S=S, B=B, loss=loss, run=run, N=N, warmup_steps=500)
    assert whole.levels == kept.levels


def test_observations_and_columns_give_the_same():
    rows = curves()
    ids = tuple(str(i) for i in range(len(rows["S"])))
    seen = Observations(
        source="synthetic",
        id=ids,
        columns={k: rows[k] for k in ("S", "B", "loss", "N")},
        cluster=tuple(rows["run"]),
        seed=(0,) * len(ids),
        reason=(None,) * len(ids),
        conventions={},
        rows=({},) * len(ids),
    )
    assert critical_batch(seen) == estimate(**rows)
    without = dataclasses.replace(seen, columns={k: rows[k] for k in ("S", "loss")})
    with pytest.raises(InputError, match="no column B"):
        critical_batch(without)


def test_batches_on_one_side_of_the_critical_one_are_told():
    large = estimate(**curves(batches=np.geomspace(1e6, 1e7, 4)))
    assert all("add one on its other side" in w for w in large.warnings) and large.warnings
    assert "warning" in large.text() and large.to_json()["warnings"]


@pytest.mark.parametrize(
    ("change", "given"),
    [
        ({"batches": BATCHES[:2]}, "2 batches"),
        ({"steps": STEPS[:1]}, "0 loss levels"),
    ],
)
def test_too_few_curves_are_refused_with_what_would_do(change, given):
    with pytest.raises(InputError, match=given) as raised:
        estimate(**curves(**change))
    assert "three or more batches" in str(raised.value)


def test_a_run_whose_batch_changes_is_refused():
    rows = curves()
    rows["run"] = np.full(len(rows["S"]), "one")
    with pytest.raises(InputError, match="keep one batch a run"):
        estimate(**rows)


def test_steps_that_ignore_the_batch_or_fall_as_its_inverse_have_no_corner():
    ln_B = np.log([1e4, 1e5, 1e6])
    assert "above the critical" in str(hyperbola(ln_B, np.log([99.0, 100, 101]), ln_loss=1.0))
    assert "below the critical" in str(hyperbola(ln_B, 20 - 1.01 * ln_B, ln_loss=1.0))


def test_a_noisy_curve_becomes_the_closest_falling_one():
    ln_S = np.arange(6.0)
    falling = np.array([5.0, 4, 3, 2, 1, 0])
    np.testing.assert_array_equal(descending(ln_S, falling), (ln_S, falling))
    s, y = descending(ln_S, np.array([5.0, 3, 4, 2, 1, 1.5]))
    np.testing.assert_allclose(s, [0, 1.5, 3, 4.5])
    np.testing.assert_allclose(y, [5, 3.5, 2, 1.25])
