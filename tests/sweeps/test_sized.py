"""`ladder size`: what the law computes is not set by hand, and demand is paid in its convention."""

import dataclasses

import pytest

from analysis.artefact import Fit
from analysis.fit import fit
from parallelism.errors import InputError
from sweeps.sized import sized
from tests.analysis.synthetic import Truth, grid, observations


@pytest.fixture(scope="module")
def law() -> Fit:
    N, D = grid(Truth(), budgets=4, sizes=6)
    found = fit(observations(N, D, Truth().loss(N, D)), bootstrap=10)
    return dataclasses.replace(found, conventions={**found.conventions, "C": "six_nd"})


@pytest.mark.parametrize("path", ["model.d_model", "model.n_layers", "budget.tokens", "budget"])
def test_what_is_computed_here_cannot_be_set(law, path, tmp_path):
    with pytest.raises(InputError, match="computes it") as error:
        sized(law, flops=1e18, root=tmp_path, settings=[f"{path}=64"])
    assert error.value.field == f"--set {path}"


def test_another_family_than_the_laws_is_refused(law, tmp_path):
    dense = dataclasses.replace(law, conventions={**law.conventions, "model.arch": "dense"})
    with pytest.raises(InputError, match="the law is of dense; fit runs of gpt2 first") as error:
        sized(dense, flops=1e18, root=tmp_path, arch="gpt2")
    assert error.value.field == "--arch"
    assert sized(law, flops=1e18, root=tmp_path, arch="gpt2").production.spec.model.arch == "gpt2"
    gpt2 = dataclasses.replace(law, conventions={**law.conventions, "model.arch": "gpt2"})
    assert sized(gpt2, flops=1e18, root=tmp_path).production.spec.model.arch == "gpt2"


def test_inference_demand_is_spent_in_the_laws_convention_and_its_cost_is_said(law, tmp_path):
    # a family whose tokens cost twice 6 N: 6 N D would spend half of what the law asks
    dear = dataclasses.replace(law, flops_per_token=[[n, 12 * n] for n in (1e5, 1e7, 1e9, 1e11)])
    found = sized(dear, flops=1e18, inference_tokens=1e11, root=tmp_path)
    demand = found.sizing.inference
    assert demand is not None
    assert demand["train_flops"] == pytest.approx(12 * demand["N"] * demand["D"], rel=1e-6)
    assert found.production.flops["six_nd"] == pytest.approx(demand["train_flops"], rel=0.01)
    multiple = demand["train_flops"] / 1e18
    assert any(f"{multiple:.3g} times --flops" in note for note in found.notes)
