"""Lagrangians whose activation grows exponentially with each unit."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._arrays import as_float
from .base import AbstractElementwise, cast
from .special import exp, expm1, magnitude, scaled_exp, sinh


class LExp(AbstractElementwise):
    """L = Σ exp(βx)/β, g = exp(βx), E = Σ (x − 1/β) exp(βx) ≥ −N/β for N units.

    The units of a dense associative memory with exponential capacity. In float32 g overflows at
    βx = 88.7, in float64 at 709.

    **Arguments:**

    - `beta`: the inverse temperature β, in units of 1/x.
    - `min_beta`: β below this acts as this.

    Source: Demircigil et al., "On a model of associative memory with huge storage capacity"
    (2017), arXiv:1702.01929.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LExp(beta=2.0).energy(jnp.zeros(4)))
    -2.0

    ```
    """

    beta: Array = eqx.field(default=1.0, converter=as_float)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True)

    def _value(self, z):
        beta = cast(self.beta, z, self.min_beta)
        return scaled_exp(1 / beta, beta * z)

    def _activation(self, z):
        return exp(cast(self.beta, z, self.min_beta), z)

    def _energy(self, z):
        beta = cast(self.beta, z, self.min_beta)
        return scaled_exp(z - 1 / beta, beta * z)


class LRexp(AbstractElementwise):
    """L = Σ (exp(βx₊)/β − x₊), g = exp(βx₊) − 1, E = Σ (x₊ − 1/β) exp(βx₊) ≥ −N/β for N units.

    Rectified exponential units: as in [`hopfield_layers.LExp`][], but dead at x ≤ 0.

    **Arguments:**

    - `beta`: the inverse temperature β, in units of 1/x.
    - `min_beta`: β below this acts as this.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LRexp(beta=2.0).energy(jnp.zeros(4)))
    -2.0

    ```
    """

    beta: Array = eqx.field(default=1.0, converter=as_float)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True)

    def _value(self, z):
        beta = cast(self.beta, z, self.min_beta)
        z = jnp.where(z <= 0, 0, z)
        return scaled_exp(1 / beta, beta * z) - z

    def _activation(self, z):
        return expm1(cast(self.beta, z, self.min_beta), jnp.where(z <= 0, 0, z))

    def _energy(self, z):
        beta = cast(self.beta, z, self.min_beta)
        z = jnp.where(z <= 0, 0, z)
        return scaled_exp(z - 1 / beta, beta * z)


class LCosh(AbstractElementwise):
    """L = Σ cosh(βx)/β, g = sinh(βx), E = Σ (g asinh g − √(1 + g²))/β ≥ −N/β for N units.

    **Arguments:**

    - `beta`: the inverse temperature β, in units of 1/x.
    - `min_beta`: β below this acts as this.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LCosh(beta=2.0).energy(jnp.zeros(4)))
    -2.0

    ```
    """

    beta: Array = eqx.field(default=1.0, converter=as_float)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True)

    def _value(self, z):
        beta = cast(self.beta, z, self.min_beta)
        t = beta * z
        return scaled_exp(1 / (2 * beta), t) + scaled_exp(1 / (2 * beta), -t)

    def _activation(self, z):
        return sinh(cast(self.beta, z, self.min_beta), z)

    def _energy(self, z):
        # t sinh t − cosh t = ½(t − 1)eᵗ − ½(t + 1)e⁻ᵗ with t = |βx|: only one term can overflow.
        beta = cast(self.beta, z, self.min_beta)
        z = magnitude(z)
        growing = scaled_exp((z - 1 / beta) / 2, beta * z)
        return growing - scaled_exp((z + 1 / beta) / 2, -beta * z)
