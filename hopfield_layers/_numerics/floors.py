"""Parameters that must stay within a domain, although training may drive them out of it.

Below its floor a parameter is replaced by the floor, so its true derivative is 0, and gradient
descent could never bring it back. Reverse mode therefore passes the cotangents on which descent
raises the parameter, the negative ones, and stops the others; at a ceiling the signs are reversed.
Forward mode gives the true derivative. Second derivatives thus depend on the order in which they
are taken: below the floor they are 0, as they should be, unless both are taken in reverse mode.

Cotangents that pass are clipped to a size of 1. At the edge of the domain they may be huge, 1/β² at
β = 1e-6 or 1/τ² at τ = 1e-30 for instance, so that one step of descent would move the parameter
far away.
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


# JAX has no public way to give a linear function a custom transpose that also works under
# `jax.vmap`: `jax.custom_derivatives.linear_call` has no batching rule, and we know of no issue
# about it.


def _inside(below, x):
    return [jnp.where(below, 0, x)]


def _inside_jvp(primals, tangents):
    return _inside_p.bind(*primals), _inside_p.bind(primals[0], ad.instantiate_zeros(tangents[1]))


def _inside_transpose(cotangents, below, _):
    cotangent = ad.instantiate_zeros(cotangents[0])
    raising = jnp.clip(jnp.nan_to_num(cotangent), -1, 0)
    return [None, jnp.where(below, raising, cotangent)]


_inside_p = eqxi.create_vprim("inside", _inside, lambda _, x: [x], _inside_jvp, _inside_transpose)
