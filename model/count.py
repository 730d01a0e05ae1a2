"""What does an architecture cost? Parameters and training FLOPs per token under named conventions.
With an encoder, per token of the target: its share of a source comes with it.

Two FLOPs per multiply-add; a training step is three forward passes (backward twice the forward).
Counted from the declarations and from each layer's `extra_flops`; checked against the compiler's
count in tests.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from model import scaling
from model.chunked import ChunkedMixer
from model.decoder import build
from model.param import Declaration
from model.routed import RoutedSpec
from model.spec import LayerSpec, ModelSpec, resolve
from parallelism.stream import plan, seen_share

BOTH = (True, False)

CONVENTIONS = {
    "six_nd": "6 x all parameters, those of blocks once for each parallel stream, those of an "
    "encoder for each position of the source",
    "six_nd_non_embedding": "the same without embedding tables and readout (Kaplan's N)",
    "causal_attn": "3 x forward products, attention over the causal half (Porian et al.)",
    "full_attn": "3 x forward products, attention over all T x T scores (PaLM, Megatron)",
    "hardware": "full_attn plus the forward pass that rematerialisation repeats, less the scores "
    "that stream leaves out",
}


@dataclass(frozen=True)
class Each:
    """What one of several alike holds, and what a token that meets one more of them costs more."""

    params: int
    flops_per_token: dict[str, float]


@dataclass(frozen=True)
class Counts:
    """`params` by kind; `flops_per_token` of training by convention; `decode_state` in numbers per
    sequence. `per_stream`: what one more parallel stream adds, None with one stream. `per_expert`:
    one expert of every layer, in all passes of a chain, None without experts; not under `six_nd`,
    which counts every expert however many a token takes.
    """

    params: dict[str, int]
    flops_per_token: dict[str, float]
    decode_state: dict[str, int]
    per_stream: Each | None = None
    per_expert: Each | None = None

    @property
    def each(self) -> dict[str, Any]:
        """Those of `per_stream` and `per_expert` that there are, as JSON."""
        found = {"per_stream": self.per_stream, "per_expert": self.per_expert}
        return {name: asdict(each) for name, each in found.items() if each is not None}


@lru_cache(maxsize=1024)
def count(
    spec: ModelSpec,
    *,
    seq_len: int,
    source_len: int | None = None,
    remat: str = "none",
    remat_chunk: int | None = None,
) -> Counts:
    """Counts of a spec at a sequence length, and that of its sources where it has an encoder, the
    same if None; makes no array.
    """
    declarations = build(spec).declarations.values()
    source = seq_len if source_len is None else source_len
    share = source / seq_len  # positions of a source for each of its target

    def products_of(some: Iterable[Declaration]) -> float:
        return sum(d.forward_flops * (share if d.of_source else 1.0) for d in some)

    total = sum(d.size for d in declarations)
    outside = sum(d.size for d in declarations if d.role in (scaling.TABLE, scaling.READOUT))
    products = products_of(declarations)
    in_blocks = products_of(d for d in declarations if d.block)
    routed = [d for d in declarations if "E" in d.batch]
    # a token meets the share of them that its choices can reach, at most all
    idle = sum(d.size - round(d.size * min(1.0, d.matmuls)) for d in routed)
    streams = spec.n_streams
    # passes of a target's token beyond the one through every parameter
    again = (streams - 1.0) * sum(d.size for d in declarations if d.block)
    params = {"total": total, "non_embedding": total - outside, "active": total - idle}
    if spec.encoder is not None:
        encoder = sum(d.size for d in declarations if _of_encoder(d))
        params |= {"encoder": encoder, "decoder": total - outside - encoder}
        again += (share - 1) * encoder
    extra = {causal: _extra(spec, seq_len=seq_len, source=source, causal=causal) for causal in BOTH}
    computed = extra[False]
    if remat == "stream":
        computed -= _left_out(spec, seq_len=seq_len, chunk=remat_chunk)
    forward = _Forward(products, in_blocks, extra[True], extra[False], computed)
    return Counts(
        params=params,
        flops_per_token={
            "six_nd": 6.0 * (total + again),
            "six_nd_non_embedding": 6.0 * (total + again - outside),
            **forward.trained(remat),
        },
        decode_state=_decode_state(spec, source=source),
        per_stream=_per_stream(declarations, forward, spec, remat=remat),
        per_expert=_per_expert(routed, spec, products_of, remat=remat),
    )


@dataclass(frozen=True)
class _Forward:
    """FLOPs of a token's forward pass: of products with parameters, of those of them in blocks, and
    of all else by how attention is counted.
    """

    products: float
    in_blocks: float
    causal: float = 0.0
    full: float = 0.0
    computed: float = 0.0

    def trained(self, remat: str) -> dict[str, float]:
        # `dots` keeps every parameter product and repeats the rest; `stream` repeats logits too
        repeats = {
            "none": 0.0,
            "full": self.in_blocks + self.computed,
            "dots": self.computed,
            "stream": self.products + self.computed,
        }[remat]
        return {
            "causal_attn": 3 * (self.products + self.causal),
            "full_attn": 3 * (self.products + self.full),
            "hardware": 3 * (self.products + self.computed) + repeats,
        }


def _per_stream(
    declarations: Iterable[Declaration], forward: _Forward, spec: ModelSpec, *, remat: str
) -> Each | None:
    """Prefixes, a share of what weighs the streams, and a pass through the blocks."""
    P = spec.n_streams
    if P == 1:
        return None
    own = [d for d in declarations if "P" in d.dims]
    params = sum(d.size for d in own) // P
    weighing = sum(d.forward_flops for d in own if not d.block)
    one = _Forward(
        products=(forward.in_blocks + weighing) / P,
        in_blocks=forward.in_blocks / P,
        causal=forward.causal / P,
        full=forward.full / P,
        computed=forward.computed / P,
    )
    # one more pass through the parameters of blocks, and its prefix in the P passes there were
    again = sum(d.size * (2 if "P" in d.dims else 1) for d in declarations if d.block)
    six_nd = 6.0 * (params + again)
    exact = one.trained(remat)
    return Each(params, {"six_nd": six_nd, "six_nd_non_embedding": six_nd, **exact})


def _per_expert(
    routed: Iterable[Declaration],
    spec: ModelSpec,
    products_of: Callable[[Iterable[Declaration]], float],
    *,
    remat: str,
) -> Each | None:
    chosen = {d.path: _chosen(d, spec) for d in routed}
    of_experts = [d for d in routed if chosen[d.path]]
    if not of_experts:
        return None
    params = sum(d.size // d.shape[d.dims.index("E")] for d in of_experts)
    products = sum(products_of([d]) / chosen[d.path] for d in of_experts)
    return Each(params, _Forward(products, products).trained(remat))


def _chosen(d: Declaration, spec: ModelSpec) -> int:
    """Experts that a token takes where `d` is used; 0 where it is of no experts."""
    encoder = spec.encoder
    blocks = spec.blocks if encoder is None or not _of_encoder(d) else encoder.blocks
    ffn = blocks[d.layers[0]].ffn
    return ffn.chosen if isinstance(ffn, RoutedSpec) else 0


def _of_encoder(d: Declaration) -> bool:
    """The N_e of a translation law; keys and values of the source are the decoder's."""
    return d.path.startswith("encoder.") and d.role != scaling.TABLE


