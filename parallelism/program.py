"""What does a traced step do, as a compiler sees it before it partitions it?

A jaxpr becomes one list of operations: calls are inlined, equal operations are done once, dead
ones are left out. Bodies of loops and of `shard_map` stay programs of their own.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from parallelism.rolls import turned

# calls that a compiler sees through, with the name of the parameter that holds their body
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
# what passes a value on unchanged
SAME = {"copy", "copy_p", "optimization_barrier", "name", "stop_gradient", "pvary", "pcast"}


@dataclass(eq=False)
class Val:
    """An array of the program. `scalar` is the value of a constant with one element."""

    shape: tuple[int, ...]
    itemsize: float
    scalar: float | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(eq=False)
class Op:
    name: str
    ins: list[Val]
    outs: list[Val]
    params: Mapping[str, Any] = field(default_factory=dict)
    bodies: list["Program"] = field(default_factory=list)


@dataclass(eq=False)
class Program:
    ins: list[Val]
    outs: list[Val]
    ops: list[Op]


def program(closed: ClosedJaxpr, *, barriers: bool = True) -> Program:
    """`barriers`: the compiler keeps what is to be computed again apart from the first time."""
    return _Reader(barriers).whole(closed.jaxpr, consts=[_constant(c) for c in closed.consts])


def _constant(value: Any) -> Val:
    array = np.asarray(value) if not isinstance(value, jax.ShapeDtypeStruct) else value
    scalar = float(array.real) if array.shape == () and array.dtype.kind in "fiub" else None  # pyright: ignore[reportAttributeAccessIssue]
    return Val(tuple(array.shape), np.dtype(array.dtype).itemsize, scalar)


def _of_aval(aval: Any) -> Val:
    size = getattr(getattr(aval, "dtype", None), "itemsize", 4)
    return Val(tuple(getattr(aval, "shape", ())), size)


class _Reader:
    """Final. Reads one scope; operations of equal key are one (a compiler shares them too)."""

    def __init__(self, barriers: bool):
        self.barriers = barriers
        self.ops: list[Op] = []
        self.known: dict[Any, list[Val]] = {}
        self.literals: dict[Any, Val] = {}

    def whole(self, jaxpr: Jaxpr, *, consts: list[Val]) -> Program:
        ins = [_of_aval(v.aval) for v in jaxpr.invars]
        env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(
            zip(jaxpr.invars, ins, strict=True)
        )
        outs = self.read(jaxpr, env)
        return Program([*consts, *ins], outs, _alive(turned(self.ops), outs))

    def read(self, jaxpr: Jaxpr, env: dict[Any, Val]) -> list[Val]:
        def value(atom: Any) -> Val:
            if not isinstance(atom, Literal):
                return env[atom]
            key = (str(atom.aval), str(atom.val))
            if key not in self.literals:
                self.literals[key] = _constant(atom.val)
            return self.literals[key]

        for eqn in jaxpr.eqns:
            ins = [value(atom) for atom in eqn.invars]
            name = eqn.primitive.name
            if name in CALLS:
                body = eqn.params[CALLS[name]]
                closed = body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ())
                inner: dict[Any, Val] = dict(
                    zip(closed.jaxpr.constvars, map(_constant, closed.consts), strict=True)
                )
                if (
                    name in ("checkpoint", "remat2")
                    and eqn.params.get("prevent_cse", True)
                    and self.barriers
                ):
                    ins = self.apart(ins)
                inner |= dict(
                    zip(closed.jaxpr.invars, ins[-len(closed.jaxpr.invars) :], strict=True)
                )
                outs = self.read(closed.jaxpr, inner)
            elif name == "scan" and eqn.params["length"] == 1:
                outs = self.once(eqn, ins)
            elif name == "unstack":
                outs = self.unstacked(eqn, ins[0])
            elif name in SAME and len(ins) == len(eqn.outvars) and name != "optimization_barrier":
                outs = ins
            else:
                outs = self.do(eqn, ins)
            env |= dict(zip(eqn.outvars, outs, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def once(self, eqn: Any, ins: list[Val]) -> list[Val]:
        """A loop of one turn is its body."""
        consts, m = scan_counts(eqn)
        n, body = consts + m, eqn.params["jaxpr"]

        def shaped(v: Val, shape: tuple[int, ...]) -> Val:
            out = Val(shape, v.itemsize)
            self.ops.append(Op("reshape", [v], [out], {"new_sizes": shape}))
            return out

        given = [*ins[:n], *(shaped(v, v.shape[1:]) for v in ins[n:])]
        env = dict(zip(body.jaxpr.constvars, map(_constant, body.consts), strict=True))
        outs = self.read(body.jaxpr, env | dict(zip(body.jaxpr.invars, given, strict=True)))
        return [*outs[:m], *(shaped(v, (1, *v.shape)) for v in outs[m:])]

    def unstacked(self, eqn: Any, v: Val) -> list[Val]:
        """Parts of one along a dim, without it: one operation of jax 0.12, here the slices and
        reshapes that it amounts to."""
        d, outs = eqn.params["axis"], []
        for i in range(v.shape[d]):
            part = Val((*v.shape[:d], 1, *v.shape[d + 1 :]), v.itemsize)
            start = tuple(i if k == d else 0 for k in range(len(v.shape)))
            limit = tuple(a + n for a, n in zip(start, part.shape, strict=True))
            taken = {"start_indices": start, "limit_indices": limit, "strides": None}
            self.ops.append(Op("slice", [v], [part], taken))
            outs.append(Val((*v.shape[:d], *v.shape[d + 1 :]), v.itemsize))
            self.ops.append(Op("reshape", [part], [outs[-1]], {"new_sizes": outs[-1].shape}))
        return outs

    def apart(self, ins: list[Val]) -> list[Val]:
        """The inputs of what is to be computed again: what was computed from them is not shared."""
        outs = [Val(v.shape, v.itemsize, v.scalar) for v in ins]
        self.ops.append(Op("optimization_barrier", ins, outs))
        return outs

    def do(self, eqn: Any, ins: list[Val]) -> list[Val]:
        name, params = eqn.primitive.name, eqn.params
        bodies = [] if name in ("reduce", "scatter-add", "scatter", "sort") else _bodies(params)
        key = None
        if not bodies:
            key = (name, tuple(map(id, ins)), str(sorted(params.items(), key=lambda kv: kv[0])))
            if key in self.known:
                return self.known[key]
        outs = [_of_aval(v.aval) for v in eqn.outvars]
        made = [
            _Reader(self.barriers).whole(b.jaxpr, consts=[_constant(c) for c in b.consts])
            for b in bodies
        ]
        if name == "scan" and made:
            consts, n = scan_counts(eqn)
            params = {**params, "num_consts": consts, "num_carry": n}
            first: dict[int, Val] = {}  # stacked outputs that are one array in the body are one
            for i in range(n, len(outs)):
                outs[i] = first.setdefault(id(made[0].outs[i]), outs[i])
        self.ops.append(Op(name, ins, outs, params, made))
        if key is not None:
            self.known[key] = outs
        return outs


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many of a scan's inputs are constant, and how many carried; the rest, and the outputs
    after the carry, are stacked, which a dimension more than in the body tells in every jax."""
    body = eqn.params["jaxpr"]

    def kept(outer: Any, inner: Any) -> int:
        return sum(a.aval.ndim == b.ndim for a, b in zip(outer, inner, strict=True))

    carry = kept(eqn.outvars, body.out_avals)
    return kept(eqn.invars, body.in_avals) - carry, carry


def _bodies(params: Mapping[str, Any]) -> list[ClosedJaxpr]:
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                found.append(one)
            elif isinstance(one, Jaxpr):
                found.append(ClosedJaxpr(one, ()))
    return found


def _alive(ops: list[Op], outs: list[Val]) -> list[Op]:
    wanted = {id(v) for v in outs}
    kept = []
    for op in reversed(ops):
        if any(id(v) in wanted for v in op.outs):
            kept.append(op)
            wanted |= {id(v) for v in itertools.chain(op.ins)}
    return kept[::-1]
