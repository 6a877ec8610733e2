"""Lagrangians whose activation normalizes each row: LLayerNorm, LSphericalNorm."""

import operator
from typing import ClassVar, TYPE_CHECKING

import equinox as eqx
import wadler_lindig as wl
from jaxtyping import Array

from .._conversion import as_float, broadcast
from .._numerics.normalization import direction, norm_energy, norm_value
from .base import AbstractRowwise, FINITE, POSITIVE


# To Pyright, Equinox's own `AbstractClassVar` is the type of a field.
if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class _AbstractNorm(AbstractRowwise):
    """A norm of each row, of which subclasses define whether the mean is subtracted first."""

    _centred: AbstractClassVar[bool]
    gamma: Array = eqx.field(default=1.0, converter=as_float, metadata=POSITIVE)
    delta: Array = eqx.field(default=0.0, converter=as_float, metadata=FINITE)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    eps: float = eqx.field(default=1e-5, converter=float, static=True, metadata=FINITE)

    def __check_init__(self):
        if self.eps < 0:
            raise ValueError(f"{type(self).__name__}: eps must not be negative, got {self.eps}.")

    def _delta(self, z):
        return broadcast(f"{type(self).__name__}: delta", self.delta.astype(z.dtype), z.shape)

    def _value_terms(self, z):
        return norm_value(z, self.gamma, self._delta(z), self.axis, self.eps, self._centred)

    def _activation_formula(self, z):
        return self.gamma * direction(z, self.axis, self.eps, self._centred) + self._delta(z)

    def _energy_terms(self, z):
        return norm_energy(z, self.gamma, self.axis, self.eps, self._centred)

    def __pdoc__(self, **options) -> wl.AbstractDoc:
        # eps is shown even at its default, because the energy is proportional to it.
        options |= {"hide_defaults": False, "respect_pdoc": False, "seen_ids": None}
        return wl.pdoc(self, **options)


class LLayerNorm(_AbstractNorm):
    """L = Σ_rows Dγ√(var x + ε) + δ·x, g = γ(x − x̄)/√(var x + ε) + δ, E = −Σ_rows Dγε/√(var x + ε).

    The rows run along `axis` and have D units; x̄ and var x are the mean and variance of each row.
    The energy lies between −Dγ√ε per row and 0. Source: Krotov & Hopfield, arXiv:2008.06996; Hoover
    et al., "Energy transformer", arXiv:2302.07253.

    **Arguments:**

    - `gamma`: the gain γ > 0, one number, because with a gain per unit g would not be a gradient.
        If training drives it below 1e-30, 1e-30 is used.
    - `delta`: the shift δ, a number or an array that broadcasts to the state.
    - `axis`: the axis to normalize over.
    - `eps`: ε ≥ 0, in units of x².

    **Raises:** `ValueError` if γ ≤ 0 or ε < 0.

    Examples:
        >>> hl.LLayerNorm()
        LLayerNorm(gamma=1.0, delta=0.0, axis=-1, eps=1e-05)
        >>> print(hl.LLayerNorm().activation(jnp.array([1e30, -1e30])))
        [ 1. -1.]
    """

    _centred: ClassVar[bool] = True


class LSphericalNorm(_AbstractNorm):
    """L = Σ_rows γ√(‖x‖² + ε) + δ·x, g = γx/√(‖x‖² + ε) + δ, E = −Σ_rows γε/√(‖x‖² + ε).

    The rows run along `axis`. The energy lies between −γ√ε per row and 0. Source: Krotov &
    Hopfield, arXiv:2008.06996.

    **Arguments:**

    - `gamma`: the gain γ > 0, one number. If training drives it below 1e-30, 1e-30 is used.
    - `delta`: the shift δ, a number or an array that broadcasts to the state.
    - `axis`: the axis to normalize over.
    - `eps`: ε ≥ 0, in units of x².

    **Raises:** `ValueError` if γ ≤ 0 or ε < 0.

    Examples:
        >>> print(hl.LSphericalNorm(eps=0.0).activation(jnp.array([3e30, 4e30])).round(6))
        [0.6 0.8]
    """

    _centred: ClassVar[bool] = False
