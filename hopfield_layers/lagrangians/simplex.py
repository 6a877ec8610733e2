"""Lagrangians whose activation maps each row to the probability simplex."""

import functools
import operator
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _others(scale: Array, d: Array, z: Array, axis: int) -> Array:
    """Σ scale·exp(d) of the entries of each row but the first largest, whose d = β(z − m) is 0.

    To count its equals takes less time than to find it.
    """
    largest = d == 0
    add = lambda x: jnp.sum(x, axis, keepdims=True)
    share = 1 - 1 / add(largest.astype(d.dtype))
    return add(jnp.where(largest, 0, scaled_exp(scale, d))) + share * add(largest * scale)


@_others.defjvp
def _(axis, primals, tangents):
    scale, d, z = primals
    top = first_largest(z, axis)
    terms = lambda scale, d: jnp.where(top, 0, scaled_exp(scale, d))
    _, change = jax.jvp(terms, (scale, d), tangents[:2])
    return _others(*primals, axis), jnp.sum(change, axis, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _softmax(z: Array, beta: Array, axis: int, ghost: bool) -> tuple[Array, Array]:
    """exp(βz)/Σ exp(βz) along the axis, and the share of a ghost, one more unit at 0, if any.

    Here and in its derivative no value is selected by another: XLA then makes it one loop.
    """
    m = jnp.max(z, axis, keepdims=True, initial=0 if ghost else -jnp.inf)
    e = jnp.exp(beta * (z - m))
    e_ghost = jnp.exp(-beta * m) if ghost else jnp.zeros_like(m)
    total = jnp.sum(e, axis, keepdims=True) + e_ghost
    return e / total, e_ghost / total


@functools.partial(_softmax.defjvp, symbolic_zeros=True)
def _(axis, ghost, primals, tangents):
    (z, beta), (dz, dbeta) = primals, tangents
    g, g_ghost = _softmax(z, beta, axis, ghost)
    mean = lambda t: jnp.sum(g * t, axis, keepdims=True)
    # d ln g = t − Σ g t, where t of the ghost is 0. The mean is taken off twice: beside a vertex
    # the first difference is but rounding in the unit that leads. A quarter of t, as no difference
    # may leave the range.
    dg, dg_ghost = jnp.zeros_like(g), jnp.zeros_like(g_ghost)
    for scale, t in ((beta, dz), (dbeta, z)):
        if isinstance(scale, SymbolicZero) or isinstance(t, SymbolicZero):
            continue
        t = t / 4
        first = mean(t)
        second = mean(t - first) - g_ghost * first
        dg += 4 * scale * g * (t - first - second)
        dg_ghost -= 4 * scale * g_ghost * (first + second)
    return (g, g_ghost), (dg, dg_ghost)


class _AbstractSoftmax(AbstractRowwise):
    _ghost: ClassVar[bool]
    beta: eqx.AbstractVar[Array]
    min_beta: eqx.AbstractVar[float]

    def _row(self, z: Array) -> Array:
        """The units that the softmax runs over: those of z, and then perhaps a ghost."""
        return jnp.pad(z, [(0, self._ghost and i == self.axis % z.ndim) for i in range(z.ndim)])

    def _parts(self, z: Array) -> tuple[Array, Array, Array, Array]:
        """β, the rows, the largest entry m of each, and β(z − m)."""
        row, beta = self._row(z), cast(self.beta, z, self.min_beta)
        if row.shape[self.axis] == 0:
            raise ValueError(f"A row needs at least one unit, got a state of shape {z.shape}.")
        return beta, row, *centred(row, beta, self.axis)

    def _value(self, z):
        # Without the largest, so that ln(1 + rest) keeps a small rest.
        beta, row, m, d = self._parts(z)
        rest = _others(1 / beta, d, row, self.axis)  # over β
        return m + rest * log1p_ratio(beta * rest)

    def _activation(self, z):
        if z.shape[self.axis] == 0 and not self._ghost:
            raise ValueError(f"A row needs at least one unit, got a state of shape {z.shape}.")
        return _softmax(z, cast(self.beta, z, self.min_beta), self.axis, self._ghost)[0]

    def _energy(self, z):
        # Minus the entropy; all its terms have one sign.
        beta, row, _, d = self._parts(z)
        rest = _others(jnp.ones_like(beta), d, row, self.axis)
        return _others((d / (1 + rest) - log1p_ratio(rest)) / beta, d, row, self.axis)


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

    _ghost = False
    beta: Array = eqx.field(default=1.0, converter=as_float)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True)


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

    _ghost = True
    beta: Array = eqx.field(default=1.0, converter=as_float)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True)
