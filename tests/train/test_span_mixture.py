"""Are spans taken out so that nothing is lost, nothing leaks, and every row is full?"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.archs import build as arch
from model.context import Context
from model.decoder import build
from tests.properties import trained_params
from train.data.rows import Batch
from train.objectives.span_mixture import Ids, Spec, corrupted

VOCAB, SPANS = 60, 6
TEXT = VOCAB - SPANS - 2  # ids of the text are below
IDS = Ids(mask=TEXT, sep=VOCAB - 2, eom=VOCAB - 1)


def text(rows: int, length: int, *, seed: int = 0) -> Batch:
    """Rows whose tokens are told apart by document, of one to four documents."""
    rng = np.random.default_rng(seed)
    tokens_BW = rng.integers(0, TEXT, (rows, length + 1)).astype(np.int32)
    document_BW = np.zeros((rows, length + 1), np.int32)
    for b in range(rows):
        cuts = rng.choice(np.arange(1, length + 1), size=b % 4, replace=False)
        document_BW[b, cuts] = 1
    document_BW = document_BW.cumsum(1, dtype=np.int32)
    weights_BT = (document_BW[:, 1:] == document_BW[:, :-1]).astype(np.float32)
    return Batch(tokens_BW[:, :-1], tokens_BW[:, 1:], document_BW[:, :-1], weights_BT)


def documents(row: Batch) -> list[list[int]]:
    """A row's text, the last target with it, cut at its documents."""
    tokens = [*row.tokens_BT[0].tolist(), int(row.targets_BT[0, -1])]
    last = row.segments_BT[0, -1] + (row.weights_BT[0, -1] == 0)
    segments = [*row.segments_BT[0].tolist(), int(last)]
    return [
        [t for t, s in zip(tokens, segments, strict=True) if s == n]
        for n in range(max(segments) + 1)
    ]


def uncorrupted(tokens: list[int], ids: Ids = IDS) -> tuple[list[int], list[int]]:
    """The text that a document with spans taken out was made from, slowly, and its masks in order;
    the text it stands for if it is not whole.
    """
    if ids.sep not in tokens:
        return tokens, []
    before, after = tokens[: tokens.index(ids.sep)], tokens[tokens.index(ids.sep) + 1 :]
    spans: dict[int, list[int]] = {}
    while after:
        mark, *rest = after
        assert ids.mask <= mark < ids.sep and mark not in spans
        end = rest.index(ids.eom)
        spans[mark], after = rest[:end], rest[end + 1 :]
        assert spans[mark], "an empty span"
    masks = [t for t in before if t >= ids.mask]
    assert masks == list(spans), "the spans follow in the order of their masks"
    out: list[int] = []
    for t in before:
        out += spans[t] if t in spans else [t]
    return out, masks


@pytest.mark.parametrize("taken, spans", [(1, 1), (7, 1), (7, 3), (10, 6), (19, 1), (15, 6)])
def test_taking_spans_out_can_be_undone(taken: int, spans: int):
    seen = set()
    for seed in range(50):
        rng = np.random.default_rng(seed)
        tokens_N = rng.integers(0, TEXT, 20).astype(np.int32)
        made_N, prefix = corrupted(tokens_N, rng.random(21), taken=taken, spans=spans, ids=IDS)
        whole, masks = uncorrupted(made_N.tolist())
        assert whole == tokens_N.tolist()
        assert masks == list(range(IDS.mask, IDS.mask + spans))
        assert len(made_N) == 20 + 3 * spans + 1 and made_N[prefix - 1] == IDS.sep
        assert (made_N[:prefix] < TEXT).sum() == 20 - taken
        seen.add(tuple((made_N >= TEXT).tolist()))
    assert len(seen) > 1


def test_every_choice_of_spans_is_as_likely():
    """Two spans of three tokens out of five: 3 pairs of the gaps of 2 tokens, by 2 cuts."""
    n, counts = 6000, {}
    rng = np.random.default_rng(0)
    for _ in range(n):
        made_N, _ = corrupted(np.arange(5), rng.random(6), taken=3, spans=2, ids=IDS)
        counts[tuple(made_N.tolist())] = counts.get(tuple(made_N.tolist()), 0) + 1
    assert len(counts) == 6
    assert all(abs(c - n / 6) < 5 * (n * 5 / 36) ** 0.5 for c in counts.values())


@pytest.mark.parametrize("length", [3, 8, 40, 41])
@pytest.mark.parametrize("mean_span", [1.0, 3.0])
def test_rows_are_full_and_each_document_is_the_beginning_of_its_own(length: int, mean_span):
    batch = text(64, length)
    objective = Spec(spans=SPANS, ratios=(0.15, 0.6), mean_span=mean_span, span_probability=1.0)
    made = objective.prepare(batch, rows_B=np.arange(64), seed=0, vocab=VOCAB)
    n_corrupted, kept = 0, 0
    for b in range(64):
        found = documents(Batch(**{k: v[b : b + 1] for k, v in made.items()}))
        source = documents(Batch(*(a[b : b + 1] for a in batch)))
        assert len(found) <= len(source)
        for i, (one, original) in enumerate(zip(found, source, strict=False)):
            whole, masks = uncorrupted(one)
            assert masks == list(range(TEXT, TEXT + len(masks)))
            assert whole == original[: len(whole)]
            assert len(whole) == len(original) or i == len(found) - 1, "cut before the last"
            n_corrupted += bool(masks)
            kept += len(whole)
    assert {v.shape for v in made.values()} == {(64, length)}
    assert n_corrupted > 20 or length == 3
    assert kept > 0.5 * 64 * length


