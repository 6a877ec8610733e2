"""The law of derivatives with respect to parameters and states."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from .._conversion import as_float
from ..lagrangians import AbstractLagrangian
from ..model import AbstractEnergyModel, StateLike
from ..synapses.base import LagrangianLike
from .differences import compared_slopes, directions_of, filter_jit, in_float64
from .kinds import checked_lagrangian
from .traced_once import TracedOnce
from .verdict import check, finite, Laws


def assert_gradients(model: AbstractEnergyModel | LagrangianLike, x: StateLike) -> None:
    """Derivatives by each parameter, and by each array of x, agree with central differences.

    The derivatives are those of L, g and E, or for a model of g, u and E and, by parameters, of H u
    and τ, along one direction in each array. They are computed in float64 whatever the dtype of x.
    Where a result is convex or concave within a step, its derivative lies between the one-sided
    differences. A disagreement counts if it doesn't vanish with the step, up to 64 ε of the terms
    divided by the step. At a kink nothing is compared.

    **Arguments:**

    - `model`: a Lagrangian, a convex callable, or a [`hopfield_layers.AbstractEnergyModel`][].
    - `x`: a state, without batch axes.

    **Raises:** [`hopfield_layers.testing.Violation`][]; `TypeError` for another model.

    Examples:
        >>> layer = hl.TanhLayer(2, tau=2.0, bias=jnp.ones(2))
        >>> hl.testing.assert_gradients(layer, jnp.array([0.5, -1.0]))
    """
    model = model if isinstance(model, AbstractEnergyModel) else checked_lagrangian(model)
    check(gradient_laws(model, x), {"model": model, "x": x})


def gradient_laws(model: AbstractEnergyModel | AbstractLagrangian, x: PyTree) -> Laws:
    """The law of each parameter, and of each array of the state, at x."""
    with jax.enable_x64(True):
        return _measured(*in_float64((model, jax.tree.map(as_float, x))))


def _results(model: AbstractEnergyModel | AbstractLagrangian, x: PyTree) -> list[PyTree]:
    """The results at x that have derivatives by x, and after them those that may have none."""
    if isinstance(model, AbstractLagrangian):
        return [(model(x), model.activation(x), model.energy(x)), ()]
    model = TracedOnce(model)
    u = model.dEdg(x)
    g, force = jax.jvp(model.activations, (x,), (u,))
    return [(g, u, model.energy(x)), (force, model.tau)]


@filter_jit
def _measured(model: AbstractEnergyModel | AbstractLagrangian, x: PyTree) -> Laws:
    parameters, static = eqx.partition(model, eqx.is_inexact_array)

    values, unravel = ravel_pytree((parameters, x))

    def weighted(values):
        parameters, x = unravel(values)
        results = _results(eqx.combine(parameters, static), x)
        first, others = (ravel_pytree(each)[0] for each in results)
        # With different weights no two derivatives cancel in the sum of the results.
        weights = 1 + jnp.cos(jnp.arange(first.size + others.size, dtype=first.dtype))
        return first * weights[: first.size], others * weights[first.size :]

    def everything(values):
        return jnp.concatenate(weighted(values))

    center, pull = jax.vjp(weighted, values)
    # Derivatives by x of what may have none aren't formed, as 0 · NaN would be NaN.
    by_state = jax.grad(lambda values: jnp.sum(weighted(values)[0]))(values)
    (by_parameters,) = pull(jax.tree.map(jnp.ones_like, center))
    names, directions = directions_of((parameters, x), values)
    names = [f"θ = {'x' if name[:3] == '[1]' else 'model'}{name[3:]}" for name in names]
    is_state = jnp.array([[name.startswith("θ = x")] for name in names])
    first, others = center
    return {
        "finite": [finite({"f": first})],
        "gradients": compared_slopes(
            everything,
            values,
            names,
            directions,
            jnp.concatenate(center),
            jnp.where(is_state, by_state, by_parameters),
            (jnp.arange(first.size + others.size) < first.size) | ~is_state,
        ),
    }
