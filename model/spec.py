"""What is an architecture, as a value?

`ModelSpec` is frozen JSON: shared sizes, the blocks over depth, and the parametrisation. A layer
kind is the name of a file in `model/mixers` or `model/ffns`, or that of anybody's module; its own
knobs are that file's `Spec`. This file imports no jax (resolving a kind imports the layer's file,
which does).
"""

import importlib
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from model.layer_spec import LayerSpec as LayerSpec
from model.layer_spec import base_sizes as base_sizes
from model.series_spec import SeriesSpec
from model.spec_checks import DEEPEST, LONGEST, WIDEST, check
from parallelism.axes import SPEC
from parallelism.errors import nearest


def resolve(kind: str, *, room: str) -> Any:
    """The module of a layer kind: `model.<room>.<kind>`, or a module of the user's own."""
    kinds = layer_kinds(room)
    name = f"model.{room}.{kind}" if kind in kinds else kind
    hint = {"hint": nearest(kind, kinds)}
    unknown = "unknown kind; {hint}, or the name of a module of your own"
    if not all(part.isidentifier() for part in name.split(".")):
        raise PydanticCustomError("unknown_kind", unknown, hint)
    try:
        module = users_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # the layer's file exists, and lacks a package of its own
        raise PydanticCustomError("unknown_kind", unknown, hint) from None
    lacking = [part for part in ("Spec", "Layer", "extra_flops") if part not in vars(module)]
    if lacking:
        raise PydanticCustomError(
            "unknown_kind",
            "module {name} has no {lacking}, so it is no layer; {hint}",
            {"name": name, "lacking": " and no ".join(lacking), **hint},
        )
    return module