def test_what_is_asked_for_is_what_the_setting_says():
    batch = text(32, 40)
    every = Spec(spans=SPANS, mean_span=3, span_probability=1.0)
    infill, both = replace(every, loss_on="infill"), replace(every, bidirectional_prefix=True)
    made, less, ways = (
        s.prepare(batch, rows_B=np.arange(32), seed=0, vocab=VOCAB) for s in (every, infill, both)
    )
    segments_BT, targets_BT = made["segments_BT"], made["targets_BT"]
    same_BT = np.diff(segments_BT, axis=1) == 0
    assert (made["weights_BT"][:, :-1] == same_BT).all()
    for b in range(32):
        for n in range(segments_BT[b].max() + 1):
            (places,) = np.nonzero(segments_BT[b] == n)
            (seps,) = np.nonzero(made["tokens_BT"][b, places] == IDS.sep)
            wanted = np.zeros(len(places))
            if len(seps):
                wanted[seps[0] :] = made["weights_BT"][b, places][seps[0] :]
                prefix = ways["prefix_BT"][b, places]
                assert prefix[: seps[0] + 1].all() and not prefix[seps[0] + 1 :].any()
            assert (less["weights_BT"][b, places] == wanted).all()
    assert 0 < less["weights_BT"].sum() < made["weights_BT"].sum()
    assert (ways["weights_BT"] == less["weights_BT"]).all() and (
        ways["targets_BT"] == targets_BT
    ).all()


def test_the_mixture_has_its_share_and_leaves_the_other_rows_alone():
    batch = text(400, 30)
    for share in (0.0, 0.3, 1.0):
        objective = Spec(spans=SPANS, span_probability=share)
        made = objective.prepare(batch, rows_B=np.arange(400), seed=1, vocab=VOCAB)
        marked_B = (made["tokens_BT"] >= TEXT).any(1)
        assert marked_B.mean() == pytest.approx(share, abs=0.08)
        for name, array in batch._asdict().items():
            assert (made[name][~marked_B] == array[~marked_B]).all()


def test_held_out_text_is_asked_for_plain_and_as_infilling():
    batch = text(16, 40)
    padded = Batch(*(np.concatenate([a, np.zeros_like(a[:2])]) for a in batch))
    found = dict(Spec(spans=SPANS).held_out(padded, rows_B=np.arange(18), vocab=VOCAB))
    assert list(found) == ["", "infill"]
    for name, array in padded._asdict().items():
        assert (found[""][name] == array).all()
    asked_BT = found["infill"]["weights_BT"] > 0
    assert asked_BT[:16].any(1).all() and not asked_BT[16:].any()


@pytest.fixture(scope="module")
def both_ways():
    """Rows with a prefix that sees itself, and gradients of each logit's size with respect to what
    enters the blocks: (rows, of position, at position).
    """
    batch = text(3, 24, seed=2)
    objective = Spec(spans=SPANS, mean_span=3, span_probability=1.0, bidirectional_prefix=True)
    spec = arch("span_mixture", 32)
    made = objective.prepare(batch, rows_B=np.arange(3), seed=0, vocab=VOCAB)
    model = build(spec)
    params = trained_params(model)
    tokens_BT = jnp.asarray(made["tokens_BT"])

    @jax.jit
    def moved(changed_BT: jax.Array, prefix_BT: jax.Array):
        positions_BT = jnp.broadcast_to(jnp.arange(24), tokens_BT.shape)
        ctx = Context(
            positions_BT=positions_BT,
            segments_BT=jnp.asarray(made["segments_BT"]),
            prefix_BT=prefix_BT,
        )
        before = model(params, tokens_BT, ctx, dtype=jnp.float32)[0]
        return jnp.any(model(params, changed_BT, ctx, dtype=jnp.float32)[0] != before, axis=-1)

    seen_BTS = np.zeros((3, 24, 24), bool)
    for s in range(24):
        changed_BT = tokens_BT.at[:, s].set((tokens_BT[:, s] + 1) % TEXT)
        seen_BTS[:, :, s] = moved(changed_BT, jnp.asarray(made["prefix_BT"]))
    return made, seen_BTS


def test_the_prefix_sees_itself_both_ways_and_no_later_text_and_no_other_document(both_ways):
    made, seen_BTS = both_ways
    segments_BT, prefix_BT = made["segments_BT"], made["prefix_BT"]
    order_TS = np.arange(24)[:, None] >= np.arange(24)[None]
    pairs_BTS = prefix_BT[:, :, None] & prefix_BT[:, None, :]
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    assert (pairs_BTS & same_BTS & ~order_TS).any(), "no prefix to look at"
    assert (seen_BTS == (same_BTS & (order_TS | pairs_BTS))).all()


def test_no_asked_target_is_seen_by_the_place_that_is_asked_for_it(both_ways):
    made, seen_BTS = both_ways
    asked = np.argwhere(made["weights_BT"][:, :-1] > 0)
    assert len(asked) > 10
    assert not any(seen_BTS[b, t, t + 1 :].any() for b, t in asked)
