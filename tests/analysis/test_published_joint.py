"""Joint laws in size and data on measurements of others: the objective first, then predictions.

Coefficients come last: several published sets are not the optimum of their stated objective.
`search` is the plain optimum that the authors' protocols mean; a fit of rows that leave a
direction open leans on its prior there, and says so.
"""

import numpy as np
import pytest

from analysis import laws
from analysis.columns import parse_map
from analysis.coordinates import evaluate
from analysis.fit import fit
from analysis.observations import observe
from analysis.predict import predict
from analysis.problem import pose
from analysis.search import search
from tests.analysis import published

GEMSTONES = "github.com/mcleish7/gemstone-scaling-laws"
GEMSTONES_COLUMNS = parse_map("N=params_active_precise,D=tokens,loss=final_loss")
GADRE = "gadre-overtraining/gadre_104_models.csv"
GEMSTONES_FILES = tuple(
    f"gemstones/wandb_df_for_fitting_{v}.jsonl" for v in ("hot", "hot_100b+", "cool_end")
)
OLMO = "olmo-ladder/ladder_runs_selected_columns.csv"
OLMO_STEP1 = ("olmo-ladder/published_step1_main.csv", "olmo-ladder/published_step1_c4_main.csv")


def optimum(observations, law, *, huber):
    """Problem, fit coordinates and objective of the best of 64 starts, and all objectives."""
    problem = pose(observations, law, refuse=False)
    found, _, _ = search(problem, law.name, huber=huber, starts=64, seed=0)
    best = int(found.objective_P.argmin())
    return problem, found.theta_Pp[best], found.objective_P[best], found.objective_P


# -- Gemstones -------------------------------------------------------------------------------------


def gemstones(variant, law):
    file = published.path(f"gemstones/wandb_df_for_fitting_{variant}.jsonl")
    return observe(file, inputs=law.inputs, columns=GEMSTONES_COLUMNS)


@pytest.mark.slow
@pytest.mark.parametrize("variant, rows", [("hot", 220), ("hot_100b+", 770), ("cool_end", 199)])
@published.needs(*GEMSTONES_FILES, source=GEMSTONES)
def test_gemstones_reach_the_published_optimum(variant, rows):
    law = laws.resolve("chinchilla")
    given = published.tree(f"gemstones/published_delta-3_{variant}.json")
    problem, theta, objective, _ = optimum(gemstones(variant, law), law, huber=1e-3)
    assert problem.rows == rows
    assert objective <= given["loss"]["0"] * (1 + 1e-5)
    alpha, beta = given["exponents"]["0"]
    named = problem.where.natural(theta)
    assert named["alpha"] == pytest.approx(alpha, abs=1e-3)
    assert named["beta"] == pytest.approx(beta, abs=1e-3)


@pytest.mark.slow
@published.needs(*GEMSTONES_FILES, source=GEMSTONES)
def test_a_fit_goes_below_a_published_one_that_did_not_converge():
    law = laws.resolve("chinchilla")
    found = fit(gemstones("cool_end", law), huber=1e-4, bootstrap=0)
    given = published.tree("gemstones/published_delta-4_cool_end.json")["loss"]["0"]
    assert found.objective <= 0.000204785 < given
    assert found.starts_agree >= 0.95 * found.starts


# approach_3_width_depth*_grid_search_0_*.json of parameters_delta-3 in the authors' repository,
# from 135,000 starts and more
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, variant, objective",
    [
        ("width_depth", "hot_100b+", 0.0038782174),
        ("width_depth_parameters", "cool_end", 0.0008107426),
    ],
)
@published.needs(*GEMSTONES_FILES, source=GEMSTONES)
def test_width_and_depth_reach_the_published_optimum_from_64_starts(name, variant, objective):
    law = laws.resolve(name)
    _, _, best, all_P = optimum(gemstones(variant, law), law, huber=1e-3)
    # the published floor of width_depth is exp(-4555): ours stops at a soft bound of 1e-4 of the
    # loss, which costs 1.6e-5 of the objective
    assert best <= objective * (1 + (2e-5 if name == "width_depth" else 1e-5))
    assert (all_P < best * (1 + 1e-6)).mean() > 0.5


