"""Checkpoints as data: flagged, corrected to as if annealed, one cluster a run."""

import csv

import numpy as np
import pytest

from analysis import laws, schedules, varpro
from analysis.checkpoints import (
    CORRECTED,
    EARLY,
    NOT_ANNEALED,
    WARM_UP,
    checkpoints,
    refuse_iid,
)
from analysis.coordinates import centred
from analysis.fit import fit
from analysis.solve import solve
from parallelism.errors import InputError
from tests.analysis.curve_truth import TRAINED, losses, observed, rows
from train.record import DONE, RunDir, read_json, write_json

LAW = laws.resolve("annealing_size")
TRUTH = {"L0": 1.7, "A": 0.6, "alpha": 0.4, "C": 0.3, "B": 50.0, "beta": 0.3}
PEAK, BATCH, LENGTH, WARMUP = 1e-3, 2**16, 16_000, 201  # the peak is reached at step 200
SIZES = np.geomspace(1e7, 3e8, 6)
BUDGET = 3e17


def write(path, histories, sizes, *, noise=0.0):
    """A file of checkpoints under the true law, every 400 steps from the end of warm-up."""
    steps = np.arange(200, LENGTH + 1, 400)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["run", "N", "D", "step", "lr", "loss"])
        for i, (history, size) in enumerate(zip(histories, sizes, strict=True)):
            x = {"step": steps, "lr": history.at(steps), "curve": np.zeros(len(steps))}
            x["N"] = np.full(len(steps), size)
            loss = losses(LAW, TRUTH, x, [history], noise=noise, seed=i)
            for step, lr, value in zip(steps, x["lr"], loss, strict=True):
                out.writerow([f"run{i}", float(size), step * BATCH, step, float(lr), float(value)])
    return path


