"""Do the examples of docs/notebook.md that no verb has run as they stand, on known truths?"""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from analysis import laws, schedules
from tests.analysis.curve_truth import losses
from tests.analysis.synthetic import Truth

PAGE = Path(__file__).parents[2] / "docs" / "notebook.md"
SECTION = "## What only Python answers"
CURVES = {"L0": 1.7, "A": 0.6, "alpha": 0.4, "C": 0.3, "B": 50.0, "beta": 0.3}


def examples() -> list[str]:
    section = PAGE.read_text().partition(SECTION)[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)


def write(path: Path, columns: dict) -> None:
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        out.writerows(zip(*columns.values(), strict=True))


def batches() -> dict:
    """S steps at batch B reach a loss that S / (1 + B_crit / B) steps reach in the limit, B_crit
    2e5 tokens."""
    S, B = (a.ravel() for a in np.meshgrid(np.geomspace(500, 2e5, 60), np.geomspace(2e4, 2e6, 5)))
    loss = 2.0 + 40 * (S / (1 + 2e5 / B)) ** -0.4
    return {"run": [f"batch {b:.0f}" for b in B], "S": S, "B": B, "loss": loss}


def checkpoints() -> dict:
    law, sizes = laws.resolve("annealing_size"), np.geomspace(1e7, 3e8, 5)
    history = schedules.cosine(16_000, peak=1e-3, final=1e-4, warmup=201)
    steps = np.arange(200, 16_001, 800)
    out: dict = {name: [] for name in ("run", "N", "D", "step", "lr", "loss")}
    for k, size in enumerate(sizes):
        x = {"step": steps, "lr": history.at(steps), "curve": np.zeros(len(steps))}
        x["N"] = np.full(len(steps), size)
        loss = losses(law, CURVES, x, [history], noise=1e-3, seed=k)
        out["run"] += [f"run {k}"] * len(steps)
        for name, values in (("N", x["N"]), ("D", steps * 2.0**16), ("step", steps)):
            out[name] += list(values)
        out["lr"] += list(x["lr"])
        out["loss"] += list(loss)
    return out


def task() -> tuple[dict, dict]:
    """Ends of 16 runs, and three points of each with the accuracy that their loss gives."""
    rng = np.random.default_rng(0)
    N, D = (a.ravel() for a in np.meshgrid([2e8, 4e8, 8e8, 1.3e9], [20.0, 40.0, 100.0, 200.0]))
    D = D * N
    run = [f"run {k}" for k in range(16)]
    bpb = (0.45 + 90 / N**0.28 + 260 / D**0.28) * np.exp(0.003 * rng.standard_normal(16))
    early = np.concatenate([bpb * f for f in (1.15, 1.06, 1.0)])
    score = 0.25 + 0.7 / (1 + np.exp(5 * (early - 0.95))) + 0.002 * rng.standard_normal(48)
    return {"run": run, "N": N, "D": D, "bpb": bpb}, {
        "run": run * 3,
        "bpb": early,
        "accuracy": score,
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The names that all examples leave, and what they print."""
    folder = tmp_path_factory.mktemp("page")
    plane = [a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6))]
    ends, tasks = task()
    write(folder / "batches.csv", batches())
    write(folder / "losses.csv", {"N": plane[0], "D": plane[1], "loss": Truth().loss(*plane)})
    write(folder / "checkpoints.csv", checkpoints())
    write(folder / "ends.csv", ends)
    write(folder / "tasks.csv", tasks)
    said: list[str] = []
    names: dict = {"print": lambda *words: said.append(" ".join(map(str, words)))}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for example in examples():
            exec(compile(example, str(PAGE), "exec"), names)
    return names, said


def test_there_is_an_example_of_each():
    assert len(examples()) == 4


@pytest.mark.slow
def test_the_critical_batch_of_the_page_is_that_of_the_runs(done):
    batch = done[0]["batch"]
    assert batch.at(3.0) == pytest.approx(2e5, rel=0.02) and batch.se["ln_B_star"] < 0.05
    cost = batch.cost(2e5, loss=3.0)
    assert (cost["steps"], cost["tokens"]) == pytest.approx((2, 2), rel=0.02)


def test_the_exponents_of_the_page_are_those_of_the_law(done):
    names, said = done
    truth = Truth()
    found = [line for line in said if "exponent" in line]
    assert len(found) == 12
    shown = [float(re.findall(r"exponent ([0-9.]+)", line)[0]) for line in found]
    assert shown[:6] == pytest.approx([truth.alpha] * 6, abs=1e-3)
    assert shown[6:] == pytest.approx([truth.beta] * 6, abs=1e-3)


def test_the_checkpoints_of_the_page_are_corrected_downward_and_fitted(done):
    names = done[0]
    before, after = names["found"].loss, names["ended"].loss
    early = (names["found"].step > 2000) & (names["found"].step < 12_000)
    assert (after[early] < 0.995 * before[early]).all() and (after <= before * 1.002).all()
    assert names["law"].rows > 60 and names["law"].bootstrap["clusters"] == 5


def test_the_score_of_the_page_holds_the_truth(done):
    N, D = 7e9, 4e12
    truth = 0.25 + 0.7 / (1 + np.exp(5 * (0.45 + 90 / N**0.28 + 260 / D**0.28 - 0.95)))
    (said,) = [line for line in done[1] if "through a loss of" in line]
    ((low, high),) = re.findall(r": [0-9.]+ \[([0-9.]+), ([0-9.]+)\] \(", said)
    assert float(low) <= truth <= float(high)
