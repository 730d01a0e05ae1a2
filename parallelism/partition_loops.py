"""How do loops, branches and manual regions follow the layouts of what they are given?

A loop's carry must lie at the end of a turn as it did at its beginning; what is sent in the body is
sent once a turn.
"""

from dataclasses import replace

from parallelism.layouts import constrained, used, without
from parallelism.partitioned import Ahead, Partitioner
from parallelism.placed import Buffer, Spread, Step
from parallelism.program import Op


def scan(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    p, body = op.params, op.bodies[0]
    n, m = p["num_consts"], p["num_carry"]
    length = float(p["length"])
    consts, carry, stacked = ins[:n], [walk.finish(s) for s in ins[n : n + m]], ins[n + m :]
    stacked = [_widened(walk, walk.finish(s)) for s in stacked]
    rows = [
        replace(
            s,
            shape=s.shape[1:],
            layout=s.layout[1:],
            buffer=Buffer(s.buffer.bytes / length),
            chain=(),
        )
        for s in stacked
    ]

    def inside(carry: list[Spread], times: float, into: Partitioner):
        ahead = Ahead({id(s.buffer) for s in consts}, into.steps, into.times)
        into.times = times
        lent = [replace(s, buffer=Buffer(s.buffer.bytes), weight=False) for s in carry]
        scope, outs = into.scope(body, [*consts, *lent, *rows], ahead=ahead)
        return scope, outs, ahead.made

    for _ in range(3):  # until what the body gives back lies as what it is given
        trial = Partitioner(walk.mesh, rules=walk.rules, scatters=walk.scatters)
        _, outs, _ = inside(carry, 1.0, trial)
        after = [s.layout for s in outs[:m]]
        if all(a == s.layout for a, s in zip(after, carry, strict=True)):
            break
        carry = [walk.laid(s, layout) for s, layout in zip(carry, after, strict=True)]
    before = walk.times
    scope, outs, made = inside(carry, before * length, walk)
    walk.times = before
    back = []
    for s, given in zip(outs[:m], carry, strict=True):
        walk.times = before * length
        back.append(walk.laid(s, given.layout) if s.shape else walk.finish(s))
        walk.times = before
    seen: dict[int, Spread] = {}
    results: list[Spread] = []
    for v, s in zip(op.outs, [*back, *outs[m:]], strict=True):
        if id(v) in seen:
            results.append(seen[id(v)])
            continue
        whole = s if len(results) < m else replace(s, shape=v.shape, layout=((), *s.layout))
        whole = replace(whole, itemsize=v.itemsize)
        whole = replace(whole, buffer=Buffer(whole.local(walk.mesh)), weight=False)
        whole = replace(whole, chain=(whole.buffer,) if whole.partial else ())
        seen[id(v)] = whole
        results.append(whole)
    narrow = [
        (row.buffer, s.buffer)
        for v, row, s in zip(op.outs[m:], outs[m:], results[m:], strict=True)
        if walk.computed(v.itemsize) > v.itemsize
    ]
    if narrow:
        scope.steps.extend(_stacked_anew(narrow))
    ins = [*consts, *carry, *stacked, *made]
    walk.step(op.name, ins, results, bodies=[scope], params=op.params)
    return results


def _widened(walk: Partitioner, s: Spread) -> Spread:
    """What a loop takes its rows from, as XLA on CPU reads it: all of it in four bytes, before."""
    wide = walk.computed(s.itemsize)
    if wide == s.itemsize:
        return s
    out = replace(s, itemsize=wide)
    out = replace(out, buffer=Buffer(out.local(walk.mesh)))
    walk.step("stacked", [s], [out])
    return out


def _stacked_anew(stacks: list[tuple[Buffer, Buffer]]) -> list[Step]:
    """XLA on CPU makes stacks of two bytes anew in every turn, and not in place: it rounds them as
    a whole, from four."""
    wholes = [Buffer(stack.bytes) for _, stack in stacks]
    made = [
        Step("stacked", [row], [whole], [1.0])
        for (row, _), whole in zip(stacks, wholes, strict=True)
    ]
    return [*made, Step("turn", wholes, [], [1.0] * len(wholes))]


def while_loop(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    """A loop of unknown length counts as one."""
    walk.totals.unknown["while"] += 1
    n, m = op.params["cond_nconsts"], op.params["body_nconsts"]
    ins = [walk.finish(s) for s in ins]
    scope, outs = walk.scope(op.bodies[1], ins[n:])
    outs = [walk.laid(s, given.layout) for s, given in zip(outs, ins[n + m :], strict=True)]
    walk.step(op.name, ins, outs, bodies=[scope], params=op.params)
    return outs


def cond(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    """The dearest branch is taken."""
    ins = [walk.finish(s) for s in ins]
    best = None
    for body in op.bodies:
        trial = Partitioner(walk.mesh, rules=walk.rules, scatters=walk.scatters)
        trial.scope(body, ins[1:])
        cost = (trial.totals.flops, sum(trial.totals.sent.values()))
        best = max(best, (cost, body), key=lambda b: b[0]) if best else (cost, body)
    assert best is not None
    scope, outs = walk.scope(best[1], ins[1:])
    outs = [walk.finish(s) for s in outs]
    walk.step(op.name, ins, outs, bodies=[scope], params=op.params)
    return outs


def manual(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    """shard_map: inside, shapes are a device's own along its axes."""
    mine = set(op.params["newly_manual_axes"])
    lent = []
    for s, spec, v in zip(ins, op.params["in_specs"], op.bodies[0].ins[-len(ins) :], strict=True):
        wanted = constrained(spec, s.layout, walk.mesh)
        rest = without(s.layout, mine | used(wanted))
        s = walk.laid(s, tuple((*w, *r) for w, r in zip(wanted, rest, strict=True)))
        lent.append(replace(s, shape=v.shape, layout=without(s.layout, mine), weight=False))
    scope, outs = walk.scope(op.bodies[0], lent)
    results = []
    for s, spec, v in zip(outs, op.params["out_specs"], op.outs, strict=True):
        s = walk.finish(s)
        wanted = constrained(spec, s.layout, walk.mesh)
        layout = tuple((*w, *r) for w, r in zip(wanted, s.layout, strict=True))
        results.append(
            replace(s, shape=v.shape, layout=layout, weight=False, buffer=Buffer(s.buffer.bytes))
        )
    walk.step(op.name, ins, results, bodies=[scope], params=op.params)
    return results
