"""Relaxation along a flow, by a solver of diffrax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from . import problems
from .descent import descend_along, energy_descent, is_descent, step_end
from .exponential import AbstractExponential, ETD2RK
from .flow import BoundedFlow, EnergyFlow, time_constants
from .newton_krylov import ConjugateGradients, newton, with_tolerances_of
from .options import check_adaptive
from .rest import Rest, Tolerance, until_rest
from .state_trees import largest, tree_where
from .straight_line import straight_line


class _State(NamedTuple):
    """The state of the iteration before a step."""

    x: PyTree[Array]
    solver: PyTree
    controller: PyTree
    dt: Any
    time: Array
    residual: Array  # the largest |τ dx/dt| of all units
    at_rest: Array  # whether |τ dx/dt| of every unit is within its tolerance
    num_steps: Array


class FlowToRest(eqx.Module):
    """Follows a flow, step by step, until every unit is within its tolerance.

    Every step begins at t = 0, which is possible because the flow doesn't change with t. A short
    step after a long time is then not lost in the rounding of t.
    """

    field: EnergyFlow
    solver: diffrax.AbstractSolver
    controller: diffrax.AbstractStepSizeController
    dt0: Array
    max_dt: Array
    tolerance: Tolerance
    max_steps: int
    meter: diffrax.AbstractProgressMeter

    def run(self, x0: PyTree[Array]) -> Rest:
        """The state at rest, or the last one if `max_steps` don't suffice."""

        def is_moving(state):
            hopeless = jnp.isnan(state.residual)  # only at x0, because no step to NaN is kept
            return ~(state.at_rest | hopeless) & (state.num_steps < self.max_steps)

        state = until_rest(is_moving, self.step, self.init(x0), self.max_steps, self.meter)
        known = is_descent(self.controller)
        energy = state.controller.start.energy if known else self.field.energy(0.0, state.x)
        return Rest(state.x, energy, state.residual, state.at_rest, state.time, state.num_steps)

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
        state = _State(x, solver, controller, end, start, residual, at_rest, num_steps)
        return jax.tree.map(jnp.asarray, state)

    def step(self, state: _State) -> _State:
        """One step of the solver, which the controller keeps or rejects."""
        x, dt, term, start = state.x, state.dt, self._term(), jnp.zeros_like(state.dt)
        order: Any = self.solver.error_order(term)
        x1, error, _, solver, result = self.solver.step(
            term, start, dt, x, None, state.solver, False
        )
        # Some implicit solvers report a failure by their result instead of an infinite error.
        finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(x1)]
        solved = diffrax.is_okay(result) & jnp.all(jnp.array(finite))
        error = jax.tree.map(lambda e: jnp.where(solved & ~jnp.isnan(e), e, jnp.inf), error)
        candidate = tree_where(solved, x1, x)
        residual, at_rest, known = self._measure(x1, solver)
        keep, next_start, next_end, _, controller, _ = self.controller.adapt_step_size(
            start, dt, x, candidate, None, error, order, state.controller, *known
        )
        next_dt = jnp.minimum(next_end - next_start, self.max_dt)
        # A step that moves x by less than a hundredth of what the leak alone would move it may be
        # a step back to its start, which steps of its length would repeat for ever: shorten it.
        way = -jnp.expm1(-dt / largest(time_constants(self.field.model, x))) * state.residual
        rounding = 1e3 * jnp.finfo(residual.dtype).eps * largest(x)
        stuck = (largest(jax.tree.map(jnp.subtract, x1, x)) < way / 100) & (way > rounding)
        failed = keep & (stuck | jnp.isnan(residual) | ~solved)
        controller, next_dt = tree_where(failed, (state.controller, dt / 4), (controller, next_dt))
        num_steps, time = state.num_steps + 1, state.time + dt
        kept = _State(x1, solver, controller, next_dt, time, residual, at_rest, num_steps)
        rejected = state._replace(controller=controller, dt=next_dt, num_steps=num_steps)
        return tree_where(keep & ~failed, kept, rejected)

    def _term(self) -> diffrax.ODETerm:
        # An exponential solver's last stage is measured too, so it must not be clipped.
        exponential = isinstance(self.solver, AbstractExponential)
        return diffrax.ODETerm(self.field if exponential else BoundedFlow(self.field))

    def _measure(self, x: PyTree[Array], solver: PyTree) -> tuple[Array, Array, tuple]:
        """The residual at x, whether x is at rest, and the `StepEnd` for `energy_descent`."""
        zero = jnp.zeros(())
        # An exponential solver has already evaluated τ dx/dt at the end of its step.
        exponential = isinstance(self.solver, AbstractExponential)
        force = solver if exponential else self.field.force(zero, x)
        at_rest = self.tolerance.distance(force, x) < 1
        if not is_descent(self.controller):
            return largest(force), at_rest, ()
        # At clamped units the force isn't −u, but u has no effect there, as g doesn't change.
        u = jax.tree.map(jnp.negative, force) if self.field.flow == "activation" else None
        return largest(force), at_rest, (step_end(self.field, zero, x, u),)


def follow(
    problem: problems.InitialValueProblem,
    solver: diffrax.AbstractSolver | None,
    controller: diffrax.AbstractStepSizeController | None,
    dt0: Array | None,
    **options: Any,
) -> Callable[[EnergyFlow], FlowToRest]:
    """The search that follows the flow, by default with the solver and controller that suit it."""
    taus = time_constants(problem.field.model, problem.x0)
    if solver is None and problem.field.flow == "activation":
        solver = ETD2RK()
    elif solver is None:
        solver = diffrax.ImplicitEuler(root_finder=newton(ConjugateGradients(taus)))
    if controller is None:
        adaptive = isinstance(solver, diffrax.AbstractAdaptiveSolver)
        loose = diffrax.PIDController(rtol=0.1, atol=0.1)
        constant = diffrax.ConstantStepSize()
        controller = energy_descent(loose if adaptive else constant, problem.field)
    check_adaptive(solver, controller)
    inner = getattr(controller, "controller", controller)
    steps_to_times = diffrax.StepTo | diffrax.ClipStepSizeController
    if isinstance(controller, steps_to_times) or isinstance(inner, steps_to_times):
        raise ValueError("relax has no times to step to: expected constant or adaptive steps.")
    solver = straight_line(with_tolerances_of(controller, solver))
    if dt0 is None and isinstance(controller, diffrax.AbstractAdaptiveStepSizeController):
        dt0 = 100 * largest(taus)
    elif dt0 is None:
        dt0 = jnp.min(jnp.array([jnp.min(x, initial=jnp.inf) for x in jax.tree.leaves(taus)]))
    dt0 = jnp.asarray(dt0, problem.dtype)
    # Longer steps would make no difference in the precision of the dtype.
    max_dt = largest(taus) / float(jnp.finfo(problem.dtype).eps)

    def search(field: EnergyFlow) -> FlowToRest:
        control = descend_along(field, controller)
        return FlowToRest(field, solver, control, dt0, max_dt, **options)

    return search
