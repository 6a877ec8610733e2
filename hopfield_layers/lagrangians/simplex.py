"""Lagrangians of rows on the simplex: LSoftmax, LGhostmax, LSparsemax, LEntmax."""

import operator

import equinox as eqx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from .._conversion import as_float
from .._numerics.elementary import sum_in_range
from .._numerics.entmax import entmax, entmax_energy, entmax_value
from .._numerics.softmax import log_sum_exp, negative_entropy, softmax
from .base import ABOVE_1, AbstractRowwise, FLOOR, POSITIVE


_ALPHA = {**ABOVE_1, "ceiling": 4.0}


class _AbstractSimplex(AbstractRowwise):
    """A Lagrangian of rows with β as its only numeric parameter."""

    beta: Array = eqx.field(default=1.0, converter=as_float, metadata=POSITIVE)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True, metadata=FLOOR)


class LSoftmax(_AbstractSimplex):
    """L = Σ_rows ln Σᵢ exp(βxᵢ)/β, g = softmax(βx), E = Σ g ln g/β, from −ln D/β per row to 0.

    The rows run along `axis` and have D units. The state flow of a layer conserves Σx of each row.
    Source: Ramsauer et al., "Hopfield networks is all you need" (ICLR 2021), arXiv:2008.02217.

    **Arguments:**

    - `beta`: the inverse temperature β > 0, in units of 1/x.
    - `axis`: the axis along which the activations sum to 1.
    - `min_beta`: a smaller β is replaced by this.

    **Raises:** `ValueError` if β ≤ 0, and for a row without units.

    Examples:
        >>> print(hl.LSoftmax().energy(jnp.array([1e6, 1e6])))
        -0.6931472
    """

    def _value_terms(self, z):
        return sum_in_range(log_sum_exp(z, self.beta, self.axis, False))

    def _activation_formula(self, z):
        return softmax(z, self.beta, self.axis, False)[0]

    def _energy_terms(self, z):
        return sum_in_range(negative_entropy(z, self.beta, self.axis, False))


class LGhostmax(_AbstractSimplex):
    """L = Σ_rows ln(1 + Σᵢ exp(βxᵢ))/β, g = exp(βx)/(1 + Σᵢ exp(βxᵢ)), E ≥ −ln(D + 1)/β per row.

    With g₀ = 1 − Σg, E = (Σ g ln g + g₀ ln g₀)/β ≤ 0. This is a softmax with one more unit at 0,
    the ghost, so that the others may sum to less than 1. Its Hessian is positive definite, and Σx
    is not conserved. Source: Miller, "Attention is off by one" (2023).

    **Arguments:**

    - `beta`: the inverse temperature β > 0, in units of 1/x.
    - `axis`: the axis along which the activations sum to at most 1.
    - `min_beta`: a smaller β is replaced by this.

    **Raises:** `ValueError` if β ≤ 0.

    Examples:
        >>> print(hl.LGhostmax().activation(jnp.zeros(3)))
        [0.25 0.25 0.25]
    """

    def _value_terms(self, z):
        return sum_in_range(log_sum_exp(z, self.beta, self.axis, True))

    def _activation_formula(self, z):
        return softmax(z, self.beta, self.axis, True)[0]

    def _energy_terms(self, z):
        return sum_in_range(negative_entropy(z, self.beta, self.axis, True))


class LSparsemax(_AbstractSimplex):
    """L = Σ_rows max p·x − (‖p‖² − 1)/2β, g = the maximizer p, E = Σ_rows (‖g‖² − 1)/2β.

    p runs over the simplex: g is the Euclidean projection of βx onto it, so that small entries are
    exactly 0, and an entry that exceeds all others by 1/β is exactly 1. The rows run along `axis`
    and have D units; the energy lies between (1/D − 1)/2β per row and 0. L includes the constant
    1/2β per row of the Tsallis entropy, so that this is [`hopfield_layers.LEntmax`][] at α = 2;
    without this constant L would be smaller and E larger by it. Source: Martins & Astudillo, "From
    softmax to sparsemax" (ICML 2016), arXiv:1602.02068.

    **Arguments:**

    - `beta`: the inverse temperature β > 0, in units of 1/x.
    - `axis`: the axis along which the activations sum to 1.
    - `min_beta`: a smaller β is replaced by this.

    **Raises:** `ValueError` if β ≤ 0, and for a row without units.

    Examples:
        >>> print(hl.LSparsemax().activation(jnp.array([2.0, 0.5, 0.0])))
        [1. 0. 0.]
    """

    def _value_terms(self, z):
        return sum_in_range(entmax_value(z, self.beta, None, self.axis))

    def _activation_formula(self, z):
        return entmax(z, self.beta, None, self.axis)

    def _energy_terms(self, z):
        return sum_in_range(entmax_energy(z, self.beta, None, self.axis))


class LEntmax(AbstractRowwise):
    """L = Σ_rows max p·x − Ω(p) over the simplex, g = the maximizer p, E = Σ_rows Ω(g).

    Ω(p) = Σ (pᵅ − p)/(βα(α−1)) is the negative Tsallis entropy: α → 1 gives
    [`hopfield_layers.LSoftmax`][], α = 2 is [`hopfield_layers.LSparsemax`][], and in between small
    entries are exactly 0 while g stays differentiable. An entry that exceeds all others by
    1/(β(α−1)) is exactly 1. The rows run along `axis` and have D units; the energy lies between
    (D^(1−α) − 1)/(βα(α−1)) per row and 0. Source: Peters, Niculae & Martins, "Sparse
    sequence-to-sequence models" (ACL 2019), arXiv:1905.05702.

    **Arguments:**

    - `beta`: the inverse temperature β > 0, in units of 1/x.
    - `alpha`: the entropic index, 1 < α ≤ 4. For larger α, g jumps at the edge of its support by
        more than rounding can resolve. If training drives α out of this range, 1 + 1e-6 or 4 is
        used.
    - `axis`: the axis along which the activations sum to 1.
    - `min_beta`: a smaller β is replaced by this.

    **Raises:** `ValueError` if β ≤ 0, α ≤ 1 or α > 4, and for a row without units.

    Examples:
        >>> print(hl.LEntmax(alpha=1.5).activation(jnp.array([2.0, -0.5, 0.0])))
        [1. 0. 0.]
    """

    beta: Array = eqx.field(default=1.0, converter=as_float, metadata=POSITIVE)
    alpha: Array = eqx.field(default=1.5, converter=as_float, metadata=_ALPHA)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True, metadata=FLOOR)

    def __check_init__(self):
        if not isinstance(self.alpha, Tracer) and np.any(np.asarray(self.alpha) > 4):
            raise ValueError(f"LEntmax: alpha must be at most 4.0, got {self.alpha}.")

    def _value_terms(self, z):
        return sum_in_range(entmax_value(z, self.beta, self.alpha, self.axis))

    def _activation_formula(self, z):
        return entmax(z, self.beta, self.alpha, self.axis)

    def _energy_terms(self, z):
        return sum_in_range(entmax_energy(z, self.beta, self.alpha, self.axis))
