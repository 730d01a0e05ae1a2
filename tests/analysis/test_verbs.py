"""Do the verbs of the law engine answer, on a file that anybody could have written?"""

import json

import numpy as np
import pytest

import ladder
from tests.analysis.synthetic import Truth, grid


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two recipes, the second better by 20 % of its reducible loss, and their fits."""
    root = tmp_path_factory.mktemp("verbs")
    rng = np.random.default_rng(0)
    N, D = grid(Truth(), budgets=4, sizes=6)
    rows = ["params,tokens,recipe,val"]
    for name, gain in (("old", 1.0), ("new", 0.8)):
        loss = 1.2 + gain * (Truth().loss(N, D) - 1.2)
        noisy = loss * np.exp(0.002 * rng.standard_normal(len(N)))
        rows += [f"{n},{d},{name},{v}" for n, d, v in zip(N, D, noisy, strict=True)]
    (root / "runs.csv").write_text("\n".join(rows) + "\n")
    for name in ("old", "new"):
        assert ladder.main(["fit", *data(root), "--where", f"recipe == '{name}'", "--bootstrap=60",
                            "--json", str(root / f"{name}.json")]) == 0  # fmt: skip
    return root


def data(root):
    return [str(root / "runs.csv"), "--map", "N=params,D=tokens,loss=val"]


def answer(capsys, *arguments) -> tuple[int, dict]:
    status = ladder.main([*arguments, "--json", "-"])
    return status, json.loads(capsys.readouterr().out)


def test_laws_lists_all_and_shows_one(capsys):
    _, every = answer(capsys, "laws")
    assert len(every) >= 50 and {law["section"][0] for law in every} == set("ABCDEFGH")
    _, (one,) = answer(capsys, "laws", "parscale")
    assert one["equation"] and one["source"] and one["domain"] and one["published"]
    assert [law["name"] for law in answer(capsys, "laws", "parscal")[1]] == ["parscale"]
    assert ladder.main(["laws", "no such word"]) == 2


def test_compare_finds_the_better_recipe_and_its_multiplier(folder, capsys):
    both = [str(folder / "old.json"), str(folder / "new.json")]
    status, found = answer(capsys, "compare", *both, "--flops=1e15", "--names=old,new")
    assert status == 0 and "new" in json.dumps(found)
    status, same = answer(capsys, "compare", both[0], both[0], "--flops=1e15")
    assert status == 1


def test_compare_fits_two_parts_of_one_file(folder, capsys):
    one = data(folder)[0]
    status, _ = answer(
        capsys, "compare", one, one, *data(folder)[1:], "--where-a", "recipe == 'old'",
        "--where-b", "recipe == 'new'", "--flops=1e15", "--bootstrap=60",
    )  # fmt: skip
    assert status == 0


def test_next_spends_no_more_than_its_cost(folder, capsys):
    fit = str(folder / "old.json")
    status, found = answer(capsys, "next", fit, "--cost=5e14", "--flops=1e16")
    text = json.dumps(found)
    assert status == 0 and "NaN" not in text
    assert found["cells"] and 0 < sum(c["cost"] for c in found["cells"]) <= 5e14


def test_a_menu_and_families_work_from_the_command_line(folder, capsys):
    old = ["--where", "recipe == 'old'", "--bootstrap=20"]
    _, found = answer(capsys, "fit", *data(folder), *old, "--law", "chinchilla,chinchilla_tied")
    assert found["law"] in ("chinchilla", "chinchilla_tied")
    _, both = answer(
        capsys, "fit", *data(folder), "--by=recipe", "--share=E,alpha,beta", "--bootstrap=20"
    )
    assert both["params"]["A[new]"] / both["params"]["A[old]"] == pytest.approx(0.8, abs=0.1)


def test_a_figure_is_written_where_it_is_asked_for(folder, capsys):
    path = folder / "fit.svg"
    assert ladder.main(["fit", *data(folder), "--where", "recipe == 'old'", "--bootstrap=20",
                        "--figure", str(path)]) == 0  # fmt: skip
    assert path.read_text().startswith("<?xml")
    capsys.readouterr()
    assert ladder.main(["fit", *data(folder), "--figure", str(folder / "fit.doc")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


PRICES = "prefill=3e10,decode=1e10,prefill_mfu=0.5,decode_mfu=0.1"
REQUESTS = "requests=1e6,prompt=30,output=50,aspect=64"


def test_size_weighs_tokens_by_what_each_kind_costs(folder, capsys):
    fit = str(folder / "old.json")
    _, plain = answer(capsys, "size", fit, "--flops=1e17", "--inference-tokens=4e10")
    status, dear = answer(capsys, "size", fit, "--flops=1e17", "--serve", PRICES)
    # of training at 40 % of peak: 3e10 x .4 / .5 + 1e10 x .4 / .1
    assert status == 0 and dear["inference"]["tokens"] == pytest.approx(6.4e10)
    assert dear["inference"]["N"] < plain["inference"]["N"]
    _, cached = answer(capsys, "size", fit, "--flops=1e17", "--serve", REQUESTS)
    assert cached["inference"]["tokens"] == pytest.approx(5e7)


def test_size_shares_a_budget_between_training_and_answers(folder, capsys):
    out = folder / "answers.json"
    status, found = answer(
        capsys, "size", str(folder / "old.json"), "--flops=1e16", "--serve", REQUESTS,
        "--pass-rates", "intercept=6,slope=-3,size=2,most=300", "--out", str(out),
    )  # fmt: skip
    plan = found["answers"]
    assert status == 0 and plan["flops"] == 1e16 and plan["k"]["value"] > 1
    assert found["flops"] == pytest.approx(plan["train_share"] * 1e16)
    # the run that is written is the plan's, as near as a realisable shape comes
    assert found["chosen"]["N"] == plan["N"]["value"]
    assert found["chosen"]["D"] == pytest.approx(plan["D"]["value"], rel=1e-9)
    assert found["production"]["params"]["total"] == pytest.approx(plan["N"]["value"], rel=0.3)
    assert out.exists()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--serve", "decode=1e9"], "--serve: prefill_mfu"),
        (["--serve", "decode=1e9,decode=2e9"], "--serve"),
        (["--serve", PRICES + ",decod=3"], "--serve: decod"),
        (["--serve", PRICES, "--inference-tokens=1e9"], "--inference-tokens"),
        (["--pass-rates", "intercept=6,slope=-3,size=2"], "--pass-rates"),
        (["--serve", PRICES, "--pass-rates", "intercept=6,slope=-3,size=2"], "--pass-rates"),
        (["--serve", REQUESTS, "--pass-rates", "intercept=6,slope=-3,size=0"],
         "--pass-rates: size"),
        (["--serve", REQUESTS, "--pass-rates", "intercept=6,slope=-3,size=2",
          "--inference-tokens=1e9"], "--inference-tokens"),
    ],
)  # fmt: skip
def test_serving_that_cannot_be_read_is_one_line(folder, capsys, options, field):
    assert ladder.main(["size", str(folder / "old.json"), "--flops=1e16", *options]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: {field}: ") and len(said.splitlines()) == 1


def test_isoflop_takes_parabolas_through_losses_as_the_paper_did(folder, capsys):
    old = ["--where", "recipe == 'old'"]
    _, plain = answer(capsys, "isoflop", *data(folder), *old)
    status, found = answer(capsys, "isoflop", *data(folder), *old, "--residual=linear")
    assert status == 0
    for log, valley in zip(plain["valleys"], found["valleys"], strict=True):
        assert (log["residual"], valley["residual"]) == ("log", "linear")
        c0, c1, c2 = valley["parabola"]
        assert c2 == pytest.approx(np.polyfit(np.log(valley["N"]), valley["loss"], 2)[0], rel=1e-6)
        assert log["parabola"][2] != pytest.approx(c2, rel=0.1)


NEXT = ["--cost=5e14", "--flops=1e16"]


def test_next_knows_the_fitted_runs_from_the_fit_alone(folder, capsys):
    fit = str(folder / "old.json")
    _, alone = answer(capsys, "next", fit, *NEXT)
    _, told = answer(
        capsys, "next", fit, *NEXT, "--data", *data(folder), "--where", "recipe == 'old'"
    )
    assert alone == told
    runs = json.loads((folder / "old.json").read_text())["points"]
    assert len(runs) == 24 and all(c == pytest.approx(6 * n * d) for n, d, c in runs)


def test_a_fit_of_an_older_version_without_its_points_is_read(folder, capsys):
    tree = json.loads((folder / "old.json").read_text())
    del tree["points"]
    old = folder / "older.json"
    old.write_text(json.dumps(tree))
    status, found = answer(capsys, "next", str(old), *NEXT)
    assert status == 0 and found["cells"]
    tree["points"] = [[1e6, 2e7]]
    old.write_text(json.dumps(tree))
    assert ladder.main(["next", str(old), *NEXT]) == 2
    assert "points" in capsys.readouterr().err


def test_next_draws_the_runs_that_are_there(folder, capsys):
    path = folder / "next.svg"
    status, _ = answer(capsys, "next", str(folder / "old.json"), *NEXT, "--figure", str(path))
    drawn = path.read_text()
    assert status == 0 and ">measured<" in drawn and ">to train<" in drawn
    assert ">measured range<" not in drawn
