"""Which architectures have a name? THE place: one short function per name, from one dial (the
width) to a ModelSpec.

The dial sets the depth through the family's shape rule, so a size of a family is one number. To add
an architecture, write a function here; its public name is its name.
"""

import inspect
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.pattern import unit
from model.series_spec import SeriesSpec
from model.spec import (
    BlockSpec,
    EncoderSpec,
    ModelSpec,
    Parametrisation,
    StreamsSpec,
    resolve,
    users_module,
)
from parallelism.errors import InputError, nearest

ASPECT = 64  # width per layer of the default shape rule (nanochat's dial); at least two layers


def depth(d_model: int) -> int:
    return max(2, round(d_model / ASPECT))


def dense(d_model: int = 128) -> ModelSpec:
    """Pre-norm decoder: RMSNorm, rotary attention with QK-norm, SwiGLU, untied readout, muP.

    QK-norm because it takes 2.3 % off the loss of a small run (1.785 against 1.828 nats at width
    32, 1.2M bytes, batches of 512, lr 0.01; two seeds each, which differ by less than 0.5 %); an
    output multiplier of 4 because it takes off 1.8 % more (width 64, 0.58M bytes, three seeds).
    """
    block = BlockSpec(
        mixer=_mixer("attention", d_head=_d_head(d_model), qk_norm=True), ffn=_ffn("swiglu")
    )
    return _plain("dense", d_model, block)


def parscale(d_model: int = 128) -> ModelSpec:
    """ParScale (Chen et al. 2025, arXiv 2505.10475): four streams through one `dense` decoder, told
    apart by 48 learned keys and values in every attention layer, weighed into one at the end.

    Differs: muP, a start of fan_in^-1/2 for the matrices that weigh streams (the release: 0.02),
    prefixes from normal(0.02), which the release leaves open.
    """
    return replace(dense(d_model), arch="parscale", streams=StreamsSpec(count=4))


def gpt2(d_model: int = 128) -> ModelSpec:
    """GPT-2-style baseline: LayerNorm, learned positions, biases, GELU, tied readout, standard
    parametrisation.
    """
    block = BlockSpec(
        mixer=_mixer("attention", d_head=_d_head(d_model), rotary_theta=None, bias=True),
        ffn=_ffn("gelu", bias=True),
    )
    return ModelSpec(
        arch="gpt2",
        d_model=d_model,
        n_layers=depth(d_model),
        repeat=(block,),
        norm="layernorm",
        tied=True,
        learned_positions=1024,
        parametrisation=Parametrisation(kind="standard"),
    )


def quasi_lstm(d_model: int = 128) -> ModelSpec:
    """Languini's quasi-LSTM (Stanic et al. 2023): an LSTM whose gates see the input alone, then a
    GELU layer, both behind LayerNorm. The paper's cells pass from one contiguous segment to the
    next: write data.order=contiguous and data.carry_state=true. Without, rows are shuffled and
    every one begins with empty cells, so that it compares with the others on equal data.

    Differs: muP and its start of the weights (the paper: normal 0.02, embedding times sqrt D), as
    many cells as the width (its smallest model has half), a scan without logarithms.
    """
    block = BlockSpec(
        mixer=_mixer("quasi_lstm", d_head=_d_head(d_model)),
        ffn=_ffn("gelu", bias=True),
    )
    return ModelSpec(
        arch="quasi_lstm",
        d_model=d_model,
        n_layers=depth(d_model),
        repeat=(block,),
        norm="layernorm",
        parametrisation=Parametrisation(output_multiplier=4.0),
    )


def sliding_window(d_model: int = 128) -> ModelSpec:
    """`dense` whose queries see the last 64 positions and the first 4 of their document (Longformer
    and Mistral windows, StreamingLLM's sinks): time and memory linear in the length, and a decode
    state that does not grow.

    Differs: Mistral's window is 4096; 64 is a guess for texts of a few hundred positions. Layers
    pass on what they saw, so L layers reach L windows back.
    """
    block = BlockSpec(
        mixer=_mixer("sliding_window", d_head=_d_head(d_model), qk_norm=True, window=64, chunk=64),
        ffn=_ffn("swiglu"),
    )
    return _plain("sliding_window", d_model, block)


