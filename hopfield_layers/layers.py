"""Neuron layers: a Lagrangian with a shape, a time constant and a bias."""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray

from ._arrays import as_float, as_shape, as_state, check_range, spread, widened
from .lagrangians import (
    AbstractLagrangian,
    as_lagrangian,
    LCosh,
    LEntmax,
    LExp,
    LGhostmax,
    LIdentity,
    LLayerNorm,
    LPower,
    LRelu,
    LRepu,
    LRexp,
    LSigmoid,
    LSoftmax,
    LSparsemax,
    LSphericalNorm,
    LTanh,
)
from .lagrangians.base import pformat
from .model import AbstractEnergyModel


class Layer(AbstractEnergyModel):
    """Neurons of one kind: z = x − b, g = ∂L/∂z, E = Σ z·g − L(z) ≥ −L(0), ∂E/∂g = z.

    Every method takes a state of shape `(*batch, *shape)` with any number of batch axes, and keeps
    its dtype.

    **Arguments:**

    - `lagrangian`: a [`hopfield_layers.AbstractLagrangian`][] or a plain convex callable.
    - `shape`: the shape of the state, a tuple of sizes or one size.
    - `tau`: the time constant τ > 0, in the units of t; or one per unit.
    - `use_bias`: whether there is a bias b, an activation threshold of the layer's shape.
    - `init_lagrangian`: whether `lagrangian` is instead a factory, called with `kwargs`.
    - `name`: a name for the layer, of no effect.
    - `bias`: the bias b. By default zeros.
    - `key`: a key of `jax.random`, to draw the bias from N(0, 0.02²).
    - `kwargs`: the arguments of the factory.

    **Raises:** `ValueError` if τ, the shape or the bias is not as above, or if the Lagrangian acts
    along an axis that the shape doesn't have; every method, if a state doesn't end in the shape.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> layer = hl.Layer(hl.LExp(beta=5.0), 3, tau=2.0)
    >>> layer
    Layer(lagrangian=LExp(beta=5.0), shape=(3,), tau=2.0, bias=None, name=None)
    >>> print(layer.energy(jnp.zeros((4, 3))))
    [-0.6 -0.6 -0.6 -0.6]

    ```
    """

    lagrangian: AbstractLagrangian
    shape: tuple[int, ...] = eqx.field(static=True)
    tau: Array
    bias: Array | None
    name: str | None = eqx.field(static=True)

    def __init__(
        self,
        lagrangian: Any,
        shape: Any,
        tau: ArrayLike = 1.0,
        use_bias: bool = False,
        init_lagrangian: bool = False,
        name: str | None = None,
        *,
        bias: ArrayLike | None = None,
        key: PRNGKeyArray | None = None,
        **kwargs: Any,
    ):
        if init_lagrangian:
            lagrangian = lagrangian(**kwargs)
        elif kwargs:
            raise TypeError(f"Only a Lagrangian's factory takes {sorted(kwargs)}.")
        self.lagrangian = as_lagrangian(lagrangian)
        self.shape = as_shape(shape)
        self.tau = as_float(tau)
        if bias is not None:
            self.bias = as_float(bias)
        elif use_bias and key is not None:
            self.bias = 0.02 * jr.normal(key, self.shape)
        else:
            self.bias = jnp.zeros(self.shape) if use_bias else None
        self.name = name

    def __check_init__(self):
        check_range(self, "tau", self.tau, above=0.0)
        jax.eval_shape(lambda tau: spread("tau", tau, self.shape), self.tau)
        if self.bias is not None:
            check_range(self, "bias", self.bias)
            if self.bias.shape != self.shape:
                raise ValueError(f"Expected a bias of shape {self.shape}, got {self.bias.shape}.")
        # Whatever the Lagrangian has to say against the shape, it says now.
        jax.eval_shape(self.energy_bound)

    @property
    def use_bias(self) -> bool:
        """Whether there is a bias."""
        return self.bias is not None

    def energy(self, x: ArrayLike) -> Array:
        """E = Σ z·g − L(z), of the shape of the batch axes."""
        return self._per_sample(self.lagrangian.energy, x)

    def __call__(self, x: ArrayLike) -> Array:
        """[`hopfield_layers.Layer.energy`][]."""
        return self.energy(x)

    def activation(self, x: ArrayLike) -> Array:
        """g = ∂L/∂z, of the shape of x."""
        return self._per_sample(self.lagrangian.activation, x)

    def g(self, x: ArrayLike) -> Array:
        """[`hopfield_layers.Layer.activation`][]."""
        return self.activation(x)

    def activations(self, x: ArrayLike) -> Array:
        """[`hopfield_layers.Layer.activation`][], by its name in any model."""
        return self.activation(x)

    def dEdg(self, x: ArrayLike) -> Array:
        """∂E/∂g = z = x − b, of the shape of x."""
        x = as_state(x, self.shape)
        return self._shifted(x).astype(x.dtype)

    def energy_bound(self) -> Array:
        """−L(0), the least energy, attained at x = b."""
        return 0 - self.lagrangian(jnp.zeros(self.shape))  # and not −0

    def init_state(self, bs: int | None = None, rng: PRNGKeyArray | None = None) -> Array:
        """Zeros, or standard normal with a key, of shape `(bs, *shape)`, without `bs` `shape`."""
        shape = self.shape if bs is None else as_shape(bs) + self.shape
        return jnp.zeros(shape) if rng is None else jr.normal(rng, shape)

    def _shifted(self, x: Array) -> Array:
        z = widened(x)
        return z if self.bias is None else z - self.bias.astype(z.dtype)

    def _per_sample(self, fn: Callable[[Array], Array], x: ArrayLike) -> Array:
        x = as_state(x, self.shape)
        for _ in range(x.ndim - len(self.shape)):
            fn = jax.vmap(fn)
        return fn(self._shifted(x)).astype(x.dtype)

    def __repr__(self) -> str:
        return pformat(self)


