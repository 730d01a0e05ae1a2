"""How is a parameter declared? Once, in one line, with named dims.

The only constructors of parameters. Shape, sharding, initial value, learning-rate and weight-decay
multipliers, FLOPs and the printed table are all derived from the `Declaration` that the line makes.
"""

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import scaling
from model.inits import Init, Place
from model.spec import Parametrisation
from parallelism.axes import letters
from parallelism.place import positions_are_shared

# (value, the step's statistic of the same leading dims) -> the value after the step
Update = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Declaration:
    """Everything that is known about a parameter before it has a value."""

    path: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    contract: tuple[str, ...]
    role: str
    init: str | Init  # normal (of the role's spread), zeros, ones, or a draw of the layer's own
    scaling: scaling.Scaling
    matmuls: float  # products with this parameter per token in the forward pass
    block: bool  # belongs to a residual block
    of_source: bool = False  # its products are for each position of a source, not of the target
    batch: tuple[str, ...] = ()  # dims that a product keeps apart: one matrix for each of them
    layers: tuple[int, ...] = (0,)  # which layers of the model it is of, in the order of Z
    n_layers: int = 1
    update: Update | None = None  # of a buffer: what a step makes of it, in place of a gradient

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def forward_flops(self) -> float:
        """Per token: two per multiply-add of each product."""
        return 2.0 * self.matmuls * self.size


class Parameter(nnx.Param):
    """Final. A leaf of a module that carries its `declaration`."""

    @property
    def decl(self) -> Declaration:
        return self.get_metadata("declaration")


@dataclass(frozen=True)
class Declare:
    """Where a module declares its parameters: sizes by letter, the base model's sizes, the
    parametrisation.
    """

    sizes: Mapping[str, int]
    base: Mapping[str, float]
    rule: Parametrisation
    n_layers: int
    tied: bool
    path: tuple[str, ...] = ()
    stack: str | None = None  # letter of the leading dimension of stacked layers
    layers: tuple[int, ...] = (0,)  # which layers of the model this scope is of
    block: bool = False
    of_source: bool = False
    times: int = 1  # how often one token comes by: once in each stream
    made: dict[str, Declaration] = field(default_factory=dict)

    def within(
        self,
        name: str,
        *,
        sizes: Mapping[str, int] | None = None,
        base: Mapping[str, float] | None = None,
        **more: Any,
    ) -> "Declare":
        """The scope of a child module, with the sizes that the child adds."""
        return replace(
            self,
            path=(*self.path, name),
            sizes={**self.sizes, **(sizes or {})},
            base={**self.base, **(base or {})},
            **more,
        )

    def matrix(
        self,
        name: str,
        dims: str,
        *,
        contract: str,
        batch: str = "",
        role: str = scaling.HIDDEN,
        init: str | Init = "normal",
        matmuls: float = 1.0,
    ) -> Parameter:
        """A product's weight: dims kept apart lead, contracted ones follow, the produced ones end.

        `linear` applies it, or `block_linear` where `batch` names dims: then there is one matrix
        for each entry of them, and each sees its own slice of the input.
        """
        if not dims.startswith(f"{batch} {contract}".strip()):
            raise ValueError(
                f"{name}: contracted dims lead; {f'{batch} {contract}'.strip()!r} does not begin "
                f"{dims!r}"
            )
        return self._make(name, dims, role, init, contract=contract, batch=batch, matmuls=matmuls)

    def table(self, name: str, dims: str, *, matmuls: float = 0.0) -> Parameter:
        """Rows looked up by index."""
        return self._make(name, dims, scaling.TABLE, "normal", matmuls=matmuls)

    def vector(self, name: str, dims: str, *, init: str | Init) -> Parameter:
        """A gain (`ones`), a bias (`zeros`), or a short convolution: entries that each channel
        multiplies or adds by itself, so that their scale does not follow the width.
        """
        return self._make(name, dims, scaling.VECTOR, init)

    def recurrence(self, name: str, dims: str, *, init: Init, lr: float = 1.0) -> Parameter:
        """A pole, decay or step size of a recurrence. No weight decay; `lr` multiplies the run's
        learning rate; muP has no rule for it, and the printed table says so.
        """
        return self._make(name, dims, scaling.RECURRENCE, init, lr=lr)

    def buffer(self, name: str, dims: str, *, init: str | Init, update: Update) -> Parameter:
        """State that no gradient trains: after each step `update(value, statistic)` replaces it.

        The layer gives the statistic as aux `buffer/PATH` (PATH from `parameter.decl.path`), summed
        over the whole batch, and stops the gradient where it reads the value.
        """
        return self._make(name, dims, scaling.BUFFER, init, update=update)

    def _make(
        self,
        name: str,
        dims: str,
        role: str,
        init: str | Init,
        *,
        contract: str = "",
        batch: str = "",
        matmuls: float = 0.0,
        lr: float = 1.0,
        update: Update | None = None,
    ) -> Parameter:
        path = ".".join((*self.path, name))
        if path in self.made:
            raise ValueError(f"{path} is declared twice")
        named = letters(dims)
        if self.stack is not None:
            named = (self.stack, *named)
        contracted = letters(contract)
        scaled = scaling.scaling(
            role,
            contract=contracted,
            sizes=self.sizes,
            base=self.base,
            rule=self.rule,
            n_layers=self.n_layers,
            tied=self.tied,
        )
        scaled = replace(scaled, lr=scaled.lr * lr)
        declaration = Declaration(
            path=path,
            dims=named,
            shape=tuple(self.sizes[d] for d in named),
            contract=contracted,
            role=role,
            init=init,
            scaling=scaled,
            matmuls=matmuls * self.times,
            block=self.block,
            of_source=self.of_source,
            batch=letters(batch),
            layers=self.layers,
            n_layers=self.n_layers,
            update=update,
        )
        self.made[path] = declaration
        return Parameter(
            jax.ShapeDtypeStruct(declaration.shape, jnp.float32), declaration=declaration
        )


