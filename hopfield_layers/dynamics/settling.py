"""The flow until it is at rest, with the derivative of the fixed point."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from .descent import is_descent, step_end
from .exponential import AbstractExponential
from .flow import BoundedFlow, EnergyFlow, time_constants
from .newton_krylov import Krylov
from .state_trees import tree_where


class _State(NamedTuple):
    """The state of the iteration before a step."""

    x: PyTree[Array]
    solver: PyTree
    controller: PyTree
    dt: Any
    time: Array
    num_steps: Array
    residual: Array  # the largest |τ dx/dt| of all units
    at_rest: Array  # whether that of every unit is within its tolerance


class FlowToRest(eqx.Module):
    """Follows a flow, step by step, until |τ dx/dt| < atol + rtol |x| in every unit.

    As the flow doesn't change with t, every step begins at t = 0, so that a short step after a long
    time is not lost in the rounding of t.
    """

    field: EnergyFlow
    solver: diffrax.AbstractSolver
    controller: diffrax.AbstractStepSizeController
    dt0: Array
    max_dt: Array
    max_steps: int
    rtol: Any
    atol: Any

    def init(self, x: PyTree[Array]) -> _State:
        """The state before the first step."""
        term, start = self._term(), jnp.zeros_like(self.dt0)
        never, order = jnp.full_like(start, jnp.inf), self.solver.error_order(term)
        solver = self.solver.init(term, start, self.dt0, x, None)
        residual, at_rest, known = self._measure(x, solver)
        end, controller = self.controller.init(
            term, start, never, x, self.dt0, None, self.solver.func, order, *known
        )
        num_steps = jnp.zeros((), int)
        state = _State(x, solver, controller, end, start, num_steps, residual, at_rest)
        return jax.tree.map(jnp.asarray, state)

    def step(self, state: _State) -> _State:
        """One step of the solver, kept or rejected by the controller."""
        x, dt, term, start = state.x, state.dt, self._term(), jnp.zeros_like(state.dt)
        order: Any = self.solver.error_order(term)
        x1, error, _, solver, result = self.solver.step(
            term, start, dt, x, None, state.solver, False
        )
        # Some implicit solvers report a failure by their result and not by an infinite error.
        finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(x1)]
        solved = diffrax.is_okay(result) & jnp.all(jnp.array(finite))
        error = jax.tree.map(lambda e: jnp.where(solved & ~jnp.isnan(e), e, jnp.inf), error)
        candidate = tree_where(solved, x1, x)
        residual, at_rest, known = self._measure(x1, solver)
        keep, next_start, next_end, _, controller, _ = self.controller.adapt_step_size(
            start, dt, x, candidate, None, error, order, state.controller, *known
        )
        next_dt = jnp.minimum(next_end - next_start, self.max_dt)
        # A step that goes less than a hundredth of the way that the leak alone would go may end
        # where it began, and all steps of its length would: shorten it.
        way = -jnp.expm1(-dt / largest(time_constants(self.field.model, x))) * state.residual
        rounding = 1e3 * jnp.finfo(residual.dtype).eps * largest(x)
        stuck = (largest(jax.tree.map(jnp.subtract, x1, x)) < way / 100) & (way > rounding)
        failed = keep & (stuck | jnp.isnan(residual) | ~solved)
        controller, next_dt = tree_where(failed, (state.controller, dt / 4), (controller, next_dt))
        num_steps, time = state.num_steps + 1, state.time + dt
        kept = _State(x1, solver, controller, next_dt, time, num_steps, residual, at_rest)
        rejected = state._replace(controller=controller, dt=next_dt, num_steps=num_steps)
        return tree_where(keep & ~failed, kept, rejected)

    def _term(self) -> diffrax.ODETerm:
        # An exponential solver's last stage is measured too, so it must not be clipped.
        exponential = isinstance(self.solver, AbstractExponential)
        return diffrax.ODETerm(self.field if exponential else BoundedFlow(self.field))

    def _measure(self, x: PyTree[Array], solver: PyTree) -> tuple[Array, Array, tuple]:
        """The residual at x, whether x is at rest, and what `energy_descent` needs to know of x."""
        zero = jnp.zeros(())
        # An exponential solver has evaluated τ dx/dt at the end of its step.
        exponential = isinstance(self.solver, AbstractExponential)
        force = solver if exponential else self.field.force(zero, x)

        def is_small(force, x):
            return jnp.all(jnp.abs(force) < self.atol + self.rtol * jnp.abs(x))

        at_rest = jnp.all(jnp.array(jax.tree.leaves(jax.tree.map(is_small, force, x))))
        if not is_descent(self.controller):
            return largest(force), at_rest, ()
        # At clamped units, where the force isn't −u, g doesn't change, so that u is of no effect.
        u = jax.tree.map(jnp.negative, force) if self.field.flow == "activation" else None
        return largest(force), at_rest, (step_end(self.field, zero, x, u),)


@eqx.filter_custom_jvp
def settle(flow_to_rest: FlowToRest, x0: PyTree[Array]) -> tuple[PyTree, Array, dict[str, Array]]:
    """x at rest, its energy, and the attributes of a `Relaxation` that have no derivatives."""

    def is_moving(state):
        hopeless = jnp.isnan(state.residual)  # at x0 already, for no step to NaN is kept
        return ~(state.at_rest | hopeless) & (state.num_steps < flow_to_rest.max_steps)

    start = flow_to_rest.init(x0)
    state = jax.lax.while_loop(is_moving, lambda state: flow_to_rest.step(state), start)
    is_known = is_descent(flow_to_rest.controller)
    energy = state.controller.start.energy if is_known else flow_to_rest.field.energy(0.0, state.x)
    residual = jnp.where(jnp.isnan(state.residual), jnp.inf, state.residual)
    attributes = {"converged": state.at_rest, "time": state.time, "num_steps": state.num_steps}
    return state.x, energy, {"residual": residual} | attributes


@settle.def_jvp
def _(primals, tangents):
    """The implicit function theorem for the condition c(x, θ) = 0: ∂c/∂x dx = −∂c/∂θ dθ."""
    x, energy, attributes = settle(*primals)
    flow_to_rest, _ = primals

    def condition(*parameters):
        return _condition(x, parameters)

    def right_hand_side(x, change):
        minus = jnp.zeros_like(x) if change is None else -change
        # As it depends on x, `jax.vmap` takes it for batched: Equinox does not transpose a linear
        # solve whose right-hand side all samples share.
        return jnp.where(jnp.isnan(x), minus, minus)

    _, change = eqx.filter_jvp(condition, primals, tangents)
    precision = float(jnp.finfo(flow_to_rest.dt0.dtype).eps) ** (2 / 3)
    dx = x
    if any(leaf.size > 0 for leaf in jax.tree.leaves(x)):
        operator = lx.JacobianLinearOperator(_condition, x, primals)
        vector = jax.tree.map(right_hand_side, x, change)
        dx = lx.linear_solve(operator, vector, Krylov(precision, (10, 8), (50, 100))).value
    fields = (flow_to_rest.field, x), (tangents[0].field, dx)
    _, change_of_energy = eqx.filter_jvp(lambda field, x: field.energy(0.0, x), *fields)
    return (x, energy, attributes), (dx, change_of_energy, dict.fromkeys(attributes))


def _condition(x, parameters):
    """What vanishes at a fixed point: u, and x − x₀ at the clamped units.

    It is u for the state flow too, whose own H u also vanishes wherever H does. Only in a row that
    the clamp splits does H u = 0 not mean u = 0: the free units of such a row contribute H u.
    """
    flow_to_rest, x0 = parameters
    field, t = flow_to_rest.field, jnp.zeros(())
    vanishing = field.drive(t, x)
    if field.clamp is None:
        return vanishing
    held = field.clamp.held
    if field.flow == "state":  # the activation flow has no such rows
        slope = jax.tree.map(jnp.negative, field.force(t, x))
        vanishing = jax.tree.map(jnp.where, field.clamp.dependent(field.model), slope, vanishing)
    distance = jax.tree.map(jnp.subtract, x, x0)
    return jax.tree.map(jnp.where, held, distance, vanishing)


def largest(tree: PyTree[Array]) -> Float[Array, ""]:
    """The largest absolute value of all arrays."""
    return jnp.max(jnp.array([jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(tree)]))
