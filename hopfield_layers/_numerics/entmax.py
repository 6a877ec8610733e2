"""Entmax of rows: g maximizes g·z − Ω(g) over the simplex, Ω(g) = Σ (gᵅ − g)/(βα(α−1)), 1 < α ≤ 4.

With m the largest entry of a row, d = β(z − m) ≤ 0 and a₊ = max(a, 0),

    g = (1 + (α−1)(d − λ))₊^(1/(α−1)),  with λ such that Σ g = 1.

- The unknown is t = ln max g = ln(1 − (α−1)λ)/(α−1) instead of λ, so that results are accurate for
  a row near a vertex, t → 0, and for α near 1, where g tends to exp(d + t). With κ = exp((α−1)t),

      ln g = t + ln(1 + (α−1)d/κ)/(α−1).

- For α > 2, g near the edge of the support is too sensitive to t for the resolution of t. It is
  corrected by the last Newton step, which is smaller than this resolution.
- In L and E the largest unit has the share 1 − r, where r sums the shares of the others, so that
  near a vertex nothing cancels, and errors of g are second-order. With the cost of each other unit

      c = [(p − pᵅ)/((α−1)r) + (1 − g^(α−1))/(α−1)]/α  at  p = 1 − r,

  which includes a share of the largest unit's part of Ω, the sums over the other units are
  L = m + Σ g (d + c)/β and E = −Σ g c/β, the latter with terms of one sign.

For sparsemax, α = 2, `alpha` is None. No logarithms are needed then: g = (d + max g)₊ and
c = 1 − (r + g)/2.

The error of L, g and E is at most 5 ulps of the result times its condition number, as measured
against mpmath.
"""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .elementary import exponent_below, scaled_exp
from .softmax import check_units, finite_shift


def _order(alpha):
    """α − 1."""
    return 1.0 if alpha is None else alpha - 1


def _kappa(t, alpha):
    return jnp.maximum(jnp.exp(_order(alpha) * t), jnp.finfo(t.dtype).tiny)


class Units(NamedTuple):
    """The units of a row; `log` and `ratio` hold where g > 0."""

    g: Array  # the shares before normalization
    log: Array | None  # ln g, or None for sparsemax
    ratio: Array  # (g/max g)^(α−1)


def _units_formula(d, t, step, alpha):
    """The units for a row's t and the Newton step that remains at it."""
    order, kappa, eps = _order(alpha), _kappa(t, alpha), jnp.finfo(d.dtype).eps
    # a = 1 + (α−1)(d − λ), with 1 − (α−1)λ = κ(1 − (α−1)·step), and u = 1 − a
    high, low = -jnp.expm1(order * t), order * kappa * step
    if alpha is None:
        # A loop over t would keep 1 + d, which doesn't depend on t, as another array.
        a = jnp.where(high < 0.5, 1, kappa) + d - jnp.where(high < 0.5, high, 0) - low
        return Units(jnp.where(a > 0, a, 0), None, jnp.where(a > 0, a / kappa, eps))
    a = jnp.where(high < 0.5, 1 + order * d - high, kappa + order * d) - low
    u = high - order * d + low
    is_near, inside = u < 0.5, a > 0
    # XLA may evaluate a predicate differently in two fusions, so each formula continues past it.
    u = jnp.where(is_near, u, 0.5)
    ratio = jnp.where(inside, a / kappa, eps)
    # −ln(1 − u) as ln(1 + u/(1 − u)): XLA's log1p of float64 loses two digits below 0.
    log = jnp.where(is_near, -jnp.log1p(u / (1 - u)) / order, t + jnp.log(ratio) / order)
    return Units(jnp.where(inside, jnp.exp(log), 0), log, ratio)


units = eqx.filter_custom_jvp(_units_formula)


@units.def_jvp
def _units_jvp(primals, tangents):
    (d, t, step, alpha), (dd, dt, _, dalpha) = primals, tangents
    g, log, ratio = units(*primals)
    dd, dt = (0.0 if each is None else each for each in (dd, dt))
    order, kappa, inside = _order(alpha), _kappa(t, alpha), g > 0
    dlog = jnp.where(inside, (dd / kappa + dt) / ratio, 0)
    dratio = jnp.where(inside, order * (dd - order * d * dt) / kappa, 0)
    change = Units(g * dlog, None if alpha is None else dlog, dratio)
    # The derivative with respect to α is most of the work, and seldom needed.
    if dalpha is not None:
        _, by_alpha = jax.jvp(lambda alpha: _units_formula(d, t, step, alpha), (alpha,), (dalpha,))
        change = jax.tree.map(jnp.add, change, by_alpha)
    return Units(g, log, ratio), change


def find_threshold(
    sums: Callable[[Array], tuple[Array, Array]], high: Array, low: Array, alpha: Array | None
) -> tuple[Array, Array]:
    """Solves Σ g = 1 for t between `low` and `high`; also returns the remaining Newton step.

    `sums(t)` are Σ g − 1 and Σ g/ratio of the units at t. This is Newton's method for λ on
    (Σ g)^(α−1) = 1, within a bracket of t. For α ≤ 2 the function is convex in λ, so that from
    λ = 0 the method converges monotonically, and for α = 2 in finitely many steps. For α > 2 the
    slope is infinite where a unit leaves the support. Newton's method may stall there, so every
    second step is a bisection.
    """
    eps, order = jnp.finfo(high.dtype).eps, _order(alpha)

    def cond(carry):
        *_, moving, steps = carry
        return jnp.any(moving) & (steps < 300)

    def body(carry):
        t, _, low, high, moving, steps = carry
        excess, slope = sums(t)
        low, high = jnp.where(excess < 0, t, low), jnp.where(excess > 0, t, high)
        shrink = (1 + excess) * jnp.expm1(-order * jnp.log1p(excess)) / slope
        new = t + jnp.log1p(shrink) / order
        newton = (new >= low) & (new <= high) & ((order <= 1) | (steps % 2 == 0))
        new = jnp.where(newton, new, (low + high) / 2)
        change = jnp.where(order <= 1, jnp.abs(new - t), high - low)
        moving = moving & (excess != 0) & (change > -2 * eps * new)
        # Newton's steps are monotone up to α = 2: a step in the other direction is
        # rounding error.
        moving = moving & ((order > 1) | ((excess > 0) & (new < t)))
        return jnp.where(moving, new, t), excess / slope, low, high, moving, steps + 1

    t, step, *_ = lax.while_loop(cond, body, (high, high, low, high, high == high, 0))
    return t, step


