"""The one figure of a fit: what it shows is what the fit says, and everything on it can be read."""

import dataclasses
import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from analysis.fit import fit
from analysis.fit_curves import BEYOND
from analysis.fit_figure import WIDTH, fit_figure, save
from analysis.fit_panels import open_pair
from analysis.fit_rows import FitRows
from analysis.observations import Observations
from analysis.planner import optimum
from analysis.predict import predict
from parallelism.errors import InputError
from tests.analysis.synthetic import Truth, grid

ROWS = 15
PANELS = {  # panels by where they stand
    "curve": 0,
    "residuals": 1,
    "hold-outs": 2,
    "parameters": 3,
}


def measured(columns, *, labels=None) -> Observations:
    ids = tuple(f"run-{k:02d}" for k in range(len(next(iter(columns.values())))))
    return Observations(
        source="synthetic",
        id=ids,
        columns=columns,
        cluster=ids,
        seed=(0,) * len(ids),
        reason=(None,) * len(ids),
        conventions={"C": "six_nd", "loss_unit": "nats/token"},
        rows=({},) * len(ids),
        labels=labels or {},
    )


def noise(seed=0, size=0.003):
    return np.exp(size * np.random.default_rng(seed).standard_normal(ROWS))


def plane(*, far=False) -> Observations:
    N, D = grid(Truth())
    loss = Truth().loss(N, D) * noise()
    if far:
        loss[7] *= 1.3
    return measured({"N": N, "D": D, "C": 6 * N * D, "loss": loss})


def families() -> Observations:
    N, D = grid(Truth())
    family = np.arange(ROWS) % 2.0
    loss = Truth().loss(N, D) * (1 + 0.05 * family) * noise()
    columns = {"N": N, "D": D, "C": 6 * N * D, "loss": loss, "family": family}
    return measured(columns, labels={"family": ("base $x", "gated")})


def one_input() -> Observations:
    N = np.geomspace(1e6, 1e9, ROWS)
    return measured({"N": N, "loss": 1.7 + (3e5 / N) ** 0.27 * noise(size=0.02)})


def scores() -> Observations:
    loss = np.linspace(0.5, 2.4, ROWS)
    right = 0.25 + 0.6 / (1 + np.exp(4 * (loss - 1.3)))
    return measured({"loss": loss, "accuracy": right + np.log(noise(size=0.01))})


def one_budget() -> Observations:
    whole = plane()
    return measured({name: values[:5] for name, values in whole.columns.items()})


CASES = {
    "plane": (plane, {}),
    "outlier": (lambda: plane(far=True), {}),
    "families": (families, {"by": "family", "share": ("E", "alpha", "beta")}),
    "one input": (one_input, {"law": "henighan_n"}),
    "scores": (scores, {"law": "accuracy_of_loss"}),
    "one budget": (one_budget, {"prior": True}),
}


@pytest.fixture(scope="module")
def fits():
    return {
        name: (made := rows(), fit(made, bootstrap=40, starts=16, **options))
        for name, (rows, options) in CASES.items()
    }


@pytest.fixture(scope="module")
def drawn(fits):
    return {name: fit_figure(found, rows) for name, (rows, found) in fits.items()}


def texts(figure):
    """Every visible text with its box, in pixels."""
    figure.draw_without_rendering()
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                at = tick.get_loc()
                if not low * (1 - 1e-9) - 1e-12 <= at <= high * (1 + 1e-9) + 1e-12:
                    hidden |= {tick.label1, tick.label2}
    return [(t.get_text(), t.get_window_extent()) for t in found if t not in hidden]


