"""Parameters that must stay within a domain, which training may nevertheless drive them out of.

Below its floor a parameter acts as the floor, so its true derivative is 0 there, and gradient
descent could never bring it back. Reverse mode therefore lets the cotangents through that make
descent raise the parameter, the negative ones, and stops the others; at a ceiling the reverse.
Forward mode gives the true derivative. So second derivatives depend on the order in which they are
taken: below the floor they are 0, as they should be, unless both are taken in reverse mode.

What is let through is bounded by 1. The cotangent at the edge may be out of all proportion, 1/β² at
β = 1e-6 or 1/τ² at τ = 1e-30 for instance, and one step of descent would fling the parameter away.
"""

import equinox.internal as eqxi
import jax.numpy as jnp
from jax.interpreters import ad
from jaxtyping import Array


# The floor of the parameters that only need to be positive.
SMALLEST = 1e-30


def floored(parameter: Array, floor: float) -> Array:
    """max(parameter, floor), whose gradient below the floor may raise the parameter."""
    below = parameter < floor
    (inside,) = _inside_p.bind(below, parameter)
    return inside + jnp.where(below, floor, 0)


def clipped(parameter: Array, floor: float, ceiling: float) -> Array:
    """`parameter` between a floor and a ceiling, whose gradient may bring it back from either."""
    return -floored(-floored(parameter, floor), -ceiling)


# There is no public way to give a linear function a transpose of one's own that also works under
# `jax.vmap`: `jax.custom_derivatives.linear_call` has no batching rule, and no upstream issue about
# that is known.


def _inside(below, x):
    return [jnp.where(below, 0, x)]


def _inside_jvp(primals, tangents):
    return _inside_p.bind(*primals), _inside_p.bind(primals[0], ad.instantiate_zeros(tangents[1]))


def _inside_transpose(cotangents, below, _):
    cotangent = ad.instantiate_zeros(cotangents[0])
    raising = jnp.clip(jnp.nan_to_num(cotangent), -1, 0)
    return [None, jnp.where(below, raising, cotangent)]


_inside_p = eqxi.create_vprim("inside", _inside, lambda _, x: [x], _inside_jvp, _inside_transpose)
