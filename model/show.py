"""What is in an architecture? The printed table: every parameter with everything derived from its
one line.
"""

from dataclasses import dataclass
from typing import Any

from model.count import CONVENTIONS, Counts, Each, count
from model.decoder import build
from model.spec import ModelSpec
from parallelism.axes import AXES, MeshSpec
from parallelism.place import Report, report
from parallelism.rules import PARAMETERS


@dataclass(frozen=True)
class Shown:
    spec: ModelSpec
    seq_len: int
    source_len: int | None
    counts: Counts
    rows: list[dict[str, Any]]
    placed: Report

    def to_json(self) -> dict[str, Any]:
        return {
            "arch": self.spec.arch,
            "d_model": self.spec.d_model,
            "n_layers": self.spec.n_layers,
            "seq_len": self.seq_len,
            "params": self.counts.params,
            "flops_per_token": self.counts.flops_per_token,
            "decode_state": self.counts.decode_state,
            **dict.fromkeys(("per_stream", "per_expert")),
            **self.counts.each,
            "notes": self.notes,
            "mesh": self.placed.to_json(),
            "parameters": self.rows,
        }

    def text(self) -> str:
        columns = [
            "path",
            "dims",
            "shape",
            "sharding",
            "init",
            "lr x",
            "wd x",
            "forward x",
            "FLOPs/token",
        ]
        cells = [columns] + [
            [
                r["path"],
                r["dims"],
                "x".join(map(str, r["shape"])),
                r["sharding"],
                r["init"],
                _multiplier(r["lr_multiplier"]),
                _multiplier(r["weight_decay_multiplier"]),
                _multiplier(r["forward_multiplier"]),
                f"{r['forward_flops']:.4g}",
            ]
            for r in self.rows
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        rule = self.spec.parametrisation
        head = (
            f"{self.spec.arch}: d_model {self.spec.d_model}, {self.spec.n_layers} layers, "
            f"{_said(self.spec)}, parametrisation {rule.kind}"
            + (f" relative to d_model {rule.base_d_model}" if rule.kind == "mup" else "")
        )
        said = [("parameters ", k, f"{v:,}", "") for k, v in self.counts.params.items()]
        said += [
            ("FLOPs/token", k, f"{v:,.0f}", f"  {CONVENTIONS[k]}")
            for k, v in self.counts.flops_per_token.items()
        ]
        for label, each in self.each.items():
            said.append(("parameters ", label, f"{each.params:,}", ""))
            said += [
                ("FLOPs/token", f"{label}: {k}", f"{v:,.0f}", "")
                for k, v in each.flops_per_token.items()
            ]
        width = max(len(name) for _, name, _, _ in said)
        totals = [f"{what} {k:{width}} {v:>16}{more}" for what, k, v, more in said]
        state = self.counts.decode_state
        totals.append(
            f"decode state {state['per_token']} numbers per token of context and "
            f"{state['fixed']} fixed"
        )
        totals.append(
            f"(training FLOPs per token at sequences of {self.seq_len}{self._sources()}; lr and wd "
            f"multiply the run's values)"
        )
        if placed := self.placed.text():
            totals.append(placed)
        return "\n".join([head, *self.notes, "", *lines, "", *totals])

    @property
    def notes(self) -> list[str]:
        """What layers say of themselves, each once."""
        encoder = () if self.spec.encoder is None else self.spec.encoder.repeat
        blocks = (*encoder, *self.spec.first, *self.spec.repeat, *self.spec.last)
        said = [(layer.kind, layer.note) for block in blocks for _, layer in block.layers]
        return list(dict.fromkeys(f"{kind}: {note}" for kind, note in said if note is not None))

    @property
    def each(self) -> dict[str, Each]:
        """By what a reader calls it."""
        found = {
            "of one more stream": self.counts.per_stream,
            "of one expert, all layers": self.counts.per_expert,
        }
        return {label: each for label, each in found.items() if each is not None}

    def _sources(self) -> str:
        encoder = self.spec.encoder
        if encoder is None:
            return ""
        length = self.seq_len if self.source_len is None else self.source_len
        return f", of the target, with sources of {length} through {encoder.n_layers} layers"


def show(
    spec: ModelSpec, *, seq_len: int, source_len: int | None = None, mesh: MeshSpec | None = None
) -> Shown:
    """Describe a spec at a sequence length, and that of its sources (None: the same), sharded as on
    `mesh` (every strategy's axes when it is not given).
    """
    declarations = build(spec).declarations
    sizes = (mesh or MeshSpec()).sizes
    placed = report({p: (d.dims, d.shape) for p, d in declarations.items()}, sizes)
    share = 1 if source_len is None else source_len / seq_len
    rows = [
        {
            "path": d.path,
            "dims": " ".join(d.dims),
            "shape": list(d.shape),
            "role": d.role,
            "contract": " ".join(d.contract),
            "sharding": _names(d.dims),
            "partition": placed.rows[d.path]["partition"],
            "copies": placed.rows[d.path]["copies"],
            "init": f"normal {d.scaling.std:.3g}"
            if d.init == "normal" and d.scaling.std
            else ("zeros" if d.init == "normal" else str(d.init)),
            "lr_multiplier": d.scaling.lr if d.scaling.covered else None,
            "weight_decay_multiplier": d.scaling.weight_decay if d.scaling.covered else None,
            "forward_multiplier": d.scaling.forward if d.scaling.covered else None,
            "forward_flops": d.forward_flops * (share if d.of_source else 1),
        }
        for d in declarations.values()
    ]
    counts = count(spec, seq_len=seq_len, source_len=source_len)
    return Shown(
        spec=spec, seq_len=seq_len, source_len=source_len, counts=counts, rows=rows, placed=placed
    )


def _said(spec: ModelSpec) -> str:
    if spec.series is None:
        return f"vocabulary {spec.vocab}"
    return f"real values, horizons {', '.join(map(str, spec.series.horizons))}"


def _multiplier(value: float | None) -> str:
    return "not covered" if value is None else f"{value:.4g}"


def _names(dims: tuple[str, ...]) -> str:
    """The mesh axes that the strategy names for each dim, whatever their size; as in `partition`,
    the first dim that names an axis has it.
    """
    used: set[str] = set()
    parts: list[str] = []
    for letter in dims:
        axes = [a for a in PARAMETERS.get(AXES[letter].name, ()) if a not in used]
        used.update(axes)
        parts.append("+".join(axes) or "-")
    return f"({', '.join(parts)})"
