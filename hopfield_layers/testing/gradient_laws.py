"""The law of derivatives with respect to parameters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .._conversion import as_float
from ..lagrangians import AbstractLagrangian
from ..model import AbstractEnergyModel, StateLike
from ..synapses.base import LagrangianLike
from .lagrangian_laws import checked_lagrangian
from .verdict import check, finite, Laws, Measured, rounding


def assert_gradients(model: AbstractEnergyModel | LagrangianLike, x: StateLike) -> None:
    """Derivatives with respect to each parameter are those of central differences.

    Of L, g and E, and for a model of g, u, E, H u and τ, along one direction in each parameter.
    Computed in float64 whatever the dtype of x. The difference is extrapolated to fourth order. Its
    tolerance is what the extrapolation changes, plus rounding and, at a kink or beside a power,
    where the difference converges slower than h² or not at all, an estimate of the remainder.

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
    """The law of each parameter at x."""
    with jax.enable_x64(True):
        arrays, static = eqx.partition((model, jax.tree.map(as_float, x)), eqx.is_inexact_array)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), arrays)
        return _measured(*eqx.combine(wide, static))


def _results(model: AbstractEnergyModel | AbstractLagrangian, x: PyTree) -> Array:
    """All results at x, one after the other."""
    if isinstance(model, AbstractLagrangian):
        return ravel_pytree((model(x), model.activation(x), model.energy(x)))[0]
    u = model.dEdg(x)
    g, force = jax.jvp(model.activations, (x,), (u,))
    return ravel_pytree((g, u, model.energy(x), force, model.tau))[0]


def _extrapolated(ups: Array, center: Array, downs: Array, steps: Array) -> tuple[Array, Array]:
    """df(h)/dh at 0 of fourth order by f at three halved steps, and what it may be off by."""
    h = steps[:, None]
    coarse, middle, fine = (ups - downs) / (2 * h)
    _, bend, half_bend = (ups - 2 * center + downs) / h
    previous, best = (4 * middle - coarse) / 3, (4 * fine - middle) / 3
    # h f″ vanishes with h, but at a kink the bend stays as it is. Beside a power the error falls as
    # slowly as √h, and the missing part is the sum of a geometric series.
    last, before = jnp.abs(fine - middle), jnp.abs(middle - coarse)
    ratio = before / jnp.where(last == 0, 1, last)  # 4 where the error falls as h²
    series = jnp.where(ratio < 3.5, last / jnp.maximum(ratio - 1, 2.0**-12), 0)
    return best, jnp.abs(best - previous) + jnp.abs(2 * half_bend - bend) + series


@eqx.filter_jit
def _measured(model: AbstractEnergyModel | AbstractLagrangian, x: PyTree) -> Laws:
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    values, unravel = ravel_pytree(parameters)
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    if not leaves:
        return {}

    def weighted(values, x):
        # With different weights no two derivatives cancel in the sum of the results.
        results = _results(eqx.combine(unravel(values), static), x)
        return (1 + jnp.cos(jnp.arange(results.size, dtype=results.dtype))) * results, results

    center, pull, results = jax.vjp(weighted, values, x, has_aux=True)
    exact, slopes_in_x = pull(jnp.ones_like(center))
    # Rounding the arguments changes the results too; a derivative that is NaN explains nothing.
    arguments, slopes = (ravel_pytree(tree)[0] for tree in ((x, values), (slopes_in_x, exact)))
    rounding_effect = jnp.nan_to_num(jnp.abs(arguments * slopes), nan=0, posinf=jnp.inf)
    size = jnp.sum(jnp.abs(center)) + jnp.sum(rounding_effect)
    # A step in proportion to the parameter doesn't leave its domain.
    scale = jnp.where(values == 0, 1, jnp.abs(values))
    everywhere = scale * jnp.cos(jnp.arange(values.size, dtype=values.dtype) / 2)
    leaf_masks = np.repeat(np.eye(len(leaves)), [leaf.size for _, leaf in leaves], axis=1)
    steps = 2.0 ** -jnp.arange(9.0, 12.0)

    def derivative(direction):
        shifts = jnp.concatenate([steps, -steps])
        shifted = jax.lax.map(lambda h: weighted(values + h * direction, x)[0], shifts)
        ups, downs = jnp.split(shifted, 2)
        best, change = _extrapolated(ups, center, downs, steps)
        # A derivative by another parameter may be NaN, and 0 · NaN too.
        slope = jnp.sum(jnp.where(direction == 0, 0, exact * direction))
        return slope, jnp.sum(best), jnp.sum(change) + rounding(size / steps[-1])

    each = zip(leaves, *jax.lax.map(derivative, leaf_masks * everywhere), strict=True)
    measured = [
        Measured(slope, best, tolerance, {}, subject="θ = model" + jax.tree_util.keystr(path))
        for (path, leaf), slope, best, tolerance in each
        if leaf.size
    ]
    return {"finite": [finite({"f": results})], "gradients": measured}
