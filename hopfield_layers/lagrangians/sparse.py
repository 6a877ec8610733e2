"""Lagrangians whose activation maps each row to the probability simplex, with exact zeros."""

import abc
import functools
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool

from .._arrays import as_float
from .base import AbstractRowwise, cast
from .special import floored_exponent, scaled_exp


def _first_largest(z: Array, axis: int) -> Bool[Array, "..."]:
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
    tangent = jnp.sum(jnp.where(_first_largest(z, axis), dz, 0), axis, keepdims=True)
    return _largest(z, axis), tangent


def _centred(z: Array, beta: Array, axis: int) -> tuple[Array, Array]:
    """The largest entry m of each row, and β(z − m)."""
    m = _largest(z, axis)
    return m, floored_exponent(beta * (z - m))


# What α acts as where training drives it out of its domain.
_SMALLEST_ALPHA = 1 + 1e-6
_LARGEST_ALPHA = 4.0


def _kappa(t: Array, alpha: Array) -> Array:
    """exp((α−1)t)."""
    return jnp.maximum(jnp.exp((alpha - 1) * t), jnp.finfo(t.dtype).tiny)


def _units_plain(d: Array, t: Array, step: Array, alpha: Array) -> tuple[Array, Array, Array]:
    """g = a₊^(1/(α−1)), ln g where that is positive, and a/κ there, for a = 1 + (α−1)(d − λ).

    1 − (α−1)λ = κ(1 − (α−1)·step) with κ = exp((α−1)t): t is the logarithm of the row's largest
    activation, up to a step below its resolution. As α → 1, g tends to exp(d + t).
    """
    order = alpha - 1
    kappa = _kappa(t, alpha)
    high, low = -jnp.expm1(order * t), order * kappa * step
    a = jnp.where(high < 0.5, 1 + order * d - high, kappa + order * d) - low
    u = high - order * d + low
    near, inside = u < 0.5, a > 0
    # In float64 XLA's log1p loses two digits below 0, so −ln(1 − u) = ln(1 + u/(1 − u)).
    # Compiled twice, a comparison may come out both ways: then the stand-ins continue each branch.
    u = jnp.where(near, u, 0.5)
    ratio = jnp.where(inside, a / kappa, jnp.finfo(d.dtype).eps)
    log = jnp.where(near, -jnp.log1p(u / (1 - u)) / order, t + jnp.log(ratio) / order)
    return jnp.where(inside, jnp.exp(log), 0), log, ratio


_units = jax.custom_jvp(_units_plain)


@functools.partial(_units.defjvp, symbolic_zeros=True)
def _(primals, tangents):
    d, t, step, alpha = primals
    dd, dt, _, dalpha = tangents
    g, log, ratio = _units(d, t, step, alpha)
    dd, dt = (0.0 if isinstance(each, SymbolicZero) else each for each in (dd, dt))
    order, kappa, inside = alpha - 1, _kappa(t, alpha), g > 0
    dlog = jnp.where(inside, (dd / kappa + dt) / ratio, 0)
    dratio = jnp.where(inside, order * (dd - order * d * dt) / kappa, 0)
    dg = g * dlog
    # Few differentiate with respect to α, which takes most of the work.
    if not isinstance(dalpha, SymbolicZero):
        of_alpha = lambda alpha: _units_plain(d, t, step, alpha)
        _, (g_, log_, ratio_) = jax.jvp(of_alpha, (alpha,), (dalpha,))
        dg, dlog, dratio = dg + g_, dlog + log_, dratio + ratio_
    return (g, log, ratio), (dg, dlog, dratio)


def _vertex_cost(rest: Array, alpha: Array) -> Array:
    """(p − pᵅ)/((α−1)(1 − p)) at p = 1 − rest, which is 1 at rest = 0."""
    eps = float(jnp.finfo(rest.dtype).eps)
    tiny = rest < eps
    safe = jnp.where(tiny, eps, rest)
    log = -jnp.log1p(safe / (1 - safe))
    cost = (safe - 1) * jnp.expm1((alpha - 1) * log) / ((alpha - 1) * safe)
    return jnp.where(tiny, 1 - alpha * rest / 2, cost)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
