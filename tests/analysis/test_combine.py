"""Do laws made from laws say what they are made of? Families, multipliers, sums, links."""

import dataclasses

import numpy as np
import pytest

from analysis import laws
from analysis.combine import linked, shared, sum_of_powers
from analysis.coordinates import Coordinates, evaluate
from analysis.fit import fit
from analysis.law import positive
from analysis.observations import observe
from analysis.quantities import ACCURACY, LOSS, D, N, Quantity
from parallelism.errors import InputError
from tests.analysis.synthetic import Truth, grid

TRUTH = Truth()
FAMILY = Quantity("family", "group", "label")


def write(path, families, *, noise=0.0):
    rng = np.random.default_rng(0)
    rows = ["N,D,family,loss"]
    for name, loss in families.items():
        for n, d in zip(*grid(TRUTH, budgets=3, sizes=5), strict=True):
            rows.append(
                f"{n!r},{d!r},{name},{loss(n, d) * np.exp(noise * rng.standard_normal())!r}"
            )
    path.write_text("\n".join(rows).replace("np.float64(", "").replace(")", "") + "\n")
    return observe(path, inputs=(N, D, FAMILY), output=LOSS)


@pytest.mark.slow
def test_families_share_exponents_and_keep_their_own_amplitudes(tmp_path):
    other = dataclasses.replace(TRUTH, E=1.4, A=45.0, B=1300.0)
    rows = write(tmp_path / "two.csv", {"dense": TRUTH.loss, "moe": other.loss})
    found = fit(rows, by="family", share=("alpha", "beta"), bootstrap=0)
    for name, truth in (("dense", TRUTH), ("moe", other)):
        for key in "EAB":
            assert found.params[f"{key}[{name}]"] == pytest.approx(getattr(truth, key), rel=1e-6)
    assert found.params["alpha"] == pytest.approx(0.36, rel=1e-6)
    assert set(found.params) == {"alpha", "beta"} | {
        f"{k}[{g}]" for k in "EAB" for g in ("dense", "moe")
    }


@pytest.mark.slow
def test_a_multiplier_of_tokens_is_recovered(tmp_path):
    rows = write(
        tmp_path / "m.csv", {"base": TRUTH.loss, "new": lambda n, d: TRUTH.loss(n, 1.7 * d)}
    )
    found = fit(rows, by="family", multiplier="D", bootstrap=0)
    assert found.params["m[new]"] == pytest.approx(1.7, rel=1e-6)


def test_a_combined_law_is_one_object_for_its_arguments_and_reads_back():
    law = laws.resolve("chinchilla")
    assert shared(law, "f", ("a", "b"), ("alpha",)) is shared(law, "f", ("a", "b"), ("alpha",))
    options = {"by": "f", "labels": ["a", "b"], "share": ["alpha"], "residual": "linear"}
    assert laws.build("chinchilla", options) is laws.build("chinchilla", dict(options))
    assert laws.build("chinchilla", options).output.scale == "linear"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "family", "share": ("alhpa",)}, "--share: alhpa.*alpha"),
        ({"by": "family", "share": ("A",)}, "share alpha too"),
        ({"by": "familly"}, "--by: familly.*family"),
        ({"share": ("alpha",)}, "name the families' column with --by"),
        ({"by": "family", "multiplier": "P"}, "--multiplier: P"),
    ],
)
def test_a_mistake_about_families_is_one_line(tmp_path, options, said):
    rows = write(tmp_path / "two.csv", {"a": TRUTH.loss, "b": TRUTH.loss})
    with pytest.raises(InputError, match=said):
        fit(rows, bootstrap=0, **options)


def test_a_sum_of_powers_is_chinchilla_when_it_has_its_terms():
    mine, law = (
        sum_of_powers("mine", {N: ("A", "alpha"), D: ("B", "beta")}),
        laws.resolve("chinchilla"),
    )
    x = dict(zip("ND", grid(TRUTH), strict=True))
    values = {k: getattr(TRUTH, k) for k in law.names}
    one, other = (Coordinates(m, np.zeros(2), 1.0) for m in (mine, law))
    np.testing.assert_allclose(
        evaluate(one, one.coordinates(values), x), evaluate(other, other.coordinates(values), x)
    )


def test_a_link_is_applied_to_its_law():
    law = laws.resolve("chinchilla")
    accuracy = linked(
        law,
        lambda p, loss: 1 / (1 + loss / p["half"]),
        name="accuracy",
        params=(positive("half", start=(0.5, 5.0)),),
        output=ACCURACY,
        equation="acc = 1 / (1 + L / half)",
    )
    where, plain = (Coordinates(m, np.zeros(2), 1.0) for m in (accuracy, law))
    values = {k: getattr(TRUTH, k) for k in law.names}
    x = {"N": [1e6], "D": [1e8]}
    loss = evaluate(plain, plain.coordinates(values), x)
    got = evaluate(where, where.coordinates({**values, "half": 2.0}), x)
    np.testing.assert_allclose(got, 1 / (1 + loss / 2))
