"""What does each device do of a program on a mesh, and what does it send?

A small model of an SPMD partitioner. Layouts flow forward from the arguments and from the program's
own constraints; where two operands disagree one is gathered (a parameter before an activation),
and a contraction over a sharded dim leaves a sum to finish. It decides as XLA does for the programs
of this project, which tests compare; it is no general partitioner.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from parallelism.beside import beside
from parallelism.layouts import (
    LATER,
    Layout,
    fitting,
    merged,
    share,
    unsharded,
    used,
    ways,
    without,
)
from parallelism.placed import Buffer, Scope, Spread, Step, Totals
from parallelism.program import Op, Program, Val

LINEAR = {"neg", "convert_element_type", "reduce_precision", "real", "imag"}
SUMS = {"add", "add_any", "sub"}
COLLECTIVES = {"psum", "psum_invariant", "pmax", "pmin", "ppermute", "all_gather", "reduce_scatter",
               "all_to_all", "all_gather_invariant", "psum_scatter"}  # fmt: skip


@dataclass
class Ahead:
    """Of a loop: buffers that are the same in every turn, the steps ahead of it, how often those
    run, and what is made there for the loop."""

    fixed: set[int]
    steps: list[Step]
    times: float
    made: list[Spread] = field(default_factory=list)


class Partitioner:
    """Final. Walks one program by `rules` of operations (parallelism/partition_rules.py).
    `scatters`: the compiler turns a sum that is then cut up into a reduce-scatter, and adds up sums
    before it sends them (GPU and TPU do, CPU does not)."""

    def __init__(self, mesh: Mapping[str, int], *, rules: "Mapping[str, Rule]", scatters: bool):
        self.mesh, self.rules, self.scatters = dict(mesh), rules, scatters
        self.totals = Totals()
        self.steps: list[Step] = []
        self.gathered: dict[Any, Spread] = {}
        self.finished: dict[int, Spread] = {}
        self.beside: Callable[[Val], Layout | None] = lambda v: None
        self.times = 1.0
        self.ahead: Ahead | None = None

    # -- scopes --------------------------------------------------------------------------------

    def scope(
        self, program: Program, ins: Sequence[Spread], *, ahead: "Ahead | None" = None
    ) -> tuple[Scope, list[Spread]]:
        outer = self.steps, self.gathered, self.finished, self.beside, self.ahead
        self.steps, self.gathered, self.finished, self.ahead = [], {}, {}, ahead
        own = program.ins[: len(program.ins) - len(ins)]  # constants of the body, ahead of the rest
        given = [*(Spread.constant(v) for v in own), *ins]
        env = {id(v): s for v, s in zip(program.ins, given, strict=True)}

        def read(v: Val) -> Spread:
            if id(v) not in env:  # a constant of the program
                env[id(v)] = Spread.constant(v)
            return env[id(v)]

        readers: dict[int, list[Op]] = {}
        makers = {id(v): op for op in program.ops for v in op.outs}
        for op in program.ops:
            for v in op.ins:
                readers.setdefault(id(v), []).append(op)
        self.beside = lambda v: beside(v, readers, makers, env, self.mesh)
        for op in program.ops:
            made = self.op(op, [read(v) for v in op.ins])
            for v, s in zip(op.outs, made, strict=True):
                if s.partial:
                    s = replace(s, towards=self.beside(v))
                env[id(v)] = s
        outs = [read(v) for v in program.outs]
        scope = Scope([s.buffer for s in ins], [s.buffer for s in outs], self.steps)
        self.steps, self.gathered, self.finished, self.beside, self.ahead = outer
        return scope, outs

    def op(self, op: Op, ins: list[Spread]) -> list[Spread]:
        if op.name in self.rules:
            return self.rules[op.name](self, op, ins)
        if op.name in COLLECTIVES:
            return self.collective(op, ins)
        return self.elementwise(op, ins)

    # -- values --------------------------------------------------------------------------------

    def new(
        self,
        op: Op,
        ins: Sequence[Spread],
        layouts: Sequence[Layout],
        *,
        partial: frozenset[str] = frozenset(),
        bodies: Sequence[Scope] = (),
        chain: tuple[Buffer, ...] = (),
        weight: bool | None = None,
        reads: Mapping[int, Layout] | None = None,
    ) -> list[Spread]:
        """The step that makes the outputs of `op`, and where they lie; `reads`: inputs of which a
        device reads only the part of another layout."""
        if weight is None:
            weight = bool(ins) and all(s.weight for s in ins)
        outs = []
        for v, layout in zip(op.outs, layouts, strict=True):
            layout = fitting(layout, v.shape, self.mesh)
            size = self.computed(v.itemsize)
            made = Buffer(v.size * size / share(layout, self.mesh))
            kept = (*chain, made) if chain else ()
            outs.append(Spread(v.shape, size, layout, made, partial, weight, kept))
        name = op.name
        if name == "convert_element_type" and not self.scatters and op.ins[0].itemsize in (2, 4):
            name = "same" if outs[0].buffer.bytes == ins[0].buffer.bytes else name
        self.step(name, ins, outs, reads=reads, bodies=bodies, params=op.params)
        if self.ahead and ins and all(id(s.buffer) in self.ahead.fixed for s in ins):
            self.ahead.fixed |= {id(s.buffer) for s in outs}
        return outs

    def computed(self, itemsize: float) -> float:
        """XLA on CPU computes in four bytes what is said to have two, but for what loops carry."""
        return 4.0 if itemsize == 2 and not self.scatters else itemsize

    def step(
        self,
        name: str,
        ins: Sequence[Spread],
        outs: Sequence[Spread],
        *,
        reads: Mapping[int, Layout] | None = None,
        bodies: Sequence[Scope] = (),
        params: Mapping[str, Any] | None = None,
    ) -> None:
        cuts = [1.0] * len(ins)
        for i, layout in (reads or {}).items():
            cuts[i] = min(1.0, share(ins[i].layout, self.mesh) / share(layout, self.mesh))
        buffers = [s.buffer for s in ins], [s.buffer for s in outs]
        self.steps.append(Step(name, *buffers, cuts, list(bodies), params or {}))

    def send(
        self,
        kind: str,
        axes: Sequence[str] | set[str] | frozenset[str],
        result: float,
        *,
        among: int | None = None,
    ) -> None:
        """Count a collective with `result` bytes on each device; `among`: of groups of so many."""
        names = tuple(a for a in self.mesh if a in axes and self.mesh[a] > 1)
        w = among or ways(names, self.mesh)
        if w == 1:
            return
        part = {"all-gather": (w - 1) / w, "all-reduce": 2 * (w - 1) / w, "reduce-scatter": w - 1,
                "all-to-all": (w - 1) / w, "collective-permute": 1.0}[kind]  # fmt: skip
        self.totals.sent["+".join(names), kind] += part * result * self.times

    def add_up(self, axes: set[str] | frozenset[str], result: float) -> None:
        """Count the sum that a product over rows and positions leaves: one of each, which other
        compilers than CPU's fold into one."""
        apart = (axes & LATER, axes - LATER) if not self.scatters else (axes,)
        for some in apart:
            self.send("all-reduce", some, result)

    def moved(self, s: Spread, name: str, layout: Layout, *, memo: bool = True) -> Spread:
        """`s` laid out anew by a collective, which is shared by all who want the same."""
        key = (id(s.buffer), layout)
        if memo and key in self.gathered:
            return self.gathered[key]
        out = replace(s, layout=layout, partial=frozenset(), chain=())
        out = replace(out, buffer=Buffer(out.local(self.mesh)))
        self.step(name, [s], [out])
        self.gathered[key] = out
        return out

    def gather(self, s: Spread, axes: set[str]) -> Spread:
        """`s` without these axes."""
        layout = without(s.layout, axes)
        if layout == s.layout:
            return s
        if (id(s.buffer), layout) in self.gathered:
            return self.gathered[id(s.buffer), layout]
        axes, whole = used(s.layout) - used(layout), replace(s, layout=layout).local(self.mesh)
        ahead = self.ahead
        if ahead is None or id(s.buffer) not in ahead.fixed:
            self.send("all-gather", axes, whole)
            return self.moved(s, "all-gather", layout)
        # the same in every turn: compilers move it ahead of the loop
        here = self.steps, self.times
        self.steps, self.times = ahead.steps, ahead.times
        self.send("all-gather", axes, whole)
        out = self.moved(s, "all-gather", layout)
        self.steps, self.times = here
        ahead.made.append(out)
        ahead.fixed.add(id(out.buffer))
        return out

    def finish(self, s: Spread, target: Layout | None = None) -> Spread:
        """The sum taken; towards `target`, which may cut the result up."""
        if not s.partial:
            return s
        if id(s.buffer) in self.finished:
            return self.finished[id(s.buffer)]
        target = s.towards or target
        wanted = used(target) & s.partial if target is not None else set()
        scattered = {a for a in wanted if a not in used(s.layout)}
        layout = s.layout
        if scattered and target is not None:
            layout = tuple(
                (*mine, *(a for a in there if a in scattered))
                for mine, there in zip(s.layout, target, strict=True)
            )
            layout = fitting(layout, s.shape, self.mesh)
            scattered &= used(layout)
        rest = s.partial - scattered
        whole = s.local(self.mesh)
        cut = ways(tuple(scattered), self.mesh)
        if scattered and self.scatters:
            self.send("reduce-scatter", scattered, whole / cut)
        elif scattered:
            self.add_up(scattered, whole)
        self.add_up(rest, whole / cut)
        for buffer in s.chain if scattered else ():
            buffer.bytes /= cut  # a loop stacks what is left after the sum, not the summands
        if layout == s.layout:  # in place
            out = replace(s, partial=frozenset(), chain=())
        else:
            out = self.moved(s, "reduce", layout)
        self.finished[id(s.buffer)] = out
        return out

    def laid(self, s: Spread, target: Layout) -> Spread:
        """`s` as a constraint wants it."""
        s = self.finish(s, target)
        target = fitting(target, s.shape, self.mesh)
        travels = {
            a
            for mine, there in zip(s.layout, target, strict=True)
            for a in mine
            if a not in there and a in used(target)
        }
        if travels:
            self.send("all-to-all", travels, s.local(self.mesh))
            s = self.moved(s, "all-to-all", without(s.layout, travels), memo=False)
            s = replace(s, layout=target)
        s = self.gather(s, used(s.layout) - used(target))
        if s.layout == target:
            return s
        out = replace(s, layout=target)  # a device keeps its part
        out = replace(out, buffer=Buffer(out.local(self.mesh)))
        self.step("slice", [s], [out], reads={0: target})
        return out

    # -- operations ----------------------------------------------------------------------------

    def elementwise(self, op: Op, ins: list[Spread]) -> list[Spread]:
        shape = op.outs[0].shape if op.outs else ()
        ins = [self.finished.get(id(s.buffer), s) for s in ins]
        arrays = [s for s in ins if s.shape]  # dims of one element stretch
        if not all(_stretches(s.shape, shape) for s in arrays) or not all(
            v.shape == shape for v in op.outs
        ):
            self.totals.unknown[op.name] += 1
            ins = [self.gather(self.finish(s), used(s.layout)) for s in ins]
            return self.new(op, ins, [unsharded(len(v.shape)) for v in op.outs])
        whole = [s for s in arrays if s.shape == shape]
        sums = {s.partial for s in arrays}
        scaled = len(arrays) == 1 and op.name in ("mul", "div")
        if len(sums) == 1 and next(iter(sums)) and len(whole) == len(arrays):
            alike = len({s.layout for s in whole}) == 1
            if op.name in LINEAR or scaled or (op.name in SUMS and alike and self.scatters):
                chain = tuple(b for s in whole for b in s.chain)
                return self.new(op, ins, [whole[0].layout], partial=whole[0].partial, chain=chain)
        settled = [s for s in whole if not s.partial]
        target = merged([s.layout for s in _first(settled, self.mesh)]) if settled else None
        ins = [self.finish(s, target if s.shape == shape else None) for s in ins]
        arrays = [s for s in ins if s.shape]
        if not arrays:
            return self.new(op, ins, [unsharded(len(shape))] * len(op.outs))
        layout = merged([s.layout for s in _first(arrays, self.mesh)])
        ins = [self.towards(s, layout) if s.shape else s for s in ins]
        reads = {
            i: tuple(axes if n > 1 else () for axes, n in zip(layout, s.shape, strict=True))
            for i, s in enumerate(ins)
            if s.shape
        }
        return self.new(op, ins, [layout] * len(op.outs), reads=reads)

    def towards(self, s: Spread, layout: Layout) -> Spread:
        """`s` without what contradicts `layout`; what it lacks of it a device cuts for free."""
        pairs = zip(s.layout, layout, strict=True)
        return self.gather(s, {a for mine, there in pairs for a in mine if a not in there})

    def collective(self, op: Op, ins: list[Spread]) -> list[Spread]:
        """Inside a manual region, where shapes are a device's own."""
        p = op.params
        axes = p.get("axes", p.get("axis_name", ()))
        axes = axes if isinstance(axes, tuple) else (axes,)
        kind = {"ppermute": "collective-permute", "all_gather": "all-gather",
                "all_gather_invariant": "all-gather", "reduce_scatter": "reduce-scatter",
                "psum_scatter": "reduce-scatter",
                "all_to_all": "all-to-all"}.get(op.name, "all-reduce")  # fmt: skip
        still = op.name == "ppermute" and all(a == b for a, b in p["perm"])
        layouts = []
        for s, v in zip(ins, op.outs, strict=True):
            at, layout = p.get("all_gather_dimension", p.get("scatter_dimension", 0)), s.layout
            if len(v.shape) > len(layout):  # a dim of devices, made or summed away
                layout = (*layout[:at], (), *layout[at:])
            elif len(v.shape) < len(layout):
                layout = (*layout[:at], *layout[at + 1 :])
            layouts.append(layout)
        outs = self.new(op, ins, layouts, weight=False)
        for out in outs:
            if not still:
                self.send(kind, [a for a in axes if isinstance(a, str)], out.buffer.bytes)
        return outs


Rule = Callable[[Partitioner, Op, list[Spread]], list[Spread]]


def _stretches(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) == len(to) and all(a in (1, b) for a, b in zip(shape, to, strict=True))


def _first(some: Sequence[Spread], mesh: Mapping[str, int]) -> list[Spread]:
    """Those whose layout others follow: activations before parameters, the finest cut first."""
    return sorted(some, key=lambda s: (s.weight, -share(s.layout, mesh)))