_LAYER_ARGUMENTS = """**Arguments of the layer:**

- `shape`: the shape of the state, a tuple of sizes or one size.
- `tau`: the time constant τ > 0, in the units of t.
- `use_bias`: whether there is a bias b; then x − b stands for x above.
- `name`: a name for the layer, of no effect.
- `bias`: the bias b. By default zeros.
- `key`: a key of `jax.random`, to draw the bias from N(0, 0.02²).

**Returns:**

A [`hopfield_layers.Layer`][]."""


def make_layer(
    lagrangian_factory: Callable[..., Any], name: str | None = None
) -> Callable[..., Layer]:
    """Makes a constructor of layers from a Lagrangian's.

    Its signature and documentation show the parameters of the layer and of the Lagrangian.

    **Arguments:**

    - `lagrangian_factory`: a Lagrangian's class, or a function that returns a Lagrangian.
    - `name`: the name of the constructor. By default that of the factory, without a leading `L`,
        followed by `Layer`.

    **Returns:**

    A function `(shape, tau=1.0, use_bias=False, name=None, *, <the factory's parameters>,
    bias=None, key=None)` that returns a [`hopfield_layers.Layer`][].

    **Raises:** `ValueError` if a parameter of the factory has the name of one of the layer's, or
    can't be given by name; `TypeError` for a Lagrangian instead of its constructor.

    ```python
    >>> import inspect
    >>> import hopfield_layers as hl
    >>> TanhLayer = hl.make_layer(hl.LTanh)
    >>> TanhLayer(3, beta=2.0)
    Layer(lagrangian=LTanh(beta=2.0), shape=(3,), tau=1.0, bias=None, name=None)
    >>> list(inspect.signature(TanhLayer).parameters)
    ['shape', 'tau', 'use_bias', 'name', 'beta', 'min_beta', 'bias', 'key']

    ```
    """

    def constructor(shape, tau=1.0, use_bias=False, name=None, *, bias=None, key=None, **kwargs):
        return Layer(
            lagrangian_factory, shape, tau, use_bias, True, name, bias=bias, key=key, **kwargs
        )

    layer_parameters = list(inspect.signature(constructor).parameters.values())[:-1]
    if isinstance(lagrangian_factory, AbstractLagrangian):
        raise TypeError(f"Expected a Lagrangian's constructor, got {lagrangian_factory!r}.")
    parameters = list(inspect.signature(lagrangian_factory).parameters.values())
    nameless = [p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY)]
    if nameless:
        raise ValueError(f"{lagrangian_factory} can't be given {nameless} by name.")
    parameters = [
        p.replace(kind=p.KEYWORD_ONLY, annotation=p.empty if p.annotation is Any else p.annotation)
        for p in parameters
        if p.kind is not p.VAR_KEYWORD
    ]
    taken = {p.name for p in layer_parameters} & {p.name for p in parameters}
    if taken:
        raise ValueError(
            f"{lagrangian_factory} has parameters of the layer's names: {sorted(taken)}."
        )

    lagrangian_name = getattr(lagrangian_factory, "__name__", repr(lagrangian_factory))
    constructor.__name__ = name or lagrangian_name.removeprefix("L") + "Layer"
    constructor.__qualname__ = constructor.__name__
    constructor.__module__ = getattr(lagrangian_factory, "__module__", __name__)
    constructor.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [*layer_parameters[:4], *parameters, *layer_parameters[4:]], return_annotation=Layer
    )
    about, _, _ = (inspect.getdoc(lagrangian_factory) or "").partition("```python")
    constructor.__doc__ = f"A layer of `{lagrangian_name}`: {about.strip()}\n\n{_LAYER_ARGUMENTS}\n"
    return constructor


MakeLayer = make_layer


def _documented(lagrangian: type[AbstractLagrangian]) -> Callable[..., Layer]:
    """The constructor of layers of one of the library's own Lagrangians."""
    constructor = make_layer(lagrangian)
    constructor.__module__ = __name__
    constructor.__doc__ = f"""{constructor.__doc__}
```python
>>> import hopfield_layers as hl
>>> print(hl.{constructor.__name__}((2, 3), tau=0.5).init_state(bs=4).shape)
(4, 2, 3)

```
"""
    return constructor


IdentityLayer = _documented(LIdentity)
RepuLayer = _documented(LRepu)
ReluLayer = _documented(LRelu)
PowerLayer = _documented(LPower)
ExpLayer = _documented(LExp)
RexpLayer = _documented(LRexp)
CoshLayer = _documented(LCosh)
TanhLayer = _documented(LTanh)
SigmoidLayer = _documented(LSigmoid)
SoftmaxLayer = _documented(LSoftmax)
GhostmaxLayer = _documented(LGhostmax)
SparsemaxLayer = _documented(LSparsemax)
EntmaxLayer = _documented(LEntmax)
LayerNormLayer = _documented(LLayerNorm)
SphericalNormLayer = _documented(LSphericalNorm)
