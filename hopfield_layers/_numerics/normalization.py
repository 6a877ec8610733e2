"""The direction and the norm of rows, centred or not.

With v = z, or v = z − mean z if centred, and mean v² over the D units of a row if centred, or Σ v²:

    direction = v/√(mean v² + ε)
    L = Σ_rows Dγ√(mean v² + ε) + Σ δ·z,  E = −Σ_rows Dγε/√(mean v² + ε)

with D = 1 if not centred. v and √ε are scaled first, so that no square leaves the range. With c,
the larger of the largest |v| and √ε, and w = v/c,

    √(mean v² + ε) = cs,  s = √(mean w² + ε/c²),  direction = w/s.

- The largest entry is subtracted before the mean, so that a large common offset costs no digits,
  and equal units give 0; z/16 is used, because the difference of two entries may leave the range.
- The mean is subtracted twice: the second mean is the rounding error of the first, which matters to
  many small units beside a large one.
- The derivative of the direction along v has the factor ε/(mean v² + ε). It is written out, because
  as a difference of two terms it would be lost to rounding.
- There is no `where` on data in the direction, so that XLA fuses it into one loop.
- w is multiplied by 1/s: XLA for GPUs turns (v/c)/s into v/(cs), and cs may leave the range.

The errors are at most 5 ulps of the result times its condition number, measured against mpmath.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


class _Scaled(NamedTuple):
    """Rows as multiples of c: unit·v = cw and unit·√(mean v² + ε) = cs."""

    w: Array
    s: Array
    c: Array
    root_share: Array  # √ε/√(mean v² + ε)
    unit: float  # the factor by which z is multiplied first
    size: int  # D


def _scaled(z, axis, eps, centred):
    unit, size = (1 / 16, z.shape[axis]) if centred else (1.0, 1)
    info, v, root = jnp.finfo(z.dtype), unit * z, unit * math.sqrt(eps)
    if centred:
        v = v - lax.stop_gradient(jnp.max(v, axis, keepdims=True, initial=-jnp.inf))
    # XLA divides by multiplying by the reciprocal, which must not underflow.
    absolute = jnp.abs(v) if centred else jnp.minimum(jnp.abs(v), 1 / info.tiny)
    # Neither cw nor cs depends on c, so neither do their derivatives.
    least = max(root, float(info.tiny))
    c = lax.stop_gradient(jnp.max(absolute, axis, keepdims=True, initial=least))
    w = v / c
    for _ in range(2 if centred else 0):
        w = w - jnp.sum(w, axis, keepdims=True) / max(size, 1)
    squares = jnp.sum(jnp.square(w), axis, keepdims=True) / max(size, 1) + jnp.square(root / c)
    s = jnp.sqrt(jnp.maximum(squares, info.tiny))
    return _Scaled(w, s, c, root / (c * s), unit, size)


@eqx.filter_custom_jvp
def direction(z: Array, axis: int, eps: float, centred: bool) -> Array:
    """v/√(mean v² + ε)."""
    scaled = _scaled(z, axis, eps, centred)
    return scaled.w * (1 / scaled.s)


@direction.def_jvp
def _direction_jvp(primals, tangents):
    (z, axis, _, centred), (dz, *_) = primals, tangents
    w, s, c, root_share, unit, size = _scaled(*primals)
    dv = unit * dz
    for _ in range(2 if centred else 0):
        dv = dv - jnp.sum(dv / size, axis, keepdims=True)
    dw = dv / c
    squares = jnp.maximum(jnp.sum(jnp.square(w), axis, keepdims=True), jnp.finfo(z.dtype).tiny)
    across = dw - jnp.sum(w * dw, axis, keepdims=True) / squares * w
    shrinkage = jnp.square(root_share)
    return w * (1 / s), ((1 - shrinkage) * across + shrinkage * dw) / s


def norm_value(z: Array, gamma: Array, delta: Array, axis: int, eps: float, centred: bool) -> Array:
    """Σ_rows Dγ√(mean v² + ε) + Σ δ·z, also where its terms overflow but the sum doesn't."""
    _, s, c, _, unit, size = _scaled(z, axis, eps, centred)
    norms = size * gamma * s

    def total(scale):
        return jnp.sum(norms * (c / scale / unit)) + jnp.sum(delta * (z / scale))

    # The power of 2 below the largest |z|, so that scaling is exact; its reciprocal is in range.
    info = jnp.finfo(z.dtype)
    most = jnp.minimum(jnp.max(jnp.abs(lax.stop_gradient(z)), initial=1), 1 / info.tiny)
    most = lax.reduce_precision(most, exponent_bits=info.nexp, mantissa_bits=0)
    scale = jnp.where(jnp.isfinite(total(1.0)), 1, most)
    return total(scale) * scale


def norm_energy(z: Array, gamma: Array, axis: int, eps: float, centred: bool) -> Array:
    """−Σ_rows Dγε/√(mean v² + ε)."""
    scaled = _scaled(z, axis, eps, centred)
    return jnp.sum(-scaled.size * math.sqrt(eps) * gamma * scaled.root_share)