def initial(declaration: Declaration, seed: int) -> np.ndarray:
    """The initial value, float32, drawn on the host.

    The stream is keyed by (seed, path, layer), so a value depends on no other parameter, no mesh
    and no platform. An Init may name another stream than its path's. On the host because a
    compiled initialiser costs a second a shape, more than the training step itself.
    """
    init, std = declaration.init, declaration.scaling.std
    if init == "zeros" or (init == "normal" and std == 0):
        return np.zeros(declaration.shape, np.float32)
    if init == "ones":
        return np.ones(declaration.shape, np.float32)
    stacked = declaration.dims[0] == "Z"
    shape = declaration.shape[1:] if stacked else declaration.shape
    named = init.stream(declaration.path) if isinstance(init, Init) else declaration.path
    name = zlib.crc32(named.encode())
    out = np.empty((len(declaration.layers) if stacked else 1, *shape), np.float32)
    for z in range(len(out)):
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, name, z])))
        if isinstance(init, Init):
            out[z] = init(stream, shape, Place(declaration.layers[z], declaration.n_layers))
        else:
            out[z] = stream.standard_normal(shape, np.float32) * np.float32(std)
    return out.reshape(declaration.shape)


def linear(x: jax.Array, weight: Parameter, *, dtype: Any = None) -> jax.Array:
    """The one place where a matrix is applied: contracts the trailing dims of x with the leading
    dims of weight.

    The leading dims of x are flattened where devices do not share positions: on CPU the weight
    gradient of a product with two batch dimensions runs two to three times slower than the same
    product on (B*T, D). `dtype` is the result's; the default is x's.
    """
    declaration = weight.decl
    if declaration.batch:
        raise ValueError(f"{declaration.path} is block diagonal: apply it with block_linear")
    value = weight[...]
    n = len(declaration.contract)
    produced = value.shape[n:]
    fan_in = math.prod(value.shape[:n])
    lead = x.shape[: x.ndim - n]
    rows = lead if positions_are_shared() else (-1,)
    y = jax.lax.dot_general(
        x.reshape(*rows, fan_in),
        value.reshape(fan_in, -1).astype(x.dtype),
        (((len(rows),), (0,)), ((), ())),
        preferred_element_type=dtype or x.dtype,
    )
    y = y.reshape(*lead, *produced)
    forward = declaration.scaling.forward
    return y if forward == 1.0 else y * forward


def block_linear(x: jax.Array, weight: Parameter, *, dtype: Any = None) -> jax.Array:
    """Block-diagonal product: the trailing dims of x are the weight's batch dims, then its
    contracted ones; each batch entry has its own matrix.

    The blocks lead while they are multiplied: on CPU a forward and backward pass takes .22 to .48
    of the time for it (2 to 8 blocks), and the forward .46 to .72.
    """
    declaration = weight.decl
    value = weight[...]
    g, c = len(declaration.batch), len(declaration.contract)
    blocks, contracted, produced = value.shape[:g], value.shape[g : g + c], value.shape[g + c :]
    n, k = math.prod(blocks), math.prod(contracted)
    lead = x.shape[: x.ndim - g - c]
    rows = lead if positions_are_shared() else (-1,)
    y = jnp.einsum(
        "g...k,gkf->g...f",
        jnp.moveaxis(x.reshape(*rows, n, k), -2, 0),
        value.reshape(n, k, -1).astype(x.dtype),
        preferred_element_type=dtype or x.dtype,
    )
    y = jnp.moveaxis(y, 0, -2).reshape(*lead, *blocks, *produced)
    forward = declaration.scaling.forward
    return y if forward == 1.0 else y * forward