def time_moe(d_model: int = 128) -> ModelSpec:
    """Time-MoE (Shi et al. 2024, arXiv 2409.16040): reads and forecasts real numbers
    (train/objectives/forecast.py). Two of eight SwiGLU experts of twice the width, beside one of
    four times the width that a sigmoid of the position opens; biases of queries, keys and values;
    heads for the next 1, 8, 32 and 64 numbers.

    The official balance loss is 2 (the chosen) times ours, a mean over layers where ours is a sum,
    and weighs 0.02. Differs: it is even in each layer and not over all together; muP and its start
    of the weights (the release: normal 0.02); a learned vector for a missing number; a layer
    for each 32 of width, as its smallest size has (768 has 12 there, and 1024 36); heads of 16 up
    to width 512, where it has 32.
    """
    n_layers = max(2, round(d_model / 32))
    ffn = _ffn(
        "moe",
        experts=8,
        chosen=2,
        shared=2,
        shared_gate=True,
        ratio=2.0,
        balance_weight=0.02 * 2 / n_layers,
        z_weight=0.0,
    )
    mixer = _mixer("attention", d_head=_d_head(d_model), qkv_bias=True)
    block = BlockSpec(mixer=mixer, ffn=ffn)
    return replace(
        _plain("time_moe", d_model, block, n_layers=n_layers),
        objective="forecast",
        series=SeriesSpec(),
    )


def diffusion(d_model: int = 128) -> ModelSpec:
    """Masked diffusion (Nie et al. 2024): `dense` that sees both ways, with an input id for hidden
    tokens that the readout lacks; trained by train/objectives/masked_diffusion.py.

    Differs: muP and its start of the weights, where the paper has SMDM's own; documents stay apart.
    """
    return replace(
        dense(d_model), arch="diffusion", objective="masked_diffusion", causal=False, extra_inputs=1
    )


def span_mixture(d_model: int = 128) -> ModelSpec:
    """CodeGen2 (Nijkamp et al. 2023): `dense` trained on plain text and on infilling; 30 masks and
    two other marks are the last ids of its vocabulary (train/objectives/span_mixture.py).

    Differs: the body is `dense`; how often, how much and in what lengths the paper takes text out
    was not at hand, and is set in the objective.
    """
    return replace(dense(d_model), arch="span_mixture", objective="span_mixture", vocab=256 + 32)


def encoder_decoder(d_model: int = 128) -> ModelSpec:
    """The translation models of Ghorbani et al. 2021: LayerNorm ahead of every layer, GELU of four
    times the width, one table of tokens for both sides; as many encoder as decoder layers, which
    `model.encoder.n_layers` and `model.n_layers` set apart. Layers have 4 D^2 + 2 D F and
    8 D^2 + 2 D F weights. Trained on pairs, by train/objectives/translation.py.

    Differs: learned positions up to 1024 and no biases, where the paper's settings were not at
    hand; muP; an untied readout.
    """
    mixer, ffn = _mixer("attention", d_head=_d_head(d_model), rotary_theta=None), _ffn("gelu")
    cross = _mixer("cross_attention", d_head=_d_head(d_model))
    return ModelSpec(
        arch="encoder_decoder",
        objective="translation",
        d_model=d_model,
        n_layers=depth(d_model),
        repeat=(BlockSpec(mixer=mixer, cross=cross, ffn=ffn),),
        encoder=EncoderSpec(n_layers=depth(d_model), repeat=(BlockSpec(mixer=mixer, ffn=ffn),)),
        norm="layernorm",
        learned_positions=1024,
        parametrisation=Parametrisation(output_multiplier=4.0, base_d_head=16),
    )


def linear(d_model: int = 128) -> ModelSpec:
    """Basic linear attention (Katharopoulos et al. 2020): elu + 1 as its features, a norm over each
    head's output in place of the denominator.

    Differs from Linear-MoE's layer: no output gate, so that a block has the parameters of `dense`.
    """
    block = BlockSpec(mixer=_mixer("linear", d_head=_d_head(d_model)), ffn=_ffn("swiglu"))
    return _plain("linear", d_model, block)


