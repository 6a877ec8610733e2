"""Lagrangians whose activation normalises each row."""

import functools
import math
import operator
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .._arrays import as_float, SMALLEST, spread
from .base import AbstractRowwise, cast


def _unit(centred: bool) -> float:
    """What is taken of z, so that no difference of two entries leaves the range."""
    return 1 / 16 if centred else 1.0


def _scaled(z: Array, axis: int, root: float, centred: bool) -> tuple[Array, Array, Array]:
    """w and s with v/√(mean v² + root²) = w/s, and c with v = cw/unit, for v = z or z − mean z.

    The mean of v² is a sum unless they are centred. Nothing is selected by a value: XLA then makes
    it one loop.
    """
    unit, info = _unit(centred), jnp.finfo(z.dtype)
    v, size = unit * z, max(z.shape[axis], 1) if centred else 1
    if centred:
        # A large offset costs no digits, and equal units give 0.
        v = v - lax.stop_gradient(jnp.max(v, axis, keepdims=True, initial=-jnp.inf))
    # XLA divides by way of the reciprocal, which must not vanish.
    size_of_v = jnp.abs(v) if centred else jnp.minimum(jnp.abs(v), 1 / info.tiny)
    c = jnp.max(size_of_v, axis, keepdims=True, initial=max(unit * root, float(info.tiny)))
    c = lax.stop_gradient(c)  # cw and cs don't depend on it
    w = v / c
    if centred:
        # The second mean is the rounding error of the first, which many small units beside a large
        # one feel.
        for _ in range(2):
            w = w - jnp.sum(w, axis, keepdims=True) / size
    squares = jnp.sum(jnp.square(w), axis, keepdims=True) / size + jnp.square(unit * root / c)
    return w, jnp.sqrt(jnp.maximum(squares, info.tiny)), c


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _direction(z: Array, axis: int, root: float, centred: bool) -> Array:
    """v/√(mean v² + root²) for v = z or z − mean z."""
    w, s, _ = _scaled(z, axis, root, centred)
    return w / s


@_direction.defjvp
def _(axis, root, centred, primals, tangents):
    # The tangent along v shrinks by root²/(mean v² + root²), which the difference of two terms
    # would lose.
    (z,), (dz,) = primals, tangents
    w, s, c = _scaled(z, axis, root, centred)
    dv = _unit(centred) * dz
    if centred:
        for _ in range(2):
            dv = dv - jnp.sum(dv / z.shape[axis], axis, keepdims=True)
    dw = dv / c
    squares = jnp.maximum(jnp.sum(jnp.square(w), axis, keepdims=True), jnp.finfo(z.dtype).tiny)
    across = dw - jnp.sum(w * dw, axis, keepdims=True) / squares * w
    shrinks = jnp.square(_unit(centred) * root / (c * s))
    return w / s, ((1 - shrinks) * across + shrinks * dw) / s


def _power_of_2(z: Array) -> Array:
    """That below the largest |z|, so that scaling by it is exact; its reciprocal is in range."""
    info = jnp.finfo(z.dtype)
    largest = jnp.max(jnp.abs(lax.stop_gradient(z)), initial=1)
    largest = jnp.minimum(largest, 1 / info.tiny)
    return lax.reduce_precision(largest, exponent_bits=info.nexp, mantissa_bits=0)


class _AbstractNorm(AbstractRowwise):
    _centred: ClassVar[bool]
    gamma: eqx.AbstractVar[Array]
    delta: eqx.AbstractVar[Array]
    eps: eqx.AbstractVar[float]

    def __check_init__(self):
        if self.eps < 0:
            raise ValueError(f"{type(self).__name__}: eps must not be negative, got {self.eps}.")

    def _parts(self, z: Array) -> tuple[Array, Array, float, int]:
        """s, c and unit with √(mean v² + ε) = sc/unit, and how many v² the mean is of."""
        _, s, c = _scaled(z, self.axis, math.sqrt(self.eps), self._centred)
        return s, c, _unit(self._centred), z.shape[self.axis] if self._centred else 1

    def _value(self, z):
        s, c, unit, size = self._parts(z)
        norms = size * cast(self.gamma, z, SMALLEST) * s

        def total(scale):
            of_rows = jnp.sum(norms * (c / scale / unit))
            return of_rows + jnp.sum(self._shift(z) * (z / scale))

        # Terms may leave the range though their sum doesn't.
        scale = jnp.where(jnp.isfinite(total(1.0)), 1, _power_of_2(z))
        return total(scale) * scale

    def _activation(self, z):
        direction = _direction(z, self.axis, math.sqrt(self.eps), self._centred)
        return cast(self.gamma, z, SMALLEST) * direction + self._shift(z)

    def _energy(self, z):
        s, c, unit, size = self._parts(z)
        root = math.sqrt(self.eps)
        return -size * root * cast(self.gamma, z, SMALLEST) * (unit * root / (c * s))

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

    _centred = True
    gamma: Array = eqx.field(default=1.0, converter=as_float)
    delta: Array = eqx.field(default=0.0, converter=as_float)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    eps: float = eqx.field(default=1e-5, converter=float, static=True)


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

    _centred = False
    gamma: Array = eqx.field(default=1.0, converter=as_float)
    delta: Array = eqx.field(default=0.0, converter=as_float)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    eps: float = eqx.field(default=1e-5, converter=float, static=True)
