"""How many bytes does one device need at once, besides a program's arguments?

The operations run in order; an array lives from its making to its last use. A chain of elementwise
operations is fused: what only such operations read is never stored, unless it is dear to compute
and read twice. A loop adds what one turn of it needs to what it stacks.
"""

from collections.abc import Iterable

from parallelism.placed import Buffer, Scope, Step

# stored whatever reads them, and their operands too
HEAVY = {
    "dot_general", "scan", "while", "cond", "shard_map", "sort", "top_k", "fft", "concatenate",
    "stack", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "gather", "scatter",
    "scatter-add", "scatter_add", "scatter_mul", "all-gather", "all-to-all", "reduce",
    "dynamic_update_slice", "ppermute", "psum", "all_gather", "reduce_scatter", "all_to_all",
    "psum_invariant", "all_gather_invariant", "psum_scatter", "pmax", "pmin",
    "attention_kernel", "attention_kernel_backward", "stacked",
}  # fmt: skip
# stored, while their operands are read as they come
ROOTS = {f"reduce_{k}" for k in ("sum", "max", "min", "prod", "and", "or")} | {"argmax", "argmin"}
SCALAR = 8  # bytes
IN_PLACE = {"scatter", "scatter-add", "scatter_add", "scatter_mul", "dynamic_update_slice"}
# the same bytes under another shape
ALIASES = {"reshape", "squeeze", "expand_dims", "optimization_barrier", "bitcast_convert_type",
           "same"}  # fmt: skip
DEAR = {"exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "sin", "cos", "pow", "erf",
        "erf_inv", "sqrt", "rsqrt", "cbrt", "div", "rem", "slice"}  # fmt: skip


def shares(scope: Scope) -> dict[int, float]:
    """How much of each array (by id) anybody reads, where all read only a part: a constant that is
    made whole and then cut is made cut."""
    out: dict[int, float] = dict.fromkeys((id(b) for b in scope.outs), 1.0)
    for step in reversed(scope.steps):
        passed = 1.0
        if step.name not in HEAVY and step.name not in ROOTS and step.outs:
            passed = max(out.get(id(b), 1.0) for b in step.outs)
        inner, n, m = {}, 0, 0
        if step.name == "scan":
            inner = shares(step.bodies[0])
            n, m = step.params["num_consts"], step.params["num_carry"]
        if step.name in IN_PLACE:
            passed = out.get(id(step.outs[0]), 1.0)
        for i, (b, cut) in enumerate(zip(step.ins, step.cuts, strict=True)):
            part = cut if step.name in IN_PLACE and i else cut * passed
            if step.name == "scan" and (i < n or n + m <= i < len(step.bodies[0].ins)):
                part = inner.get(id(step.bodies[0].ins[i]), 0.0)  # a body may read none of it
            out[id(b)] = max(out.get(id(b), 0.0), part)
    return out


