"""Does a diffusion model go on with a text as its conditionals say, place by hidden place?"""

from collections import Counter
from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest

from model.archs import build as arch
from model.context import Context
from model.decoder import build
from tests.train.tiny import tiny
from train import unmask
from train.draw import Drawing, knobs_of
from train.loop import train
from train.paths import put
from train.sample import sample
from train.spec import RunSpec

V, IDS = 5, 3  # two ids that no text has


@pytest.fixture(scope="module")
def model():
    spec = put(RunSpec(model=arch("diffusion", 16)), {"model.vocab": V}).model
    made, rng = build(spec), np.random.default_rng(5)
    # large values, so that places differ, and a readout that is sure of none of them
    moved = {
        path: value + rng.normal(0, 0.7, value.shape) for path, value in made.initialise(0).items()
    }
    moved["readout"] *= 0.1
    return made, {path: jnp.asarray(value, jnp.float32) for path, value in moved.items()}


def fill(model, *, rows: int, tokens: int, drawing: Drawing, prompt=(1, 2)) -> np.ndarray:
    made, params = model
    given = len(prompt)
    call = unmask.program(
        made, params, given=given, tokens=tokens, rows=rows, ids=IDS, dtype=jnp.float32
    )
    prompt_BT = jnp.broadcast_to(jnp.asarray(prompt, jnp.int32), (rows, given))
    return np.asarray(call(params, prompt_BT, knobs_of(drawing)))


def shares(model, ids: list[int]) -> np.ndarray:
    """Probabilities (T, IDS) that the model gives the places of one row."""
    made, params = model
    ctx = Context(positions_BT=jnp.arange(len(ids))[None], segments_BT=None)
    logits_BTV, _ = made(params, jnp.asarray([ids]), ctx, dtype=jnp.float32)
    p = np.exp(np.asarray(logits_BTV[0, :, :IDS], np.float64))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.slow
def test_two_places_are_drawn_in_either_order_as_the_model_says(model):
    n, wanted = 8000, np.zeros((IDS, IDS))
    first = shares(model, [1, 2, V, V])
    for a, b in product(range(IDS), repeat=2):
        left_first = first[2, a] * shares(model, [1, 2, a, V])[3, b]
        right_first = first[3, b] * shares(model, [1, 2, V, b])[2, a]
        wanted[a, b] = (left_first + right_first) / 2
    drawn_BT = fill(model, rows=n, tokens=2, drawing=Drawing(temperature=1.0))
    counts = Counter(map(tuple, drawn_BT.tolist()))
    assert set(counts) <= set(product(range(IDS), repeat=2)), "ids that no text has"
    for pair, share in np.ndenumerate(wanted):
        assert abs(counts[pair] / n - share) < 5 * (share * (1 - share) / n) ** 0.5 + 1e-9, pair
    assert wanted.max() > 2 * wanted.min(), "nothing to tell apart"


@pytest.mark.slow
def test_greedily_the_surest_place_is_next_and_takes_its_likeliest_token(model):
    ids, order = [1, 2, V, V, V, V], []
    while V in ids:
        p = shares(model, ids)
        hidden = [t for t in range(len(ids)) if ids[t] == V]
        place = max(hidden, key=lambda t: p[t].max())
        ids[place] = int(p[place].argmax())
        order.append(place)
    drawn_BT = fill(model, rows=3, tokens=4, drawing=Drawing(temperature=0))
    assert drawn_BT.tolist() == [ids[2:]] * 3
    assert order != sorted(order), "from left to right would have given the same"


@pytest.mark.slow
def test_a_row_is_drawn_by_its_seed_and_number_whatever_rows_are_beside_it(model):
    six = fill(model, rows=6, tokens=8, drawing=Drawing(temperature=1.0))
    two = fill(model, rows=2, tokens=8, drawing=Drawing(temperature=1.0))
    other = fill(model, rows=6, tokens=8, drawing=Drawing(temperature=1.0, seed=1))
    assert (six[:2] == two).all() and (six[0] != six[1]).any() and (six != other).any()


def test_a_diffusion_run_can_be_read(root, corpus):
    spec = tiny(corpus, {"budget.tokens": 128 * 4})
    spec = RunSpec(model=arch("diffusion", 32), data=spec.data, budget=spec.budget)
    outcome = train(spec, root=root)
    said: list[str] = []
    found = sample(outcome.run_id, "ab", root=root, tokens=12, n=2, say=said.append)
    assert len(found.texts) == 2 and said == [f"[{i}] ab{t}\n" for i, t in enumerate(found.texts)]
    assert all(len(ids) == 12 or end for ids, end in zip(found.ids, found.ended, strict=True))
    assert found.tokens_per_second > 0 and set(found.seconds) == {"compile", "decode"}
