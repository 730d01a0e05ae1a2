"""Is a backward pass a few positions at a time the plain one, in every chunk, with less memory?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallelism.stream import RUNS, plan, seen_share, streamed


@pytest.mark.parametrize("length", [1, 5, 16, 37, 1000])
@pytest.mark.parametrize("chunk", [None, 1, 7, 16, 5000])
@pytest.mark.parametrize("grows", [True, False])
def test_chunks_cover_every_position_once_and_see_what_is_before_them(length, chunk, grows):
    made = plan(length, chunk=chunk, grows=grows)
    lows = [(low, run) for run in made for low in np.asarray(run.lows).tolist()]
    covered = [t for low, run in lows for t in range(low, low + run.size)]
    assert covered == list(range(length))
    assert all(low + run.size <= run.end <= length for low, run in lows)
    assert len(made) <= (RUNS if grows else 1) + 1
    assert (seen_share(made) == 1) if not grows else (0.5 <= seen_share(made) <= 1)


def test_scores_are_about_halved():
    share = seen_share(plan(4096, chunk=256, grows=True))
    assert share == pytest.approx((1 + 1 / RUNS) / 2)


T, WIDTH = 13, 4


def ahead(params, fixed, x):
    """Keys, something of each position, and an aux of all."""
    return {"k": x @ params["k"]}, {"o": jnp.sin(x)}, {"aux": jnp.sum(x**2)}


def part(params, fixed, x, own, keys, *, low, run):
    seen = low + jnp.arange(run.size)[:, None] >= jnp.arange(run.end)[None]
    seen = seen & (fixed["segments"][: run.end] >= 0)
    score = jnp.where(seen, jnp.einsum("btd,bsd->bts", x, keys["k"]), -1e30)
    y = jax.nn.softmax(score, axis=-1) @ keys["k"]
    y = jnp.tanh((x + y + own["o"]) @ params["w"])
    return y, {"sum": jnp.sum(y**3, axis=(0, 1))}


def plain(params, fixed, x):
    keys, own, aux = ahead(params, fixed, x)
    y, sums = part(params, fixed, x, own, keys, low=0, run=plan(T, chunk=T, grows=True)[0])
    return y, aux, sums


@pytest.mark.parametrize("chunk", [1, 4, 7, T])
def test_values_and_gradients_are_those_of_all_positions_at_once(chunk: int):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.standard_normal((2, T, WIDTH)))
        params = {n: jnp.asarray(rng.standard_normal((WIDTH, WIDTH))) for n in ("k", "w")}
        fixed = {"segments": jnp.zeros(T, jnp.int32)}

        def loss(run, params, x):
            y, aux, sums = run(params, fixed, x)
            # what is made of the sums is no sum over chunks itself
            return jnp.sum(y * jnp.cos(y)) + jnp.log(aux["aux"]) + jnp.sum(sums["sum"] ** 2)

        run = streamed(ahead, part, plan(T, chunk=chunk, grows=True))
        expected = jax.value_and_grad(loss, argnums=(1, 2))(plain, params, x)
        found = jax.value_and_grad(loss, argnums=(1, 2))(run, params, x)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