def words(figure):
    return " ".join(text for text, _ in texts(figure)).replace("\n", " ")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_no_two_texts_overlap_and_none_leaves_the_page(fits, name, columns):
    rows, found = fits[name]
    figure = fit_figure(found, rows, columns=columns)
    assert figure.get_size_inches()[0] == WIDTH[columns]
    boxes = texts(figure)
    assert len(boxes) > 20
    # a pixel of a hundred to the inch: boxes are as high as their line, not as their letters
    shrunk = [
        (t, b.shrunk(max(0.0, 1 - 2 / b.width), max(0.0, 1 - 2 / b.height))) for t, b in boxes
    ]
    for (one, a), (other, b) in itertools.combinations(shrunk, 2):
        assert not a.overlaps(b), (one, other)
    page = figure.bbox
    for text, box in boxes:
        assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1, text
        assert page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1, text


@pytest.mark.slow
def test_the_overlap_test_sees_an_overlap(drawn):
    figure = drawn["one input"]
    title = figure.axes[0].get_title(loc="left")
    boxes = [b for t, b in texts(figure) if t == title]
    extra = figure.text(0, 0, "x")
    extra.set_position(figure.transFigure.inverted().transform((boxes[0].x0, boxes[0].y0)))
    assert extra.get_window_extent().overlaps(boxes[0])
    extra.remove()


def panel(figure, name):
    return figure.axes[PANELS[name]]


def offsets(axes):
    return np.concatenate(
        [np.asarray(c.get_offsets()) for c in axes.collections if c.get_sizes().any()]
    )


@pytest.mark.parametrize("name", ["plane", "families", "one input", "scores"])
def test_every_row_is_drawn_once_with_its_residual_in_units_of_noise(fits, drawn, name):
    rows, found = fits[name]
    output = found.where.law.output
    law = []
    for k in range(ROWS):
        at = {n: float(rows.columns[n][k]) for n in found.where.law.input_names}
        law.append(predict(found, at).mean)
    y = rows.columns[output.name]
    off = np.log(y / law) if output.scale == "log" else y - np.array(law)
    seen = offsets(panel(drawn[name], "residuals"))
    np.testing.assert_allclose(np.sort(seen[:, 1]), np.sort(off / found.noise["sd"]), rtol=1e-6)
    shown = offsets(panel(drawn[name], "curve"))
    np.testing.assert_allclose(np.sort(shown[:, 1]), np.sort(y))


def test_the_frontier_is_the_loss_of_the_best_size_to_thirty_times_the_data(fits, drawn):
    rows, found = fits["plane"]
    line = panel(drawn["plane"], "curve").get_lines()[0]
    C, loss = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    assert C.max() == pytest.approx(BEYOND * rows.columns["C"].max())
    for k in (0, len(C) // 2, -1):
        assert loss[k] == pytest.approx(optimum(found, float(C[k]))["loss"], rel=1e-9)


def test_one_frontier_a_family_and_their_names_in_the_legend(drawn):
    axes = panel(drawn["families"], "curve")
    curves = [line for line in axes.get_lines() if len(line.get_xdata()) > 2]
    assert len(curves) == 2
    legend = axes.get_legend()
    assert [t.get_text() for t in legend.get_texts()] == ["base $x", "gated"]


def test_the_band_is_the_interval_that_predict_gives(fits, drawn):
    _, found = fits["one input"]
    axes = panel(drawn["one input"], "curve")
    line = axes.get_lines()[0]
    N, middle = (np.asarray(v, float) for v in (line.get_xdata(), line.get_ydata()))
    assert N.max() == pytest.approx(BEYOND * 1e9)
    (band,) = [c for c in axes.collections if not c.get_sizes().any()]
    (path,) = band.get_paths()
    expected = predict(found, {"N": float(N[-1])})
    assert middle[-1] == pytest.approx(expected.mean)
    ends = path.vertices[np.isclose(path.vertices[:, 0], N[-1])][:, 1]
    assert ends.min() == pytest.approx(expected.lo) and ends.max() == pytest.approx(expected.hi)


def test_outliers_are_named_at_their_points_and_nothing_else_is(fits, drawn):
    rows, found = fits["outlier"]
    assert "run-07" in found.outliers
    names = {t.get_text() for t in panel(drawn["outlier"], "residuals").texts}
    assert "run-07" in names and names <= set(found.outliers)
    assert not panel(drawn["plane"], "residuals").texts or fits["plane"][1].outliers


def test_the_back_test_counts_are_the_artefacts(fits, drawn):
    _, found = fits["plane"]
    folds = [f for f in found.backtest["folds"] if "points" in f]
    inside, held = (sum(f[k] for f in folds) for k in ("inside", "held_out"))
    title = panel(drawn["plane"], "hold-outs").get_title(loc="left")
    assert title == f"back-test: {inside} of {held} inside 95% intervals"
    for name in ("one input", "one budget"):
        assert "no back-test" in panel(drawn[name], "hold-outs").get_title(loc="left")


def test_the_head_says_status_verdict_and_how_far_the_law_reaches(fits, drawn):
    for name, (_, found) in fits.items():
        said = words(drawn[name])
        assert f"{found.status}, {found.starts_agree} of {found.starts} starts agree" in said
        assert found.lack_of_fit["verdict"] in said
        assert "fitted over" in said and "error of form" in said
    assert "not tested" in words(drawn["one input"])


def test_an_ill_posed_fit_says_what_is_missing_and_shows_the_open_direction(fits, drawn):
    _, found = fits["one budget"]
    assert found.status == "ILL_POSED"
    said = words(drawn["one budget"])
    for lack in found.missing:
        assert lack["given"] in said and lack["instead"] in said
    pair = open_pair(found)
    assert pair is not None
    first, second = pair
    axes = panel(drawn["one budget"], "parameters")
    assert (axes.get_xlabel(), axes.get_ylabel()) == (first, second)
    drawn_S = found.where.natural(found.samples_Sp)
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata(), drawn_S[first])


