"""Special functions that keep their accuracy, and their derivatives', over the whole range.

Where two branches meet, each takes the edge for an argument that is the other's: a comparison that
the compiler evaluates twice may come out both ways, and then either value is right.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array


_Function = Callable[[Array, Array], Array]


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


def _along(slope: Array, beta: Array, z: Array, dbeta: Any, dz: Any) -> Array:
    """slope·d(βz), in an order in which no finite β, z and tangents give 0·∞."""
    change = jnp.zeros_like(slope)
    for factor, tangent in ((beta, dz), (z, dbeta)):
        if not isinstance(tangent, SymbolicZero):
            change += slope * factor * tangent
    return change


def _of_product(value: _Function, slope: _Function) -> _Function:
    """`value`, a function of β and z by their product, differentiated by its slope in βz."""
    fn = jax.custom_jvp(value)

    @functools.partial(fn.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        return fn(*primals), _along(slope(*primals), *primals, *tangents)

    return fn


exp = _of_product(lambda beta, z: jnp.exp(beta * z), lambda beta, z: exp(beta, z))
expm1 = _of_product(lambda beta, z: jnp.expm1(beta * z), exp)


def _bell(t: Array) -> Array:
    """The derivative of 1/(1 + exp(−t)), accurate in both tails."""
    q = jnp.exp(-magnitude(t))
    return q / jnp.square(1 + q)


# 1 − tanh² would cancel in both tails.
tanh = _of_product(lambda beta, z: jnp.tanh(beta * z), lambda beta, z: 4 * _bell(2 * (beta * z)))


def _sinh(beta: Array, z: Array) -> Array:
    # |sinh t| = (E + E/(1 + E))/2 with E = exp|t| − 1 = e(e + 2), of which only the first overflows
    t = beta * z
    e = jnp.expm1(jnp.abs(t) / 2)
    small = jnp.minimum(e, 1 / jnp.finfo(t.dtype).eps)
    small = small * (small + 2)
    positive = e / 2 * (e + 2) + small / (1 + small) / 2
    return jnp.copysign(jnp.maximum(positive, jnp.abs(t)), t)  # where t/2 vanishes


def _cosh(beta: Array, z: Array) -> Array:
    h = jnp.exp(jnp.abs(beta * z) / 2)
    return h / 2 * h + 1 / (2 * h * h)


sinh = _of_product(_sinh, lambda beta, z: cosh(beta, z))
cosh = _of_product(_cosh, sinh)


@jax.custom_jvp
def sigmoid(scale: Array, beta: Array, z: Array) -> Array:
    """scale/(1 + exp(−βz)), which may be in range where exp(βz) isn't."""
    # h²/(h² + 1) with h = exp(βz/2), which is 1 long before h² leaves the range
    h = jnp.minimum(jnp.exp(beta * z / 2), 2.0**30)
    return scale * (h / (h * h + 1)) * h


@functools.partial(sigmoid.defjvp, symbolic_zeros=True)
def _(primals, tangents):
    (scale, beta, z), (dscale, dbeta, dz) = primals, tangents
    change = _along(scale * _bell(beta * z), beta, z, dbeta, dz)
    if not isinstance(dscale, SymbolicZero):
        change += sigmoid(dscale, beta, z)
    return sigmoid(scale, beta, z), change


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
