"""Lagrangians whose activation saturates for each unit alone."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._arrays import as_float, SMALLEST
from .base import AbstractElementwise, cast
from .special import (
    floored_exponent,
    log1p_ratio,
    log_cosh,
    log_cosh_conjugate,
    magnitude,
    scaled_exp,
    sigmoid,
    tanh,
)


class LTanh(AbstractElementwise):
    """L = Σ ln cosh(βx)/β, g = tanh(βx), E = Σ [(1+g) ln(1+g) + (1−g) ln(1−g)]/2β.

    The energy of N units lies between 0, at x = 0, and N ln 2/β.

    **Arguments:**

    - `beta`: the inverse temperature β, in units of 1/x.
    - `min_beta`: β below this acts as this.

    Source: Hopfield, "Neurons with graded response have collective computational properties like
    those of two-state neurons" (PNAS 81, 1984).

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LTanh().energy(jnp.array([1e30, 0.0])))
    0.6931472

    ```
    """

    beta: Array = eqx.field(default=1.0, converter=as_float)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True)

    def _value(self, z):
        return log_cosh(cast(self.beta, z, self.min_beta), z)

    def _activation(self, z):
        return tanh(cast(self.beta, z, self.min_beta), z)

    def _energy(self, z):
        return log_cosh_conjugate(cast(self.beta, z, self.min_beta), z)


class LSigmoid(AbstractElementwise):
    """L = s Σ ln(1 + exp(βx))/β, g = s/(1 + exp(−βx)), E = s Σ [p ln p + (1−p) ln(1−p)]/β.

    Here p = g/s. The energy of N units lies between −s N ln 2/β, at x = 0, and 0.

    **Arguments:**

    - `beta`: the inverse temperature β, in units of 1/x.
    - `scale`: the largest activation s.
    - `min_beta`: β below this acts as this.

    **Raises:** `ValueError` if s ≤ 0. Driven there by training, it acts as 1e-30.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LSigmoid(scale=3.0).activation(jnp.array([-1e30, 0.0, 1e30])))
    [0.  1.5 3. ]

    ```
    """

    beta: Array = eqx.field(default=1.0, converter=as_float)
    scale: Array = eqx.field(default=1.0, converter=as_float)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True)

    def _parts(self, z: Array) -> tuple[Array, Array, Array, Array]:
        """β, s, −|βz| and exp(−|βz|)."""
        beta, scale = cast(self.beta, z, self.min_beta), cast(self.scale, z, SMALLEST)
        t = floored_exponent(-magnitude(beta * z))
        return beta, scale, t, jnp.exp(t)

    def _value(self, z):
        beta, scale, t, q = self._parts(z)
        return scale * jnp.where(z < 0, 0, z) + scaled_exp(scale * log1p_ratio(q) / beta, t)

    def _activation(self, z):
        beta, scale = cast(self.beta, z, self.min_beta), cast(self.scale, z, SMALLEST)
        return sigmoid(scale, beta, z)

    def _energy(self, z):
        # An even function of x, and all its terms have one sign.
        beta, scale, t, q = self._parts(z)
        return scaled_exp(scale * (t / (1 + q) - log1p_ratio(q)) / beta, t)