@functools.partial(jax.jit, static_argnums=2)
def _log_largest(d: Array, alpha: Array, axis: int) -> tuple[Array, Array]:
    """The logarithm t of the row's largest activation, and the step that it is off by.

    For d ≤ 0 whose largest entry is 0. Above α = 2, g near the edge of the support feels the step.

    Newton's method for λ on (Σ g)^(α−1) = 1, within a bracket of t. Up to α = 2 that is convex in
    λ, so that from λ = 0 it converges monotonically, and for α = 2 in finitely many steps. Above,
    a unit that leaves the support has an infinite slope where Newton's method may stall, and every
    second step bisects.
    """
    top = _first_largest(d, axis)
    total = functools.partial(jnp.sum, axis=axis, keepdims=True)
    eps = jnp.finfo(d.dtype).eps

    def cond(carry):
        *_, moving, steps = carry
        return jnp.any(moving) & (steps < 300)

    def body(carry):
        t, _, low, high, moving, steps = carry
        g, _, ratio = _units(d, t, jnp.zeros_like(t), alpha)
        # Σ g − 1 without the largest term's 1, so that it keeps its digits near a vertex.
        excess, slope = jnp.expm1(t) + total(jnp.where(top, 0, g)), total(g / ratio)
        low, high = jnp.where(excess < 0, t, low), jnp.where(excess > 0, t, high)
        shrink = (1 + excess) * jnp.expm1((1 - alpha) * jnp.log1p(excess)) / slope
        new = t + jnp.log1p(shrink) / (alpha - 1)
        newton = (new >= low) & (new <= high) & ((alpha <= 2) | (steps % 2 == 0))
        new = jnp.where(newton, new, (low + high) / 2)
        change = jnp.where(alpha <= 2, jnp.abs(new - t), high - low)
        moving = moving & (excess != 0) & (change > -2 * eps * new)
        # Newton's steps are monotone up to α = 2: one that turns round has met rounding.
        moving = moving & ((alpha > 2) | ((excess > 0) & (new < t)))
        return jnp.where(moving, new, t), excess / slope, low, high, moving, steps + 1

    high = total(jnp.zeros_like(d))
    low = high - jnp.log(d.shape[axis])
    t, step, *_ = lax.while_loop(cond, body, (high, high, low, high, high == high, 0))
    return t, step


@functools.partial(_log_largest.defjvp, symbolic_zeros=True)
def _(axis, primals, tangents):
    d, alpha = primals
    t, step = _log_largest(d, alpha, axis)
    total = functools.partial(jnp.sum, axis=axis, keepdims=True)
    moving = [None if isinstance(each, SymbolicZero) else each for each in tangents]
    excess = lambda d, alpha: total(_units(d, t, step, alpha)[0])
    _, change = eqx.filter_jvp(excess, primals, tuple(moving))
    g, _, ratio = _units(d, t, step, alpha)
    return (t, step), (-change / total(g / ratio), jnp.zeros_like(step))


class _AbstractEntmax(AbstractRowwise):
    beta: eqx.AbstractVar[Array]
    min_beta: eqx.AbstractVar[float]

    @abc.abstractmethod
    def _alpha(self, z: Array) -> Array:
        """α in the dtype of z."""

    def _solve(self, z: Array) -> tuple[Array, Array, Array, Array, Array, Array]:
        """α, β, the largest entry m of each row, d = β(z − m), and t and the step at them."""
        alpha, beta = self._alpha(z), cast(self.beta, z, self.min_beta)
        m, d = _centred(z, beta, self.axis)
        return alpha, beta, m, d, *_log_largest(d, alpha, self.axis)

    def _others(self, z: Array) -> tuple[Array, Array, Array, Array, Array, Array]:
        """β, m, d, where g > 0 but for the largest unit, ln g, and c with E = −Σ gc/β there."""
        alpha, beta, m, d, t, step = self._solve(z)
        g, log, _ = _units(d, t, step, alpha)
        others = (g > 0) & ~_first_largest(z, self.axis)  # z, as d may vanish beside m
        rest = jnp.sum(jnp.where(others, g, 0), self.axis, keepdims=True)
        # Rounding may leave less than 1/D of 1, which is no matter of the derivative.
        rest = rest - lax.stop_gradient(jnp.maximum(rest + 1 / z.shape[self.axis] - 1, 0))
        # The largest is what the others leave of 1, so that an error of g is one of second order.
        cost = _vertex_cost(rest, alpha) - jnp.expm1((alpha - 1) * log) / (alpha - 1)
        return beta, m, d, others, log, cost / alpha

    def _value(self, z):
        beta, m, d, others, log, cost = self._others(z)
        terms = jnp.where(others, scaled_exp((d + cost) / beta, log), 0)
        return m + jnp.sum(terms, self.axis, keepdims=True)

    def _activation(self, z):
        alpha, _, _, d, t, step = self._solve(z)
        g, _, _ = _units(d, t, step, alpha)
        return g / jnp.sum(g, self.axis, keepdims=True)

    def _energy(self, z):
        # All its terms have one sign.
        beta, m, _, others, log, cost = self._others(z)
        terms = jnp.where(others, scaled_exp(-cost / beta, log), 0)
        return jnp.where(jnp.isnan(m), m, jnp.sum(terms, self.axis, keepdims=True))


