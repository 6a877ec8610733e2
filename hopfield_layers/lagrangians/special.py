"""Special functions that keep their accuracy, and their derivatives', over the whole range."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array


def magnitude(t: Array) -> Array:
    """|t| whose derivative at 0 is 1, so that even functions keep their curvature there."""
    return jnp.where(t < 0, -t, t)


def floored_exponent(t: Array) -> Array:
    """`t`, or where exp(t/2) has vanished long since, a finite stand-in without a derivative.

    The derivative of exp(βz) is exp(βz)·βz', which is 0·∞ where βz' overflows.
    """
    floor = 4 * math.log(jnp.finfo(t.dtype).tiny)
    return jnp.where(t < floor, floor, t)


def scaled_exp(scale: Array, t: Array) -> Array:
    """scale·exp(t), infinite or zero only where the product is and not where exp(t) is."""
    half = jnp.exp(floored_exponent(t) / 2)
    return scale * half * half


def power(base: Array, exponent: Array) -> Array:
    """base^exponent for base ≥ 0, exponent > 0, with a finite derivative at base = 0.

    There it is 1 for exponent 1 and 0 otherwise, also below 1 where the true one is infinite.
    """
    safe = jnp.where(base > 0, base, 1)
    at_zero = jnp.where(exponent == 1, base, 0)
    return jnp.where(base > 0, jnp.power(safe, exponent), at_zero)


def _logistic_slope(t: Array) -> Array:
    """exp(−|t|)/(1 + exp(−|t|))², without the cancellation of σ(1 − σ)."""
    q = jnp.exp(-magnitude(t))
    return q / jnp.square(1 + q)


def _scaled_tangent(slope: Array, tangent: Array) -> Array:
    """slope·tangent, where a slope of 0 wins over an infinite tangent."""
    return jnp.where(slope == 0, 0, slope * tangent)


@jax.custom_jvp
def logistic(t: Array) -> Array:
    """σ(t) = 1/(1 + exp(−t)); its derivative is accurate in both tails."""
    return jax.nn.sigmoid(t)


@logistic.defjvp
def _(primals, tangents):
    (t,), (dt,) = primals, tangents
    return logistic(t), _scaled_tangent(_logistic_slope(t), dt)


@jax.custom_jvp
def tanh(t: Array) -> Array:
    """tanh(t); its derivative is accurate in both tails, where 1 − tanh² cancels."""
    return jnp.tanh(t)


@tanh.defjvp
def _(primals, tangents):
    (t,), (dt,) = primals, tangents
    return tanh(t), _scaled_tangent(4 * _logistic_slope(2 * t), dt)


def log_cosh(t: Array) -> Array:
    """ln cosh t = ln(1 + 2 sinh²(t/2)) near 0, |t| − ln 2 + ln(1 + exp(−2|t|)) away from it."""
    near = magnitude(t) < 1
    small = jnp.where(near, t, 0)
    large = jnp.where(near, 1, magnitude(t))
    return jnp.where(
        near,
        jnp.log1p(2 * jnp.square(jnp.sinh(small / 2))),
        large - math.log(2) + jnp.log1p(jnp.exp(-2 * large)),
    )


def log_cosh_conjugate(t: Array) -> Array:
    """t·tanh t − ln cosh t, which tends to ln 2; both terms are of size |t|."""
    near = magnitude(t) < 1
    small = jnp.where(near, t, 0)
    large = jnp.where(near, 1, -floored_exponent(-magnitude(t)))
    q = jnp.exp(-2 * large)
    return jnp.where(
        near,
        small * tanh(small) - log_cosh(small),
        math.log(2) - jnp.log1p(q) - 2 * large * q / (1 + q),
    )


def sinh(t: Array) -> Array:
    """sinh t to a few ulps; it overflows only where sinh does."""
    a = magnitude(t)
    near = a < 1
    small, large = jnp.where(near, a, 0), jnp.where(near, 1, a)
    e = jnp.expm1(small)
    half = jnp.exp(large / 2)
    positive = jnp.where(near, (e + e / (1 + e)) / 2, half / 2 * half - 1 / (2 * half) / half)
    return jnp.where(t < 0, -positive, positive)
