"""Which operations of a program move one array along a dim? `jnp.roll` and its transpose, and what
is cut off on one side and filled up with zeros on the other.

A partitioner sees one rotation or shift, which along a sharded dim is a permute between neighbours,
where the traced program has slices that are put together the other way.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from parallelism.program import Op, Val

# an array, a dim, and where the part of it begins and ends
Cut = tuple["Val", int, int, int]


def turned(ops: "list[Op]") -> "list[Op]":
    """`ops` with one operation `roll` of one array for each of them; `by` is what it stands for,
    and `sends` the permutes that it takes: the transpose stays two, one of them for the wrap. A
    shift is a `pad` that adds on one side what it takes away on the other."""
    makers = {id(v): op for op in ops for v in op.outs}
    out = []
    for op in ops:
        found, sends = None, 0
        if (shift := _shift(op, makers)) is not None:
            out.append(shift)
            continue
        if op.name == "concatenate" and len(op.ins) == 2:
            found = _swapped([_cut(v, makers) for v in op.ins], int(op.params["dimension"]))
            sends = 1
        elif op.name in ("add", "add_any") and len(op.ins) == 2:
            found = _padded([makers.get(id(v)) for v in op.ins], makers)
            sends = 2
        if found is None:
            out.append(op)
            continue
        source, dim = found
        params = {"dimension": dim, "sends": sends, "by": op.name}
        out.append(replace(op, name="roll", ins=[source], params=params))
    return out


def _shift(op: "Op", makers: "dict[int, Op]") -> "Op | None":
    """A part of an array, filled up with zeros on the side where it was not cut off."""
    part = _cut(op.ins[0], makers) if op.name == "pad" and op.ins[1].scalar == 0 else None
    if part is None:
        return None
    source, d, start, end = part
    config: Any = np.array(op.params["padding_config"])
    low, high, _ = config[d]
    after = source.shape[d] - end
    whole = op.outs[0].shape == source.shape and not config[:, 2].any()
    if not whole or (low, high) != (after, start) or (low and high) or not low + high:
        return None
    config[d] = (low - start, high - after, 0)
    return replace(op, ins=[source, op.ins[1]], params={"padding_config": config})


def _cut(v: "Val", makers: "dict[int, Op]") -> Cut | None:
    """`v` as a part of another array along one dim."""
    op = makers.get(id(v))
    if op is None or op.name not in ("slice", "split"):
        return None
    source = op.ins[0]
    if op.name == "split":
        sizes, dim = op.params["sizes"], int(op.params["axis"])
        place = next(i for i, out in enumerate(op.outs) if out is v)
        return source, dim, sum(sizes[:place]), sum(sizes[: place + 1])
    p = op.params
    dims = [d for d, n in enumerate(v.shape) if n != source.shape[d]]
    if len(dims) != 1 or any(n != 1 for n in p["strides"] or ()):
        return None
    d = dims[0]
    return source, d, int(p["start_indices"][d]), int(p["limit_indices"][d])


def _swapped(parts: list[Cut | None], dim: int) -> "tuple[Val, int] | None":
    """The array of which these are the end and the beginning."""
    end_of, beginning_of = parts
    if end_of is None or beginning_of is None:
        return None
    (a, d, start, end), (b, e, first, middle) = end_of, beginning_of
    whole = a is b and d == e == dim and (first, end) == (0, a.shape[dim])
    return (a, dim) if whole and middle == start else None


def _padded(ops: "list[Op | None]", makers: "dict[int, Op]") -> "tuple[Val, int] | None":
    """The same of a sum of both, each filled up with zeros on the side where it was cut off."""
    places: list[tuple[int, Cut]] = []
    for op in ops:
        if op is None or op.name != "pad" or op.ins[1].scalar != 0:
            return None
        part = _cut(op.ins[0], makers)
        config: Any = np.asarray(op.params["padding_config"])
        if part is None or config[:, 2].any() or np.delete(config, part[1], axis=0).any():
            return None
        low, high, _ = config[part[1]]
        if low and high or op.outs[0].shape != part[0].shape:
            return None
        places.append((int(low), part))
    ordered = [part for _, part in sorted(places, key=lambda one: one[0])]
    return _swapped(list(ordered), ordered[0][1])
