"""A root finder that follows a flow."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, PyTree

from .descent import is_descent, point, where
from .exponential import AbstractExponential
from .flow import EnergyFlow, Guarded, split_units, times


class AtRest(eqx.Module):
    """What vanishes at a fixed point: −u, and at the clamped units x₀ − x.

    For the state flow too, whose own −H u vanishes wherever H does. It is only in the rest of a row
    that clamped units split that H u = 0 doesn't mean u = 0.
    """

    flow: EnergyFlow

    def __call__(self, x, x0):
        t, clamp = jnp.zeros(()), self.flow.clamp
        # Times a one that vmap takes for a sample's own: Equinox can't transpose a linear solve
        # whose right-hand side all samples share.
        own = lambda x0, u: -u * jnp.where(jnp.isnan(x0), 1, 1).astype(u.dtype)
        toward = jax.tree.map(own, x0, self.flow.drive(t, x))
        if clamp is None:
            return toward
        if self.flow.flow == "state":
            split = split_units(self.flow.model, clamp, x)
            toward = jax.tree.map(jnp.where, split, self.flow.force(t, x), toward)
        missing = lambda held, x, x0, force: jnp.where(held, x0 - x, force)
        return jax.tree.map(missing, clamp, x, x0, toward)


class SettlingState(eqx.Module):
    """Of [`Settling`][]: that of the tools, the next step, and how far it got."""

    solver: PyTree
    controller: PyTree
    dt: Array
    time: Array
    residual: Array
    at_rest: Array
    lost: Array


class Settling(optx.AbstractRootFinder):
    """Follows a flow, step by step, until |τ dx/dt| < atol + rtol |x| in every unit.

    As the flow doesn't change with t, every step begins at t = 0: steps of very different sizes
    then don't vanish in the rounding of t.
    """

    flow: EnergyFlow
    solver: Any
    controller: Any
    dt0: Array
    longest: Array
    rtol: Any
    atol: Any
    norm: Any = optx.max_norm

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        del fn, args, options, f_struct, aux_struct, tags
        start = jnp.zeros_like(self.dt0)
        solver = self.solver.init(self._term(), start, self.dt0, y, None)
        force = self._force(y, solver)
        end, controller = self.controller.init(
            self._term(),
            start,
            jnp.full_like(start, jnp.inf),
            y,
            self.dt0,
            None,
            self.solver.func,
            self.solver.error_order(self._term()),
            *self._point(y, force),
        )
        state = SettlingState(solver, controller, end, start, *self._measured(y, force))
        return jax.tree.map(jnp.asarray, state)

    def step(self, fn, y, args, options, state, tags):
        """One step of the solver, kept or rejected by the controller."""
        del fn, args, options, tags
        start = jnp.zeros_like(state.dt)
        y1, error, _, solver, result = self.solver.step(
            self._term(), start, state.dt, y, None, state.solver, False
        )
        # Not every implicit solver gives a failure as an infinite error.
        finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(y1)]
        solved = diffrax.is_okay(result) & jnp.all(jnp.array(finite))
        bad = lambda e: jnp.where(solved & ~jnp.isnan(e), e, jnp.inf)
        error = jax.tree.map(bad, error)
        force = self._force(y1, solver)
        keep, next_start, next_end, _, controller, _ = self.controller.adapt_step_size(
            start,
            state.dt,
            y,
            where(solved, y1, y),
            None,
            error,
            self.solver.error_order(self._term()),
            state.controller,
            *self._point(y1, force),
        )
        dt = jnp.minimum(next_end - next_start, self.longest)
        measured = self._measured(y1, force)
        kept = SettlingState(solver, controller, dt, state.time + state.dt, *measured)
        # A long step may lead back to where it began, and so may all that follow.
        bad = self._is_stuck(y, y1, state.dt, state.residual) | kept.lost
        bad = keep & (bad | ~solved)
        controller, dt = where(bad, (state.controller, state.dt / 4), (controller, dt))
        keep = keep & ~bad
        rejected = eqx.tree_at(lambda s: (s.controller, s.dt), state, (controller, dt))
        return *where(keep, (y1, kept), (y, rejected)), None

    def terminate(self, fn, y, args, options, state, tags):
        """Whether every unit is at rest, or NaN from the start."""
        del fn, y, args, options, tags
        return state.at_rest | state.lost, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        del fn, args, options, state, tags, result
        return y, aux, {}

    def _term(self):
        # What an exponential solver ends with is also measured, and may not be bounded.
        exponential = isinstance(self.solver, AbstractExponential)
        return diffrax.ODETerm(self.flow if exponential else Guarded(self.flow))

    def _is_stuck(self, x, x1, dt, residual):
        """Whether a step went less than a hundredth of the way that the leak alone would go."""
        largest = lambda tree: jnp.max(
            jnp.array([jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(tree)])
        )
        way = -jnp.expm1(-dt / largest(times(self.flow.model, x))) * residual
        rounding = 1e3 * jnp.finfo(residual.dtype).eps * largest(x)
        return (largest(jax.tree.map(jnp.subtract, x1, x)) < way / 100) & (way > rounding)

    def _force(self, x, solver_state):
        """τ dx/dt, with which an exponential solver has ended its step."""
        if isinstance(self.solver, AbstractExponential):
            return solver_state
        return self.flow.force(jnp.zeros(()), x)

    def _point(self, x, force):
        """What the controller needs of x, if that is anything."""
        if not is_descent(self.controller):
            return ()
        # Clamped units, where the force isn't −u, don't move, nor does their g.
        u = jax.tree.map(jnp.negative, force) if self.flow.flow == "activation" else None
        return (point(self.flow, jnp.zeros(()), x, u),)

    def _measured(self, x, force):
        """The largest |τ dx/dt|, whether that of every unit is small enough, and if any is NaN."""
        over = lambda of: jnp.array(jax.tree.leaves(jax.tree.map(of, force, x)))
        largest = jnp.max(over(lambda f, x: jnp.max(jnp.abs(f), initial=0.0)))
        small = over(lambda f, x: jnp.all(jnp.abs(f) < self.atol + self.rtol * jnp.abs(x)))
        lost = jnp.isnan(largest)
        return jnp.where(lost, jnp.inf, largest), jnp.all(small), lost