def best_size(N, D, loss):
    """N* at the budget of a Chinchilla law of these rows, in closed form."""
    law = laws.resolve("chinchilla")
    x = {"N": N, "D": D}
    where, ones = centred(law, x, loss), np.ones(len(loss))
    starts = varpro.seed(where, x, np.log(loss), starts_Pp=where.starts(16, seed=0), weights=ones)
    found = solve(where, x, y=np.log(loss), weights=ones, starts_Pp=starts, delta=0.01)
    p = where.natural(found.theta_Pp[found.objective_P.argmin()])
    both = p["alpha"] + p["beta"]
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / both)
    return float(G * (BUDGET / 6) ** (p["beta"] / both))


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Six sizes of one long cosine each, and a constant and a two-stage run of one of them."""
    long = schedules.cosine(LENGTH, peak=PEAK, final=PEAK / 10, warmup=WARMUP)
    extra = [
        schedules.constant(LENGTH, peak=PEAK, warmup=WARMUP),
        schedules.two_stage(LENGTH, peak=PEAK, second=0.3 * PEAK, switch=8000, warmup=WARMUP),
    ]
    path = tmp_path_factory.mktemp("family") / "checkpoints.csv"
    write(path, [long] * 6 + extra, [*SIZES, SIZES[3], SIZES[3]], noise=1e-3)
    found = checkpoints(path)
    rows = found.observations(exclude=())
    return found, fit(rows, law="annealing_size", bootstrap=0, starts=16)


def truly_annealed(steps):
    """Noise-free losses of runs of every size that did end at these steps."""
    ends = [schedules.cosine(int(s), peak=PEAK, final=PEAK / 10, warmup=WARMUP) for s in steps]
    histories = ends * len(SIZES)
    x = {
        "step": np.array([h.steps for h in histories], float),
        "lr": np.array([h.lr[-1] for h in histories]),
        "curve": np.arange(len(histories), dtype=float),
        "N": np.repeat(SIZES, len(steps)),
    }
    return x["N"], x["step"] * BATCH, losses(LAW, TRUTH, x, histories)


def noise_of(found, take):
    """(M,) what was multiplied on the losses of some checkpoints of the six sizes."""
    long = [schedules.cosine(LENGTH, peak=PEAK, final=PEAK / 10, warmup=WARMUP)] * 6
    x = {"step": found.step, "lr": found.lr, "curve": found.curve, "N": found.N}
    return found.loss[take] / losses(LAW, TRUTH, {k: v[take] for k, v in x.items()}, long)


@pytest.mark.slow
def test_unannealed_checkpoints_bend_the_optimum_and_corrected_ones_do_not(family):
    found, curves = family
    steps = np.unique(found.step[(found.step >= 0.15 * LENGTH)])
    take = (found.curve < 6) & np.isin(found.step, steps)
    N, D, ended = truly_annealed(steps)
    # with the noise of the checkpoints: what is left is the correction's own error
    want = best_size(N, D, ended * noise_of(found, take))
    corrected = found.as_if_annealed(curves, shape="cosine", final=0.1)
    assert abs(best_size(N, D, found.loss[take]) / want - 1) > 0.2
    assert abs(best_size(N, D, corrected.loss[take]) / want - 1) < 0.03


def test_a_corrected_checkpoint_has_the_loss_of_a_run_that_ended_there(family):
    found, curves = family
    corrected = found.as_if_annealed(curves, shape="cosine", final=0.1)
    for step in (2600.0, 5000.0, 8200.0):
        at = (found.step == step) & (found.curve < 6)
        _, _, ended = truly_annealed([step])
        want = ended * noise_of(found, at)
        assert (found.loss[at] > 1.003 * want).all()
        np.testing.assert_allclose(corrected.loss[at], want, rtol=3e-4)
        assert all(CORRECTED in f for f, here in zip(corrected.flags, at, strict=True) if here)
    ends = (found.step == found.step.max()) & (found.curve < 6)
    np.testing.assert_array_equal(corrected.loss[ends], found.loss[ends])


def test_rows_are_flagged_and_none_is_dropped(tmp_path):
    steps = np.arange(50, 4001, 50)
    with (tmp_path / "one.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["run", "step", "lr", "loss"])
        for s in steps:
            out.writerow(["a", s, float(TRAINED[0].at(s)), 4.0 if s != 1000 else ""])
    found = checkpoints(tmp_path / "one.csv")
    assert len(found.flags) == len(steps)
    for step, flags in zip(steps, found.flags, strict=True):
        assert (WARM_UP in flags) == (step < 200)
        assert (EARLY in flags) == (step < 400)
        assert (NOT_ANNEALED in flags) == bool(TRAINED[0].at(step) > 1.01 * 3e-5)
    made = found.observations()
    assert len(made.id) == len(steps)
    said = {e["id"]: e["reason"] for e in made.excluded}
    assert said["a@50"] == WARM_UP and said["a@350"] == EARLY and "loss" in said["a@1000"]
    assert len(said) == 8 and set(made.cluster) == {"a"}
    strict = found.observations(exclude=(WARM_UP, EARLY, NOT_ANNEALED))
    assert strict.used.sum() == (TRAINED[0].at(steps) <= 1.01 * 3e-5).sum() > 0


def write_ledger(root, name, *, status):
    spec = {
        "optim": {"lr": 3e-3},
        "schedule": {"kind": "wsd", "warmup": 0.02, "decay": 0.2, "final": 0.0},
        "budget": {"tokens": 1000 * 512, "batch_tokens": 512},
    }
    run = RunDir(root / name)
    run.start(spec=spec, env={}, counts={"params": {"total": 12345}, "flops_per_token": {}})
    ledger = run.ledger(resume_step=0)
    for step in range(10, 1001, 10):
        row = {"step": step, "tokens": step * 512, "loss/train": 5 - step / 1000}
        ledger.append(row | ({"loss/val": 4.9 - step / 1000} if step % 50 == 0 else {}))
    ledger.close()
    if status:
        run.finish(status=status, reason="loss 9", metrics={"loss/val": 3.9})


def test_the_ledgers_of_runs_are_checkpoints_with_the_rates_of_their_specs(tmp_path):
    write_ledger(tmp_path, "aaaaaaaaaaaa", status=DONE)
    write_ledger(tmp_path, "bbbbbbbbbbbb", status="diverged")
    found = checkpoints(tmp_path)
    assert found.run == ("aaaaaaaaaaaa", "bbbbbbbbbbbb") and len(found.step) == 2 * 20
    assert (found.N == 12345).all() and (found.D == 512 * found.step).all()
    at = dict(zip(found.step[:20], found.lr[:20], strict=True))
    assert at[500] == pytest.approx(3e-3) and at[1000] == pytest.approx(3e-3 / 200)
    assert found.flags[19] == () and found.flags[9] == (NOT_ANNEALED,)
    assert all("diverged" in f for f in found.flags[20:])
    made = found.observations()
    assert {e["reason"] for e in made.excluded} == {"diverged", EARLY}
    assert len(checkpoints(tmp_path, loss="loss/train").step) == 200
    with pytest.raises(InputError, match="loss/nothing"):
        checkpoints(tmp_path, loss="loss/nothing")
    path = tmp_path / "aaaaaaaaaaaa" / "counts.json"
    write_json(path, {**read_json(path), "loss_unit": "nats/token (upper bound)"})
    with pytest.raises(InputError, match="loss_unit: mixed: nats/token and nats/token .upper"):
        checkpoints(tmp_path)


def test_checkpoints_of_a_run_are_not_resampled_one_by_one(family):
    found, _ = family
    refuse_iid(found.observations())
    x = rows(TRAINED)
    alone = observed(x, np.full(len(x["step"]), 3.0), independent=True)
    with pytest.raises(InputError, match=r"--cluster: 75 checkpoints of 3 runs as independent"):
        refuse_iid(alone)
    refuse_iid(observed(x, np.full(len(x["step"]), 3.0)))


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ("run,step,loss\na,10,3.0", "lr"),
        ("run,step,lr,loss\na,10,fast,3.0", "mend row 1"),
        ("run,step,lr,loss\na,10,1e-3,3.0\na,20,-1e-3,3.0", "mend row 2"),
        ("step,lr,loss\n10,1e-3,3.0", "run"),
    ],
)
def test_a_file_that_is_no_curve_is_refused_in_one_line(tmp_path, row, word):
    (tmp_path / "bad.csv").write_text(row + "\n")
    with pytest.raises(InputError, match=word) as error:
        checkpoints(tmp_path / "bad.csv")
    assert "\n" not in str(error.value)


def test_a_correction_that_cannot_be_is_refused(family):
    found, curves = family
    with pytest.raises(InputError, match="shape"):
        found.as_if_annealed(curves, shape="cosin")
    with pytest.raises(InputError, match="final"):
        found.as_if_annealed(curves, final=1.5)
    with pytest.raises(InputError, match="exclude"):
        found.observations(exclude=("early",))
