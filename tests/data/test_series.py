"""Are series read as they stand, cut without a leak, and generated as they say?"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parallelism.errors import InputError
from train.data.pipeline import open_data
from train.data.values import seasonal
from train.data.values.series import Spec, read
from train.data.windows import Series, context_of, split
from train.spec import DataSpec

T = 8


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def series_of(source: Spec) -> dict[str, list[float]]:
    return {s.name: s.values_N.tolist() for s in read(source, field="data.sources.0")}


def test_wide_long_and_array_files_hold_the_same_series(tmp_path):
    wide = write(tmp_path / "w.csv", "day,a,b\n2024-01-01,1,4\n2024-01-02,2.5,5\n2024-01-03,3,6\n")
    long = write(tmp_path / "l.csv", "t,who,x\n1,a,1\n1,b,4\n2,a,2.5\n2,b,5\n3,b,6\n3,a,3\n")
    np.save(tmp_path / "n.npy", np.array([[1, 2.5, 3], [4, 5, 6]]))
    found = [
        series_of(Spec(path=wide, time="day")),
        series_of(Spec(path=long, time="t", id="who", value="x")),
        series_of(Spec(path=str(tmp_path / "n.npy"))),
    ]
    assert [list(f.values()) for f in found] == [[[1, 2.5, 3], [4, 5, 6]]] * 3
    assert [list(f) for f in found] == [
        ["w.csv:a", "w.csv:b"],
        ["l.csv:a", "l.csv:b"],
        ["n.npy:0", "n.npy:1"],
    ]
    assert list(series_of(Spec(path=wide, columns=("b",)))) == ["w.csv:b"]


def test_an_empty_cell_stays_missing(tmp_path):
    path = write(tmp_path / "m.csv", "a\n1\n\n3\n")  # a blank line is a row that is not there
    assert series_of(Spec(path=path)) == {"m.csv:a": [1, 3]}
    path = write(tmp_path / "m.csv", "a,b\n1,2\n,NaN\n3,NA\n")
    (a, b) = series_of(Spec(path=path)).values()
    assert a[0] == 1 and a[2] == 3 and b[0] == 2
    assert np.isnan([a[1], *b[1:]]).all()


@pytest.mark.parametrize(
    "text, more, said",
    [
        ("a\n1\nlots\n3\n", {}, "column a has 'lots', which is no number"),
        ("day,a\n2024-01-01,1\n", {}, "column day has '2024-01-01'"),
        ("a,b\n1,True\n", {}, "column b has 'True'"),
        ("a\n1\ninf\n", {}, "infinite at 2"),
        ("t,a\n1,1\n3,2\n2,3\n", {"time": "t"}, "t goes back, from 3 to 2"),
        ("t,a\n1,1\n", {"time": "when"}, "did you mean|choose one of"),
        ("a\n1\n2\n", {}, "m.csv:a has 2 numbers; windows of both sides need 14"),
        ("a\n1\n2\n", {"shorter": "leave_out"}, "no series that is long enough"),
        ("a\n" + "1\n2\n" * 20, {"split": "series"}, "no two different series"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, text, more, said):
    path = write(tmp_path / "m.csv", text)
    with pytest.raises(InputError, match=said) as error:
        Spec(path=path, **more).open(seq_len=T, validation=0.2, field="data.sources.0")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("n", [14, 31, 200])
def test_no_number_that_is_asked_for_in_validation_was_trained_on(n):
    """Numbers are their own places; the last ones are asked for, and each once."""
    series = [Series("a", np.arange(n, dtype=float)), Series("b", np.arange(1000.0, 1000 + n))]
    train, held = split(series, by="time", seq_len=T, stride=3, validation=0.2, field="x")
    trained = set(train.read(np.arange(train.n_rows)).values_BW.ravel().tolist())
    asked = held.read(np.arange(held.n_rows)).values_BW[:, context_of(T) :].ravel().tolist()
    assert len(asked) == len(set(asked)) and not trained & set(asked)
    assert max(trained) < 1000 + n - max(round(0.2 * n), T + 1 - context_of(T))
    assert train.n_rows and held.n_rows and held.n_tokens >= len(asked)
    everything = np.arange(n - held.n_tokens // 2, n)
    assert set(asked) <= {*everything.tolist(), *(everything + 1000).tolist()}


def test_whole_series_are_held_out_by_their_numbers_wherever_they_stand():
    rng = np.random.default_rng(0)
    series = [Series(str(i), rng.standard_normal(40)) for i in range(30)]
    options = {"by": "series", "seq_len": T, "stride": T, "validation": 0.3, "field": "x"}

    def held_out(order):
        _, held = split([series[i] for i in order], **options)
        return {series[order[i]].name for i in held.which_R}

    first = held_out(list(range(30)))
    assert 0 < len(first) < 20
    assert held_out(list(range(29, -1, -1))) == first
    train, held = split(series, **options)
    assert not set(train.which_R) & set(held.which_R)


def test_a_run_reads_its_files_through_the_same_order_and_sides(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "n.npy", rng.standard_normal((6, 300)))
    spec = DataSpec(sources=({"kind": "series", "path": str(tmp_path)},), seq_len=T)  # pyright: ignore[reportArgumentType]
    data = open_data(spec, seed=0, sequences_per_batch=8, cache=tmp_path, vocab=256)
    whole: Any = data.batch(3)
    parts: list[Any] = [data.batch(3, process_index=p, process_count=2) for p in range(2)]
    assert (np.concatenate([p.values_BW for p in parts]) == whole.values_BW).all()
    assert data.manifest["sources"][0]["documents"] == {"train": 6, "validation": 6}
    assert data.bytes_per_token() is None and not data.has_answers()
    last: Any = list(data.validation(10**6))[-1]
    assert last.known_BW.shape == (8, T + 1)
    assert set(last.known_BW.all(axis=1).tolist()) <= {True, False}
    assert (last.values_BW[~last.known_BW] == 0).all(), "rows that fill up know nothing"


# -- generated -------------------------------------------------------------------------------------


def test_a_generated_row_is_a_function_of_its_number_and_of_its_side():
    opened = seasonal.Spec(missing=0.3).open(seq_len=48, validation=0.1, field="x")
    some = opened.train.read(np.array([5, 2, 5]))
    assert np.array_equal(some.values_BW[0], some.values_BW[2], equal_nan=True)
    assert not np.array_equal(some.values_BW[0], some.values_BW[1], equal_nan=True)
    other = opened.held_out.read(np.array([5]))
    assert not np.array_equal(some.values_BW[0], other.values_BW[0], equal_nan=True)
    many = opened.train.read(np.arange(400))
    assert np.mean(many.known_BW) == pytest.approx(0.7, abs=0.01)
    assert np.isnan(many.values_BW[~many.known_BW]).all() and opened.missing


def test_seasons_repeat_and_noise_is_as_large_as_it_says():
    spec, width = seasonal.Spec(trend=0.0), 49
    rows = spec.open(seq_len=width - 1, validation=0.1, field="x").train
    values_BW, smooth_BW, period_B = spec.make(rows.bits(np.arange(600)), width=width)
    assert set(period_B.tolist()) == set(spec.periods)
    for b in range(600):
        p = period_B[b]
        np.testing.assert_allclose(smooth_BW[b, p:], smooth_BW[b, :-p], rtol=1e-6)
    # whole periods have a spread of one scale, and the noise a fifth of it
    scale_B = smooth_BW[:, :48].std(axis=1)
    noise_BW = (values_BW - smooth_BW) / scale_B[:, None]
    assert noise_BW.std() == pytest.approx(spec.noise, rel=0.02)
