"""The laws of the state at which a relaxation ends."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from ..dynamics import relax
from ..model import AbstractEnergyModel
from .differences import difference, directions_of, filter_jit, in_float64, STEPS
from .verdict import broken_by_errors, Laws, Measured, rounding


_MAX_STEPS = 4096


def rest_laws(model: AbstractEnergyModel, x0: PyTree) -> Laws:
    """The laws of the rest downhill of x0, in float64."""
    with jax.enable_x64(True), broken_by_errors("rest"):
        return _measured(*in_float64((model, x0)))


@filter_jit
def _measured(model: AbstractEnergyModel, x0: PyTree) -> Laws:
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    values, unravel = ravel_pytree(parameters)
    _, unravel_state = ravel_pytree(x0)

    def rest(values):
        model = eqx.combine(unravel(values), static)
        found = relax(model, x0, max_steps=_MAX_STEPS, throw=False)
        return ravel_pytree(found.x)[0], found.energy

    def drive(values, x):
        return ravel_pytree(eqx.combine(unravel(values), static).dEdg(unravel_state(x)))[0]

    directions = directions_of(parameters, values, num_random=1)[1]
    direction = directions[-1] if values.size else values
    (x, energy), (dx, _) = jax.jvp(rest, (values,), (direction,))
    products = jnp.sum(jnp.abs(x * ravel_pytree(model.activations(unravel_state(x)))[0]))
    noise = rounding(energy, model.energy(x0), products, ravel_pytree(x0)[0].size)
    # After n steps with a critical slowing down of any power, |u| is less than |1 + x|/n.
    slack = (1 + jnp.abs(x)) / _MAX_STEPS
    u = drive(values, x)
    # Descents stop where rounding hides whether E falls: it is undecided whether that is a rest.
    fall = energy - model.energy(unravel_state(x - u))
    slack = jnp.where(jnp.abs(fall) > noise, slack, jnp.inf)
    laws = {
        "rest": [
            Measured(u, jnp.zeros_like(u), slack, {"x*": x, "u": u}),
            Measured(model.energy(x0), energy, noise, {}, inequality=True),
        ]
    }
    if not values.size:
        return laws

    def along(h):
        return drive(values + h[0] * direction, x + h[0] * dx)

    change, error = difference(along, jnp.zeros(1), jnp.ones(1))
    # The linear solver may leave 1 % of what u changes by while x stays where it is.
    _, apart = jax.jvp(lambda values: drive(values, x), (values,), (direction,))
    sizes = jnp.sum(jnp.abs(x)) + products + jnp.abs(energy)
    tolerance = error + rounding(sizes, x.size) / STEPS[-1] + 0.01 * jnp.max(jnp.abs(apart))
    # A rest that isn't found, or at which others meet, has no derivative.
    singular = jnp.linalg.svd(jax.jacfwd(lambda x: drive(values, x))(x), compute_uv=False)
    is_regular = jnp.all(jnp.abs(u) <= 1e-9 * (1 + jnp.abs(x))) & (singular[-1] > 1e-6)
    tolerance = jnp.where(is_regular, tolerance, jnp.inf)
    terms = {"du/dh": change, "dx*": dx}
    return laws | {"gradient of rest": [Measured(change, jnp.zeros_like(change), tolerance, terms)]}