class LSparsemax(_AbstractEntmax):
    """L = Σ_rows max p·x − (‖p‖² − 1)/2β, g = the maximiser p, E = Σ_rows (‖g‖² − 1)/2β.

    p runs over the simplex: g is the Euclidean projection of βx onto it, so that small entries are
    exactly 0 and one that leads by 1/β is exactly 1. The rows run along `axis`, D units long; the
    energy lies between (1/D − 1)/2β per row and 0. L has the constant of the Tsallis entropy, so
    that this is [`hopfield_layers.LEntmax`][] at α = 2; without it L is less and E more by 1/2β per
    row.

    **Arguments:**

    - `beta`: the inverse temperature β, in units of 1/x.
    - `axis`: the axis along which the activations sum to 1.
    - `min_beta`: β below this acts as this.

    **Raises:** `ValueError` for a row without units.

    Source: Martins & Astudillo, "From softmax to sparsemax" (ICML 2016), arXiv:1602.02068.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LSparsemax().activation(jnp.array([2.0, 0.5, 0.0])))
    [1. 0. 0.]

    ```
    """

    beta: Array = eqx.field(default=1.0, converter=as_float)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True)

    def _alpha(self, z):
        return jnp.asarray(2, z.dtype)


class LEntmax(_AbstractEntmax):
    """L = Σ_rows max p·x − Ω(p) over the simplex, g = the maximiser p, E = Σ_rows Ω(g).

    Ω(p) = Σ (pᵅ − p)/(βα(α−1)) is the negative Tsallis entropy: α → 1 gives
    [`hopfield_layers.LSoftmax`][], α = 2 is [`hopfield_layers.LSparsemax`][], and in between small
    entries are exactly 0 while the map stays smooth. An entry that leads by 1/(β(α−1)) is exactly
    1. The rows run along `axis`, D units long; the energy lies between (D^(1−α) − 1)/(βα(α−1)) per
    row and 0.

    **Arguments:**

    - `beta`: the inverse temperature β, in units of 1/x.
    - `alpha`: the entropic index, 1 < α ≤ 4. Above, g jumps at the edge of its support by more
        than rounding lets one resolve.
    - `axis`: the axis along which the activations sum to 1.
    - `min_beta`: β below this acts as this.

    **Raises:** `ValueError` if α ≤ 1 or α > 4, and for a row without units. Driven there by
    training, α acts as 1 + 1e-6 or 4.

    Source: Peters, Niculae & Martins, "Sparse sequence-to-sequence models" (ACL 2019),
    arXiv:1905.05702.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> print(hl.LEntmax(alpha=1.5).activation(jnp.array([2.0, -0.5, 0.0])))
    [1. 0. 0.]

    ```
    """

    beta: Array = eqx.field(default=1.0, converter=as_float)
    alpha: Array = eqx.field(default=1.5, converter=as_float)
    axis: int = eqx.field(default=-1, converter=operator.index, static=True)
    min_beta: float = eqx.field(default=1e-6, converter=float, static=True)

    def __check_init__(self):
        if not isinstance(self.alpha, Tracer) and np.any(np.asarray(self.alpha) > _LARGEST_ALPHA):
            raise ValueError(f"LEntmax: alpha must be at most {_LARGEST_ALPHA}, got {self.alpha}.")

    def _alpha(self, z):
        return jnp.minimum(cast(self.alpha, z, _SMALLEST_ALPHA), _LARGEST_ALPHA)
