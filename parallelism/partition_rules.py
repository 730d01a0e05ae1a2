"""How does each kind of operation follow its operands' layouts? One rule a primitive.

A rule gathers or finishes what it must and appends the operation's step. Operations that are not
named here act on each element by itself.
"""

import math
from dataclasses import replace

from parallelism.counted_kernel import flops
from parallelism.layouts import (
    LATER,
    STAGES,
    Layout,
    constrained,
    exchanged,
    fitting,
    reshaped,
    unsharded,
    used,
    ways,
    without,
)
from parallelism.partition_loops import cond, manual, scan, while_loop
from parallelism.partitioned import Partitioner, Rule
from parallelism.placed import Spread
from parallelism.program import Op


def dot(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    (lc, rc), (lb, rb) = op.params["dimension_numbers"]
    pair = [walk.finish(s) for s in ins]
    matched = [*zip(lb, rb, strict=True), *zip(lc, rc, strict=True)]
    # whose layout holds: an activation's before a parameter's, then the larger array's
    order = sorted((0, 1), key=lambda i: (pair[i].weight, -math.prod(pair[i].shape)))
    first, second = order
    held, other = pair[first], pair[second]
    mate = {m[second]: m[first] for m in matched}  # dim of `other` -> dim of `held`
    taken = used(held.layout)
    wrong: set[str] = set()
    kept: dict[int, tuple[str, ...]] = {}
    layout = list(held.layout)
    for d, axes in enumerate(other.layout):
        if d not in mate:
            wrong |= set(axes) & taken
            continue
        mine = held.layout[mate[d]]
        if axes and not mine and not set(axes) & taken:  # `held` keeps its part
            layout[mate[d]] = axes
            taken |= set(axes)
        elif axes != mine:
            wrong |= set(axes) - set(mine)
    other = walk.gather(other, wrong)
    pair[first], pair[second] = held, other
    given = list(pair)
    held = replace(held, layout=tuple(layout))
    pair[first] = held
    for d in range(len(other.shape)):  # the other's dims as the product sees them
        kept[d] = held.layout[mate[d]] if d in mate else other.layout[d]
    seen: list[Layout] = [(), ()]
    seen[first] = held.layout
    seen[second] = tuple(kept[d] for d in range(len(other.shape)))
    partial = frozenset(a for d in lc for a in seen[0][d])
    free = [[d for d in range(len(s.shape)) if d not in (*b, *c)]
            for s, b, c in zip(pair, (lb, rb), (lc, rc), strict=True)]  # fmt: skip
    out = (
        *(seen[0][d] for d in lb),
        *(seen[0][d] for d in free[0]),
        *(seen[1][d] for d in free[1]),
    )
    made = walk.new(op, given, [out], partial=partial, reads=dict(enumerate(seen)))[0]
    contracted = math.prod(pair[0].shape[d] for d in lc) / math.prod(walk.mesh[a] for a in partial)
    flops = 2 * made.buffer.bytes / made.itemsize * contracted
    walk.totals.flops += flops * walk.times
    return [made]


def linear_shape(walk: Partitioner, op: Op, s: Spread, layout: Layout) -> list[Spread]:
    """What rearranges elements: an unfinished sum stays one."""
    lost = used(s.layout) - used(layout)
    if lost:
        s = walk.gather(walk.finish(s), lost)
        layout = without(layout, lost)
    return walk.new(op, [s], [layout], partial=s.partial, chain=s.chain, weight=s.weight)


def reshape(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    s, shape = ins[0], op.outs[0].shape
    layout = reshaped(s.layout, s.shape, shape, walk.mesh)
    if STAGES in used(s.layout) - used(layout):
        to = walk.beside(op.outs[0])
        among = exchanged(s.layout, s.shape, shape, to, walk.mesh) if to else {}
        if to and set(among) == used(s.layout) - used(layout):
            s = walk.finish(s)
            for axis, n in among.items():
                walk.send("all-to-all", {axis}, s.local(walk.mesh), among=n)
                if n < walk.mesh[axis]:
                    walk.send("collective-permute", {axis}, s.local(walk.mesh))
            layout = tuple(
                (*mine, *(a for a in there if a in among))
                for mine, there in zip(layout, to, strict=True)
            )
            return walk.new(op, [s], [layout])
    return linear_shape(walk, op, s, layout)


def transpose(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    return linear_shape(walk, op, ins[0], tuple(ins[0].layout[d] for d in op.params["permutation"]))


def squeeze(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    gone = {d % len(ins[0].shape) for d in op.params["dimensions"]}
    layout = tuple(axes for d, axes in enumerate(ins[0].layout) if d not in gone)
    return linear_shape(walk, op, ins[0], layout)


def expand_dims(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    s = ins[0]
    return linear_shape(walk, op, s, reshaped(s.layout, s.shape, op.outs[0].shape, walk.mesh))


def broadcast(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    shape = op.outs[0].shape
    if not ins:
        return walk.new(op, ins, [unsharded(len(shape))], weight=False)
    s = walk.finish(ins[0])
    layout = list(unsharded(len(shape)))
    for d, e in enumerate(op.params["broadcast_dimensions"]):
        if s.shape[d] == shape[e]:
            layout[e] = s.layout[d]
    return walk.new(op, [s], [tuple(layout)])


def reduction(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    gone = set(op.params["axes"])
    kept = [walk.finish(s) for s in ins]
    layouts = [tuple(a for d, a in enumerate(s.layout) if d not in gone) for s in kept]
    partial = frozenset(a for s in kept for d in gone for a in s.layout[d])
    made = walk.new(op, kept, layouts[: len(op.outs)], partial=partial)
    if op.name == "reduce_sum":
        return made
    return [walk.finish(s) for s in made]


def sliced(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    """Parts of an array, whole along some dims: slice, pad, split, dynamic_slice."""
    s = ins[0]
    changed = {d for v in op.outs for d, n in enumerate(v.shape) if n != s.shape[d]}
    if changed and s.partial:
        s = walk.finish(s) if any(s.layout[d] for d in changed) else s
    s = walk.gather(s, {a for d in changed for a in s.layout[d]})
    others = [walk.finish(o) for o in ins[1:]]
    return walk.new(op, [s, *others], [s.layout] * len(op.outs), partial=s.partial, weight=s.weight)


def padded(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    """Along a sharded dim what is added on one side and cut off on the other is a shift: neighbours
    hand on as many places."""
    s = ins[0]
    shifts = {
        d: abs(int(low))
        for d, (low, high, _) in enumerate(op.params["padding_config"])
        if low == -high != 0 and s.layout[d]
    }
    if shifts:
        s = walk.finish(s)
    for d, places in shifts.items():
        each = s.local(walk.mesh) * ways(s.layout[d], walk.mesh) / s.shape[d]
        walk.send("collective-permute", s.layout[d], places * each)
    return sliced(walk, op, [s, *ins[1:]])


def updated(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    """dynamic_update_slice: into an array, whole along the dims that the part has whole."""
    s, part, *index = (walk.finish(i) for i in ins)
    changed = {d for d, n in enumerate(part.shape) if n != s.shape[d]}
    s = walk.gather(s, {a for d in changed for a in s.layout[d]})
    layout = tuple(
        s.layout[d] or (() if d in changed else part.layout[d]) for d in range(len(s.shape))
    )
    return walk.new(op, [s, part, *index], [layout], weight=False, reads={0: layout})


def along(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    """What mixes elements of one dim: sort, cumulative sums, concatenation, top_k, fft, rev."""
    names = {"sort": "dimension", "concatenate": "dimension", "stack": "axis", "rev": "dimensions"}
    p, rank = op.params, len(op.outs[0].shape)
    if op.name == "fft":
        dims = range(rank - len(p["fft_lengths"]), rank)
    elif op.name == "top_k":
        dims = (p.get("axis", rank - 1) % rank,)
    else:
        found = p[names.get(op.name, "axis")]
        dims = found if isinstance(found, tuple) else (found,)
    if op.name == "stack":  # a dim that the parts lack
        parts = [walk.finish(s) for s in ins]
        rest = walk.new(op, parts, [(*parts[0].layout[: dims[0]], (), *parts[0].layout[dims[0] :])])
        return rest
    alike = {(s.partial, s.layout) for s in ins}
    if len(alike) > 1 or op.name != "concatenate":
        ins = [walk.finish(s) for s in ins]
    ins = [walk.gather(s, {a for d in dims for a in s.layout[d]}) for s in ins]
    if op.name == "top_k" and not walk.scatters:  # XLA on CPU takes it of everybody's rows
        s = walk.gather(ins[0], used(ins[0].layout) & LATER)
        whole, kept = walk.gather(s, used(s.layout)), ins[0].layout
        return walk.new(op, [whole], [kept] * len(op.outs))
    lead = max(ins, key=lambda s: (not s.weight, len(used(s.layout))))
    same = [walk.towards(s, lead.layout) if len(s.shape) == len(lead.shape) else s for s in ins]
    partial = ins[0].partial if len(alike) == 1 else frozenset()
    layout = fitting(lead.layout, op.outs[0].shape, walk.mesh)
    if op.name == "fft":
        size = op.outs[0].size / math.prod(walk.mesh[a] for a in used(layout))
        walk.totals.flops += 5 * size * math.log2(max(2, p["fft_lengths"][-1])) * walk.times
    return walk.new(op, same, [layout] * len(op.outs), partial=partial)


def roll(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    """A rotation (parallelism/rolls.py): along a sharded dim neighbours hand on what they hold."""
    s, dim = walk.finish(ins[0]), op.params["dimension"]
    if not s.layout[dim]:
        return walk.new(replace(op, name=op.params["by"]), [s], [s.layout])
    out = walk.new(replace(op, name="ppermute"), [s], [s.layout])
    for _ in range(op.params["sends"]):
        walk.send("collective-permute", s.layout[dim], s.local(walk.mesh))
    return out


def gather(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    """Rows looked up by index. A table cut along its rows answers with what it holds: a sum. One
    cut along its columns answers with columns of everybody's rows, which then change places."""
    table, index = (walk.finish(s) for s in ins)
    numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
    shape, rank = op.outs[0].shape, len(table.shape)
    batching = dict(
        zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    )
    gone = {*numbers.collapsed_slice_dims, *batching}
    windows = [d for d in range(rank) if d not in gone]
    table = walk.gather(
        table, {a for d in windows for a in table.layout[d] if sizes[d] < table.shape[d]}
    )
    columns = {a for d in windows for a in table.layout[d]}
    index = walk.gather(index, columns & used(index.layout))
    lead = list(index.layout)
    for d, e in batching.items():  # rows of the table that belong to rows of the index
        if table.layout[d] and not lead[e]:
            lead[e] = table.layout[d]
    taken = used(tuple(lead))
    rows = {a for d in numbers.collapsed_slice_dims for a in table.layout[d]}
    apart = {a for d, e in batching.items() for a in table.layout[d] if a not in lead[e]}
    table = walk.gather(table, (rows & taken) | apart)
    offsets = dict(zip(numbers.offset_dims, windows, strict=True))
    places = iter(range(len(index.shape) - 1))
    layout = tuple(
        table.layout[offsets[d]] if d in offsets else lead[next(places)] for d in range(len(shape))
    )
    partial = frozenset(rows - taken)
    made = walk.new(op, [table, index], [layout], partial=partial, weight=False)
    return [walk.finish(s) for s in made]


def scatter(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    """Updates into rows by index; those of different devices add up to a sum, except in columns
    that a device holds of everybody's rows."""
    into, index, updates = (walk.finish(s) for s in ins)
    numbers = op.params["dimension_numbers"]
    rows = [d for d in range(len(updates.shape)) if d not in numbers.update_window_dims]
    inserted = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    windows = [d for d in range(len(into.shape)) if d not in inserted]
    layout, kept = list(into.layout), set()
    batching = zip(
        numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True
    )
    for d, e in batching:
        layout[d] = layout[d] or updates.layout[rows[e]]
        kept |= set(layout[d])
    target = walk.beside(op.outs[0]) or into.layout
    for d in numbers.inserted_window_dims:  # of rows that it keeps a device adds up its own
        own = tuple(a for a in target[d] if a not in used(updates.layout) | used(tuple(layout)))
        layout[d] = layout[d] or own
    for d, e in zip(windows, numbers.update_window_dims, strict=True):
        if layout[d] or updates.shape[e] != into.shape[d]:
            continue
        travels = {a for r in rows for a in updates.layout[r] if a in target[d]}
        if travels:
            wanted = list(without(updates.layout, travels))
            wanted[e] = target[d]
            updates = walk.laid(updates, tuple(wanted))
            index = walk.gather(index, travels)
        layout[d] = updates.layout[e]
        kept |= set(layout[d])
    partial = frozenset(used(updates.layout) - kept)
    inputs = [into, index, updates]
    return walk.new(
        op, inputs, [tuple(layout)], partial=partial, weight=False, reads={0: tuple(layout)}
    )


def constraint(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    spec = op.params["sharding"].spec
    target = constrained(spec, ins[0].layout, walk.mesh)
    return [walk.laid(ins[0], target)]


def iota(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    return walk.new(op, ins, [unsharded(len(v.shape)) for v in op.outs], weight=False)


def kernel(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    """Of attention: one device's own, in a manual region or alone."""
    ins = [walk.finish(s) for s in ins]
    walk.totals.flops += flops(op.name, op.params["pairs"], op.ins[0].shape) * walk.times
    return walk.new(op, ins, [unsharded(len(v.shape)) for v in op.outs], weight=False)


def barrier(walk: Partitioner, op: Op, ins: list[Spread]) -> list[Spread]:
    return [replace(s) for s in ins]


RULES: dict[str, Rule] = {
    "dot_general": dot,
    "reshape": reshape,
    "transpose": transpose,
    "squeeze": squeeze,
    "expand_dims": expand_dims,
    "broadcast_in_dim": broadcast,
    **{f"reduce_{k}": reduction for k in ("sum", "max", "min", "prod", "and", "or")},
    "argmax": reduction,
    "argmin": reduction,
    **{k: sliced for k in ("slice", "split", "dynamic_slice")},
    "pad": padded,
    "dynamic_update_slice": updated,
    **{k: along for k in ("sort", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp",
                          "concatenate", "stack", "top_k", "fft", "rev")},  # fmt: skip
    "roll": roll,
    "gather": gather,
    **{k: scatter for k in ("scatter", "scatter-add", "scatter_add", "scatter_mul")},
    "sharding_constraint": constraint,
    "iota": iota,
    "scan": scan,
    "while": while_loop,
    "cond": cond,
    "shard_map": manual,
    "optimization_barrier": barrier,
    "attention_kernel": kernel,
    "attention_kernel_backward": kernel,
}  # fmt: skip