def _extra(spec: ModelSpec, *, seq_len: int, source: int, causal: bool) -> float:
    """Forward FLOPs of a token outside parameter products."""
    flops = 0.0
    half = causal and spec.causal  # where all is seen there is no half
    for block in spec.blocks:
        for room, layer in block.layers:
            sizes = _sizes(layer, spec, source=source)
            module = resolve(layer.kind, room=room)
            flops += module.extra_flops(layer, sizes, seq_len=seq_len, causal=half)
    flops *= spec.n_streams
    for block in () if spec.encoder is None else spec.encoder.blocks:
        for room, layer in block.layers:
            sizes = _sizes(layer, spec, source=source)
            module = resolve(layer.kind, room=room)
            own = module.extra_flops(layer, sizes, seq_len=source, causal=False)
            flops += own * source / seq_len
    return flops


def _left_out(spec: ModelSpec, *, seq_len: int, chunk: int | None) -> float:
    """Of `_extra` without `causal`: scores of later positions that chunks do not compute."""
    cut = 2 * (1 - seen_share(plan(seq_len, chunk=chunk, grows=spec.causal)))
    flops = 0.0
    for block in spec.blocks:
        if block.mixer is None or block.cross is not None or not _in_chunks(block.mixer):
            continue
        module = resolve(block.mixer.kind, room="mixers")
        sizes = _sizes(block.mixer, spec, source=seq_len)
        whole, half = (
            module.extra_flops(block.mixer, sizes, seq_len=seq_len, causal=causal)
            for causal in (False, spec.causal)
        )
        flops += cut * (whole - half)
    return flops * spec.n_streams


def _in_chunks(mixer: LayerSpec) -> bool:
    return issubclass(resolve(mixer.kind, room="mixers").Layer, ChunkedMixer)


def _decode_state(spec: ModelSpec, *, source: int) -> dict[str, int]:
    state = {"per_token": 0, "fixed": 0}
    if not spec.causal:  # there is no decoding token by token
        return state
    for block in spec.blocks:
        for layer in (block.mixer, block.cross):
            if layer is not None:
                module = resolve(layer.kind, room="mixers")
                held = module.decode_state(layer, _sizes(layer, spec, source=source))
                state = {key: state[key] + spec.n_streams * held[key] for key in state}
    return state


def _sizes(layer: LayerSpec, spec: ModelSpec, *, source: int) -> dict[str, int]:
    """S is a source's length to a layer that reads one, and otherwise that of a stream's prefix."""
    sizes = {**spec.shared_sizes, **layer.sizes(spec.shared_sizes)}
    return {**sizes, "S": source} if "source" in layer.reads else sizes