@eqx.filter_custom_jvp
@ft.partial(jax.jit, static_argnums=3)
def _threshold(d, alpha, is_largest, axis):
    """t of each row and the remaining Newton step, given d ≤ 0 and a mask of a d = 0 per row."""
    total = ft.partial(jnp.sum, axis=axis, keepdims=True)

    def sums(t):
        g, _, ratio = units(d, t, jnp.zeros_like(t), alpha)
        if alpha is None:
            # g/ratio is κ where g > 0. To count these units takes fewer arrays than to sum it.
            slope = _kappa(t, alpha) * total((g > 0).astype(g.dtype))
        else:
            slope = total(g / ratio)
        # expm1 leaves out the 1 of the largest term, so that this is accurate near a vertex.
        return jnp.expm1(t) + total(jnp.where(is_largest, 0, g)), slope

    high = total(jnp.zeros_like(d))
    return find_threshold(sums, high, high - jnp.log(d.shape[axis]), alpha)


@_threshold.def_jvp
def _threshold_jvp(primals, tangents):
    d, alpha, _, axis = primals
    t, step = _threshold(*primals)

    def shares(d, alpha):
        return units(d, t, step, alpha)

    at, change = eqx.filter_jvp(shares, (d, alpha), tangents[:2])
    slope = jnp.sum(at.g / at.ratio, axis, keepdims=True)
    dt = -jnp.sum(change.g, axis, keepdims=True) / slope
    return (t, step), (dt, None)


class _Rows(NamedTuple):
    """Rows and their shares."""

    largest: Array  # m
    is_largest: Array  # a mask of the first entry equal to m
    exponent: Array  # d = β(z − m)
    shares: Units


def _rows(z, beta, alpha, axis):
    check_units(z, axis)
    index = jnp.argmax(z, axis, keepdims=True)
    is_largest = lax.broadcasted_iota(index.dtype, z.shape, axis % z.ndim) == index
    # Not `jnp.max`, whose derivative is shared among equal entries.
    m = finite_shift(jnp.sum(jnp.where(is_largest, z, 0), axis, keepdims=True))
    d = exponent_below(beta, z, m)
    return _Rows(m, is_largest, d, units(d, *_threshold(d, alpha, is_largest, axis), alpha))


class _Others(NamedTuple):
    """The largest entry of each row, and the terms of its other units."""

    largest: Array  # m
    exponent: Array  # d
    inside: Array  # where g > 0, except for the largest
    shares: Units
    cost: Array  # c

    def sum(self, terms, axis):
        """Σ g·terms."""
        g, log, _ = self.shares
        terms = terms * g if log is None else scaled_exp(terms, log)
        return jnp.sum(jnp.where(self.inside, terms, 0), axis, keepdims=True)


def _others(z, beta, alpha, axis):
    m, is_largest, d, shares = _rows(z, beta, alpha, axis)
    g, log, _ = shares
    inside = (g > 0) & ~is_largest
    r = jnp.sum(jnp.where(inside, g, 0), axis, keepdims=True)
    # By rounding, the largest share may be below its smallest possible value, 1/D. The correction
    # is a constant for the derivative.
    r = r - lax.stop_gradient(jnp.maximum(r + 1 / z.shape[axis] - 1, 0))
    if alpha is None:
        return _Others(m, d, inside, shares, 1 - (r + g) / 2)
    # (p − pᵅ)/((α−1)r) at p = 1 − r; this is 1 at r = 0.
    eps = float(jnp.finfo(r.dtype).eps)
    tiny = r < eps
    safe = jnp.where(tiny, eps, r)
    log_p = -jnp.log1p(safe / (1 - safe))
    vertex = (safe - 1) * jnp.expm1((alpha - 1) * log_p) / ((alpha - 1) * safe)
    vertex = jnp.where(tiny, 1 - alpha * r / 2, vertex)
    cost = (vertex - jnp.expm1((alpha - 1) * log) / (alpha - 1)) / alpha
    return _Others(m, d, inside, shares, cost)


def entmax(z: Array, beta: Array, alpha: Array | None, axis: int) -> Array:
    """The maximizer g of each row."""
    row = _rows(z, beta, alpha, axis)
    g = row.shares.g
    total = jnp.sum(g, axis, keepdims=True)
    # All shares of a row of −∞ are 0, and those of a row with NaN are NaN.
    return g / jnp.where((total > 0) | jnp.isnan(row.largest), total, 1)


def entmax_value(z: Array, beta: Array, alpha: Array | None, axis: int) -> Array:
    """max g·z − Ω(g) of each row."""
    row = _others(z, beta, alpha, axis)
    return row.largest + row.sum((row.exponent + row.cost) / beta, axis)


def entmax_energy(z: Array, beta: Array, alpha: Array | None, axis: int) -> Array:
    """Ω(g) of each row."""
    row = _others(z, beta, alpha, axis)
    energy = row.sum(-row.cost / beta, axis)
    return jnp.where(jnp.isnan(row.largest), row.largest, energy)