# -- Gadre et al. ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["overtraining", "overtraining_nm", "chinchilla_tied"])
@published.needs(GADRE, source="github.com/mlfoundations/scaling")
def test_five_small_runs_predict_over_trained_and_large_ones(name, tmp_path):
    runs = {
        (r["model_name"], r["tok_mult"]): {
            "N": r["N"],
            "D": r["D"],
            "M": r["tok_mult"],
            "C": 6 * r["N"] * r["D"],
            "loss": r["loss_c4_val"],
        }
        for r in published.csv_rows(GADRE)
        if r["dataset_name"] == "rpj"
    }
    sizes = ("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")
    small = [runs[size, 20] for size in sizes] + [runs[sizes[0], 320]]
    law = laws.resolve(name)
    rows = observe(published.write_csv(tmp_path / "small.csv", small), inputs=law.inputs)
    # least squares in nats: a delta beyond every residual
    found = fit(rows, law=name, huber=100.0, residual="linear", bootstrap=0)
    for run, percent in ((("open_lm_1b", 640), 0.7103), (("open_lm_7b", 20), 0.7320)):
        at = {i: runs[run][i] for i in law.input_names}
        off = predict(found, at).mean / runs[run]["loss"] - 1
        assert 100 * abs(off) == pytest.approx(percent, abs=0.005), run
    (coefficients,) = laws.resolve("overtraining").published.values()
    if name == "overtraining":
        assert found.params == pytest.approx(coefficients, rel=1e-3)


# -- OLMo ladder -----------------------------------------------------------------------------------

# questions of each category over all 14,042: the weights of their MMLU mean
MMLU = {"humanities": 0.335, "stem": 0.215, "social_sciences": 0.219, "other": 0.231}
OPEN = ("mmlu_avg_test_5shot", "csqa_val_5shot", "c4")  # 16 points leave a direction free


def olmo_tasks():
    """Published step-1 predictions for the 13B run, by task; C4 is one for all tasks."""
    main, c4 = (published.csv_rows(name) for name in OLMO_STEP1)
    return {row["Task"]: row for row in main} | {"c4": c4[0]}


def olmo_metric(row, task):
    if task == "c4":
        return row["eval/c4_en-validation/CrossEntropyLoss"]
    if task.startswith("mmlu"):
        key = "eval/downstream_bpb/mmlu_{}_test_rc_5shot_bpb"
        return sum(weight * row[key.format(k)] for k, weight in MMLU.items())
    return row[f"eval/downstream_bpb/{task.replace('_5shot', '')}_rc_5shot_bpb"]


def olmo_points(task):
    """The 16 ladder runs and the 13B target: last tokens, mean of the last five evaluations."""
    runs = {}
    for row in published.csv_rows(OLMO):
        runs.setdefault(row["run"], []).append(row)
    points = {}
    for name, rows in runs.items():
        rows.sort(key=lambda r: r["tokens"])
        value = float(np.mean([olmo_metric(r, task) for r in rows[-5:]]))
        points[name] = {"N": rows[-1]["n"], "D": rows[-1]["tokens"], "loss": value}
    target = points.pop("peteish13_eval_final")
    points.pop("peteish7_eval_anneal")
    return list(points.values()), target


@pytest.mark.slow
@published.needs(OLMO, *OLMO_STEP1, source="github.com/allenai/OLMo-ladder")
def test_nine_predictions_of_the_olmo_ladder(tmp_path):
    law, tasks = laws.resolve("chinchilla"), olmo_tasks()
    assert len(tasks) == 9
    for task, given in tasks.items():
        points, target = olmo_points(task)
        assert len(points) == 16
        assert target["loss"] == pytest.approx(given["Actual"], rel=1e-6)
        rows = observe(published.write_csv(tmp_path / f"{task}.csv", points))
        problem, theta, _, _ = optimum(rows, law, huber=1e-3)
        at = {name: np.array([target[name]]) for name in ("N", "D")}
        got = evaluate(problem.where, theta, at)[0, 0]
        assert got == pytest.approx(given["Pred"], rel=1e-3), task
        found = fit(rows, huber=1e-3, bootstrap=0)
        assert (found.status == "CONVERGED") == (task not in OPEN), task
        if task not in OPEN:
            at = {name: target[name] for name in ("N", "D")}
            assert predict(found, at).mean == pytest.approx(given["Pred"], rel=1e-3), task