def lowrank(d_model: int = 128) -> ModelSpec:
    """`dense` with feed-forward products U(Vx) of rank d_model / 2 in all blocks but the first,
    69 % of the layer's parameters (Wei et al. 2024).

    Differs, as do `blockshuffle` and `blockdense`: SwiGLU where the paper has GELU (63 % there, at
    the same rank); what writes to the stream starts smaller by (2 layers)^1/2. Set the layer's
    `guided` to train with a dense guide for that fraction of the run.
    """
    return _structured("lowrank", d_model, rank_ratio=1 / 2)


def blockshuffle(d_model: int = 128) -> ModelSpec:
    """`dense` with Monarch feed-forward products, two block diagonals of two blocks, in all blocks
    but the first (Dao et al. 2022; Wei et al. 2024): the parameters of `lowrank`.

    Differs from the paper as `lowrank` does; the guide starts with the shuffles in it, which the
    paper's code leaves out, so that it equals the product.
    """
    return _structured("blockshuffle", d_model, blocks=2)


def blockdense(d_model: int = 128) -> ModelSpec:
    """`dense` with feed-forward products of two diagonal blocks, then a dense matrix, in all blocks
    but the first (Wei et al. 2024), at rank 5/8 d_model: 68 % of the layer's parameters.

    Differs from the paper as `lowrank` does.
    """
    return _structured("blockdense", d_model, blocks=2, rank_ratio=5 / 8)


def _structured(kind: str, d_model: int, **knobs) -> ModelSpec:
    """The paper keeps the first feed-forward layer dense, too."""
    spec = dense(d_model)
    (block,) = spec.repeat
    ffn = _ffn(kind, activation="swiglu", ratio=8 / 3, **knobs)
    return replace(spec, arch=kind, first=(block,), repeat=(replace(block, ffn=ffn),))


def retnet(d_model: int = 128) -> ModelSpec:
    """RetNet (Sun et al. 2023): fixed decays, rotary, twice as wide values, swish gate; the
    feed-forward layer gives back what the values take, as in the paper.

    Differs: SwiGLU where the paper has GELU; heads of d_model / 8, at most its 256.
    """
    block = BlockSpec(
        mixer=_mixer("retnet", d_head=_wide_head(d_model)), ffn=_ffn("swiglu", ratio=4 / 3)
    )
    return _plain("retnet", d_model, block)


def lightning(d_model: int = 128) -> ModelSpec:
    """Lightning attention (Qin et al. 2024; MiniMax-01): decays by ALiBi's slopes, sigmoid gate.

    Differs: the decays are the same in every layer, as in Linear-MoE.
    """
    block = BlockSpec(mixer=_mixer("lightning", d_head=_d_head(d_model)), ffn=_ffn("swiglu"))
    return _plain("lightning", d_model, block)


