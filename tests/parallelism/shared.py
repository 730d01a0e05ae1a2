"""Attention over a shared sequence, small enough for a test, and the same on one device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from parallelism.axes import MeshSpec
from parallelism.mesh import make_mesh
from parallelism.sequence import Scheme, Softmax, resolve

Arrays = Mapping[str, np.ndarray]
NAMES = ("q", "k", "v", "ahead_k", "ahead_v")


@dataclass(frozen=True)
class Case:
    """One attention in float64: what it is of, and what it is sent through."""

    scheme: str
    mesh: MeshSpec = field(default_factory=lambda: MeshSpec(sequence=4))
    rows: int = 2
    length: int = 16
    heads: int = 8
    kv_heads: int = 4
    per_head: int = 4
    documents: bool = True
    ahead: int = 0
    prefix: bool = False
    band: Any = None
    scale: float = 0.3

    @cached_property
    def made(self) -> Scheme:
        return resolve(self.scheme)(make_mesh(self.mesh))

    @cached_property
    def order(self) -> np.ndarray:
        return self.made.order(self.length, ways=self.mesh.sequence)

    @cached_property
    def arrays(self) -> Arrays:
        rng = np.random.default_rng(0)
        lead, width = (self.rows, self.length), (self.per_head,)
        kv = {n: rng.standard_normal((*lead, self.kv_heads, *width)) for n in ("k", "v")}
        out = {"q": rng.standard_normal((*lead, self.heads, *width)), **kv}
        if self.ahead:
            shape = (self.rows, self.ahead, self.kv_heads, self.per_head)
            out |= {name: rng.standard_normal(shape) for name in ("ahead_k", "ahead_v")}
        return out

    @cached_property
    def probe(self) -> np.ndarray:
        return np.random.default_rng(1).standard_normal(self.arrays["q"].shape)

    @cached_property
    def segments(self) -> np.ndarray:
        """Up to three documents a row, the first row one."""
        cut = np.random.default_rng(2).integers(1, self.length, (self.rows, 2))
        at = np.arange(self.length)
        found = (at[None, :, None] >= cut[:, None, :]).sum(axis=-1).astype(np.int32)
        found[0] = 0
        return found if self.documents else np.zeros_like(found)

    @cached_property
    def seen(self) -> np.ndarray:
        """(B, T, S), written out."""
        t = np.arange(self.length)
        seen = np.broadcast_to(t[:, None] >= t, (self.rows, self.length, self.length)).copy()
        if self.band is not None:
            for row in range(self.rows):
                for query in t:
                    begin = int(np.argmax(self.segments[row] == self.segments[row, query]))
                    for key in range(query + 1):
                        seen[row, query, key] &= bool(self.band.sees(query, key, begin))
        if self.prefix:
            seen[:] = True
        return seen & (self.segments[:, :, None] == self.segments[:, None])

    def single(self, arrays: Arrays) -> jax.Array:
        """Outputs by all scores of every head."""
        share = self.heads // self.kv_heads
        keys: dict[str, Any] = {n: jnp.asarray(arrays[n]) for n in ("k", "v")}
        seen = jnp.asarray(self.seen)
        if self.ahead:
            keys = {n: jnp.concatenate([arrays[f"ahead_{n}"], x], axis=1) for n, x in keys.items()}
            seen = jnp.pad(seen, ((0, 0), (0, 0), (self.ahead, 0)), constant_values=True)
        k, v = (jnp.repeat(x, share, axis=2) for x in (keys["k"], keys["v"]))
        score = self.scale * jnp.einsum("bthk,bshk->bhts", arrays["q"], k)
        weight = jax.nn.softmax(jnp.where(seen[:, None], score, -jnp.inf), axis=-1)
        return jnp.einsum("bhts,bshk->bthk", weight, v)

    def place(self, arrays: Arrays) -> dict[str, jax.Array]:
        """In the order of the scheme, where its devices want them."""
        out = {}
        for name, x in arrays.items():
            ahead = name.startswith("ahead")
            spec = self.made.ahead_spec if ahead else self.made.tokens_spec  # pyright: ignore[reportAttributeAccessIssue]
            at = NamedSharding(self.made.mesh, spec(self.kv_heads))
            out[name] = jax.device_put(x if ahead else x[:, self.order], at)
        return out

    def in_order(self, name: str, x: Any) -> Any:
        """Back in the order of the text."""
        x = np.asarray(x)
        return x if name.startswith("ahead") else x[:, np.argsort(self.order)]

    def shared(self, arrays: Mapping[str, jax.Array], dy: jax.Array):
        """Outputs and gradients, of arrays in the order of the scheme."""

        def outputs(arrays: Mapping[str, jax.Array]) -> jax.Array:
            return self.made.softmax(
                arrays["q"],
                arrays["k"],
                arrays["v"],
                jnp.asarray(self.segments[:, self.order]) if self.documents else None,
                scale=self.scale,
                prefix_BT=jnp.ones((self.rows, self.length), bool) if self.prefix else None,
                ahead=(arrays["ahead_k"], arrays["ahead_v"]) if self.ahead else None,
                band=self.band,
            )

        y, back = jax.vjp(outputs, arrays)
        return y, back(dy)[0]

    @property
    def layer(self) -> Softmax:
        return Softmax(
            rows=self.rows,
            length=self.length,
            heads=self.heads,
            kv_heads=self.kv_heads,
            per_head=self.per_head,
            item=8,
            wide=8,
            band=self.band,
            ahead=self.ahead,
            causal=not self.prefix,
        )


def assert_same(found: Any, wanted: Any, *, what: str) -> None:
    """Every array within 1e-10 of its largest entry: the tolerance of float64."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        off, size = np.max(np.abs(a - b)), np.max(np.abs(b))
        assert a.dtype == np.float64 and off <= 1e-10 * size, f"{what}: {off:.3g} of {size:.3g}"
