"""The laws of the energy's slope, which differences of the energy decide."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..dynamics import EnergyFlow
from .differences import compared_slopes, directions_of, filter_jit, in_float64, jump
from .verdict import Laws


def slope_laws(field: EnergyFlow, x: PyTree, y: PyTree, rate: PyTree, is_stuck: Array) -> Laws:
    """The laws of ∂E/∂x at x, of E from x to y, and of dE/dt at y if a solve is stuck there."""
    with jax.enable_x64(True):
        return _by_differences(*in_float64((field, x, y, rate)), is_stuck)


@filter_jit
def _by_differences(field: EnergyFlow, x: PyTree, y: PyTree, rate: PyTree, is_stuck: Array) -> Laws:
    start, unravel = ravel_pytree(x)
    end, rate = ravel_pytree(y)[0], ravel_pytree(rate)[0]

    def energy(x):
        return field.energy(jnp.zeros(()), unravel(x))

    def products(x):
        return jnp.sum(jnp.abs(x * ravel_pytree(field.model.activations(unravel(x)))[0]))

    names, directions = directions_of(x, start, num_random=2)
    names = [f"x{name}" if name[:1] != "r" else name for name in names]
    # A step along the rate is at most in proportion to the state, like those in other directions.
    longest = jnp.max(jnp.abs(rate) / jnp.where(end == 0, 1, jnp.abs(end)), initial=0)
    rate = rate / jnp.where(longest > 0, longest, 1)
    is_stuck &= jnp.all(jnp.isfinite(rate))
    directions = jnp.concatenate([directions, jnp.where(is_stuck, rate, 0)[None]])
    points = jnp.stack([start, end])
    energies, slopes, sizes = jax.lax.map(lambda x: energy_and_sizes(field, unravel(x)), points)
    at = jnp.zeros(len(directions), int).at[-1].set(1)
    *slopes, along_rate = compared_slopes(
        lambda x: energy(x)[None],
        points[at],
        [*names, "a solve whose steps are rejected, along dx/dt"],
        directions,
        energies[at, None],
        slopes[at],
        jnp.ones((len(directions), 1), bool),
        sizes[at],
    )
    path = [jump(energy, start, end, products)]
    return {"slope": slopes, "continuous": path, "descent": [along_rate]}


def energy_and_sizes(field: EnergyFlow, x: PyTree) -> tuple[Array, Array, Array]:
    """E, ∂E/∂x, and the size Σ|θ ∂E/∂θ| + Σ|x g| of the terms of E."""
    parameters, static = eqx.partition(field, eqx.is_inexact_array)

    def energy(parameters, x):
        return eqx.combine(parameters, static).energy(jnp.zeros(()), x)

    value, (by_parameters, slope) = jax.value_and_grad(energy, argnums=(0, 1))(parameters, x)
    pairs = ((parameters, by_parameters), (x, field.model.activations(x)))
    flat = [[ravel_pytree(each)[0] for each in pair] for pair in pairs]
    sizes = [jnp.nansum(jnp.abs(a * b)) for a, b in flat]
    return value, ravel_pytree(slope)[0], sizes[0] + sizes[1]