def peak(
    scope: Scope,
    *,
    given: Iterable[Buffer] = (),
    taken: Iterable[Buffer] = (),
    owned: Iterable[Buffer] = (),
    kept: Iterable[Buffer] = (),
) -> float:
    """Most bytes alive at once in a scope. `given` arrays are somebody else's to count; `taken` are
    slices of such, stored from the start where a product or several operations read them; `owned`
    given ones may be written over; `kept` are stored at its end, whoever reads them."""
    part = shares(scope)
    same: dict[int, Buffer] = {}

    def root(b: Buffer) -> Buffer:
        while id(b) in same:
            b = same[id(b)]
        return b

    for step in scope.steps:
        if step.name in ALIASES and step.ins and step.outs[0].bytes == step.ins[0].bytes:
            same[id(step.outs[0])] = step.ins[0]
    steps = [s for s in scope.steps if id(s.outs[0] if s.outs else s) not in same]
    readers: dict[int, list[int]] = {}
    for i, step in enumerate(steps):
        for b in {id(root(b)): None for b in step.ins}:
            readers.setdefault(b, []).append(i)
    ends = {id(root(b)) for b in kept}
    outside = {id(root(b)) for b in given}

    def stored(b: Buffer, step: Step) -> bool:
        reads = readers.get(id(b), [])
        return (
            step.name in HEAVY
            or step.name in ROOTS
            or id(b) in ends
            or any(steps[i].name in HEAVY for i in reads)
            or (len(reads) > 1 and (step.name in DEAR or wide(step)))
        )

    def wide(step: Step) -> bool:
        """Reads several arrays: repeating it would read them all again."""
        return sum(b.bytes > SCALAR for b in _once(root(b) for b in step.ins)) > 1

    # last use, through what is fused into later operations
    last: dict[int, int] = dict.fromkeys(ends, len(steps))
    whole: dict[int, bool] = {}
    for i in range(len(steps) - 1, -1, -1):
        step = steps[i]
        at = i
        for b in step.outs:
            whole[id(b)] = stored(b, step)
        if step.outs and not any(whole[id(b)] for b in step.outs):
            at = max((last.get(id(b), i) for b in step.outs), default=i)
        for b in step.ins:
            key = id(root(b))
            last[key] = max(last.get(key, -1), at)
    dying: dict[int, list[Buffer]] = {}
    most = alive = 0.0
    for b in owned:
        dying.setdefault(last.get(id(b), 0), []).append(b)
    for b in taken:
        reads = readers.get(id(b), [])
        if len(reads) > 1 or any(steps[i].name in HEAVY for i in reads):
            alive += b.bytes
            dying.setdefault(last[id(b)], []).append(b)
    for i, step in enumerate(steps):
        made = [b for b in _once(step.outs) if whole.get(id(b))]
        size = sum(b.bytes * part.get(id(b), 1.0) for b in made)
        reuse = 0.0
        if step.name == "scan":  # the carry is turned in place
            n, m = step.params["num_consts"], step.params["num_carry"]
            spent = {id(b) for b in dying.get(i, ())}
            pairs = zip(step.ins[n : n + m], step.outs, strict=False)
            reuse = sum(min(a.bytes, b.bytes) for a, b in pairs if id(root(a)) in spent)
        elif step.name in IN_PLACE or not (step.name in HEAVY or step.name in ROOTS):
            spent = [b.bytes * part.get(id(b), 1.0) for b in dying.get(i, ())]
            reuse = min(size, max(spent, default=0.0))  # written over an operand
        most = max(most, alive + size - reuse + _inside(step))
        alive += size
        for b in made:
            end = last.get(id(b), i)
            dying.setdefault(max(end, i), []).append(b)
        gone = (b for b in dying.pop(i, ()) if id(b) not in outside)
        alive -= sum(b.bytes * part.get(id(b), 1.0) for b in gone)
    return max(most, alive)


def _once(buffers: Iterable[Buffer]) -> list[Buffer]:
    return list({id(b): b for b in buffers}.values())


def _inside(step: Step) -> float:
    """What one turn of a step's bodies needs."""
    if not step.bodies:
        return 0.0
    body = step.bodies[0]
    if step.name != "scan":
        return max(peak(b, given=b.ins, kept=b.outs) for b in step.bodies)
    n, m = step.params["num_consts"], step.params["num_carry"]
    carry = body.ins[n : n + m]
    return peak(
        body, given=body.ins[: n + m], taken=body.ins[n + m :], owned=carry, kept=body.outs[:m]
    )


def traffic(scope: Scope, *, times: float = 1.0) -> float:
    """Bytes written and read again by a scope's products, loops and stored results; what is fused
    travels once with what it is fused into."""
    total = 0.0
    for step in scope.steps:
        if step.name in ALIASES:
            continue
        if step.bodies:
            length = float(step.params.get("length", 1)) if step.name == "scan" else 1.0
            total += max(traffic(body, times=times * length) for body in step.bodies)
            continue
        if step.name in HEAVY or step.name in ROOTS:
            reads = sum(b.bytes * cut for b, cut in zip(step.ins, step.cuts, strict=True))
            total += times * (reads + sum(b.bytes for b in step.outs))
    ends = {id(b): b for b in scope.outs}
    return total + times * 2 * sum(b.bytes for b in ends.values())
