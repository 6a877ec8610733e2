"""L_hid(Σₖ gᵏ·Wᵏ), of batches in blocks, so that their memory is bounded."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, PyTree

from ..lagrangians import AbstractLagrangian
from ..lagrangians.base import CallableLagrangian
from .rows import row_values


# The most hidden units of all samples together to evaluate at a time, or as many as there are
# weights if these are more.
AT_A_TIME = 2**23


def hidden_value(
    lagrangian: AbstractLagrangian, Ws: tuple[Array, ...], gs: tuple[Array, ...]
) -> Array:
    """L(Σ g·W). Of a batch, this and its gradient with respect to g are evaluated in blocks."""
    # A function may close over what is differentiated, which blocks can't follow.
    function = isinstance(lagrangian, CallableLagrangian)
    return (_value if function else _value_in_blocks)(lagrangian, Ws, gs)


def _hidden(Ws: tuple[Array, ...], gs: tuple[Array, ...]) -> Array:
    products = [g.ravel() @ W.astype(g.dtype) for g, W in zip(gs, Ws, strict=True)]
    return functools.reduce(jnp.add, products)


def _value(lagrangian: AbstractLagrangian, Ws: tuple[Array, ...], gs: tuple[Array, ...]) -> Array:
    return row_values(lagrangian, _hidden(Ws, gs))


def _slopes(
    lagrangian: AbstractLagrangian, Ws: tuple[Array, ...], gs: tuple[Array, ...]
) -> tuple[Array, ...]:
    """The gradient of `_value` with respect to each g."""
    p = lagrangian.activation(_hidden(Ws, gs))
    slopes = (jnp.tensordot(p, W.astype(p.dtype), (0, 1)) for W in Ws)
    return tuple(slope.reshape(g.shape) for slope, g in zip(slopes, gs, strict=True))


def _in_blocks(fn: Callable[..., Any], lagrangian: Any, Ws: Any, gs: Any) -> Any:
    units, nhid = sum(map(len, Ws)), Ws[0].shape[1]
    if units == 0:
        return fn(lagrangian, Ws, gs)
    arrays, rest = eqx.partition((lagrangian, Ws), eqx.is_array)

    def apply(arrays, gs):
        lagrangian, Ws = eqx.combine(arrays, rest)
        return fn(lagrangian, Ws, gs)

    return in_blocks(apply, arrays, gs, max(units, AT_A_TIME // max(nhid, 1)))


@eqx.filter_custom_jvp
def _value_in_blocks(lagrangian: Any, Ws: Any, gs: Any) -> Any:
    return _in_blocks(_value, lagrangian, Ws, gs)


@_value_in_blocks.def_jvp
def _(primals, tangents):
    (lagrangian, Ws, gs), (d_lagrangian, dWs, dgs) = primals, tangents
    # Of the weights, whose derivatives add up over the samples; None where there are none.
    of = lambda lagrangian, Ws: _value(lagrangian, Ws, gs)
    _, tangent = eqx.filter_jvp(of, (lagrangian, Ws), (d_lagrangian, dWs))
    terms = [] if tangent is None else [tangent]
    if any(dg is not None for dg in dgs):
        slopes = zip(_slopes_in_blocks(*primals), dgs, strict=True)
        terms += [jnp.sum(slope * dg) for slope, dg in slopes if dg is not None]
    return _value_in_blocks(*primals), functools.reduce(jnp.add, terms) if terms else None


@eqx.filter_custom_jvp
def _slopes_in_blocks(lagrangian: Any, Ws: Any, gs: Any) -> Any:
    return _in_blocks(_slopes, lagrangian, Ws, gs)


@_slopes_in_blocks.def_jvp
def _(primals, tangents):
    return _slopes_in_blocks(*primals), eqx.filter_jvp(_slopes, primals, tangents)[1]


def in_blocks(
    fn: Callable[[PyTree, PyTree], PyTree], shared: PyTree, x: PyTree, size: int
) -> PyTree:
    """`fn(shared, x)`, of which `jax.vmap` over x evaluates at most `size` samples at a time.

    Not differentiable in reverse.
    """

    def samples(shared, x):
        # Of all batch axes, along the first axis of x.
        one = lambda x: fn(shared, x)
        count = jax.tree.leaves(x)[0].shape[0]
        if count <= size:
            return jax.vmap(one)(x)
        blocks = math.ceil(count / size)
        return jax.lax.map(one, x, batch_size=math.ceil(count / blocks))

    run = custom_vmap(samples)

    @run.def_vmap
    def _(count, batched, shared, x):
        if any(jax.tree.leaves(batched[0])):
            axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))
            out = jax.vmap(samples, axes, axis_size=count)(shared, x)
        else:
            spread = lambda x, b: x if b else jnp.broadcast_to(x, (count, *x.shape))
            x = jax.tree.map(spread, x, batched[1])
            batch = jax.tree.leaves(x)[0].shape[:2]
            joined = jax.tree.map(lambda x: x.reshape(math.prod(batch), *x.shape[2:]), x)
            out = run(shared, joined)
            out = jax.tree.map(lambda y: y.reshape(*batch, *y.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    out = run(shared, jax.tree.map(lambda x: x[None], x))
    return jax.tree.map(lambda y: y[0], out)
