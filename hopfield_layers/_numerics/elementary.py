"""Elementary functions that are accurate over the whole range, and so are their derivatives.

- A function of t = βz takes β and z as separate arguments. Its derivative slope·(β dz + z dβ) is
  multiplied in an order in which no factor of 0 meets an infinite one.
- exp(t) leaves the range before scale·exp(t) does; scale·exp(t/2)·exp(t/2) doesn't.
- Where two formulas meet, each is evaluated at the threshold for arguments that belong to the other
  one. XLA may evaluate the predicate differently in two fusions, so each formula is valid slightly
  past the threshold.

The errors are a few ulps of the result times the condition number.
"""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array


def sum_in_range(terms: Array) -> Array:
    """Σ terms of either sign, also where a partial sum overflows but the whole doesn't."""
    scale = 2.0 ** max(terms.size - 1, 0).bit_length()
    total = jnp.sum(terms)
    return jnp.where(jnp.isfinite(total), total, jnp.sum(terms / scale) * scale)


def magnitude(t: Array) -> Array:
    """|t|, whose derivative at 0 is 1, so that even functions keep their curvature there."""
    return jnp.where(t < 0, -t, t)


def positive_part(t: Array) -> Array:
    """max(t, 0), whose derivative at 0 is 0."""
    return jnp.where(t <= 0, 0, t)


def floored_exponent(t: Array) -> Array:
    """`t`, or a finite constant where exp(t/4) is 0 already.

    The derivative of exp(βz) is exp(βz)·β dz, which would be 0·∞ where β dz overflows.
    """
    floor = 4 * math.log(jnp.finfo(t.dtype).tiny)
    return jnp.where(t < floor, floor, t)


def exponent_below(beta: Array, z: Array, m: Array) -> Array:
    """β(z − m) for z ≤ m, finite with finite derivatives also where z is −∞ or z − m overflows.

    A z far above m gives 1. Only units that are left out can have such a z.
    """
    lowest = -(float(jnp.finfo(z.dtype).max) ** 0.9)
    t = floored_exponent(beta * jnp.maximum(z - m, lowest))
    return jnp.where(t > 1, 1, t)


def scaled_exp(scale: Array, t: Array) -> Array:
    """scale·exp(t), which is infinite or zero only where the product is, even if exp(t) is."""
    half = jnp.exp(floored_exponent(t) / 2)
    return scale * half * half


def power(base: Array, exponent: Array) -> Array:
    """base^exponent for base ≥ 0, exponent > 0, with a finite derivative at base = 0.

    This derivative is 1 for the exponent 1 and 0 otherwise, even for exponents below 1, for which
    the true one is infinite.
    """
    zero, at_zero = base == 0, jnp.where(exponent == 1, base, 0)
    return jnp.where(zero, at_zero, jnp.power(jnp.where(zero, 1, base), exponent))


def scaled_power(scale: Array, base: Array, exponent: Array) -> Array:
    """scale·base^exponent for base ≥ 0, which is infinite only where the product is."""
    half = power(base, exponent / 2)
    return half * scale * half


def log1p_ratio(q: Array) -> Array:
    """ln(1 + q)/q for q ≥ 0, and 1 at 0; its derivative is finite even where 1/q² overflows."""
    edge = float(jnp.finfo(q.dtype).eps) ** (1 / 3)
    small = q < edge
    near, far = jnp.where(small, q, edge), jnp.where(small, edge, q)
    return jnp.where(small, 1 - near * (0.5 - near / 3), jnp.log1p(far) / far)


def log1p_ratio_to_one(q: Array) -> Array:
    """ln(1 + q)/q for 0 ≤ q ≤ 1, and 1 at 0.

    It is the Taylor series of 2 artanh(s)/q with s = q/(2 + q) ≤ 1/3, of 17 terms in float64 and 8
    in float32. On CPUs this takes a third of the time of `log1p_ratio`.
    """
    s = q / (2 + q)
    num_terms = math.ceil(-math.log(float(jnp.finfo(q.dtype).eps), 9))
    series = jnp.zeros_like(q)
    for k in reversed(range(num_terms)):
        series = series * (s * s) + 1 / (2 * k + 1)
    return 2 / (2 + q) * series


def _change(slope, beta, z, dbeta, dz):
    """slope·d(βz), multiplied in an order in which finite β, z and tangents never give 0·∞."""
    by_z = 0 if dz is None else slope * beta * dz
    return by_z if dbeta is None else by_z + slope * z * dbeta


def _function_of_product(value, slope):
    """`value`, a function of βz, whose derivative with respect to βz is `slope`."""
    fn = eqx.filter_custom_jvp(value)

    @fn.def_jvp
    def _(primals, tangents):
        return fn(*primals), _change(slope(*primals), *primals, *tangents)

    return fn


def _bell(t):
    # The derivative of 1/(1 + exp(−t)), accurate in both tails.
    q = jnp.exp(-magnitude(t))
    return q / jnp.square(1 + q)


@eqx.filter_custom_jvp
def sigmoid(scale: Array, beta: Array, z: Array) -> Array:
    """scale/(1 + exp(−βz)), which may be in range where exp(−βz) isn't."""
    # h²/(h² + 1) with h = exp(βz/2). This is 1 to rounding error long before h² overflows.
    h = jnp.minimum(jnp.exp(beta * z / 2), 2.0**30)
    return scale * (h / (h * h + 1)) * h


@sigmoid.def_jvp
def _sigmoid_jvp(primals, tangents):
    (scale, beta, z), (dscale, *dproduct) = primals, tangents
    change = _change(scale * _bell(beta * z), beta, z, *dproduct)
    return sigmoid(*primals), change if dscale is None else change + sigmoid(dscale, beta, z)


def _sinh(beta, z):
    # |sinh t| = (E + E/(1 + E))/2 with E = exp|t| − 1 = e(e + 2) and e = exp(|t|/2) − 1. Only the
    # first term may overflow. Where t/2 underflows, sinh t = t.
    t = beta * z
    e = jnp.expm1(jnp.abs(t) / 2)
    small = jnp.minimum(e, 1 / jnp.finfo(t.dtype).eps)
    small = small * (small + 2)
    positive = e / 2 * (e + 2) + small / (1 + small) / 2
    return jnp.copysign(jnp.maximum(positive, jnp.abs(t)), t)


def _cosh(beta, z):
    half = jnp.exp(jnp.abs(beta * z) / 2)
    return half / 2 * half + 1 / (2 * half * half)


def _tanh_slope(beta, z):
    # 1 − tanh² would cancel in both tails.
    return 4 * _bell(2 * (beta * z))


exp = _function_of_product(lambda beta, z: jnp.exp(beta * z), lambda beta, z: exp(beta, z))
expm1 = _function_of_product(lambda beta, z: jnp.expm1(beta * z), exp)
tanh = _function_of_product(lambda beta, z: jnp.tanh(beta * z), _tanh_slope)
sinh = _function_of_product(_sinh, lambda beta, z: cosh(beta, z))
cosh = _function_of_product(_cosh, sinh)
