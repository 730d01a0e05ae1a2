"""Which N, which C, which loss: conventions are stated, mixtures refused, units converted."""

import numpy as np
import pytest

from analysis.fit import fit
from analysis.observations import observe
from analysis.quantities import D, N, Quantity
from analysis.tables import table
from parallelism.errors import InputError
from tests.analysis.synthetic import Truth, counts, grid, write_run, write_sweep
from train.record import read_json, write_json

RATIOS = {"small": 3.3, "large": 3.3 * 1.3}  # bytes a token, a factor of 1.3 apart as in T9


def two_tokenisers(path, *, column="bytes_per_token", named=True):
    """One law in bits per byte of N and bytes seen, measured in nats by two tokenisers in turn."""
    truth = Truth(E=0.6, A=30.0, B=450.0)  # bits per byte; data are counted in bytes
    sizes, seen = grid(truth, budgets=4, sizes=6)
    bits = truth.loss(sizes, seen)
    lines = [f"N,D,bytes,loss,{column}" + (",tokenizer" if named else "")]
    for k, (n, b, y) in enumerate(zip(sizes.tolist(), seen.tolist(), bits.tolist(), strict=True)):
        name = ("small", "large")[k % 2]
        ratio = RATIOS[name]
        nats = y * ratio * np.log(2)
        shown = ratio if column == "bytes_per_token" else 1 / ratio
        tail = f",{name}" if named else ""
        lines.append(f"{n!r},{b / ratio!r},{b!r},{float(nats)!r},{shown!r}{tail}")
    path.write_text("\n".join(lines) + "\n")
    return truth, bits


def test_nats_of_two_tokenisers_are_refused_and_bits_per_byte_recover_the_common_law(tmp_path):
    path = tmp_path / "m.csv"
    truth, bits = two_tokenisers(path)
    with pytest.raises(InputError, match="tokenizer: mixed: large and small.*--unit bpb"):
        observe(path)
    found = observe(path, unit="bpb", columns={"D": "bytes"})
    np.testing.assert_allclose(found.values("loss"), bits, rtol=1e-14)
    assert found.conventions["loss_unit"] == "bits/byte"
    assert found.conventions["tokenizer"] == "large, small"
    params = fit(found, bootstrap=0, starts=16, huber=1e-3).params
    for name, value in vars(truth).items():
        assert params[name] == pytest.approx(value, rel=0.01), name


def test_one_tokeniser_at_a_time_may_be_fitted_in_nats(tmp_path):
    two_tokenisers(tmp_path / "m.csv")
    found = observe(tmp_path / "m.csv", where="tokenizer == 'small'")
    assert int(found.used.sum()) == 12
    assert found.conventions["tokenizer"] == "small"


def test_byte_ratios_give_tokenisers_away_that_no_column_names(tmp_path):
    path = tmp_path / "m.csv"
    _, bits = two_tokenisers(path, named=False)
    with pytest.raises(InputError, match="3.3 to 4.29: nats of several tokenisers.*--unit bpb"):
        observe(path)
    np.testing.assert_allclose(observe(path, unit="bpb").values("loss"), bits, rtol=1e-14)


def test_tokens_per_byte_convert_as_bytes_per_token_do(tmp_path):
    path = tmp_path / "m.csv"
    _, bits = two_tokenisers(path, column="tpb", named=False)
    found = observe(path, unit="bits/byte", columns={"tokens_per_byte": "tpb"})
    np.testing.assert_allclose(found.values("loss"), bits, rtol=1e-14)


