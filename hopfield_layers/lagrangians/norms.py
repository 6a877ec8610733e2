"""Lagrangians whose activation normalises each row."""

import abc
import functools
import math
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from .._arrays import as_float, SMALLEST, spread
from .base import AbstractRowwise, cast


def _largest(z: Array, axis: int | None, least: ArrayLike = 0.0) -> Array:
    """About max |z| per row or `least`, a scale without a derivative; 1 where both are 0.

    A power of 2, so that scaling by it is exact.
    """
    largest = jnp.max(jnp.abs(lax.stop_gradient(z)), axis, keepdims=True, initial=0)
    largest = jnp.maximum(largest, least)
    # XLA divides by way of the reciprocal, which must not vanish.
    info = jnp.finfo(z.dtype)
    largest = jnp.minimum(largest, 1 / info.tiny)
    largest = lax.reduce_precision(largest, exponent_bits=info.nexp, mantissa_bits=0)
    return jnp.where(largest == 0, 1, largest)


def _scaled(z: Array, root: Array, axis: int, size: int) -> tuple[Array, Array, Array, Array]:
    """w, e, s, c with z = c·w, √ε = c·e and √(‖z‖²/size + ε) = c·s, where w and e are moderate."""
    c = _largest(z, axis, root)
    w, e = z / c, root / c
    squares = jnp.sum(jnp.square(w), axis, keepdims=True) / size + jnp.square(e)
    s = jnp.where(squares == 0, 0, jnp.sqrt(jnp.where(squares == 0, 1, squares)))
    return w, e, s, c


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _direction(z: Array, root: Array, axis: int, size: int) -> Array:
    """z/√(‖z‖²/size + ε) per row, given √ε."""
    w, _, s, _ = _scaled(z, root, axis, size)
    return w / jnp.where(s == 0, 1, s)


@_direction.defjvp
def _(axis, size, primals, tangents):
    # The tangent along z shrinks by (e/s)², which the difference of two terms would lose.
    (z, root), (dz, _) = primals, tangents
    w, e, s, c = _scaled(z, root, axis, size)
    s = jnp.where(s == 0, 1, s)
    dw = dz / c
    squares = jnp.sum(jnp.square(w), axis, keepdims=True)
    along = jnp.sum(w * dw, axis, keepdims=True) / jnp.where(squares == 0, 1, squares) * w
    return w / s, (dw - along + along * jnp.square(e / s)) / s


class _AbstractNorm(AbstractRowwise):
    gamma: eqx.AbstractVar[Array]
    delta: eqx.AbstractVar[Array]
    eps: eqx.AbstractVar[float]

    def __check_init__(self):
        if self.eps < 0:
            raise ValueError(f"{type(self).__name__}: eps must not be negative, got {self.eps}.")

    @abc.abstractmethod
    def _row(self, z: Array) -> tuple[Array, Array, int]:
        """v, k, D such that with r = √(‖v/k‖²/D + ε) per row, L = Dγr + δ·z and g = γv/kr + δ."""

    def _value(self, z):
        v, k, size = self._row(z)
        _, _, s, c = _scaled(v, math.sqrt(self.eps) * k, self.axis, size)
        norms = size * cast(self.gamma, z, SMALLEST) * s

        def total(unit):
            return jnp.sum(norms * (c / (k * unit))) + jnp.sum(self._shift(z) * (z / unit))

        # Terms may leave the range though their sum doesn't.
        unit = jnp.where(jnp.isfinite(total(1.0)), 1, _largest(z, None))
        return total(unit) * unit

    def _activation(self, z):
        v, k, size = self._row(z)
        direction = _direction(v, math.sqrt(self.eps) * k, self.axis, size)
        return cast(self.gamma, z, SMALLEST) * direction + self._shift(z)

    def _energy(self, z):
        v, k, size = self._row(z)
        root = math.sqrt(self.eps)
        _, e, s, _ = _scaled(v, root * k, self.axis, size)
        ratio = e / jnp.where(s == 0, 1, s)
        return -size * root * cast(self.gamma, z, SMALLEST) * ratio

    def _shift(self, z: Array) -> Array:
        return spread(f"{type(self).__name__}: delta", self.delta.astype(z.dtype), z.shape)


class LLayerNorm(_AbstractNorm):
    """L = Σ_rows Dγ√(var x + ε) + δ·x, g = γ(x − x̄)/√(var x + ε) + δ, E = −Σ_rows Dγε/√(var x + ε).

    The rows run along `axis`, D units long; the mean x̄ and var x are taken over each. The energy
    lies between −Dγ√ε per row and 0.

    **Arguments:**

    - `gamma`: the gain γ > 0, one number: a gain per unit is not the gradient of anything.
    - `delta`: the shift δ, a number or an array that broadcasts to the state.
    - `axis`: the axis to normalise over.
    - `eps`: ε ≥ 0, in units of x².

    **Raises:** `ValueError` if γ ≤ 0. Driven there by training, it acts as 1e-30.

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
        size = max(z.shape[self.axis], 1)
        # Scaled by a power of 2, so that no difference leaves the range or is lost below it.
        small = jnp.finfo(z.dtype).eps ** -2.0
        k = jnp.where(_largest(z, self.axis) > 1, 2.0 ** -(1 + size.bit_length()), small)
        v = k * z
        # Shifted first, so that a large offset costs no digits and equal units give 0; the second
        # mean is the rounding error of the first, which many small v next to a large one feel.
        v = v - lax.stop_gradient(jnp.max(v, self.axis, keepdims=True, initial=-jnp.inf))
        v = v - jnp.sum(v, self.axis, keepdims=True) / size
        return v - jnp.sum(v, self.axis, keepdims=True) / size, k, size


class LSphericalNorm(_AbstractNorm):
    """L = Σ_rows γ√(‖x‖² + ε) + δ·x, g = γx/√(‖x‖² + ε) + δ, E = −Σ_rows γε/√(‖x‖² + ε).

    The rows run along `axis`. The energy lies between −γ√ε per row and 0.

    **Arguments:**

    - `gamma`: the gain γ > 0, one number.
    - `delta`: the shift δ, a number or an array that broadcasts to the state.
    - `axis`: the axis to normalise over.
    - `eps`: ε ≥ 0, in units of x².

    **Raises:** `ValueError` if γ ≤ 0. Driven there by training, it acts as 1e-30.

    Source: Krotov & Hopfield, arXiv:2008.06996.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LSphericalNorm(eps=0.0).activation(jnp.array([3e30, 4e30])).round(6))
    [0.6 0.8]

    ```
    """

    gamma: Array = eqx.field(default=1.0, converter=as_float)
    delta: Array = eqx.field(default=0.0, converter=as_float)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    eps: float = eqx.field(default=1e-5, converter=float, static=True)

    def _row(self, z):
        return z, jnp.ones((), z.dtype), 1
