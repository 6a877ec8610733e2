"""Lagrangians with an exponential of each unit: LExp, LRexp, LCosh, LTanh, LSigmoid."""

import equinox as eqx
from jaxtyping import Array

from .._conversion import as_float
from .._numerics import elementary, saturation
from .._numerics.elementary import magnitude, positive_part, scaled_exp
from .base import AbstractElementwise, FLOOR, POSITIVE


class _AbstractExponential(AbstractElementwise):
    """An elementwise Lagrangian with β as its only parameter."""

    beta: Array = eqx.field(default=1.0, converter=as_float, metadata=POSITIVE)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True, metadata=FLOOR)


class LExp(_AbstractExponential):
    """L = Σ exp(βx)/β, g = exp(βx), E = Σ (x − 1/β) exp(βx) ≥ −N/β for N units.

    These units give a dense associative memory exponential capacity. g overflows at βx = 88.7 in
    float32, and at 709 in float64. Source: Demircigil et al., "On a model of associative memory
    with huge storage capacity" (2017), arXiv:1702.01929.

    **Arguments:**

    - `beta`: the inverse temperature β > 0, in units of 1/x.
    - `min_beta`: a smaller β is replaced by this.

    **Raises:** `ValueError` if β ≤ 0.

    Examples:
        >>> print(hl.LExp(beta=2.0).energy(0.0))
        -0.5
    """

    def _value_terms(self, z):
        return scaled_exp(1 / self.beta, self.beta * z)

    def _activation_formula(self, z):
        return elementary.exp(self.beta, z)

    def _energy_terms(self, z):
        return scaled_exp(z - 1 / self.beta, self.beta * z)


class LRexp(_AbstractExponential):
    """L = Σ (exp(βx₊)/β − x₊), g = exp(βx₊) − 1, E = Σ (x₊ − 1/β) exp(βx₊) ≥ −N/β for N units.

    Rectified exponential units: as in [`hopfield_layers.LExp`][], with g = 0 for x ≤ 0.

    **Arguments:**

    - `beta`: the inverse temperature β > 0, in units of 1/x.
    - `min_beta`: a smaller β is replaced by this.

    **Raises:** `ValueError` if β ≤ 0.

    Examples:
        >>> print(hl.LRexp(beta=2.0).energy(-1.0))
        -0.5
    """

    def _value_terms(self, z):
        z = positive_part(z)
        return scaled_exp(1 / self.beta, self.beta * z) - z

    def _activation_formula(self, z):
        return elementary.expm1(self.beta, positive_part(z))

    def _energy_terms(self, z):
        z = positive_part(z)
        return scaled_exp(z - 1 / self.beta, self.beta * z)


class LCosh(_AbstractExponential):
    """L = Σ cosh(βx)/β, g = sinh(βx), E = Σ (g asinh g − √(1 + g²))/β ≥ −N/β for N units.

    **Arguments:**

    - `beta`: the inverse temperature β > 0, in units of 1/x.
    - `min_beta`: a smaller β is replaced by this.

    **Raises:** `ValueError` if β ≤ 0.

    Examples:
        >>> print(hl.LCosh(beta=2.0).energy(0.0))
        -0.5
    """

    def _value_terms(self, z):
        scale = 1 / (2 * self.beta)
        return scaled_exp(scale, self.beta * z) + scaled_exp(scale, -self.beta * z)

    def _activation_formula(self, z):
        return elementary.sinh(self.beta, z)

    def _energy_terms(self, z):
        # With |z| in place of z only the first term can overflow.
        z, inverse, beta = magnitude(z), 1 / self.beta, self.beta
        return scaled_exp((z - inverse) / 2, beta * z) - scaled_exp((z + inverse) / 2, -beta * z)


class LTanh(_AbstractExponential):
    """L = Σ ln cosh(βx)/β, g = tanh(βx), E = Σ [(1+g) ln(1+g) + (1−g) ln(1−g)]/2β.

    The energy of N units lies between 0, at x = 0, and N ln 2/β. Source: Hopfield, "Neurons with
    graded response have collective computational properties like those of two-state neurons" (PNAS
    81, 1984).

    **Arguments:**

    - `beta`: the inverse temperature β > 0, in units of 1/x.
    - `min_beta`: a smaller β is replaced by this.

    **Raises:** `ValueError` if β ≤ 0.

    Examples:
        >>> print(hl.LTanh().energy(1e30))
        0.6931472
    """

    def _value_terms(self, z):
        return saturation.log_cosh(self.beta, z)

    def _activation_formula(self, z):
        return elementary.tanh(self.beta, z)

    def _energy_terms(self, z):
        return saturation.log_cosh_conjugate(self.beta, z)


class LSigmoid(AbstractElementwise):
    """L = s Σ ln(1 + exp(βx))/β, g = s/(1 + exp(−βx)), E = s Σ [p ln p + (1−p) ln(1−p)]/β.

    Here p = g/s. The energy of N units lies between −s N ln 2/β, at x = 0, and 0.

    **Arguments:**

    - `beta`: the inverse temperature β > 0, in units of 1/x.
    - `scale`: the largest activation s > 0. If training drives it below 1e-30, 1e-30 is used.
    - `min_beta`: a smaller β is replaced by this.

    **Raises:** `ValueError` if β ≤ 0 or s ≤ 0.

    Examples:
        >>> print(hl.LSigmoid(scale=3.0).activation(1e30))
        3.0
    """

    beta: Array = eqx.field(default=1.0, converter=as_float, metadata=POSITIVE)
    scale: Array = eqx.field(default=1.0, converter=as_float, metadata=POSITIVE)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True, metadata=FLOOR)

    def _value_terms(self, z):
        return saturation.softplus(self.scale, self.beta, z)

    def _activation_formula(self, z):
        return elementary.sigmoid(self.scale, self.beta, z)

    def _energy_terms(self, z):
        return saturation.softplus_conjugate(self.scale, self.beta, z)
