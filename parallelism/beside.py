"""Which layout will an array be used with? Sums are cut up for it, and columns change places."""

from collections.abc import Mapping

from parallelism.layouts import Layout, constrained, unsharded
from parallelism.placed import Spread
from parallelism.program import Op, Val


def beside(
    v: Val,
    readers: Mapping[int, list[Op]],
    makers: Mapping[int, Op],
    env: Mapping[int, Spread],
    mesh: Mapping[str, int],
    *,
    depth: int = 8,
) -> Layout | None:
    """The layout of the first array that `v`, or what is made of it element by element, meets, or
    that it is to have."""

    def known(one: Val, deep: int) -> Layout | None:
        if one is v or one.shape != v.shape:
            return None
        if id(one) in env:
            return None if env[id(one)].partial else env[id(one)].layout
        op = makers.get(id(one))
        if op is None or deep == 0:
            return None
        return next(filter(None, (known(source, deep - 1) for source in op.ins)), None)

    level, seen = [v], {id(v)}
    for _ in range(depth):
        after: list[Val] = []
        for op in (op for one in level for op in readers.get(id(one), ())):
            if any(out.shape != v.shape for out in op.outs):
                continue
            if op.name == "sharding_constraint":
                return constrained(op.params["sharding"].spec, unsharded(len(v.shape)), mesh)
            for other in op.ins:
                met = None if id(other) in seen else known(other, 3)
                if met is not None:
                    return met
            after += [out for out in op.outs if id(out) not in seen]
            seen |= {id(out) for out in op.outs}
        level = after
    return None
