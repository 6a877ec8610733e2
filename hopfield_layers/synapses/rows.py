"""Hidden Lagrangians, one row at a time."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..lagrangians import AbstractLagrangian
from ..lagrangians.base import CallableLagrangian


def row_values(lagrangian: AbstractLagrangian, h: Array) -> Array:
    """L of each row along the last axis of `h`, whichever axis the Lagrangian acts along."""
    return _values(lagrangian, h, h.ndim - 1)


def unit_values(lagrangian: AbstractLagrangian, h: Array) -> Array:
    """L of each entry of `h`, for a Lagrangian that couples none."""
    return _values(lagrangian, h, h.ndim)


def _values(lagrangian: AbstractLagrangian, h: Array, axes: int) -> Array:
    """L of what is left of `h` without its first axes, of the shape of these."""
    # A function may close over what is differentiated, and has no closed form to gain from.
    function = isinstance(lagrangian, CallableLagrangian)
    value = lagrangian if function else functools.partial(_value, lagrangian)
    batch, rest = h.shape[:axes], h.shape[axes:]
    return jax.vmap(value)(h.reshape(math.prod(batch), *rest)).reshape(batch)


@eqx.filter_custom_jvp
def _value(lagrangian: AbstractLagrangian, h: Array) -> Array:
    """L(h), whose derivative with respect to h is the activation in its closed form."""
    return lagrangian(h)


@_value.def_jvp
def _(primals, tangents):
    (lagrangian, h), (d_lagrangian, dh) = primals, tangents
    # Of the parameters, which have no closed form; None where there is nothing to differentiate.
    _, tangent = eqx.filter_jvp(lambda lagrangian: lagrangian(h), (lagrangian,), (d_lagrangian,))
    if dh is not None:
        along = jnp.sum(lagrangian.activation(h) * dh)
        tangent = along if tangent is None else tangent + along
    return _value(lagrangian, h), tangent