def test_bits_per_byte_need_the_byte_ratio(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("N,D,loss,ratio\n1e6,2e7,3.5,3.3\n1e6,3e7,3.4,\n1e6,4e7,3.4,-1\n")
    with pytest.raises(InputError, match="--unit: bits/byte; .*--map bytes_per_token=COLUMN"):
        observe(path, unit="bpb")
    with pytest.raises(InputError, match="--unit: furlongs; write nats/token or bits/byte"):
        observe(path, unit="furlongs")
    found = observe(path, unit="bpb", columns={"bytes_per_token": "ratio"})
    assert [e["reason"] for e in found.excluded] == [
        "bytes_per_token: missing",
        "bytes_per_token: not positive (-1)",
    ]
    assert found.values("loss")[0] == pytest.approx(3.5 / np.log(2) / 3.3, rel=1e-15)


def test_a_unit_column_says_what_the_losses_are(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("N,D,loss,unit,tokenizer\n1e6,2e7,1.1,bpb,a\n1e6,3e7,1.0,bits/byte,b\n")
    assert observe(path).conventions["loss_unit"] == "bits/byte"
    assert observe(path, unit="bpb").values("loss").tolist() == [1.1, 1.0]
    with pytest.raises(InputError, match="losses are in bits/byte"):
        observe(path, unit="nats")
    path.write_text("N,D,loss,unit\n1e6,2e7,1.1,bpb\n1e6,3e7,3.0,nats\n")
    with pytest.raises(InputError, match="unit: mixed: bits/byte and nats/token"):
        observe(path)
    assert observe(path, where="unit == 'nats'").conventions["loss_unit"] == "nats/token"


def test_the_noise_of_a_row_is_relative_in_either_unit(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("N,D,loss,sd,bytes_per_token\n1e6,2e7,4.0,0.02,3\n1e6,3e7,2.0,0.02,3\n")
    for unit in (None, "bpb"):
        found = observe(path, unit=unit)
        np.testing.assert_allclose(found.values("sd"), [0.005, 0.01], rtol=1e-14)
    linear = Quantity("loss", "nats/token", "linear")
    np.testing.assert_array_equal(observe(path, output=linear).values("sd"), [0.02, 0.02])


TAGS = ["tokenizer", "dataset", "Eval Set", "lr_schedule", "seq-len", "data.tokenizer"]


@pytest.mark.parametrize("tag", TAGS)
def test_a_mixture_that_a_column_names_is_refused_until_where_separates_it(tmp_path, tag):
    path = tmp_path / "m.csv"
    path.write_text(f"N,D,loss,{tag}\n1e6,2e7,3.5,a\n1e6,3e7,3.4,b\n2e6,3e7,3.3,\n")
    with pytest.raises(InputError, match=f"{tag}: mixed: a and b") as caught:
        observe(path)
    where = str(caught.value).split('--where "')[1].split('"')[0]
    found = observe(path, where=where)
    assert found.ids == ("1",)
    assert found.conventions[tag] == "a"


def test_excluded_rows_mix_nothing(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("N,D,loss,dataset\n1e6,2e7,3.5,a\n1e6,3e7,nan,b\n")
    assert observe(path).conventions["dataset"] == "a"


def test_a_law_may_have_the_mixed_column_as_its_input(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("N,D,loss,dataset,schedule\n1e6,2e7,3.5,b,wsd\n1e6,3e7,3.4,a,wsd\n")
    family = Quantity("family", "", "label")
    found = observe(path, inputs=(N, D, family), columns={"family": "dataset"})
    assert found.labels == {"family": ("a", "b")}
    assert found.values("family").tolist() == [1.0, 0.0]


def test_a_law_along_runs_may_see_several_schedules(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("step,lr,loss,schedule\n1,1e-3,3.5,wsd\n2,1e-3,3.4,cosine\n")
    assert len(observe(path, inputs=("step", "lr")).ids) == 2
    with pytest.raises(InputError, match="schedule: mixed"):
        observe(path, inputs=("lr",))


def test_runs_of_two_tokenisers_share_a_law_in_bits_per_byte_only(tmp_path):
    write_sweep(tmp_path, Truth())
    write_run(tmp_path, width=64, tokens=5e7, loss=2.0, data__tokenizer="bpe.json")
    with pytest.raises(InputError, match="data.tokenizer: mixed.*--unit bpb"):
        observe(tmp_path)
    found = observe(tmp_path, unit="bpb")
    assert found.conventions["loss"] == "bpb/val"
    assert found.conventions["loss_unit"] == "bits/byte"
    nats = observe(tmp_path, where="data.tokenizer == 'bytes'")
    both = np.isin(found.id, nats.ids)
    np.testing.assert_allclose(
        found.columns["loss"][both], nats.values("loss") / np.log(2), rtol=1e-14
    )


def test_parameters_without_embeddings_come_with_compute_without_them(tmp_path):
    run = write_run(tmp_path, width=64, tokens=5e7, loss=2.0)
    assert observe(tmp_path).conventions["N"] == "params.total"
    total, per_token = counts(64)
    found = observe(tmp_path)
    np.testing.assert_allclose(found.values("N"), total)
    np.testing.assert_allclose(found.values("C"), per_token * 5e7)
    six = observe(tmp_path, convention="six_nd")
    np.testing.assert_allclose(six.values("C"), 6 * total * 5e7)
    assert found.ids == six.ids == (run,)


def test_compute_of_a_file_is_its_own_column_or_six_nd(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("N,D,flops,loss\n1e6,2e7,2e14,3.5\n2e6,2e7,3e14,3.4\n")
    plain = observe(path, inputs=("N", "D", "C"))
    np.testing.assert_array_equal(plain.values("C"), [1.2e14, 2.4e14])
    assert plain.conventions["C"] == "six_nd"
    own = observe(path, columns={"C": "flops"})
    assert own.conventions["C"] == "flops"
    assert own.flops_per_token is not None
    np.testing.assert_allclose(own.flops_per_token, [[1e6, 1e7], [2e6, 1.5e7]], rtol=1e-14)
    with pytest.raises(InputError, match="--convention: causal_attn"):
        observe(path, convention="causal_attn")


def test_total_compute_has_what_went_into_the_origin_and_is_missing_where_nobody_knows(tmp_path):
    scratch, grown, unknown = (
        write_run(tmp_path, width=w, tokens=1e6, loss=3.0) for w in (64, 96, 128)
    )
    for run_id, start in ((grown, {"flops": 7e12}), (unknown, {})):
        for name in ("spec.json", "counts.json"):
            path = tmp_path / run_id / name
            write_json(path, {**read_json(path), "start": {"run": scratch, **start}})
    own = {r: 1e6 * counts(w)[1] for r, w in ((scratch, 64), (grown, 96), (unknown, 128))}
    found = observe(tmp_path, convention="causal_attn_total")
    C = dict(zip(found.id, found.columns["C"].tolist(), strict=True))
    assert C[scratch] == pytest.approx(own[scratch])
    assert C[grown] == pytest.approx(own[grown] + 7e12)
    assert [e["id"] for e in found.excluded] == [unknown]
    assert found.conventions["C"] == "causal_attn_total"
    plain = observe(tmp_path)
    assert dict(zip(plain.id, plain.columns["C"].tolist(), strict=True)) == pytest.approx(own)


def test_losses_of_several_units_are_refused_and_separated_by_what_the_runs_record(tmp_path):
    old, text, bound, series = (
        write_run(tmp_path, width=64, tokens=1e6 * k, loss=6.0 if k > 2 else 3.0)
        for k in (1, 2, 3, 4)
    )
    units = {
        text: "nats/token",
        bound: "nats/token (upper bound)",
        series: "Huber loss of a normalised number",
    }
    for run_id, unit in units.items():
        path = tmp_path / run_id / "counts.json"
        write_json(path, {**read_json(path), "loss_unit": unit})
        path = tmp_path / run_id / "spec.json"
        spec = read_json(path)
        write_json(path, {**spec, "model": {**spec["model"], "vocab": 256}})
    with pytest.raises(InputError, match=r"mixed: Huber loss .* and nats/token and nats.*bound\);"):
        observe(tmp_path)
    plain = observe(tmp_path, where="loss_unit == 'nats/token'")
    assert set(plain.ids) == {old, text} and plain.conventions["loss_unit"] == "nats/token"
    for run_id in (bound, series):  # above log V, which says nothing against them
        one = observe(tmp_path, where=f"loss_unit == '{units[run_id]}'")
        assert one.ids == (run_id,) and one.conventions["loss_unit"] == units[run_id]
    with pytest.raises(InputError, match="losses are in Huber loss"):
        observe(tmp_path, run_ids=[series], unit="nats")
    bits = observe(tmp_path, run_ids=[bound], unit="bpb")
    assert bits.conventions["loss_unit"] == "bits/byte (upper bound)"
    with pytest.raises(InputError, match="loss_unit: mixed"):
        observe(tmp_path, run_ids=[text, bound], unit="bpb")
    assert "loss_unit" in table(tmp_path).text()
