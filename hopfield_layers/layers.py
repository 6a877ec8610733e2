"""Neuron layers: a Lagrangian with a shape, a time constant and a bias."""

from collections.abc import Callable
from typing import Any, cast, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from ._conversion import (
    as_float,
    as_shape,
    as_state,
    broadcast,
    check_last_axes,
    check_range,
    over_samples,
    ShapeLike,
    widened,
)
from .lagrangians import AbstractLagrangian, as_lagrangian
from .lagrangians.base import pformat, pure
from .model import AbstractEnergyModel


class Layer(AbstractEnergyModel):
    """Neurons of one kind: z = x − b, g = ∂L/∂z, E = Σ z·g − L(z) ≥ −L(0), ∂E/∂g = z.

    Every method takes a state of shape `(*batch, *shape)` with any number of batch axes, and keeps
    its dtype. The bias b moves the state at which the layer rests, but not the activation there: at
    rest z = x − b is determined by inputs and synapses alone. For a trainable threshold, which
    moves the activation, use a [`hopfield_layers.BiasSynapse`][].

    Methods of a layer are not hashable, so `jax.jit(layer.energy)` fails: write
    `equinox.filter_jit(layer.energy)`, or `jax.jit(lambda layer, x: layer.energy(x))`.

    **Arguments:**

    - `lagrangian`: a [`hopfield_layers.AbstractLagrangian`][] or a plain convex callable.
    - `init_lagrangian`: whether `lagrangian` is instead a factory, called with `kwargs`.
    - `shape`: the shape of the state, a tuple of sizes or one size.
    - `tau`: the time constant τ > 0, in the units of t; or one per unit.
    - `use_bias`: whether there is a bias b, of the layer's shape.
    - `name`: a name for the layer, which has no effect.
    - `bias`: the bias b. By default zeros.
    - `key`: a key of `jax.random`, to draw the bias from N(0, 0.02²).

    **Raises:** `ValueError` if τ, the shape or the bias is not as above, or if the Lagrangian acts
    along an axis that the shape doesn't have; every method, if a state doesn't end in the shape.

    Examples:
        >>> layer = hl.Layer(hl.LExp(beta=5.0), 3, tau=2.0)
        >>> layer
        Layer(lagrangian=LExp(beta=5.0), shape=(3,), tau=2.0, bias=None, name=None)
        >>> print(layer.energy(jnp.zeros((4, 3))))
        [-0.6 -0.6 -0.6 -0.6]
    """

    lagrangian: AbstractLagrangian
    shape: tuple[int, ...] = eqx.field(static=True)
    tau: Array
    bias: Array | None
    name: str | None = eqx.field(static=True)

    def __init__(
        self,
        lagrangian: AbstractLagrangian | Callable[..., Any],
        shape: ShapeLike,
        tau: Shaped[ArrayLike, "..."] = 1.0,
        use_bias: bool = False,
        init_lagrangian: bool = False,
        name: str | None = None,
        *,
        bias: Shaped[ArrayLike, "..."] | None = None,
        key: PRNGKeyArray | None = None,
        **kwargs: object,
    ):
        if init_lagrangian:
            lagrangian = cast(Callable[..., Any], lagrangian)(**kwargs)
        elif kwargs:
            raise TypeError(f"Only a Lagrangian's factory takes {sorted(kwargs)}.")
        self.lagrangian = as_lagrangian(lagrangian)
        self.shape = as_shape(shape)
        self.tau = as_float(tau)
        if bias is not None:
            self.bias = as_float(bias)
        elif use_bias:
            self.bias = jnp.zeros(self.shape) if key is None else 0.02 * jr.normal(key, self.shape)
        else:
            self.bias = None
        self.name = name

    def __check_init__(self):
        check_range(self, "tau", self.tau, above=0.0)
        jax.eval_shape(lambda tau: broadcast("tau", tau, self.shape), self.tau)
        if self.bias is not None:
            check_range(self, "bias", self.bias)
            if self.bias.shape != self.shape:
                raise ValueError(f"Expected a bias of shape {self.shape}, got {self.bias.shape}.")
        # Trace once, so that the Lagrangian's errors about the shape surface at construction.
        jax.eval_shape(self.energy_bound)

    @property
    def use_bias(self) -> bool:
        """Whether there is a bias."""
        return self.bias is not None

    def energy(self, x: Shaped[ArrayLike, "..."]) -> Float[Array, "*batch"]:
        """E = Σ z·g − L(z), of the shape of the batch axes."""
        return self._over_samples(self._energy, x)

    def activation(self, x: Shaped[ArrayLike, "*state"]) -> Float[Array, "*state"]:
        """g = ∂L/∂z, of the shape of x."""
        return self._over_samples(self._activation, x)

    def dEdg(self, x: Shaped[ArrayLike, "*state"]) -> Float[Array, "*state"]:
        """∂E/∂g = z = x − b, of the shape of x."""
        return self._over_samples(self._drive, x)

    activations = activation  # the name that every model has
    # `g`, like `init_lagrangian` above and `MakeLayer`, is a name of HAMUX 0.1.
    g = activation
    __call__ = energy

    def energy_bound(self) -> Float[Array, ""]:
        """−L(0), the least energy, attained at x = b."""
        return 0 - self.lagrangian(jnp.zeros(self.shape))  # −L would be −0 where L is 0

    def synaptic_slopes(self, g: Float[Array, "*state"]) -> Float[Array, "*state"]:
        """0, as a layer by itself has no synapses."""
        return jnp.zeros_like(g)

    def coupled(self, held: Bool[ArrayLike, "*state"]) -> Bool[Array, "*state"]:
        """The units whose activation depends on a unit of `held`, including `held` itself."""
        held, ndim = jnp.asarray(held), len(self.shape)
        check_last_axes(held.shape, self.shape, "a mask")
        axes = [axis - ndim for axis in self.lagrangian.coupled_axes(ndim)]
        return jnp.broadcast_to(jnp.any(held, axis=axes, keepdims=True), held.shape)

    def init_state(
        self, bs: SupportsIndex | None = None, rng: PRNGKeyArray | None = None
    ) -> Float[Array, "..."]:
        """Zeros, or standard normal with a key: `(bs, *shape)`, or `shape` without `bs`."""
        if isinstance(bs, Array) and (bs.ndim > 0 or jnp.issubdtype(bs.dtype, jax.dtypes.prng_key)):
            got = f"{bs.dtype}{list(bs.shape)}"
            raise ValueError(f"Expected a number of samples, got {got}: pass a key as rng=key.")
        shape = self.shape if bs is None else as_shape(bs) + self.shape
        return jnp.zeros(shape) if rng is None else jr.normal(rng, shape)

    # The formulas of one sample in float32 or wider, which a network calls too.

    def _energy(self, x: Float[Array, "*shape"]) -> Float[Array, ""]:
        return pure(self.lagrangian).energy(self._drive(x))

    def _activation(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return pure(self.lagrangian).activation(self._drive(x))

    def _drive(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return x if self.bias is None else x - self.bias.astype(x.dtype)

    def _over_samples(self, formula: Callable[[Array], Array], x: ArrayLike) -> Array:
        x = as_state(x, self.shape)
        return over_samples(formula, widened(x), x.ndim - len(self.shape)).astype(x.dtype)

    def __repr__(self) -> str:
        return pformat(self)
