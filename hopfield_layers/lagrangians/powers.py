"""Lagrangians whose activation is a power of each unit: LIdentity, LRelu, LRepu, LPower."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._conversion import as_float
from .._numerics.elementary import magnitude, positive_part, power, scaled_power
from .base import ABOVE_1, AbstractElementwise


class LIdentity(AbstractElementwise):
    """L = ½ Σ x², g = x, E = ½ Σ x² ≥ 0: linear units.

    Examples:
        >>> print(hl.LIdentity().energy(2.0))
        2.0
    """

    def _value_terms(self, z):
        return z / 2 * z

    def _activation_formula(self, z):
        return z

    _energy_terms = _value_terms


class LRepu(AbstractElementwise):
    """L = Σ x₊ⁿ/n, g = x₊ⁿ⁻¹, E = (1 − 1/n) Σ x₊ⁿ ≥ 0: rectified power units.

    A unit with x ≤ 0 is dead: its activation and its derivative are 0. Source: Krotov &
    Hopfield, "Dense associative memory for pattern recognition" (NeurIPS 2016).

    **Arguments:**

    - `n`: the power, greater than 1. 2 gives [`hopfield_layers.LRelu`][]. If training drives it to
        1 or below, 1 + 1e-6 is used.

    **Raises:** `ValueError` if n ≤ 1.

    Examples:
        >>> print(hl.LRepu(n=3.0).activation(2.0))
        4.0
    """

    n: Array = eqx.field(default=2.0, converter=as_float, metadata=ABOVE_1)

    def _value_terms(self, z):
        return scaled_power(1 / self.n, positive_part(z), self.n)

    def _activation_formula(self, z):
        return power(positive_part(z), self.n - 1)

    def _energy_terms(self, z):
        return scaled_power((self.n - 1) / self.n, positive_part(z), self.n)


class LRelu(AbstractElementwise):
    """L = ½ Σ x₊², g = x₊, E = ½ Σ x₊² ≥ 0: rectified linear units.

    This is [`hopfield_layers.LRepu`][] with n = 2.

    Examples:
        >>> print(hl.LRelu().activation(-1.0))
        0.0
    """

    def _value_terms(self, z):
        z = positive_part(z)
        return z / 2 * z

    def _activation_formula(self, z):
        return positive_part(z)

    _energy_terms = _value_terms


class LPower(AbstractElementwise):
    """L = Σ |x|ᵖ/p, g = sgn(x)|x|ᵖ⁻¹, E = (1 − 1/p) Σ |x|ᵖ = Σ |g|^q/q ≥ 0 with 1/p + 1/q = 1.

    For p < 2 the Hessian is infinite at x = 0. It is taken as 0 there: under the state flow a unit
    that is exactly at 0 stays there.

    **Arguments:**

    - `p`: the power, greater than 1. 2 gives [`hopfield_layers.LIdentity`][]. If training drives it
        to 1 or below, 1 + 1e-6 is used.

    **Raises:** `ValueError` if p ≤ 1.

    Examples:
        >>> print(hl.LPower(p=3.0).activation(-2.0))
        -4.0
    """

    p: Array = eqx.field(default=2.0, converter=as_float, metadata=ABOVE_1)

    def _value_terms(self, z):
        return scaled_power(1 / self.p, magnitude(z), self.p)

    def _activation_formula(self, z):
        g = power(magnitude(z), self.p - 1)
        return jnp.where(z < 0, -g, g)

    def _energy_terms(self, z):
        return scaled_power((self.p - 1) / self.p, magnitude(z), self.p)
