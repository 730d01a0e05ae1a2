"""Do the small studies compare what they say they compare?"""

import pytest

from benchmarks.signatures import cells, paired
from benchmarks.signatures_page import verdict
from benchmarks.signatures_plan import EXPERTS, STRUCTURED, Sizes, experts, growth, streams
from benchmarks.signatures_plan import structured as structured_plan
from model.count import count

SIZES = Sizes()


@pytest.mark.parametrize("make", [streams, structured_plan, experts])
def test_what_is_compared_has_equal_tokens_batches_and_seeds(make):
    runs = make(SIZES).runs
    assert {run.spec.tokens for run in runs} == {runs[0].spec.tokens}
    assert {run.spec.optim.lr for run in runs} == {0.006}
    by_form: dict[object, set[int]] = {}
    for run in runs:
        key = run.labels.get("form") or (run.spec.model.d_model, run.spec.model.n_streams)
        by_form.setdefault(key, set()).add(run.spec.seed)
    assert set(map(frozenset, by_form.values())) == {frozenset(SIZES.seeds)}


def test_one_stream_is_the_plain_decoder_and_more_cost_more():
    runs = [r for r in streams(SIZES).runs if r.spec.model.d_model == 16 and r.spec.seed == 0]
    flops = [count(r.spec.model, seq_len=128).flops_per_token["causal_attn"] for r in runs]
    assert [r.spec.model.n_streams for r in runs] == [1, 2, 4] and flops == sorted(set(flops))


def test_structured_layers_are_named_by_what_they_are():
    runs = {r.labels["form"]: r.spec.model.repeat[0].ffn for r in structured_plan(SIZES).runs}
    assert set(runs) == set(STRUCTURED)
    assert runs["lowrank 1/4, guided"].guided == 0.5 and not runs["lowrank 1/4"].guided
    assert runs["blockshuffle 4"].blocks == 4


def test_a_chain_and_a_mixture_make_as_many_expert_calls():
    ffns = {r.labels["form"]: r.spec.model.repeat[0].ffn for r in experts(SIZES).runs}
    assert set(ffns) == set(EXPERTS)
    mixture, chain = ffns["moe 3 of 16"], ffns["chain 2 x 1 of 16"]
    assert mixture.chosen + mixture.shared == chain.passes * (chain.chosen + chain.shared)


def test_grown_runs_begin_from_the_base_of_their_seed():
    first, second = growth(SIZES)
    bases = {r.run_id: r.spec for r in first.runs if r.spec.model.n_layers == 2}
    assert len(bases) == len(SIZES.seeds)
    for run in second.runs:
        assert run.spec.start is not None
        assert bases[run.spec.start.run_id].seed == run.spec.seed
        assert run.spec.model.n_layers == 8


def test_differences_are_taken_seed_by_seed():
    def rows(**losses):
        return [
            {"seed": int(k[1:]), "loss": v, "expert_load": None, "params": {}, "flops": 1.0}
            for k, v in losses.items()
        ]

    one = cells(rows(s0=1.0, s1=2.0, s2=3.0), lambda r: "one")["one"]
    other = cells(rows(s0=1.1, s1=2.1, s2=None), lambda r: "other")["other"]
    found = paired(one, other)
    assert found["n"] == 2 and found["mean"] == pytest.approx(-0.1)
    assert other["not_done"] == 1
    assert verdict(found) == "lower" and verdict({"lo": -1.0, "hi": 1.0}) == "not told apart"
    assert verdict({"lo": None, "hi": None}) == "not told: one seed or none"
