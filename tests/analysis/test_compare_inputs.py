"""What may be compared: paired runs, laws of one input, published measurements; what is refused."""

import dataclasses

import numpy as np
import pytest

from analysis.compare import compare
from analysis.fit import fit
from analysis.observations import observe
from analysis.paired import match, paired
from parallelism.errors import InputError
from tests.analysis.published import needs, path
from tests.analysis.recipes import BASE, HIGH, LOW, TWICE, D, N, fitted, frontier, rows, target
from tests.analysis.synthetic import Truth, observations


@pytest.fixture(scope="module")
def base():
    return fitted(BASE, seed=1)


@pytest.fixture(scope="module")
def twice():
    return fitted(TWICE, seed=3)


# -- pairs ----------------------------------------------------------------------------------------


def pairs(share, *, seed=5):
    """Two near recipes whose runs share a part of their noise of 0.4 %."""
    rng = np.random.default_rng(seed)
    common = 0.004 * np.sqrt(share) * rng.standard_normal(len(N))
    own = 0.004 * np.sqrt(1 - share)
    near = Truth(A=62.0, B=870.0)
    one, other = (
        rows(t, seed=10 + k, noise=own, common=common) for k, t in enumerate((BASE, near))
    )
    return near, (one, other)


@pytest.mark.slow
def test_runs_that_share_their_noise_narrow_the_comparison_and_hold_the_truth():
    near, seen = pairs(0.99)
    found = compare(*(fit(o, bootstrap=100) for o in seen), flops=1e15, observations=seen)
    assert found.paired is not None and found.paired["law"]["pairs"] == 24
    for point, row in zip(found.paired["points"], (found.rows[-1], target(found)), strict=True):
        C = point["at"]["C"]
        truth = np.log(frontier(BASE, C) / frontier(near, C))
        assert point["log_ratio"]["lo"] < truth < point["log_ratio"]["hi"]
        assert point["narrower"] > 4  # the square root of 1 / (1 - share) is 10
        assert point["log_ratio"]["hi"] - point["log_ratio"]["lo"] < (
            row["log_ratio"]["hi"] - row["log_ratio"]["lo"]
        )
    (direct,) = found.paired["direct"]  # the target lies beyond the pairs
    truth = np.log(
        BASE.loss(direct["at"]["N"], direct["at"]["D"])
        / near.loss(direct["at"]["N"], direct["at"]["D"])
    )
    assert direct["lo"] < truth < direct["hi"]
    assert "times narrower" in found.text()


def test_runs_of_independent_noise_gain_nothing_from_pairing():
    _, seen = pairs(0.0)
    found = compare(*(fit(o, bootstrap=100) for o in seen), observations=seen)
    assert found.paired is not None
    assert 0.6 < found.paired["points"][0]["narrower"] < 1.6


def test_paired_log_ratio_is_least_squares_of_the_pairs():
    _, (one, other) = pairs(0.9)
    shuffled = np.random.default_rng(0).permutation(24)
    other = dataclasses.replace(
        other,
        columns={k: v[shuffled] for k, v in other.columns.items()},
        id=tuple(other.id[i] for i in shuffled),
    )
    found = paired(one, other)
    assert all(i == j for i, j in found.ids) and found.pairs == 24 and found.unpaired == 0
    ratio = np.log(one.columns["loss"]) - np.log(pairs(0.9)[1][1].columns["loss"])
    u, v = np.log(N) - np.log(N).mean(), np.log(D) - np.log(D).mean()
    columns = {
        "constant": [u**0],
        "in C": [u**0, u + v],
        "linear": [u**0, u, v],
        "quadratic": [u**0, u, v, u * u, u * v, v * v],
    }
    X = np.stack(columns[found.form], axis=1)
    expected = np.linalg.solve(X.T @ X, X.T @ ratio)
    assert np.array(found.coefficients) == pytest.approx(expected, rel=1e-8)
    assert found.sd == pytest.approx(
        np.sqrt(((ratio - X @ expected) ** 2).sum() / (24 - X.shape[1])), rel=1e-8
    )


def test_runs_pair_up_by_size_length_and_seed_only():
    one = rows(BASE)
    other = dataclasses.replace(one, seed=(1, *[0] * 23))
    left, right, seeded = match(one, other)
    assert seeded and left.tolist() == right.tolist() == list(range(1, 24))
    longer = dataclasses.replace(one, columns=dict(one.columns) | {"D": D * 1.02})
    with pytest.raises(InputError, match="0 runs .* share N, D and seed"):
        paired(one, longer)
    found = compare(fitted(BASE), fitted(BASE, seed=1), observations=(one, longer))
    assert found.paired is not None and "share N, D and seed" in found.paired["reason"]


# -- laws of one input ----------------------------------------------------------------------------


def single(factor, seed):
    """Losses against compute alone: a recipe that needs `factor` times the compute."""
    C = np.geomspace(LOW, HIGH, 24)
    rng = np.random.default_rng(seed)
    loss = 1.5 + 30 * (C / factor) ** -0.1 * np.exp(0.001 * rng.standard_normal(24))
    return fit(observations(C / 1e8, np.full(24, 1e8 / 6), loss), law="henighan_c", bootstrap=60)


