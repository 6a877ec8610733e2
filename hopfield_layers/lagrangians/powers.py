"""Lagrangians whose activation is a power of each unit."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._arrays import as_float
from .base import AbstractElementwise, cast
from .special import magnitude, power


# An exponent that must stay above 1 acts as this where training drives it below.
_SMALLEST_EXPONENT = 1 + 1e-6


def _scaled_power(scale: Array, a: Array, n: Array) -> Array:
    """scale·aⁿ for a ≥ 0, infinite only where the product is."""
    half = power(a, n / 2)
    return half * scale * half


class LIdentity(AbstractElementwise):
    """L = ½ Σ x², g = x, E = ½ Σ x² ≥ 0: linear units.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LIdentity().energy(jnp.array([1.0, 2.0])))
    2.5

    ```
    """

    def _value(self, z):
        return z / 2 * z

    def _activation(self, z):
        return z

    def _energy(self, z):
        return z / 2 * z


class LRepu(AbstractElementwise):
    """L = Σ x₊ⁿ/n, g = x₊ⁿ⁻¹, E = (1 − 1/n) Σ x₊ⁿ ≥ 0: rectified power units.

    A unit with x ≤ 0 is dead: it has no activation, and no derivative either.

    **Arguments:**

    - `n`: the power, greater than 1. 2 gives [`hopfield_layers.LRelu`][].

    **Raises:** `ValueError` if n ≤ 1. Driven there by training, it acts as 1 + 1e-6.

    Source: Krotov & Hopfield, "Dense associative memory for pattern recognition" (NeurIPS 2016).

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LRepu(n=3.0).activation(jnp.array([-1.0, 2.0])))
    [0. 4.]

    ```
    """

    n: Array = eqx.field(default=2.0, converter=as_float)

    def _value(self, z):
        n = cast(self.n, z, _SMALLEST_EXPONENT)
        return _scaled_power(1 / n, jnp.where(z <= 0, 0, z), n)

    def _activation(self, z):
        return power(jnp.where(z <= 0, 0, z), cast(self.n, z, _SMALLEST_EXPONENT) - 1)

    def _energy(self, z):
        n = cast(self.n, z, _SMALLEST_EXPONENT)
        return _scaled_power((n - 1) / n, jnp.where(z <= 0, 0, z), n)


class LRelu(AbstractElementwise):
    """L = ½ Σ x₊², g = x₊, E = ½ Σ x₊² ≥ 0: rectified linear units.

    [`hopfield_layers.LRepu`][] at n = 2.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LRelu().activation(jnp.array([-1.0, 2.0])))
    [0. 2.]

    ```
    """

    def _value(self, z):
        z = jnp.where(z <= 0, 0, z)
        return z / 2 * z

    def _activation(self, z):
        return jnp.where(z <= 0, 0, z)

    def _energy(self, z):
        return self._value(z)


class LPower(AbstractElementwise):
    """L = Σ |x|ᵖ/p, g = sgn(x)|x|ᵖ⁻¹, E = (1 − 1/p) Σ |x|ᵖ = Σ |g|^q/q ≥ 0 with 1/p + 1/q = 1.

    For p < 2 the Hessian is infinite at x = 0. It is taken as 0 there: under the state flow a unit
    that is exactly at 0 stays.

    **Arguments:**

    - `p`: the power, greater than 1. 2 gives [`hopfield_layers.LIdentity`][].

    **Raises:** `ValueError` if p ≤ 1. Driven there by training, it acts as 1 + 1e-6.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LPower(p=3.0).activation(jnp.array([-1.0, 2.0])))
    [-1.  4.]

    ```
    """

    p: Array = eqx.field(default=2.0, converter=as_float)

    def _value(self, z):
        p = cast(self.p, z, _SMALLEST_EXPONENT)
        return _scaled_power(1 / p, magnitude(z), p)

    def _activation(self, z):
        g = power(magnitude(z), cast(self.p, z, _SMALLEST_EXPONENT) - 1)
        return jnp.where(z < 0, -g, g)

    def _energy(self, z):
        p = cast(self.p, z, _SMALLEST_EXPONENT)
        return _scaled_power((p - 1) / p, magnitude(z), p)
