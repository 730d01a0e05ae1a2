"""How is a parameter declared? Once, in one line, with named dims.

The only constructors of parameters. Shape, sharding, initial value, learning-rate and weight-decay
multipliers, FLOPs and the printed table are all derived from the `Declaration` that the line makes.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import scaling
from model.spec import Parametrisation
from parallelism.axes import letters


@dataclass(frozen=True)
class Declaration:
    """Everything that is known about a parameter before it has a value."""

    path: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    contract: tuple[str, ...]
    role: str
    init: str  # normal, zeros, ones
    scaling: scaling.Scaling
    matmuls: float  # products with this parameter per token in the forward pass
    block: bool  # belongs to a residual block

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
    block: bool = False
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
        role: str = scaling.HIDDEN,
        init: str = "normal",
        matmuls: float = 1.0,
    ) -> Parameter:
        """A product's weight: contracted dims lead, the produced ones follow."""
        if not dims.startswith(contract):
            raise ValueError(f"{name}: contracted dims lead; {contract!r} does not begin {dims!r}")
        return self._make(name, dims, contract, role, init, matmuls)

    def table(self, name: str, dims: str, *, matmuls: float = 0.0) -> Parameter:
        """Rows looked up by index."""
        return self._make(name, dims, "", scaling.TABLE, "normal", matmuls)

    def vector(self, name: str, dims: str, *, init: str) -> Parameter:
        """A gain (`ones`) or bias (`zeros`), multiplied or added elementwise."""
        return self._make(name, dims, "", scaling.VECTOR, init, 0.0)

    def _make(
        self, name: str, dims: str, contract: str, role: str, init: str, matmuls: float
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
        declaration = Declaration(
            path=path,
            dims=named,
            shape=tuple(self.sizes[d] for d in named),
            contract=contracted,
            role=role,
            init=init,
            scaling=scaled,
            matmuls=matmuls,
            block=self.block,
        )
        self.made[path] = declaration
        return Parameter(
            jax.ShapeDtypeStruct(declaration.shape, jnp.float32), declaration=declaration
        )


def initial(declaration: Declaration, seed: int) -> np.ndarray:
    """The initial value, float32, drawn on the host.

    The stream is keyed by (seed, path, layer), so a value depends on no other parameter, no mesh
    and no platform. On the host because a compiled initialiser costs a second a shape, more than
    the training step itself.
    """
    if declaration.init == "zeros" or (
        declaration.init == "normal" and declaration.scaling.std == 0
    ):
        return np.zeros(declaration.shape, np.float32)
    if declaration.init == "ones":
        return np.ones(declaration.shape, np.float32)
    stacked = declaration.dims[0] == "Z"
    layers = declaration.shape[0] if stacked else 1
    shape = declaration.shape[1:] if stacked else declaration.shape
    name = zlib.crc32(declaration.path.encode())
    out = np.empty((layers, *shape), np.float32)
    for z in range(layers):
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, name, z])))
        out[z] = stream.standard_normal(shape, np.float32)
    return (out * np.float32(declaration.scaling.std)).reshape(declaration.shape)


def linear(x: jax.Array, weight: Parameter, *, dtype: Any = None) -> jax.Array:
    """The one place where a matrix is applied: contracts the trailing dims of x with the leading
    dims of weight.

    The leading dims of x are flattened: on CPU the weight gradient of a product with two batch
    dimensions runs two to three times slower than the same product on (B*T, D). `dtype` is the
    result's; the default is x's.
    """
    declaration = weight.decl
    value = weight[...]
    n = len(declaration.contract)
    produced = value.shape[n:]
    fan_in = math.prod(value.shape[:n])
    y = jax.lax.dot(
        x.reshape(-1, fan_in),
        value.reshape(fan_in, -1).astype(x.dtype),
        preferred_element_type=dtype or x.dtype,
    )
    y = y.reshape(*x.shape[: x.ndim - n], *produced)
    forward = declaration.scaling.forward
    return y if forward == 1.0 else y * forward
