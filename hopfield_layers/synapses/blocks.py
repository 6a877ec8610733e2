"""L_hid of rows of hidden units, and of a batch in blocks, so that its memory is bounded."""

import functools
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from .._conversion import over_samples
from ..lagrangians.base import AbstractLagrangian, pure
from ..lagrangians.callables import CallableLagrangian


# The number of hidden units, those of all samples counted, that a block may always have. It may
# have more if there are more weights.
UNITS_PER_BLOCK = 2**23

_Arrays = tuple[Array, ...]


def row_values(lagrangian: AbstractLagrangian, h: Array) -> Array:
    """L of each row along the last axis of `h`, whichever axis the Lagrangian acts along."""
    value, activation, _ = pure(lagrangian)
    # A function may close over a traced value, whose derivative a custom rule would lose.
    if not isinstance(lagrangian, CallableLagrangian):
        value = functools.partial(_with_gradient, Partial(_value, lagrangian), activation)
    return over_samples(value, h, h.ndim - 1)


def hidden_value(lagrangian: AbstractLagrangian, Ws: _Arrays, gs: _Arrays) -> Array:
    """L(Σ g·W) of flat gs. For a batch, this and its gradients along gs are evaluated in blocks."""
    value, gradients = (Partial(fn, lagrangian, Ws) for fn in (_hidden_value, _hidden_gradients))
    # As for `row_values`, a function may close over a traced value.
    if isinstance(lagrangian, CallableLagrangian):
        return value(gs)
    size = max(sum(map(len, Ws)), UNITS_PER_BLOCK // max(Ws[0].shape[1], 1))
    return _with_gradient(*(Partial(_in_blocks, size, fn) for fn in (value, gradients)), gs)


def _value(lagrangian: AbstractLagrangian, h: Array) -> Array:
    return pure(lagrangian).value(h)


def _hidden_units(Ws: _Arrays, gs: _Arrays) -> Array:
    return functools.reduce(jnp.add, map(jnp.matmul, gs, Ws))


def _hidden_value(lagrangian: AbstractLagrangian, Ws: _Arrays, gs: _Arrays) -> Array:
    return row_values(lagrangian, _hidden_units(Ws, gs))


def _hidden_gradients(lagrangian: AbstractLagrangian, Ws: _Arrays, gs: _Arrays) -> _Arrays:
    # Written out, since `jax.grad` takes more memory.
    p = pure(lagrangian).activation(_hidden_units(Ws, gs))
    return tuple(jnp.tensordot(p, W, (0, 1)) for W in Ws)


@eqx.filter_custom_jvp
def _with_gradient(value: Callable, gradient: Callable, x: PyTree[Array]) -> Array:
    """`value(x)`, whose derivative with respect to x is `gradient(x)`; both may be pytrees."""
    return value(x)


@_with_gradient.def_jvp
def _with_gradient_jvp(primals, tangents):
    (value, gradient, x), (d_value, _, dx) = primals, tangents
    slopes = gradient(x)

    def same_slope(value: Callable, y: PyTree[Array]) -> Array:
        # The parameters in `value` have no gradient in closed form.
        products = jax.tree.map(jnp.multiply, slopes, y)
        return sum(map(jnp.sum, jax.tree.leaves(products)), value(x))

    _, tangent = eqx.filter_jvp(same_slope, (value, x), (d_value, dx))
    return _with_gradient(*primals), tangent


@eqx.filter_custom_jvp
def _in_blocks(size: int, fn: Callable, gs: _Arrays) -> PyTree[Array]:
    """`fn(gs)`, which `jax.vmap` over gs evaluates for at most `size` samples at a time."""
    arrays, static = eqx.partition(fn, eqx.is_array)

    def samples(arrays: PyTree[Array], gs: _Arrays) -> PyTree[Array]:
        sample, count = eqx.combine(arrays, static), len(gs[0])
        if count <= size or not any(g.size for g in gs):
            return jax.vmap(sample)(gs)
        num_blocks = math.ceil(count / size)  # of equal sizes, which takes the least memory
        return jax.lax.map(sample, gs, batch_size=math.ceil(count / num_blocks))

    run = custom_vmap(samples)

    @run.def_vmap
    def _(axis_size, batched, arrays, gs):
        if any(jax.tree.leaves(batched[0])):
            axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))
            out = jax.vmap(samples, axes, axis_size=axis_size)(arrays, gs)
        else:
            # Join the new batch axis to that of the samples.
            batch = (axis_size, gs[0].shape[-2])
            gs = (jnp.broadcast_to(g, (*batch, g.shape[-1])) for g in gs)
            out = run(arrays, tuple(jax.lax.collapse(g, 0, 2) for g in gs))
            out = jax.tree.map(lambda y: y.reshape(*batch, *y.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    out = run(arrays, tuple(g[None] for g in gs))
    return jax.tree.map(lambda y: y[0], out)


@_in_blocks.def_jvp
def _in_blocks_jvp(primals, tangents):
    # Not in blocks, since the derivatives of the weights and parameters add up over the samples.
    (_, *arguments), (_, *d_arguments) = primals, tangents
    _, tangent = eqx.filter_jvp(Partial.__call__, arguments, d_arguments)
    return _in_blocks(*primals), tangent
