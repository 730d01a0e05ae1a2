"""Error of form of a chain's steps: seen where a step bends as its law cannot, small elsewhere."""

import dataclasses

import numpy as np
import pytest

from analysis.arrays import rows
from analysis.chain import chain
from analysis.chain_form import SCORE_PRIOR, StepForm
from analysis.laws.chinchilla import LAWS as LOSS_LAWS
from analysis.laws.downstream import ACCURACY_OF_LOSS
from tests.analysis.test_downstream import TARGET, accuracy, task_loss

CHINCHILLA = next(law for law in LOSS_LAWS if law.name == "chinchilla")
NONE = StepForm(form=0.0, folds=[])


def late(loss):
    """A score that has hardly left chance before it climbs, then climbs along a line: no sigmoid
    of what is seen ends there."""
    return accuracy(loss) + 0.35 * np.log1p(np.exp((1.02 - loss) / 0.02)) * 0.02


def made(score, *, seed=0, noise=0.002):
    rng = np.random.default_rng(seed)
    N, D = (a.ravel() for a in np.meshgrid([2e8, 4e8, 8e8, 1.3e9], [20.0, 40.0, 100.0, 200.0]))
    D = D * N
    run = [f"run {i}" for i in range(16)]
    loss = task_loss(N, D) * np.exp(0.003 * rng.standard_normal(16))
    early = np.concatenate([task_loss(N, D * f) * loss / task_loss(N, D) for f in (0.3, 0.6, 1.0)])
    seen = score(early) + noise * rng.standard_normal(48)
    return (
        rows(CHINCHILLA, {"N": N, "D": D}, loss, run=run),
        rows(ACCURACY_OF_LOSS, {"loss": early}, seen, run=run * 3),
    )


@pytest.mark.slow
def test_a_score_that_bends_has_error_of_form_and_one_that_follows_has_not():
    straight, bent = (chain(*made(s), bootstrap=40, starts=16) for s in (accuracy, late))
    assert straight.second_form.form < 2 * SCORE_PRIOR
    assert bent.second_form.form > 10 * straight.second_form.form
    # the farthest two runs are predicted from 8, 10, 12 and 14 of the others
    assert [f["runs"] for f in bent.second_form.folds] == [8, 10, 12, 14]
    far = [f["beyond"] for f in bent.second_form.folds]
    assert far == sorted(far, reverse=True) and far[-1] > 0


@pytest.mark.slow
def test_the_interval_holds_a_bent_truth_that_statistics_alone_miss():
    truth = late(task_loss(**TARGET))
    plain = with_form = 0
    for seed in range(5):
        whole = chain(*made(late, seed=seed), bootstrap=40, starts=16, seed=seed)
        found = whole.predict(TARGET)
        bare = dataclasses.replace(whole, form=NONE, second_form=NONE).predict(TARGET)
        with_form += found.lo <= truth <= found.hi
        plain += bare.lo <= truth <= bare.hi
        assert found.sd["second_form"] > 0 and bare.sd["second_form"] == 0
    assert with_form >= 4 and plain <= 2


@pytest.mark.slow
def test_the_error_grows_with_the_distance_from_the_losses_that_were_seen():
    found = chain(*made(late), bootstrap=40, starts=16)
    inside = found.predict({"N": 8e8, "D": 8e10})
    near, far = (found.predict({"N": 1e9 * k, "D": 4e11 * k}) for k in (2.0, 20.0))
    assert inside.sd["second_form"] == 0.0 < near.sd["second_form"] < far.sd["second_form"]
    assert 0 <= far.lo <= far.mean <= far.hi <= 1


def test_a_form_that_is_given_is_taken():
    found = chain(*made(accuracy), bootstrap=20, starts=8, form=0.01, second_form=0.5)
    assert (found.form.form, found.second_form.form) == (0.01, 0.5) and not found.form.folds
    beyond = np.log(np.min(found.second.rows.x["loss"]) / found.predict(TARGET).loss)
    assert found.predict(TARGET).sd["second_form"] == pytest.approx(0.5 * beyond, rel=0.15)
