"""What does an architecture cost? Parameters and training FLOPs per token under named conventions.

Two FLOPs per multiply-add; a training step is three forward passes (backward twice the forward).
Counted from the declarations and from each layer's `extra_flops`; checked against the compiler's
count in tests.
"""

from dataclasses import dataclass
from functools import lru_cache

from model import scaling
from model.decoder import build
from model.spec import ModelSpec, resolve

CONVENTIONS = {
    "six_nd": "6 x all parameters, those of blocks once for each parallel stream",
    "six_nd_non_embedding": "the same without embedding tables and readout (Kaplan's N)",
    "causal_attn": "3 x forward products, attention over the causal half (Porian et al.)",
    "full_attn": "3 x forward products, attention over all T x T scores (PaLM, Megatron)",
    "hardware": "full_attn plus the forward pass that rematerialisation repeats",
}


@dataclass(frozen=True)
class Counts:
    """`params` by kind; `flops_per_token` of training by convention; `decode_state` in numbers per
    sequence; `per_expert`, the parameters of one expert of every layer, None without experts.
    """

    params: dict[str, int]
    flops_per_token: dict[str, float]
    decode_state: dict[str, int]
    per_expert: int | None = None


@lru_cache(maxsize=1024)
def count(spec: ModelSpec, *, seq_len: int, remat: str = "none") -> Counts:
    """Counts of a spec at a sequence length; makes no array."""
    declarations = build(spec).declarations.values()
    total = sum(d.size for d in declarations)
    outside = sum(d.size for d in declarations if d.role in (scaling.TABLE, scaling.READOUT))
    products = sum(d.forward_flops for d in declarations)
    in_blocks = sum(d.forward_flops for d in declarations if d.block)
    routed = [d for d in declarations if "E" in d.batch]
    # a token meets the share of them that its choices can reach, at most all
    idle = sum(d.size - round(d.size * min(1.0, d.matmuls)) for d in routed)
    one = sum(d.size // d.shape[d.dims.index("E")] for d in routed)
    streams = spec.n_streams
    repeated = (streams - 1) * sum(d.size for d in declarations if d.block)
    extra = {causal: 0.0 for causal in (True, False)}
    state = {"per_token": 0, "fixed": 0}
    for block in spec.blocks:
        for room, layer in block.layers:
            module = resolve(layer.kind, room=room)
            sizes = {**spec.shared_sizes, **layer.sizes(spec.shared_sizes)}
            for causal in extra:
                half = causal and spec.causal  # where all is seen there is no half
                extra[causal] += module.extra_flops(layer, sizes, seq_len=seq_len, causal=half)
            if room == "mixers" and spec.causal:  # else there is no decoding token by token
                held = module.decode_state(layer, sizes)
                state = {key: state[key] + streams * held[key] for key in state}
    extra = {causal: streams * flops for causal, flops in extra.items()}
    # `dots` keeps every parameter product and repeats the rest
    again = {"none": 0.0, "full": in_blocks + extra[False], "dots": extra[False]}[remat]
    return Counts(
        params={"total": total, "non_embedding": total - outside, "active": total - idle},
        flops_per_token={
            "six_nd": 6.0 * (total + repeated),
            "six_nd_non_embedding": 6.0 * (total + repeated - outside),
            "causal_attn": 3 * (products + extra[True]),
            "full_attn": 3 * (products + extra[False]),
            "hardware": 3 * (products + extra[False]) + again,
        },
        decode_state=state,
        per_expert=one or None,
    )
