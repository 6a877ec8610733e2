"""Lagrangians whose activation normalises each row."""

import abc
import functools
import math
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .._arrays import as_float, check_range
from .base import AbstractRowwise, cast, SMALLEST


def _largest(z: Array, axis: int, least: float = 0.0) -> Array:
    """max |z| per row or `least`, a scale without a derivative; 1 where both are 0."""
    largest = jnp.max(jnp.abs(lax.stop_gradient(z)), axis, keepdims=True, initial=least)
    return jnp.where(largest == 0, 1, largest)


def _scaled(z: Array, axis: int, size: int, eps: float) -> tuple[Array, Array, Array, Array]:
    """w, e, s, c with z = c·w, √ε = c·e and √(‖z‖²/size + ε) = c·s, where w and e are at most 1."""
    c = _largest(z, axis, math.sqrt(eps))
    w, e = z / c, math.sqrt(eps) / c
    squares = jnp.sum(jnp.square(w), axis, keepdims=True) / size + jnp.square(e)
    s = jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))
    return w, e, s, c


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _direction(z: Array, axis: int, size: int, eps: float) -> Array:
    """z/√(‖z‖²/size + ε) per row."""
    w, _, s, _ = _scaled(z, axis, size, eps)
    return w / jnp.where(s == 0, 1, s)


@_direction.defjvp
def _(axis, size, eps, primals, tangents):
    # The tangent along z shrinks by (e/s)², which the difference of two terms would lose.
    (z,), (dz,) = primals, tangents
    w, e, s, c = _scaled(z, axis, size, eps)
    s = jnp.where(s == 0, 1, s)
    dw = dz / c
    squares = jnp.sum(jnp.square(w), axis, keepdims=True)
    along = jnp.sum(w * dw, axis, keepdims=True) / jnp.where(squares == 0, 1, squares) * w
    return _direction(z, axis, size, eps), (dw - along + along * jnp.square(e / s)) / s


class _AbstractNorm(AbstractRowwise):
    gamma: eqx.AbstractVar[Array]
    delta: eqx.AbstractVar[Array]
    eps: eqx.AbstractVar[float]

    def __check_init__(self):
        check_range(self, "gamma", self.gamma, above=0.0)
        check_range(self, "delta", self.delta)
        check_range(self, "eps", self.eps)
        if self.eps < 0:
            raise ValueError(f"{type(self).__name__}: eps must not be negative, got {self.eps}.")

    @abc.abstractmethod
    def _row(self, z: Array) -> tuple[Array, int, float, float]:
        """v, D, ε, k such that for δ = 0 and r = √(‖v‖²/D + ε) per row, L = kγr and g = γv/r."""

    def _value(self, z):
        v, size, eps, factor = self._row(z)
        _, _, s, c = _scaled(v, self.axis, size, eps)
        norm = factor * cast(self.gamma, z, SMALLEST) * s
        largest = _largest(z, self.axis)
        shift = jnp.sum(self._shift(z) * (z / largest), self.axis, keepdims=True)
        # Each term may leave the range though their sum doesn't.
        apart = norm * c + shift * largest
        return jnp.where(jnp.isfinite(apart), apart, (norm * (c / largest) + shift) * largest)

    def _activation(self, z):
        v, size, eps, _ = self._row(z)
        direction = _direction(v, self.axis, size, eps)
        return cast(self.gamma, z, SMALLEST) * direction + self._shift(z)

    def _energy(self, z):
        v, size, eps, factor = self._row(z)
        _, e, s, _ = _scaled(v, self.axis, size, eps)
        ratio = e / jnp.where(s == 0, 1, s)
        return -factor * math.sqrt(eps) * cast(self.gamma, z, SMALLEST) * ratio

    def _shift(self, z: Array) -> Array:
        if jnp.broadcast_shapes(self.delta.shape, z.shape) != z.shape:
            raise ValueError(
                f"{type(self).__name__}: delta has shape {self.delta.shape}, which does not "
                f"broadcast to the state's {z.shape}."
            )
        return self.delta.astype(z.dtype)


class LLayerNorm(_AbstractNorm):
    """L = Σ_rows Dγ√(var x + ε) + δ·x, g = γ(x − x̄)/√(var x + ε) + δ, E = −Σ_rows Dγε/√(var x + ε).

    The rows run along `axis`, D units long; the mean x̄ and var x are taken over each. The energy
    lies between −Dγ√ε per row and 0.

    **Arguments:**

    - `gamma`: the gain γ > 0, one number: a gain per unit is not the gradient of anything.
    - `delta`: the shift δ, a number or an array that broadcasts to the state.
    - `axis`: the axis to normalise over.
    - `eps`: ε ≥ 0, in units of x².

    **Raises:** `ValueError` if γ ≤ 0. Driven there by training, it acts as 1e-12.

    Source: Krotov & Hopfield, arXiv:2008.06996; Hoover et al., "Energy transformer",
    arXiv:2302.07253.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LLayerNorm().activation(jnp.array([1e30, -1e30])))
    [ 1. -1.]

    ```
    """

    gamma: Array = eqx.field(default=1.0, converter=as_float)
    delta: Array = eqx.field(default=0.0, converter=as_float)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    eps: float = eqx.field(default=1e-5, converter=float, static=True)

    def _row(self, z):
        # Halved, so that no difference leaves the range.
        half = z / 2
        size = max(z.shape[self.axis], 1)
        scale = 2.0 ** (size - 1).bit_length()
        mean = jnp.sum(half / scale, self.axis, keepdims=True) / (size / scale)
        return half - mean, size, self.eps / 4, 2.0 * size


class LSphericalNorm(_AbstractNorm):
    """L = Σ_rows γ√(‖x‖² + ε) + δ·x, g = γx/√(‖x‖² + ε) + δ, E = −Σ_rows γε/√(‖x‖² + ε).

    The rows run along `axis`. The energy lies between −γ√ε per row and 0.

    **Arguments:**

    - `gamma`: the gain γ > 0, one number.
    - `delta`: the shift δ, a number or an array that broadcasts to the state.
    - `axis`: the axis to normalise over.
    - `eps`: ε ≥ 0, in units of x².

    **Raises:** `ValueError` if γ ≤ 0. Driven there by training, it acts as 1e-12.

    Source: Krotov & Hopfield, arXiv:2008.06996.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LSphericalNorm(eps=0.0).activation(jnp.array([3e30, 4e30])))
    [0.6 0.8]

    ```
    """

    gamma: Array = eqx.field(default=1.0, converter=as_float)
    delta: Array = eqx.field(default=0.0, converter=as_float)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    eps: float = eqx.field(default=1e-5, converter=float, static=True)

    def _row(self, z):
        return z, 1, self.eps, 1.0