@pytest.mark.slow
def test_laws_of_compute_alone_are_compared_along_it():
    # six intervals at once: each at 99 %
    found = compare(single(3.0, 0), single(1.0, 1), flops=1e15, level=0.99)
    assert found.abscissa["name"] == "C" and found.paired is None
    for row in [*found.rows, target(found)]:
        assert row["multiplier"]["lo"] < 3 < row["multiplier"]["hi"]
    assert found.verdict["better"] == "B"


# -- published measurements ------------------------------------------------------------------------


@pytest.mark.slow
@needs("parscale/parscale_losses.csv", source="QwenLM/ParScale")
@pytest.mark.parametrize("streams", [4, 8])
def test_parallel_streams_are_worth_the_parameters_that_were_published(streams):
    """P streams stand for N (1 + k ln P) parameters, k = .3934 on Stack-V2: here from two laws of N
    that know nothing of P."""
    one, other = (
        fit(
            observe(
                path("parscale/parscale_losses.csv"),
                inputs=("N",),
                columns={"N": "params_non_embedding"},
                where=f"dataset == 'stack_v2_python' and P == {p}",
            ),
            law="henighan_n",
            bootstrap=100,
        )
        for p in (1, streams)
    )
    found = compare(one, other, names=("P=1", f"P={streams}"))
    assert found.verdict["better"] == f"P={streams}"
    middle = found.gap[2]
    assert middle["lo"] < 1 + 0.3934 * np.log(streams) < middle["hi"] < 1.2 * middle["value"]


# -- refusals -------------------------------------------------------------------------------------

BOUNDED = "nats/token (upper bound)"


def tagged(one, **tags):
    return dataclasses.replace(one, conventions=dict(one.conventions) | tags)


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"C": "causal_attn"}, "C: .*causal_attn"),
        ({"loss_unit": "bits/byte"}, "loss_unit"),
        (
            {"loss_unit": BOUNDED},
            r"nats/token of A, nats/token \(upper bound\) of B; .*evaluation_sd",
        ),
        ({"loss_unit": "Huber loss of a normalised number"}, "nats/token of A, Huber loss.* of B"),
        ({"data.tokenizer": "bpe"}, "data.tokenizer: .*bits per byte"),
        ({"data.sources": "c4"}, "data.sources"),
        ({"N": "params.non_embedding"}, "N: "),
        ({"loss": "loss/other"}, "loss: "),
    ],
)
def test_conventions_that_differ_are_refused_in_one_line(base, twice, tags, says):
    own = {"data.tokenizer": "bytes", "data.sources": "wiki", "N": "params.total"}
    one = tagged(base, **own, loss="loss/val")
    other = tagged(twice, **(own | {"loss": "loss/val"} | tags))
    with pytest.raises(InputError, match=says) as error:
        compare(one, other)
    assert "\n" not in str(error.value)


def test_a_bound_whose_error_is_stated_is_compared_as_a_bound(base, twice):
    found = compare(base, tagged(twice, loss_unit=BOUNDED), evaluation_sd=(0.0, 0.01))
    assert any("loss of B is a bound" in w for w in found.warnings)
    with pytest.raises(InputError, match="loss_unit"):
        compare(base, tagged(twice, loss_unit=BOUNDED), evaluation_sd=(0.01, 0.0))


def test_tokenisers_may_differ_in_bits_per_byte_and_columns_of_files_in_name(base, twice):
    one = tagged(base, loss_unit="bits/byte", N="size", **{"data.tokenizer": "bytes"})
    other = tagged(twice, loss_unit="bits/byte", N="params", **{"data.tokenizer": "bpe"})
    found = compare(one, other)
    assert any("data.tokenizer is bytes of A and bpe of B" in w for w in found.warnings)
    assert any("N is size of A and params of B" in w for w in found.warnings)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({"status": "FAILED"}, {}, "FAILED"),
        ({"samples": []}, {}, "--bootstrap 400"),
        ({}, {"flops": 1e12}, "--flops"),
        ({}, {"flops": float("nan")}, "--flops"),
        ({}, {"level": 1.5}, "--level"),
        ({}, {"evaluation_sd": (-1.0, 0.0)}, "evaluation_sd"),
    ],
)
def test_fits_and_targets_that_tell_nothing_are_refused(base, twice, change, options, says):
    with pytest.raises(InputError, match=says):
        compare(dataclasses.replace(base, **change), twice, **options)


def test_laws_of_other_inputs_and_ranges_apart_are_refused(base, twice):
    with pytest.raises(InputError, match="laws: .*henighan_c of C"):
        compare(base, single(1.0, 1))
    far = dataclasses.replace(twice, ranges=dict(twice.ranges) | {"C": [1e20, 1e21]})
    with pytest.raises(InputError, match="C: A .*train both over some common range"):
        compare(base, far)
