"""What is a trained structured model as a dense one? The same function, each product of factors
made into its matrix once.

For decoding where a second small product costs more than the weights it saves: on an A100 with up
to some 16 tokens at a time (the pre-merge of Wei et al. 2024). On CPU the factors were the faster
form from one token on (benchmarks/README.md).
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from model.decoder import build
from model.param import Declaration
from model.spec import BlockSpec, ModelSpec, resolve
from model.structured import Part, StructuredSpec

Params = Mapping[str, np.ndarray]


def merged(params: Params, spec: ModelSpec) -> tuple[dict[str, np.ndarray], ModelSpec]:
    """Dense parameters and spec of the same function in use, that is, without any guide.

    Layers that are not structured stay as they are.
    """
    declarations, out = build(spec).declarations, {}
    for path, value in params.items():
        declaration = declarations[path]
        part = declaration.init.part if isinstance(declaration.init, Part) else None
        if part is None:
            out[path] = value
        elif part == "first":
            scope = path.rpartition(".")[0]
            out[scope] = _matrix(declaration, value, params[f"{scope}.second"])
    return out, _each_ffn(spec, lambda ffn: _dense(ffn, spec.d_model))


def unguided(params: Params, spec: ModelSpec) -> tuple[dict[str, np.ndarray], ModelSpec]:
    """The structured model without its guides, which take no part after training."""
    declarations = build(spec).declarations
    kept = {p: v for p, v in params.items() if not _guides(declarations[p])}
    return kept, _each_ffn(spec, lambda ffn: replace(ffn, guided=0.0))


def _guides(declaration: Declaration) -> bool:
    return isinstance(declaration.init, Part) and declaration.init.part == "guide"


def _matrix(declaration: Declaration, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    part, stacked = declaration.init, declaration.dims[0] == "Z"
    assert isinstance(part, Part)
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if not stacked:
        return part.matrix(first, second).astype(np.float32)
    layers = zip(first, second, strict=True)
    return np.stack([part.matrix(a, b).astype(np.float32) for a, b in layers])


def _dense(ffn: StructuredSpec, d_model: int):
    hidden = ffn.sizes({"D": d_model})["F"]
    knobs = {"multiple_of": 1} if ffn.activation == "swiglu" else {"bias": ffn.bias}
    return resolve(ffn.activation, room="ffns").Spec(ratio=hidden / d_model, **knobs)


def _each_ffn(spec: ModelSpec, change) -> ModelSpec:
    def blocks(parts: tuple[BlockSpec, ...]) -> tuple[BlockSpec, ...]:
        return tuple(
            replace(b, ffn=change(b.ffn)) if isinstance(b.ffn, StructuredSpec) else b for b in parts
        )

    encoder = spec.encoder
    return replace(
        spec,
        first=blocks(spec.first),
        repeat=blocks(spec.repeat),
        last=blocks(spec.last),
        encoder=None if encoder is None else replace(encoder, repeat=blocks(encoder.repeat)),
    )