def gla(d_model: int = 128) -> ModelSpec:
    """Gated linear attention (Yang et al. 2024): each key channel forgets at a rate of the input's;
    keys of half the width, a swish gate.

    Differs: heads of d_model / 8, at most 256, where the paper has four at every width.
    """
    d_head = _wide_head(d_model)
    block = BlockSpec(mixer=_mixer("gla", d_head=d_head, d_key=d_head // 2), ffn=_ffn("swiglu"))
    return _plain("gla", d_model, block)


def ssd(d_model: int = 128) -> ModelSpec:
    """Mamba-2 (Dao and Gu 2024): its blocks alone, twice as many as a decoder's, since each has
    half of the parameters of attention and a feed-forward layer.

    Differs: below width 512 heads are narrower than 64, and below 256 the state than 128.
    """
    return _plain("ssd", d_model, _ssd_block(d_model), n_layers=2 * depth(d_model))


def hybrid(d_model: int = 128, *, pattern: str = "MMM*", n_layers: int | None = None) -> ModelSpec:
    """Mamba-2 with attention in every fourth block (Linear-MoE's quarter hybrid; Waleffe et al.
    2024): `M` a Mamba-2 block, `*` attention, `-` SwiGLU.

    Differs from both: no experts; attention is that of `dense`.
    """
    if n_layers is None:
        n_layers = len(pattern) * max(1, round(2 * depth(d_model) / max(1, len(pattern))))
    attention = _mixer("attention", d_head=_d_head(d_model), qk_norm=True)
    blocks = {
        "M": _ssd_block(d_model),
        "*": BlockSpec(mixer=attention, ffn=None),
        "-": BlockSpec(mixer=None, ffn=_ffn("swiglu")),
    }
    return ModelSpec(
        arch="hybrid",
        d_model=d_model,
        n_layers=n_layers,
        repeat=unit(pattern, blocks, n_layers=n_layers),
        parametrisation=Parametrisation(output_multiplier=4.0, base_d_head=16),
    )


def deltanet(d_model: int = 128) -> ModelSpec:
    """DeltaNet (Schlag et al. 2021; Yang et al. 2024): a linear recurrence whose keys correct what
    the memory holds for them, then SwiGLU.

    Differs: heads are narrower than the paper's 128.
    """
    block = BlockSpec(mixer=_mixer("deltanet", d_head=_d_head(d_model)), ffn=_ffn("swiglu"))
    return _plain("deltanet", d_model, block)


def gated_deltanet(d_model: int = 128) -> ModelSpec:
    """Gated DeltaNet (Yang, Kautz and Hatamizadeh 2024): the delta rule on a memory that fades, an
    output gate, then SwiGLU.

    Differs: keys and values are as wide as the model (the paper: 3/4 of it, and twice that), which
    builds at any width.
    """
    mixer = _mixer("gated_deltanet", d_head=_wide_head(d_model))
    return _plain("gated_deltanet", d_model, BlockSpec(mixer=mixer, ffn=_ffn("swiglu")))


def rwkv7(d_model: int = 128) -> ModelSpec:
    """RWKV-7 (Peng et al. 2025): removal, decay and writing by channel, every layer's values mixed
    with the first one's; LayerNorm, squared ReLU.

    Differs: the feed-forward layer sees its own position alone (RWKV's mixes in the one before),
    no norm right after the embedding, muP in place of its start of embedding and readout; below
    width 512 heads are narrower than 64, and below 128 ranks lower than 32.
    """

    def block(role: str) -> BlockSpec:
        mixer = _mixer(
            "rwkv7",
            d_head=_d_head(d_model),
            rank=_rwkv_rank(d_model, 2.5),
            gate_rank=_rwkv_rank(d_model, 5),
            value_residual=role,
        )
        return BlockSpec(mixer=mixer, ffn=_ffn("relu2"))

    return ModelSpec(
        arch="rwkv7",
        d_model=d_model,
        n_layers=depth(d_model),
        first=(block("publish"),),
        repeat=(block("mix"),),
        norm="layernorm",
        parametrisation=Parametrisation(output_multiplier=4.0, base_d_head=16),
    )


def moe(d_model: int = 128) -> ModelSpec:
    """`dense` with three of sixteen experts and a shared one, each a quarter as wide as its SwiGLU
    (DeepSeekMoE's fine-grained and shared experts): the FLOPs of `dense`, four times its
    feed-forward parameters. Dropless, balance by the auxiliary loss of OLMoE.

    Not by DeepSeek-V3's bias (`bias_rate`), because what a bias can correct is its rate times the
    steps, so that short runs of a sweep would be less even than long ones. Differs: few experts for
    small widths (OLMoE 8 of 64), and only OLMoE's weights of the losses, not its start of weights.
    """
    ffn = _ffn("moe", experts=16, chosen=3, shared=1, ratio=2 / 3)
    return _plain("moe", d_model, _beside_attention(d_model, ffn))


def chain_of_experts(d_model: int = 128) -> ModelSpec:
    """Chain-of-Experts (Wang et al. 2025) over the experts of `moe`: two passes through one of
    sixteen and the shared one, so that a token makes as many expert calls, four.

    Differs: the stream goes on beside the passes, x + (h_2 - norm(x)), where the official code's
    goes on from norm(x) (`residual=official_inner`); the paper takes four of 63 a pass.
    """
    ffn = _ffn("chain_of_experts", passes=2, experts=16, chosen=1, shared=1, ratio=2 / 3)
    return _plain("chain_of_experts", d_model, _beside_attention(d_model, ffn))


def _beside_attention(d_model: int, ffn) -> BlockSpec:
    """The block of `dense` with another feed-forward layer."""
    return BlockSpec(mixer=_mixer("attention", d_head=_d_head(d_model), qk_norm=True), ffn=ffn)


def _plain(arch: str, d_model: int, block: BlockSpec, *, n_layers: int | None = None) -> ModelSpec:
    """One block over the depth, in the parametrisation of `dense`."""
    return ModelSpec(
        arch=arch,
        d_model=d_model,
        n_layers=depth(d_model) if n_layers is None else n_layers,
        repeat=(block,),
        parametrisation=Parametrisation(output_multiplier=4.0, base_d_head=16),
    )


def _ssd_block(d_model: int) -> BlockSpec:
    state = min(128, max(16, d_model // 2))  # 128 is the paper's; what is below it is a guess
    return BlockSpec(mixer=_mixer("ssd", d_head=_d_head(2 * d_model), d_state=state), ffn=None)


def lact(d_model: int = 128) -> ModelSpec:
    """LaCT (Zhang et al. 2025): windowed attention beside four fast-weight heads, which take a
    gradient step on the keys and values after every 64 positions.

    Differs: the paper steps every 2048 positions behind a window as long, with step sizes that
    start at 1e-3; 64, and 1e-2 for its shorter sums, are guesses for texts of a few hundred
    positions. The paper's best models orthogonalise each step (`muon`), which is off here: it costs
    more than the reading at steps this frequent.
    """
    block = BlockSpec(
        mixer=_mixer(
            "lact",
            d_head=_d_head(d_model),
            d_fast=d_model // 4,
            update_every=64,
            window=64,
            rate=1e-2,
            chunk=64,
        ),
        ffn=_ffn("swiglu"),
    )
    return _plain("lact", d_model, block)


def s4(d_model: int = 128) -> ModelSpec:
    """S4: HiPPO-LegS as diagonal plus rank one, a state space in every channel (Gu et al. 2021).

    Differs from the paper: RMSNorm and a SwiGLU layer after each mixer as in `dense`, muP for all
    but poles and steps, 32 dimensions of state and not 64: the kernel's cost has their cube.
    """
    return _plain("s4", d_model, BlockSpec(mixer=_mixer("s4", d_state=32), ffn=_ffn("swiglu")))


def s4d(d_model: int = 128) -> ModelSpec:
    """S4D-Lin: S4 with a diagonal state matrix and held inputs (Gu et al. 2022).

    Differs from the paper: RMSNorm and a SwiGLU layer after each mixer as in `dense`, muP for all
    but poles and steps.
    """
    return _plain("s4d", d_model, BlockSpec(mixer=_mixer("s4d"), ffn=_ffn("swiglu")))


def monarch(d_model: int = 128) -> ModelSpec:
    """Monarch Mixer, causal: gated long convolution, projections of D^1.5 weights (Fu et al. 2023).

    Differs from the paper: RMSNorm and the SwiGLU layer of `dense`, where it has block-diagonal
    ones; muP, which takes a fan-in of sqrt D for one of 1 or D.
    """
    return _plain("monarch", d_model, BlockSpec(mixer=_mixer("monarch"), ffn=_ffn("swiglu")))


def elastic_span(d_model: int = 128) -> ModelSpec:
    """`dense` with a mixture of spans (MoA, Fu et al. 2024): of every two heads one sees an eighth
    of 1024 positions and one half of them, in blocks of 64, and all see the first block.

    Differs: trained with from the start, where the paper prunes a trained model; these two rules
    are a guess, a plan from importances (`model/elastic_plan.py`) replaces them.
    """
    from model.mixers.elastic_span import Rule

    d_head = _d_head(d_model)
    rules = (Rule(beta=0.125), Rule(beta=0.5))
    block = BlockSpec(
        mixer=_mixer(
            "elastic_span",
            d_head=d_head,
            qk_norm=True,
            rules=rules if d_model // d_head % 2 == 0 else rules[1:],
        ),
        ffn=_ffn("swiglu"),
    )
    return _plain("elastic_span", d_model, block)


def _mixer(kind: str, **knobs):
    return resolve(kind, room="mixers").Spec(**knobs)


def _ffn(kind: str, **knobs):
    return resolve(kind, room="ffns").Spec(**knobs)


def _d_head(d_model: int) -> int:
    """64 from width 512 up; below, of multiples of 8, the even divisor nearest 16.

    Sixteen is a guess: a narrower head has fewer than eight rotary frequencies to tell positions
    apart. Heads of 8 against 16 were not told apart at width 32 (one seed against two).
    """
    if d_model >= 512:
        return 64
    even = [k for k in range(2, d_model + 1, 2) if d_model % k == 0 and d_model % 8 == 0]
    return min(even, key=lambda k: abs(math.log(k / 16)), default=16)


def _wide_head(d_model: int) -> int:
    """An eighth of the width, at most 256, as an even divisor: heads that forget at fixed rates are
    few, since from the twentieth on the rates are alike.
    """
    wanted = min(256, max(8, d_model / 8))
    even = [k for k in range(2, d_model + 1, 2) if d_model % k == 0]
    return min(even, key=lambda k: abs(math.log(k / wanted)), default=16)


def _rwkv_rank(d_model: int, factor: float) -> int:
    """The authors' suggestion: factor x sqrt D to a multiple of 32, and here at most D / 4."""
    return min(d_model // 4, max(32, round(factor * d_model**0.5 / 32) * 32))


def names() -> list[str]:
    return sorted(_functions())


def build(name: str, d_model: int | None = None) -> ModelSpec:
    """A named architecture at a width, or at its own default width; `module:function` is one of
    your own.
    """
    functions = _functions()
    if ":" in name:
        make = _users(name)
    elif name in functions:
        make = functions[name]
    else:
        hint = f"{nearest(name, functions)}, or module:function for one of your own"
        raise InputError("--arch", name, hint)
    arguments = () if d_model is None else (d_model,)
    spec = _called(name, make, arguments) if ":" in name else make(*arguments)
    if not isinstance(spec, ModelSpec):
        given = f"{name} (returned {type(spec).__name__})"
        raise InputError("--arch", given, "write a function from a width to a ModelSpec")
    return replace(spec, arch=name) if ":" in name else spec


def _users(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        found = vars(users_module(module)).get(function)
    except (Exception, SystemExit) as error:  # a user's module can raise anything on import
        instead = "write module:function of a module that imports"
        raise InputError("--arch", f"{name} ({_said(error)})", instead) from None
    if not callable(found):
        raise InputError("--arch", name, f"{module} has no function {function}; write one")
    return found


def _called(name: str, make: Callable[..., Any], arguments: tuple[int, ...]) -> Any:
    try:
        return make(*arguments)
    except (InputError, ValidationError):
        raise  # say by themselves what to write instead
    except (Exception, SystemExit) as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{_said(error)}, {Path(at.filename).name} line {at.lineno}"
        instead = "write a function from a width, which has a default, to a ModelSpec"
        raise InputError("--arch", f"{name} ({said})", instead) from None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def widths(name: str) -> list[int]:
    """Realisable widths of a family, increasing, each about a tenth above the last or one step of
    its granularity.
    """
    build(name)
    out, width = [], 16
    while width <= 32768:
        out.append(width)
        larger = width * 1.1
        step = 8 if larger < 128 else 16 if larger < 480 else 64
        width = max(width // step + 1, round(larger / step)) * step
    return out


def _functions() -> dict[str, Callable[..., ModelSpec]]:
    here = sys.modules[__name__]
    return {
        name: f
        for name, f in inspect.getmembers(here, inspect.isfunction)
        if f.__module__ == __name__
        and not name.startswith("_")
        and inspect.signature(f).return_annotation is ModelSpec
        and name != "build"
    }
