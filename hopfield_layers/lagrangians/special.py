"""Special functions that keep their accuracy, and their derivatives', over the whole range.

Where two branches meet, each takes the edge for an argument that is the other's: a comparison that
the compiler evaluates twice may come out both ways, and then either value is right.
"""

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
    zero = base == 0
    at_zero = jnp.where(exponent == 1, base, 0)
    return jnp.where(zero, at_zero, jnp.power(jnp.where(zero, 1, base), exponent))


def log1p_ratio(q: Array) -> Array:
    """ln(1 + q)/q for q ≥ 0, which is 1 at 0; its derivative is finite where 1/q² is not."""
    edge = float(jnp.finfo(q.dtype).eps) ** (1 / 3)
    small = q < edge
    near, far = jnp.where(small, q, edge), jnp.where(small, edge, q)
    return jnp.where(small, 1 - near * (0.5 - near / 3), jnp.log1p(far) / far)


@jax.custom_jvp
def tanh(t: Array) -> Array:
    """tanh(t); its derivative is accurate in both tails, where 1 − tanh² cancels."""
    return jnp.tanh(t)


@tanh.defjvp
def _(primals, tangents):
    (t,), (dt,) = primals, tangents
    q = jnp.exp(-2 * magnitude(t))
    slope = 4 * q / jnp.square(1 + q)
    return tanh(t), jnp.where(slope == 0, 0, slope * dt)  # dt may be infinite


def log_cosh(beta: Array, z: Array) -> Array:
    """ln cosh(βz)/β = |z| + (ln(1 + exp(−2|βz|)) − ln 2)/β, or ln(1 + 2 sinh²(βz/2))/β near 0."""
    near, _, half_sinh, _, q = _log_cosh_parts(beta * z)
    small = 2 * half_sinh / beta * half_sinh * log1p_ratio(2 * jnp.square(half_sinh))
    return jnp.where(near, small, magnitude(z) + (jnp.log1p(q) - math.log(2)) / beta)


def log_cosh_conjugate(beta: Array, z: Array) -> Array:
    """z·tanh(βz) − ln cosh(βz)/β, which tends to ln 2/β; both terms are of size |z|."""
    near, t, half_sinh, a, q = _log_cosh_parts(beta * z)
    u = 2 * jnp.square(half_sinh)
    # tanh t = 2 sinh(t/2) cosh(t/2)/(1 + u) and ln cosh t = ln(1 + u)
    slope = t * jnp.sqrt(1 + u / 2) / (1 + u) - half_sinh * log1p_ratio(u)
    large = math.log(2) - jnp.log1p(q) - 2 * a * q / (1 + q)
    return jnp.where(near, 2 * half_sinh * slope, large) / beta


def _log_cosh_parts(t: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Where |t| < 1; t and sinh(t/2) there; |t| and exp(−2|t|) elsewhere."""
    near = magnitude(t) < 1
    small = jnp.where(near, t, 1)
    large = jnp.where(near, 1, -floored_exponent(-magnitude(t)))
    return near, small, jnp.sinh(small / 2), large, jnp.exp(-2 * large)


def sinh(t: Array) -> Array:
    """sinh t to a few ulps; it overflows only where sinh does."""
    a = magnitude(t)
    near = a < 1
    small, large = jnp.where(near, a, 1), jnp.where(near, 1, a)
    e, half = jnp.expm1(small), jnp.full_like(t, 0.5)
    far = scaled_exp(half, large) - scaled_exp(half, -large)
    positive = jnp.where(near, (e + e / (1 + e)) / 2, far)
    return jnp.where(t < 0, -positive, positive)
