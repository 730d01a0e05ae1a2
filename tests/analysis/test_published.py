"""Measurements that nobody here made: the Chinchilla points as extracted by Epoch AI.

Their files carry no licence and stay outside the repository:
github.com/epoch-research/analyzing-chinchilla, `svg_extracted_data.csv`. Figures are those of a
correct fit of these points (the objective first, then coefficients).
"""

import os
import time
from pathlib import Path

import pytest

from analysis.columns import parse_map
from analysis.fit import fit
from analysis.observations import observe

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("LADDER_PUBLISHED", ROOT.parent / "shared" / "published"))
FILE = FOLDER / "chinchilla-epoch" / "svg_extracted_data.csv"
COLUMNS = parse_map("N=Model Size,C=Training FLOP,loss=loss")

pytestmark = [
    pytest.mark.published,
    pytest.mark.skipif(
        not FILE.exists(),
        reason="no chinchilla-epoch/svg_extracted_data.csv: set LADDER_PUBLISHED to the folder that"
        " has it; the file is from github.com/epoch-research/analyzing-chinchilla",
    ),
]


@pytest.fixture(scope="module")
def kept():
    # the authors drop rows with a loss of at least the fifth largest
    found = observe(FILE, columns=COLUMNS, where="loss < largest(loss, 5)")
    assert len(found.ids) == 240
    return found


@pytest.mark.slow
def test_huber_fit_of_240_points_reaches_the_optimum(kept):
    found = fit(kept, huber=1e-3, bootstrap=0)
    assert found.objective <= 0.001018275
    p = found.params
    assert p["alpha"] == pytest.approx(0.347310, abs=2e-4)
    assert p["beta"] == pytest.approx(0.367172, abs=2e-4)
    assert p["E"] == pytest.approx(1.817218, abs=2e-4)
    assert p["A"] == pytest.approx(477.826, rel=0.005)
    assert p["B"] == pytest.approx(2143.42, rel=0.01)
    assert found.starts_agree >= 0.95 * found.starts


@pytest.mark.slow
def test_the_papers_own_table_is_an_almost_absolute_loss(kept):
    p = fit(kept, huber=1e-5, bootstrap=0).params
    assert p["alpha"] == pytest.approx(0.3478, abs=5e-4)
    assert p["beta"] == pytest.approx(0.3658, abs=5e-4)
    assert p["E"] == pytest.approx(1.8169, abs=5e-4)
    assert p["A"] == pytest.approx(482.01, rel=0.01)
    assert p["B"] == pytest.approx(2085.43, rel=0.01)


@pytest.mark.slow
def test_bootstrap_standard_errors_over_4000_resamples(kept):
    begun = time.perf_counter()
    found = fit(kept, huber=1e-3, bootstrap=4000)
    seconds = time.perf_counter() - begun
    se = {name: v["se"] for name, v in found.bootstrap["params"].items()}
    assert found.bootstrap["kind"] == "pairs" and found.bootstrap["n"] == 4000
    assert se["A"] == pytest.approx(124.5, rel=0.05)
    assert se["B"] == pytest.approx(1293, rel=0.10)
    assert se["E"] == pytest.approx(0.0257, rel=0.05)
    assert se["alpha"] == pytest.approx(0.0154, rel=0.05)
    assert se["beta"] == pytest.approx(0.0206, rel=0.05)
    assert seconds < 60  # 0.9 s on two idle cores; this only catches a lost batch


def test_the_outlier_filter_matters():
    p = fit(observe(FILE, columns=COLUMNS), huber=1e-3, bootstrap=0).params
    assert p["A"] == pytest.approx(495.7, rel=0.01)
    assert p["B"] == pytest.approx(12845.6, rel=0.01)
    assert p["E"] == pytest.approx(1.8913, rel=0.01)
    assert p["alpha"] == pytest.approx(0.3493, rel=0.01)
    assert p["beta"] == pytest.approx(0.4530, rel=0.01)
