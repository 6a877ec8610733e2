"""Relaxation by implicit steps, which need neither convexity nor a good start."""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from .descent import energy_change, StepEnd
from .flow import EnergyFlow
from .linear_systems import conjugate_gradients, LARGEST_PART
from .map_in_parts import map_in_parts
from .rest import Rest, Tolerance
from .state_trees import largest, on_vectors, tree_where


class Measured(NamedTuple):
    """A state and its `StepEnd` as flat vectors, and what is measured there."""

    x: Float[Array, " n"]
    end: StepEnd
    residual: Float[Array, ""]  # the largest |τ dx/dt|
    distance: Float[Array, ""]  # the largest |τ dx/dt| in units of its tolerance


class _State(NamedTuple):
    at: Measured
    shift: Float[Array, ""]  # λ
    num_steps: Int[Array, ""]


def implicit_steps(
    field: EnergyFlow,
    start: Measured,
    unravel: Callable[[Array], PyTree[Array]],
    num_steps: Int[Array, ""],
    tolerance: Tolerance,
    limit: Float[Array, ""],
    max_steps: int,
) -> Rest:
    """Takes steps (λ + I + S H) δ = −u until all units rest, |x| exceeds a limit, or λ is huge.

    If the energy would rise, λ grows until it falls, which it does because δ is a direction of
    descent. Otherwise λ shrinks, so that the last steps are Newton's method. No step is taken from
    a state at rest. Each product with S H counts as a step too.
    """
    t = np.zeros(())  # the flow doesn't change with t

    def measured(x):
        tree = unravel(x)
        energy, force = field.energy_and_force(t, tree)
        g, force = (ravel_pytree(tree)[0] for tree in (field.model.activations(tree), force))
        distance = tolerance.distance(force, x)
        return Measured(x, StepEnd(g, -force, energy), largest(force), distance)

    def is_moving(state: _State):
        at = state.at
        possible = (state.shift < 1e8) & (largest(at.x) < limit) & jnp.isfinite(at.distance)
        return (at.distance >= 1) & possible & (state.num_steps < max_steps)

    def step(state: _State):
        at, shift = state.at, state.shift
        x = at.x
        _, metric = jax.linearize(on_vectors(field.model.activations, unravel), x)
        force, slope = jax.linearize(on_vectors(ft.partial(field.force, t), unravel), x)

        def shifted(v):
            return shift * v - slope(v)

        def solve(force):
            return conjugate_gradients(shifted, metric, force, 0.01, 100)

        solution = map_in_parts(solve, LARGEST_PART, force)
        way = solution.value
        way = way + (force - shifted(way)) / (1 + shift)  # for units with H = 0
        new = measured(x + way)
        change = energy_change(at.x, at.end, new.x, new.end)
        keep = (change < 0) | ((change < 1) & (new.distance < at.distance))
        keep = keep & jnp.isfinite(new.distance) & jnp.isfinite(new.end.energy)
        shift = jnp.where(keep, shift / 10, jnp.maximum(10 * shift, 1e-3))
        num_steps = state.num_steps + 1 + solution.num_steps
        return _State(tree_where(keep, new, at), shift, num_steps)

    first = _State(start, jnp.ones_like(start.distance), num_steps)
    last, _, num_steps = jax.lax.while_loop(is_moving, step, first)
    x = unravel(last.x)
    return Rest(x, last.end.energy, last.residual, last.distance < 1, None, num_steps)
