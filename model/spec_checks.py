"""Which architectures cannot be? Checks of a ModelSpec as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.spec import BlockSpec, LayerSpec, ModelSpec

# beyond any model: a slip of the keyboard, not a size (and a longer axis has no int32 index)
WIDEST, DEEPEST, LONGEST = 10**6, 10**4, 10**9

# what an encoder gives to the layers of a decoder that read it, by the names of LayerSpec.reads
SOURCE = ("source", "source_segments")


def check(spec: ModelSpec) -> None:
    """Raises ValueError with what to write instead."""
    body = spec.n_layers - len(spec.first) - len(spec.last)
    if body < 0 or body % len(spec.repeat):
        raise ValueError(
            f"n_layers {spec.n_layers} less {len(spec.first) + len(spec.last)} first and last "
            f"blocks is not a multiple of the repeated {len(spec.repeat)}; write a multiple"
        )
    if spec.encoder is not None:
        _check_encoder(spec)
    published: set[str] = set(SOURCE if spec.encoder is not None else ())
    for part in ("first", "repeat", "last"):
        for i, block in enumerate(getattr(spec, part)):
            with _at(part, i):
                _check_block(block)
            for room, layer in block.layers:
                with _at(part, i, _name(block, layer)):
                    _check_layer(layer, room, part, published, spec)
                published.update(layer.publishes)
    if spec.series is not None and (not spec.causal or spec.tied or spec.extra_inputs):
        raise ValueError(
            "a model of a series forecasts and has no ids; write causal true, tied false and "
            "extra_inputs 0, or series null"
        )
    spec.penalties()  # raises where layers disagree
    _check_prefixes(spec)


class LayerError(ValueError):
    """What is wrong with a layer; `place` is its path in the model."""

    def __init__(self, message: str, place: tuple[str | int, ...]):
        super().__init__(message)
        self.place = place


@contextmanager
def _at(*place: str | int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise LayerError(str(error), place) from None


def _name(block: BlockSpec, layer: LayerSpec) -> str:
    return next(name for name in ("mixer", "cross", "ffn") if getattr(block, name) is layer)


def _check_block(block: BlockSpec) -> None:
    if block.mixer is not None and "source" in block.mixer.reads:
        raise ValueError(
            f"a {block.mixer.kind} layer reads a source beside the stream; write it in `cross` of "
            f"its block, and attention in `mixer`"
        )
    if block.cross is not None and "source" not in block.cross.reads:
        raise ValueError(
            f"a {block.cross.kind} layer reads no source; write it in `mixer` of its block, and "
            f"cross_attention in `cross`"
        )


def _check_size(layer: LayerSpec, spec: ModelSpec) -> None:
    for letter, size in layer.sizes(spec.shared_sizes).items():
        if size > LONGEST:
            raise ValueError(
                f"dimension {letter} of a {layer.kind} layer would be {size:.3g} long; write "
                f"smaller numbers, so that it is at most {LONGEST:.0e}"
            )


def _check_layer(
    layer: LayerSpec, room: str, part: str, published: set[str], spec: ModelSpec
) -> None:
    _check_size(layer, spec)
    if spec.causal and layer.sees_later:
        raise ValueError(
            f"a {layer.kind} layer sees later positions, which a causal model is asked to "
            f"predict; write causal true in the layer, or false in the model"
        )
    both_ways = layer.bidirectional or layer.sees_later
    if not (spec.causal or both_ways or room == "ffns"):
        raise ValueError(
            f"a {layer.kind} layer sees earlier positions only; write causal=true, or a mixer "
            f"that sees both ways, such as attention"
        )
    missing = sorted(set(layer.reads) - published)
    if missing and set(missing) <= set(SOURCE):
        raise ValueError(
            f"a {layer.kind} layer of `{part}` reads a source and the model has no encoder; write "
            f"one, as in encoder_decoder, or cross null"
        )
    if missing:
        raise ValueError(
            f"a {layer.kind} layer of `{part}` reads {', '.join(missing)}, which no block before "
            f"it publishes; put a block that does into `first`"
        )
    if layer.publishes and part != "first":
        raise ValueError(
            f"a {layer.kind} layer of `{part}` publishes {', '.join(layer.publishes)}; only "
            f"blocks of `first` can"
        )


def _check_prefixes(spec: ModelSpec) -> None:
    if spec.n_streams == 1:
        return
    if spec.encoder is not None:
        raise ValueError(
            "parallel streams have one text and the decoder of an encoder has two; write streams "
            "null, or encoder null"
        )
    mixers = [b.mixer for b in (*spec.first, *spec.repeat, *spec.last) if b.mixer is not None]
    lacking = [m.kind for m in mixers if not m.takes_prefix] or ([] if mixers else ["missing"])
    if lacking:
        raise ValueError(
            f"a {lacking[0]} mixer takes no prefix, by which {spec.n_streams} streams would "
            f"differ; write streams null, or mixers of kind attention"
        )


def _check_encoder(spec: ModelSpec) -> None:
    encoder = spec.encoder
    assert encoder is not None
    if not spec.causal:
        raise ValueError(
            "an encoder sees both ways by itself and its decoder says one token after another; "
            "write causal true, or encoder null"
        )
    if spec.extra_inputs or spec.series is not None:
        raise ValueError(
            "an encoder and its decoder read one vocabulary; write extra_inputs 0 and series null, "
            "or encoder null"
        )
    if encoder.n_layers % len(encoder.repeat):
        raise ValueError(
            f"encoder.n_layers {encoder.n_layers} is not a multiple of the repeated "
            f"{len(encoder.repeat)}; write a multiple"
        )
    if not any(block.cross is not None for block in spec.blocks):
        raise ValueError(
            "no block of the decoder reads the encoder; write cross_attention in `cross` of one, "
            "or encoder null"
        )
    for i, block in enumerate(encoder.repeat):
        if block.cross is not None:
            raise ValueError("a block of the encoder has no other source to read; write cross null")
        for room, layer in block.layers:
            with _at("encoder", "repeat", i, _name(block, layer)):
                _check_size(layer, spec)
            if room == "mixers" and not (layer.bidirectional or layer.sees_later):
                raise ValueError(
                    f"a {layer.kind} layer of the encoder sees earlier positions only; write a "
                    f"mixer that sees both ways, such as attention"
                )
            if layer.reads or layer.publishes:
                raise ValueError(
                    f"a {layer.kind} layer of the encoder shares arrays with other layers; write "
                    f"one that does not"
                )