def users_module(name: str) -> ModuleType:
    """Import a module, with the current folder searched too, as the installed command does not."""
    here = str(Path.cwd())
    if here in sys.path:
        return importlib.import_module(name)
    sys.path.append(here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


def layer_kinds(room: str) -> list[str]:
    import pkgutil

    package = importlib.import_module(f"model.{room}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__))


def _layer(room: str):
    def validate(value: Any) -> Any:
        if value is None or isinstance(value, LayerSpec):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
            raise PydanticCustomError(
                "unknown_kind",
                "a layer is an object with a kind; {hint}",
                {"hint": nearest("", layer_kinds(room))},
            )
        module = resolve(value["kind"], room=room)
        try:
            return TypeAdapter(module.Spec).validate_python(value)
        except ValidationError as error:
            # keep the inner locations: the reader of errors extends the path with them
            names = [field.name for field in fields(module.Spec)]
            raise PydanticCustomError(
                "nested",
                "invalid layer",
                {"errors": error.errors(include_url=False), "fields": names},
            ) from None

    return validate


def _dump(value: LayerSpec | None) -> Any:
    return None if value is None else TypeAdapter(type(value)).dump_python(value, mode="json")


MixerSpec = Annotated[Any, BeforeValidator(_layer("mixers")), PlainSerializer(_dump)]
FfnSpec = Annotated[Any, BeforeValidator(_layer("ffns")), PlainSerializer(_dump)]


@dataclass(frozen=True, kw_only=True, config=SPEC)
class BlockSpec:
    """One residual block: a sequence mixer, a layer that reads the source of an encoder, a
    feed-forward layer; each may be None, all of them not.
    """

    mixer: MixerSpec
    ffn: FfnSpec
    cross: MixerSpec = None

    def __post_init__(self):
        if self.mixer is None and self.ffn is None and self.cross is None:
            raise ValueError("a block has a mixer, an ffn, or both; write the kind of one")

    @property
    def layers(self) -> tuple[tuple[str, LayerSpec], ...]:
        """(room, layer) of each layer that there is, in the order they act."""
        parts = (("mixers", self.mixer), ("mixers", self.cross), ("ffns", self.ffn))
        return tuple((room, layer) for room, layer in parts if layer is not None)


@dataclass(frozen=True, kw_only=True, config=SPEC)
class Parametrisation:
    """How initialisation, learning rate, weight decay and forward scales follow the dimensions.

    `mup` is muP for Adam relative to a base width (Yang et al. 2022);
    `standard` keeps every multiplier at 1. `weight_decay_exponent` p gives matrices a decay
    multiplier m^p in the width multiple m: 1 keeps lr x decay constant (microsoft/mup, CompleteP),
    0.5 is arXiv 2510.15262, 0 leaves it alone.
    """

    kind: Literal["standard", "mup"] = "mup"
    base_d_model: int = Field(default=64, ge=1)
    base_d_head: int | None = Field(default=None, ge=1)  # None: scores are scaled by K^-1/2
    embed_std: float = Field(
        default=0.5, gt=0
    )  # guess; the tied table uses base_d_model ** -0.5 instead
    output_multiplier: float = Field(default=1.0, gt=0)
    attention_multiplier: float = Field(default=1.0, gt=0)
    weight_decay_exponent: float = Field(default=1.0, ge=0, le=2)


@dataclass(frozen=True, kw_only=True, config=SPEC)
class StreamsSpec:
    """ParScale (arXiv 2505.10475): `count` streams through the same blocks. One stream is the plain
    decoder and has no parameters of its own.
    """

    count: int = Field(default=4, ge=1, le=1024)
    prefix: int = Field(default=48, ge=1)  # learned keys and values of each stream and layer
    smoothing: float = Field(default=0.01, ge=0, le=1)  # share that all streams get alike


@dataclass(frozen=True, kw_only=True, config=SPEC)
class EncoderSpec:
    """What reads a source for the decoder: `repeat` tiled over its own depth, every position seeing
    all of its source, and a norm. It shares the decoder's embedding.
    """

    n_layers: int = Field(ge=1, le=DEEPEST)
    repeat: tuple[BlockSpec, ...] = Field(min_length=1)

    @property
    def n_repeats(self) -> int:
        return self.n_layers // len(self.repeat)

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """Every block, first layer to last."""
        return self.repeat * self.n_repeats


@dataclass(frozen=True, kw_only=True, config=SPEC)
class ModelSpec:
    """A decoder: embedding, `first` blocks, `repeat` tiled over the depth, `last` blocks, norm,
    readout. Where it is not causal, every position sees its whole document.
    """

    arch: str = "custom"  # a label for people; never parsed
    objective: str = "next_token"  # what it is made for: a run's objective unless it names another
    d_model: int = Field(ge=1, le=WIDEST)
    n_layers: int = Field(ge=1, le=DEEPEST)
    vocab: int = Field(default=256, ge=2, le=LONGEST)
    first: tuple[BlockSpec, ...] = ()
    repeat: tuple[BlockSpec, ...] = Field(min_length=1)
    last: tuple[BlockSpec, ...] = ()
    encoder: EncoderSpec | None = None  # of a source, which `cross` layers read
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    tied: bool = False
    causal: bool = True
    extra_inputs: int = Field(default=0, ge=0)  # ids from `vocab` on that are read and never said
    learned_positions: int | None = Field(
        default=None, ge=1
    )  # longest sequence of a learned position table; an encoder has one of its own
    streams: StreamsSpec | None = None
    series: SeriesSpec | None = None  # real values in place of tokens; `vocab` is then unused
    parametrisation: Parametrisation = Field(default_factory=Parametrisation)

    def __post_init__(self):
        check(self)

    def penalties(self) -> dict[str, float]:
        """Weights of the layers' own losses; raises ValueError where two layers differ in one."""
        out: dict[str, float] = {}
        encoder = () if self.encoder is None else self.encoder.repeat
        for block in (*encoder, *self.first, *self.repeat, *self.last):
            for _, layer in block.layers:
                for name, field in layer.penalties.items():
                    weight = getattr(layer, field)
                    if out.setdefault(name, weight) != weight:
                        raise ValueError(
                            f"{field} is {out[name]} in one {layer.kind} layer and {weight} in "
                            f"another; write one weight for all layers"
                        )
        return out

    @property
    def inputs(self) -> str:
        """Name of the array (B, T) that it reads: ids int32, or values float32."""
        return "tokens_BT" if self.series is None else "values_BT"

    @property
    def n_streams(self) -> int:
        return 1 if self.streams is None else self.streams.count

    @property
    def n_repeats(self) -> int:
        return (self.n_layers - len(self.first) - len(self.last)) // len(self.repeat)

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """Every block of the decoder, first layer to last."""
        return (*self.first, *(self.repeat * self.n_repeats), *self.last)

    @property
    def shared_sizes(self) -> dict[str, int]:
        sizes = {
            "D": self.d_model,
            "V": self.vocab,
            "U": self.extra_inputs,
            "Z": self.n_repeats,
        }
        if self.series is not None:
            sizes["O"] = sum(self.series.horizons)
        if self.streams is None or self.streams.count == 1:
            return sizes
        return {**sizes, "P": self.streams.count, "S": self.streams.prefix}

    @property
    def width_multiple(self) -> float:
        """d_model over that of the base model; 1 in the standard parametrisation."""
        rule = self.parametrisation
        return self.d_model / rule.base_d_model if rule.kind == "mup" else 1.0
