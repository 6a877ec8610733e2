"""ln cosh and softplus, the integrals of saturating activations, and their Legendre transforms.

Both are a linear function of |z| plus a remainder that vanishes exponentially:

    ln cosh(t)/β      = |z| + (ln(1 + q) − ln 2)/β,  t = βz,  q = exp(−2|t|)
    s ln(1 + exp t)/β = s max(z, 0) + s ln(1 + q)/β,           q = exp(−|t|)

- For |t| < 1 these terms of ln cosh cancel, so that ln cosh t = ln(1 + u) is used instead, with
  u = 2 sinh²(t/2) = (1 − p)²/(2p) and p = exp(−|t|).
- In the Legendre transforms z·g − L the linear parts cancel exactly, so they are left out:

      t tanh t − ln cosh t = ln 2 − ln(1 + q) − 2|t|q/(1 + q)
      s (t p − ln(1 + exp t)) = −s q (|t|/(1 + q) + ln(1 + q)/q),  p = 1/(1 + exp(−t))

  For |t| < 1 the former is (1 − p) (|t| (1 + p)/(1 + p²) − (1 − p)/(2p) · ln(1 + u)/u).

The errors are at most 5 ulps of the result times its condition number, measured against mpmath.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .elementary import floored_exponent, log1p_ratio_to_one, magnitude, scaled_exp


class _LogCoshTerms(NamedTuple):
    """The terms of the two formulas; 1 is substituted where the other formula applies."""

    is_near: Array  # where |t| < 1
    near: Array  # |t|, near 0
    p: Array  # exp(−|t|), near 0
    gap: Array  # 1 − p, near 0
    far: Array  # |t|, far from 0
    q: Array  # exp(−2|t|), far from 0
    ratio: Array  # ln(1 + u)/u near 0, ln(1 + q)/q far from 0


def _log_cosh_terms(t):
    is_near = magnitude(t) < 1
    near = jnp.where(is_near, magnitude(t), 1)
    far = jnp.where(is_near, 1, -floored_exponent(-magnitude(t)))
    gap, q = -jnp.expm1(-near), jnp.exp(-2 * far)
    p = 1 - gap
    ratio = log1p_ratio_to_one(jnp.where(is_near, gap * gap / (2 * p), q))
    return _LogCoshTerms(is_near, near, p, gap, far, q, ratio)


def log_cosh(beta: Array, z: Array) -> Array:
    """ln cosh(βz)/β."""
    is_near, _, p, gap, _, q, ratio = _log_cosh_terms(beta * z)
    far = magnitude(z) + (q * ratio - math.log(2)) / beta
    return jnp.where(is_near, gap / beta * (gap / (2 * p)) * ratio, far)


def log_cosh_conjugate(beta: Array, z: Array) -> Array:
    """z·tanh(βz) − ln cosh(βz)/β, which tends to ln 2/β."""
    is_near, near, p, gap, far, q, ratio = _log_cosh_terms(beta * z)
    near = gap * (near * (1 + p) / (1 + p * p) - gap / (2 * p) * ratio)
    far = math.log(2) - q * ratio - 2 * far * q / (1 + q)
    return jnp.where(is_near, near, far) / beta


def softplus(scale: Array, beta: Array, z: Array) -> Array:
    """scale·ln(1 + exp(βz))/β."""
    exponent = floored_exponent(-magnitude(beta * z))
    remainder = scaled_exp(scale * log1p_ratio_to_one(jnp.exp(exponent)) / beta, exponent)
    return scale * jnp.where(z < 0, 0, z) + remainder


def softplus_conjugate(scale: Array, beta: Array, z: Array) -> Array:
    """z·g − scale·ln(1 + exp(βz))/β with g = scale/(1 + exp(−βz)), an even function of z."""
    exponent = floored_exponent(-magnitude(beta * z))
    q = jnp.exp(exponent)
    return scaled_exp(scale * (exponent / (1 + q) - log1p_ratio_to_one(q)) / beta, exponent)
