"""Lagrangians whose activation maps each row to the probability simplex."""

import abc
import functools
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from .._arrays import as_float
from .base import AbstractRowwise, cast
from .special import floored_exponent, log1p_ratio, scaled_exp


def first_largest(z: Array, axis: int) -> Bool[Array, "..."]:
    """True at the first of the largest entries of each row."""
    if z.shape[axis] == 0:
        raise ValueError(f"A row needs at least one unit, got a state of shape {z.shape}.")
    index = jnp.argmax(z, axis, keepdims=True)
    return lax.broadcasted_iota(index.dtype, z.shape, axis % z.ndim) == index


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest(z: Array, axis: int) -> Array:
    """The largest entry of each row; its derivative is that of the first."""
    return jnp.max(z, axis, keepdims=True, initial=-jnp.inf)


@_largest.defjvp
def _(axis, primals, tangents):
    (z,), (dz,) = primals, tangents
    tangent = jnp.sum(jnp.where(first_largest(z, axis), dz, 0), axis, keepdims=True)
    return _largest(z, axis), tangent


def centred(z: Array, beta: Array, axis: int) -> tuple[Array, Array]:
    """The largest entry m of each row, and β(z − m)."""
    m = _largest(z, axis)
    return m, floored_exponent(beta * (z - m))


class _AbstractSoftmax(AbstractRowwise):
    beta: eqx.AbstractVar[Array]
    min_beta: eqx.AbstractVar[float]

    @abc.abstractmethod
    def _row(self, z: Array) -> Array:
        """The units that the softmax runs over: those of z, and then perhaps more."""

    def _parts(self, z: Array) -> tuple[Array, Array, Array, Array, Array]:
        """β, where the largest entry of each row is, that, β(z − it), and Σ exp of the others."""
        row, beta = self._row(z), cast(self.beta, z, self.min_beta)
        top = first_largest(row, self.axis)
        m, d = centred(row, beta, self.axis)
        rest = jnp.sum(jnp.where(top, 0, jnp.exp(d)), self.axis, keepdims=True)
        return beta, top, m, d, rest

    def _value(self, z):
        # Without the largest, so that ln(1 + rest) keeps a small rest.
        beta, top, m, d, rest = self._parts(z)
        others = scaled_exp(log1p_ratio(rest) / beta, d)
        return m + jnp.sum(jnp.where(top, 0, others), self.axis, keepdims=True)

    def _activation(self, z):
        _, d = centred(self._row(z), cast(self.beta, z, self.min_beta), self.axis)
        e = jnp.exp(d)
        g = e / jnp.sum(e, self.axis, keepdims=True)
        return lax.slice_in_dim(g, 0, z.shape[self.axis], axis=self.axis)

    def _energy(self, z):
        # Minus the entropy; all its terms have one sign.
        beta, top, _, d, rest = self._parts(z)
        others = scaled_exp((d / (1 + rest) - log1p_ratio(rest)) / beta, d)
        return jnp.sum(jnp.where(top, 0, others), self.axis, keepdims=True)


class LSoftmax(_AbstractSoftmax):
    """L = Σ_rows ln Σᵢ exp(βxᵢ)/β, g = softmax(βx), E = Σ g ln g/β, from −ln D/β per row to 0.

    The rows run along `axis`, D units long. Σx is conserved along the state flow of a layer.

    **Arguments:**

    - `beta`: the inverse temperature β, in units of 1/x.
    - `axis`: the axis along which the activations sum to 1.
    - `min_beta`: β below this acts as this.

    **Raises:** `ValueError` for a row without units.

    Source: Ramsauer et al., "Hopfield networks is all you need" (ICLR 2021), arXiv:2008.02217.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LSoftmax().energy(jnp.array([1e6, 1e6])))
    -0.6931472

    ```
    """

    beta: Array = eqx.field(default=1.0, converter=as_float)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True)

    def _row(self, z):
        return z


class LGhostmax(_AbstractSoftmax):
    """L = Σ_rows ln(1 + Σᵢ exp(βxᵢ))/β, g = exp(βx)/(1 + Σᵢ exp(βxᵢ)), E ≥ −ln(D + 1)/β per row.

    With g₀ = 1 − Σg, E = (Σ g ln g + g₀ ln g₀)/β ≤ 0: a softmax that may attend to nothing. Its
    Hessian is positive definite, and Σx is not conserved.

    **Arguments:**

    - `beta`: the inverse temperature β, in units of 1/x.
    - `axis`: the axis along which the activations sum to at most 1.
    - `min_beta`: β below this acts as this.

    Source: Miller, "Attention is off by one" (2023).

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LGhostmax().activation(jnp.zeros(3)))
    [0.25 0.25 0.25]

    ```
    """

    beta: Array = eqx.field(default=1.0, converter=as_float)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True)

    def _row(self, z):
        return jnp.pad(z, [(0, axis == self.axis % z.ndim) for axis in range(z.ndim)])
