"""The notebook's functions: the numbers of the verbs, from files and from memory."""

import json
from typing import Any, cast

import numpy as np
import pytest

import analysis.notebook as ladder
import ladder as front_door
from analysis.combine import sum_of_powers
from analysis.law import Law
from analysis.quantities import D, N
from parallelism.errors import InputError
from tests.analysis.synthetic import Truth, grid

MAP = "N=params,D=tokens,loss=val"
VOLATILE = ("seconds", "source")
MY_LAW = sum_of_powers("mine", {N: ("A", "alpha"), D: ("B", "beta")})


def columns(*, worse=1.0, seed=0) -> dict[str, Any]:
    size, tokens = grid(Truth(), budgets=4)
    noise = 0.003 * np.random.default_rng(seed).standard_normal(len(size))
    loss = worse * Truth().loss(size, tokens) * np.exp(noise)
    return {"params": size.tolist(), "tokens": tokens.tolist(), "val": loss.tolist()}


def write(path, table) -> str:
    rows = zip(*table.values(), strict=True)
    lines = [",".join(table), *(",".join(map(repr, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("notebook")
    write(out / "a.csv", columns())
    write(out / "b.csv", columns(worse=1.04, seed=1))
    return out


@pytest.fixture(scope="module")
def fitted(folder):
    return ladder.fit(folder / "a.csv", map=MAP, bootstrap=40)


def verb(folder, *arguments) -> dict:
    out = folder / "verb.json"
    assert front_door.main([*map(str, arguments), "--json", str(out)]) == 0
    return json.loads(out.read_text())


def plain(tree):
    """As JSON holds it."""
    return json.loads(json.dumps(tree))


def steady(tree):
    return {k: v for k, v in plain(tree).items() if k not in VOLATILE}


@pytest.fixture(scope="module")
def fit_file(folder):
    path = folder / "fit.json"
    arguments = ["fit", folder / "a.csv", "--map", MAP, "--bootstrap", 40, "--json", path]
    assert front_door.main(list(map(str, arguments))) == 0
    return path


def test_fit_is_the_artefact_of_the_verb(fitted, fit_file):
    said = json.loads(fit_file.read_text())
    assert steady(fitted.to_json()) == steady(said)
    assert fitted.params["alpha"] == said["params"]["alpha"]


def test_columns_and_rows_in_memory_are_the_file(folder, fitted):
    table = columns()
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    arrays = {name: np.array(values) for name, values in table.items()}
    renamed = {"N": table["params"], "D": table["tokens"], "loss": table["val"]}
    for data in (table, rows, arrays):
        found = ladder.fit(data, map=MAP, bootstrap=40)
        assert steady(found.to_json()) == steady(fitted.to_json())
    found = ladder.fit(renamed, bootstrap=40)
    assert found.to_json()["samples"] == fitted.to_json()["samples"]
    assert found.value.source == "the data in memory"


def test_a_mapping_of_columns_may_be_a_dict(folder, fitted):
    named = {"N": "params", "D": "tokens", "loss": "val"}
    found = ladder.fit(folder / "a.csv", map=named, bootstrap=40)
    assert steady(found.to_json()) == steady(fitted.to_json())


def test_predict_is_the_verb(folder, fitted, fit_file):
    said = verb(folder, "predict", fit_file, "--at", "N=1e6,D=3e9")
    assert plain(fitted.predict(N=1e6, D=3e9).to_json()) == said
    assert fitted.predict("N=1e6,D=3e9")["mean"] == said["mean"]
    assert fitted.predict({"N": 1e6}, D=3e9)["hi"] == said["hi"]
    assert fitted.predict(N=1e6, D=3e9, level=0.5)["hi"] < said["hi"]


def test_size_is_the_verb(folder, fitted, fit_file):
    said = verb(folder, "size", fit_file, "--flops", "1e16")
    found = plain(fitted.size(1e16).to_json())
    for key in ("N", "D", "loss", "chosen", "flat", "regret"):
        assert found[key] == said[key]


def test_backtest_and_isoflop_are_the_verbs(folder, fitted):
    data = folder / "a.csv"
    said = verb(folder, "backtest", data, "--map", MAP, "--bootstrap", 40)
    assert plain(fitted.backtest().to_json()) == said
    said = verb(folder, "isoflop", data, "--map", MAP)
    assert plain(ladder.isoflop(data, map=MAP).to_json()) == said


@pytest.mark.slow
def test_compare_is_the_comparison_of_the_two_fits(folder, fitted, fit_file):
    from analysis.compare import compare

    other = ladder.fit(folder / "b.csv", map=MAP, bootstrap=40)
    found = ladder.compare(fitted, other, flops=1e15, paired=False)
    assert found.to_json() == compare(fitted.value, other.value, flops=1e15).to_json()
    # B is 4 % worse throughout: A reaches its losses with less compute
    assert all(row["multiplier"]["hi"] < 1 for row in found["rows"])
    assert ladder.compare(fit_file, other, flops=1e15)["rows"] == found["rows"]


def test_next_asks_the_design_with_the_rows_of_the_fit(fitted):
    from analysis.design import next_runs

    asked: dict[str, Any] = {"cost": 1e15, "target": 1e16}
    found = fitted.next(**asked)
    expected = next_runs(fitted.value, observations=fitted.observations, **asked)
    assert plain(found.to_json()) == plain(expected.to_json())


def test_a_law_object_is_the_law_of_its_name(folder, fitted):
    assert isinstance(MY_LAW, Law)
    found = ladder.fit(folder / "a.csv", law=MY_LAW, map=MAP, bootstrap=0)
    assert found.value.law.endswith(":MY_LAW")
    assert found.params["alpha"] == pytest.approx(fitted.params["alpha"], rel=1e-4)
    with pytest.raises(InputError, match="assign it at the top"):
        ladder.fit(columns(), law=sum_of_powers("other", {N: ("A", "alpha")}), map=MAP)


def test_laws_lists_every_law_with_its_source():
    from analysis import laws

    assert {s["name"] for s in ladder.laws().value} == set(laws.names())
    found = ladder.laws("parscale")
    assert [s["name"] for s in found.value] == ["parscale"]
    assert "2505.10475" in found._repr_html_()


def test_a_fit_read_back_has_its_figure_with_its_rows_only(folder, fit_file, tmp_path):
    with pytest.raises(InputError, match="data="):
        ladder.read(fit_file).figure()
    whole = ladder.read(fit_file, data=folder / "a.csv", map=MAP)
    whole.figure(tmp_path / "fit.svg")
    assert "<svg" in (tmp_path / "fit.svg").read_text()
    with pytest.raises(InputError, match="other rows"):
        ladder.read(fit_file, data=columns(), map=MAP, where="tokens > 3e7").figure()


@pytest.mark.slow
def test_report_writes_the_page(fitted, tmp_path):
    text = fitted.report(tmp_path / "r.html").read_text()
    assert 'id="one"' in text and 'id="valleys"' in text


def test_answers_show_as_tables_with_the_numbers(fitted):
    found = fitted.predict(N=1e6, D=3e9)
    assert f"{found['lo']:.4f} to {found['hi']:.4f}" in found._repr_html_()
    assert f"{fitted.params['E']:.4f}".rstrip("0") in fitted._repr_html_()
    assert repr(fitted) == fitted.value.text()
    for answer in (fitted.size(1e16), fitted.backtest(), fitted.isoflop()):
        assert "<" in answer._repr_html_() and repr(answer)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ladder.fit(cast(Any, 3)), "a int; give a path"),
        (lambda: ladder.fit({"N": [1.0], "D": [1.0, 2.0]}), "one length"),
        (lambda: ladder.fit([]), "no rows"),
        (lambda: ladder.fit({"N": "abc"}), "is a text"),
        (lambda: ladder.fit({"N": [[1.0]]}), "one value for each row"),
        (lambda: ladder.fit(columns()), "no column N in the data in memory"),
        (lambda: ladder.fit(columns(), map=MAP, bootstraps=3), "did you mean bootstrap"),
        (lambda: ladder.fit(columns(), map=MAP, law=cast(Any, 7)), "give a name, or a Law"),
        (lambda: ladder.fit(columns(), map=MAP, law="chinchila"), "did you mean chinchilla"),
        (lambda: ladder.isoflop(columns(), maps=MAP), "did you mean map"),
        (lambda: ladder.laws().figure(), "an answer without one"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_write(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_missing_and_unusable_values_in_memory_are_flagged_and_not_dropped():
    table = columns()
    table["val"][0], table["val"][1], table["val"][2] = None, float("nan"), -1.0
    found = ladder.fit(table, map=MAP, bootstrap=0)
    assert found.value.rows == len(table["val"]) - 3
    assert [e["id"] for e in found.value.excluded] == ["1", "2", "3"]