def test_intervals_of_parameters_are_those_of_the_bootstrap(fits, drawn):
    _, found = fits["plane"]
    axes = panel(drawn["plane"], "parameters")
    bars = [np.asarray(line.get_xdata(), float) for line in axes.get_lines()]
    bars = [b for b in bars if len(b) == 2 and b[0] != b[1]]
    assert len(bars) == len(found.params)
    for bar, (name, value) in zip(reversed(bars), found.params.items(), strict=True):
        boot = found.bootstrap["params"][name]
        np.testing.assert_allclose(bar, [boot["lo"] / value, boot["hi"] / value])


def test_rows_of_another_fit_are_refused(fits):
    _, found = fits["plane"]
    fewer = dataclasses.replace(plane(), reason=("cut", *(None,) * (ROWS - 1)))
    with pytest.raises(InputError, match="other rows"):
        fit_figure(found, fewer)
    with pytest.raises(InputError, match="no column D"):
        fit_figure(found, one_input())


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_vector_files_hold_text_as_text_and_are_the_same_twice(drawn, tmp_path):
    save(drawn["plane"], tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "<text" in text and "chinchilla: L = E" in text and "training compute C, FLOPs" in text
    first = (tmp_path / "a.svg").read_bytes()
    save(drawn["plane"], tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes() == first
    save(drawn["plane"], tmp_path / "a.pdf")
    data = (tmp_path / "a.pdf").read_bytes()
    assert data.startswith(b"%PDF") and b"/CIDFontType2" in data and b"/Type3" not in data
    save(drawn["plane"], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["a", "a.jpg", "no/such/folder/a.svg"])
def test_a_path_that_no_figure_can_have_is_one_line(drawn, tmp_path, name):
    with pytest.raises(InputError, match="^--figure: ") as caught:
        save(drawn["plane"], tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.*"))


def test_the_abscissa_is_compute_where_the_law_has_it_and_else_the_widest_input(fits):
    rows = {name: FitRows(found, seen) for name, (seen, found) in fits.items()}
    assert rows["plane"].abscissa[0] == "C" and rows["families"].abscissa[0] == "C"
    assert rows["one input"].abscissa[0] == "N" and rows["scores"].abscissa[0] == "loss"
