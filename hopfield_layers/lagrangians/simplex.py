"""Lagrangians whose activation maps each row to the probability simplex."""

import functools
import operator
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool

from .._arrays import as_float
from .base import AbstractRowwise, cast
from .special import floored_exponent, log1p_ratio, scaled_exp


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


class _Rows(NamedTuple):
    """Rows, with the ghost at their ends if any, seen from their largest entries."""

    m: Array  # the largest of each
    largest: Bool[Array, "..."]  # where it is
    d: Array  # β(z − m)
    total: Array  # Σ exp(d) of each

    def others(self, scale: Array, axis: int) -> Array:
        """Σ scale·exp(d) of each row without its largest entries."""
        # Not by d = 0: XLA may subtract m from a product before that is rounded.
        terms = jnp.where(self.largest, 0, scaled_exp(scale, self.d))
        return jnp.sum(terms, axis, keepdims=True)

    def equals(self, others: Array) -> Array:
        """How many equals the largest entry has, given Σ exp(d) of the others: to count them takes
        longer, and to find the first of them much longer.
        """
        return jnp.maximum(jnp.round(self.total - others) - 1, 0)


def _centred(z: Array, beta: Array, axis: int, ghost: bool) -> _Rows:
    row = jnp.pad(z, [(0, ghost and i == axis % z.ndim) for i in range(z.ndim)])
    m = jnp.max(row, axis, keepdims=True)
    # Apart, so that XLA makes the sum one loop.
    apart, own = jax.lax.optimization_barrier(m), jax.lax.optimization_barrier(beta)
    total = jnp.sum(jnp.exp(own * (row - apart)), axis, keepdims=True)
    return _Rows(m, row == m, floored_exponent(beta * (row - m)), total)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _log_sum(z: Array, beta: Array, axis: int, ghost: bool) -> Array:
    """ln Σ exp(βz)/β along the axis, the ghost included if any."""
    # Without the largest, so that ln(1 + rest) keeps a small rest.
    rows = _centred(z, beta, axis, ghost)
    others = rows.others(1 / beta, axis)
    rest = others + rows.equals(beta * others) / beta
    return rows.m + rest * log1p_ratio(beta * rest)


@functools.partial(_log_sum.defjvp, symbolic_zeros=True)
def _(axis, ghost, primals, tangents):
    (z, beta), (dz, dbeta) = primals, tangents
    value = _log_sum(z, beta, axis, ghost)
    change = jnp.zeros_like(value)
    if not isinstance(dz, SymbolicZero):
        change += jnp.sum(_softmax(z, beta, axis, ghost)[0] * dz, axis, keepdims=True)
    if not isinstance(dbeta, SymbolicZero):
        change += _entropy(z, beta, axis, ghost) / beta * dbeta
    return value, change


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _entropy(z: Array, beta: Array, axis: int, ghost: bool) -> Array:
    """Σ g ln g/β along the axis, the ghost included if any: minus the entropy."""
    # All terms have one sign.
    rows = _centred(z, beta, axis, ghost)
    others = rows.others(jnp.ones_like(beta), axis)
    equals = rows.equals(others)
    rest = others + equals
    of_largest = -log1p_ratio(rest) / beta  # shared among the others
    others = rows.others(rows.d / (1 + rest) / beta + of_largest, axis)
    return others + equals * of_largest


@functools.partial(_entropy.defjvp, symbolic_zeros=True)
def _(axis, ghost, primals, tangents):
    # Of Σ z·g − L, with z − m for z: the changes of g add up to 0.
    (z, beta), (_, dbeta) = primals, tangents
    value = _entropy(z, beta, axis, ghost)
    change = jnp.zeros_like(value)
    if not isinstance(dbeta, SymbolicZero):
        change -= value / beta * dbeta
    share = lambda *of: jnp.concatenate(_softmax(*of, axis, ghost)[: 1 + ghost], axis)
    moving = [None if isinstance(each, SymbolicZero) else each for each in tangents]
    _, dg = eqx.filter_jvp(share, primals, tuple(moving))
    d = _centred(z, beta, axis, ghost).d
    return value, change + jnp.sum(d / beta * dg, axis, keepdims=True)


class _AbstractSoftmax(AbstractRowwise):
    _ghost: ClassVar[bool]
    beta: eqx.AbstractVar[Array]
    min_beta: eqx.AbstractVar[float]

    def _of(self, fn, z):
        if z.shape[self.axis] == 0 and not self._ghost:
            raise ValueError(f"A row needs at least one unit, got a state of shape {z.shape}.")
        return fn(z, cast(self.beta, z, self.min_beta), self.axis, self._ghost)

    def _value(self, z):
        return self._of(_log_sum, z)

    def _activation(self, z):
        return self._of(_softmax, z)[0]

    def _energy(self, z):
        return self._of(_entropy, z)


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
