"""The laws of the state at which a relaxation ends."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..dynamics import EnergyFlow, relax
from ..model import AbstractEnergyModel
from .differences import compared_slopes, decided, difference, directions_of, filter_jit, in_float64
from .slope_laws import energy_and_sizes
from .traced_once import TracedOnce
from .verdict import broken_by_errors, Laws, Measured, rounding


_MAX_STEPS = 4096


def rest_laws(model: AbstractEnergyModel, x0: PyTree) -> Laws:
    """The laws of the rest downhill of x0, in float64."""
    with jax.enable_x64(True), broken_by_errors("rest"):
        return _measured(*in_float64((model, x0)))


@filter_jit
def _measured(model: AbstractEnergyModel, x0: PyTree) -> Laws:
    model = TracedOnce(model)
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    values, unravel = ravel_pytree(parameters)
    _, unravel_state = ravel_pytree(x0)

    def rest(values):
        model = eqx.combine(unravel(values), static)
        return ravel_pytree(relax(model, x0, max_steps=_MAX_STEPS, throw=False).x)[0]

    def energy(x):
        return model.energy(unravel_state(x))

    def drive(values, x):
        return ravel_pytree(eqx.combine(unravel(values), static).dEdg(unravel_state(x)))[0]

    def activations(x):
        return ravel_pytree(model.activations(unravel_state(x)))[0]

    directions = directions_of(parameters, values, num_random=1)[1]
    direction = directions[-1] if values.size else values
    x, dx = jax.jvp(rest, (values,), (direction,))
    u = drive(values, x)
    g, force = jax.jvp(activations, (x,), (u,))
    products, start = jnp.sum(jnp.abs(x * g)), ravel_pytree(x0)[0]
    energies = jax.lax.map(energy, jnp.stack([start, x, x - u]))
    noise = rounding(jnp.max(jnp.abs(energies[:2])), products, start.size)
    # After n steps with a critical slowing down of any power, |u| is less than (1 + |x|)/n. A
    # descent also stops where rounding hides whether E falls, and then the law is undecided.
    falls = jnp.abs(energies[1] - energies[2]) > noise
    slack = jnp.where(falls, (1 + jnp.abs(x)) / _MAX_STEPS, jnp.inf)
    laws = {
        "rest": [
            Measured(u, jnp.zeros_like(u), slack, {"x*": x, "u": u}),
            Measured(energies[0], energies[1], noise, {"x*": x}, inequality=True),
            *_slopes_at_rest(model, unravel_state(x), force),
        ]
    }
    if not values.size:
        return laws

    def along(h):
        return drive(values + h[0] * direction, x + h[0] * dx)

    # The linear solver may leave 1 % of the change of u at constant x.
    _, apart = jax.jvp(lambda values: drive(values, x), (values,), (direction,))
    noise = rounding(jnp.sum(jnp.abs(x)), products, energies[1], x.size)
    found = difference(along, jnp.zeros(1), jnp.ones(1), noise)
    change, tolerance = decided(jnp.zeros_like(x), *found, noise)
    tolerance += 0.01 * jnp.max(jnp.abs(apart))
    # A rest that isn't found, or at which others meet, has no derivative.
    singular = jnp.linalg.svd(jax.jacfwd(lambda x: drive(values, x))(x), compute_uv=False)
    is_regular = jnp.all(jnp.abs(u) <= 1e-9 * (1 + jnp.abs(x))) & (
        jnp.min(singular, initial=jnp.inf) > 1e-6
    )
    tolerance = jnp.where(is_regular, tolerance, jnp.inf)
    terms = {"du/dh": change, "dx*": dx}
    return laws | {"gradient of rest": [Measured(change, jnp.zeros_like(change), tolerance, terms)]}


def _slopes_at_rest(model: AbstractEnergyModel, x: PyTree, force: Array) -> list[Measured]:
    """H u at x* is ∂E/∂x by differences of E, so that u = 0 is a stationary point of E."""
    start, unravel = ravel_pytree(x)
    names, directions = directions_of(x, start, num_random=1)
    names = [f"∂E/∂x by differences along x*{name}" for name in names]
    at_rest, _, size = energy_and_sizes(EnergyFlow(model), x)
    return compared_slopes(
        lambda x: model.energy(unravel(x))[None],
        start,
        names,
        directions,
        at_rest[None],
        jnp.broadcast_to(force, directions.shape),
        jnp.ones((len(directions), 1), bool),
        size,
    )
