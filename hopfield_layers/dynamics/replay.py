"""The derivative of a solution by replaying its steps.

The solution is found without derivatives, and the times of its accepted steps are kept. Given these
times the solution is a plain composition of steps, which is differentiated from the last step to
the first. As in diffrax, the sizes of the steps are not differentiated; but if a step ends where a
linear interpolation bends, its end depends on that time. All samples are replayed together, so that
the derivative of a parameter that they share is summed step by step, in float32 at least.

Memory: every √max_steps-th state is kept, and while the steps between two of these are replayed,
the states between them too.
"""

import functools as ft
import math
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._conversion import wide_dtype
from .._trees import entries, filled, is_none
from .descent import is_descent
from .exponential import AbstractExponential
from .flow import EnergyFlow
from .inputs import InputsWithJumps, PiecewiseConstantInterpolation
from .problems import InitialValueProblem
from .straight_line import StraightLine


class Replay(eqx.Module):
    """How a solution was found, except for what it is differentiated with respect to."""

    solver: diffrax.AbstractSolver
    term_of: Callable[[EnergyFlow], diffrax.ODETerm] = eqx.field(static=True)
    saves_t0: bool = eqx.field(static=True)
    saves_t1: bool = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    @property
    def stride(self) -> int:
        """The number of steps between two states that are kept."""
        return math.isqrt(max(self.max_steps, 1) - 1) + 1

    def record(self) -> diffrax.SaveAt:
        """Saves the times of the steps and every `stride`-th state, besides what was asked for."""
        saveat = diffrax.SubSaveAt(t0=self.saves_t0, t1=self.saves_t1)
        times = diffrax.SubSaveAt(steps=1, fn=lambda t, y, args: None)
        states = diffrax.SubSaveAt(steps=self.stride)
        return diffrax.SaveAt(subs=(saveat, times, states))


def can_replay(
    solver: Any, controller: Any, saveat: diffrax.SaveAt, max_steps: int | None, inputs: Any
) -> bool:
    """Whether the steps depend on the state alone, and only the two ends are saved."""
    is_stateless = isinstance(solver, StraightLine | AbstractExponential | diffrax.Euler)
    # Each step has to begin where the previous one ended. After a jump it doesn't, and controllers
    # other than these may leave gaps.
    if is_descent(controller):
        controller = controller.controller
    has_gaps = isinstance(inputs, PiecewiseConstantInterpolation | InputsWithJumps)
    has_gaps |= type(controller) not in (
        diffrax.ConstantStepSize,
        diffrax.PIDController,
        diffrax.StepTo,
    )
    subs = saveat.subs
    ends = isinstance(subs, diffrax.SubSaveAt) and subs.ts is None and not subs.steps
    ends = ends and saves_states(subs)
    extra = saveat.dense or saveat.solver_state or saveat.controller_state or saveat.made_jump
    return is_stateless and not has_gaps and ends and not extra and max_steps is not None


def saves_states(sub: diffrax.SubSaveAt) -> bool:
    """Whether states are saved, rather than a function of them."""
    return sub.fn is diffrax.SubSaveAt(t1=True).fn


@eqx.filter_custom_vjp
def replayed(
    differentiated: tuple[InitialValueProblem, Array, Array],
    solve: Callable[..., diffrax.Solution],
    saveat: diffrax.SaveAt,
    how: Replay,
) -> diffrax.Solution:
    """`solve((problem, t0, t1), saveat)`, with the derivative of its steps."""
    return solve(differentiated, saveat)


@replayed.def_fwd
def _(perturbed, differentiated, solve, saveat, how):
    del perturbed
    solution = solve(differentiated, how.record())
    (ts, steps, _), (ys, _, states) = solution.ts, solution.ys
    num_steps = solution.stats["num_accepted_steps"]
    solution = eqx.tree_at(attrgetter("ts", "ys"), solution, (ts, ys))
    return solution, (steps, states, num_steps)


@replayed.def_bwd
def _(residuals, gradient, perturbed, differentiated, solve, saveat, how):
    del perturbed, solve, saveat
    problem, t0, t1 = differentiated
    steps = _Steps(problem, how, t0, t1, *residuals)
    dx0 = dx = jax.tree.map(jnp.zeros_like, problem.x0)
    dt0, dt1 = _total(gradient.t0), _total(gradient.t1)
    like = steps.num_steps.astype(t0.dtype), dx0
    dts, dys = _with_zeros((gradient.ts, gradient.ys), like, len(problem.batch))
    if how.saves_t1:
        dx, dt1 = entries(dys, -1), dt1 + jnp.sum(dts[-1])
    if how.saves_t0:
        dx0, dt0 = entries(dys, 0), dt0 + jnp.sum(dts[0])
    darrays = jax.tree.map(lambda x: jnp.zeros(x.shape, wide_dtype(x.dtype)), steps.arrays)
    carry = dx, darrays, jnp.zeros_like(t0), jnp.zeros_like(t1)

    def continues(carry):
        segment, _ = carry
        return segment >= 0

    def body(carry):
        segment, carry = carry
        return segment - 1, steps.pulled_back(segment, carry)

    num_segments = (jnp.max(steps.num_steps, initial=0) + how.stride - 1) // how.stride
    _, carry = jax.lax.while_loop(continues, body, (num_segments - 1, carry))
    dx, darrays, dstart, dend = carry
    darrays = jax.tree.map(lambda d, x: d.astype(x.dtype), darrays, steps.arrays)
    nothing = filled(problem, None)
    fields = darrays, jax.tree.map(jnp.add, dx0, dx)
    dproblem = eqx.tree_at(attrgetter("field", "x0"), nothing, fields, is_leaf=is_none)
    return dproblem, dt0 + dstart, dt1 + dend


class _Steps(eqx.Module):
    """The steps that all samples of a problem have taken."""

    problem: InitialValueProblem
    how: Replay
    t0: Array
    t1: Array
    ends: Array  # where each step ends, the axis of the steps after those of the batch
    states: PyTree[Array]  # the states after so many steps each, likewise
    num_steps: Array

    def __init__(self, problem, how, t0, t1, ends, states, num_steps):
        self.problem, self.how, self.t0, self.t1 = problem, how, t0, t1
        self.ends, self.states = jax.lax.stop_gradient(ends), states
        self.num_steps = num_steps

    @property
    def arrays(self) -> PyTree:
        """The arrays of the field with respect to which it is differentiated."""
        return eqx.filter(self.problem.field, eqx.is_inexact_array)

    def interval(self, i: Array) -> tuple[Array, Array]:
        """Where step i of each sample begins and ends; beyond the last one it has no length."""

        def end_of(j):
            index = jnp.maximum(j, 0)[..., None]
            return jnp.where(j < 0, self.t0, jnp.take_along_axis(self.ends, index, -1)[..., 0])

        return end_of(jnp.minimum(i, self.num_steps) - 1), end_of(
            jnp.minimum(i, self.num_steps - 1)
        )

    def step(self, arrays: PyTree, x: PyTree[Array], start: Array, end: Array) -> PyTree[Array]:
        """The states at the end of a step from x."""
        _, static = eqx.partition(self.problem.field, eqx.is_inexact_array)
        fields = eqx.combine(arrays, static), x
        problem = eqx.tree_at(attrgetter("field", "x0"), self.problem, fields)

        def of_sample(field, x, start, end):
            term, solver = self.how.term_of(field), self.how.solver
            start, end = self.moving(field.inputs, start), self.moving(field.inputs, end)
            state = solver.init(term, start, end, x, None)
            y, *_ = solver.step(term, start, end, x, None, state, False)
            return y

        return problem.map(of_sample, start, end)

    def moving(self, inputs: Any, t: Array) -> Array:
        """t, which if a linear interpolation bends there has the derivative of that time.

        The derivative is the sum of those of the two steps that meet at the bend.
        """
        if not isinstance(inputs, diffrax.LinearInterpolation):
            return t
        bend = inputs.ts[jnp.argmin(jnp.abs(inputs.ts - t))]
        is_bend = (t == bend) & (t != self.t0) & (t != self.t1)
        return t + jnp.where(is_bend, bend - jax.lax.stop_gradient(bend), 0)

    def select(self, mask: Array, a: PyTree[Array], b: PyTree[Array]) -> PyTree[Array]:
        """a for the samples of the mask, and b for the others."""

        def of_array(a, b):
            return jnp.where(mask.reshape(mask.shape + (1,) * (b.ndim - mask.ndim)), a, b)

        return jax.tree.map(of_array, a, b)

    def between(self, offset: Array, count: Array) -> PyTree[Array]:
        """The states before each of `count` steps from `offset` on, a multiple of stride."""
        index = jnp.maximum(offset // self.how.stride - 1, 0)
        axis = len(self.problem.batch)
        at = ft.partial(jax.lax.dynamic_index_in_dim, index=index, axis=axis, keepdims=False)
        kept = jax.tree.map(at, self.states)
        # A sample that arrived before has no such state; any other will do.
        is_kept = (offset > 0) & (offset <= self.num_steps)
        x = self.select(is_kept, kept, self.problem.x0)
        room = jax.tree.map(lambda x: jnp.zeros((self.how.stride, *x.shape), x.dtype), x)

        def continues(carry):
            k, *_ = carry
            return k < count

        def body(carry):
            k, x, xs = carry
            xs = jax.tree.map(
                ft.partial(jax.lax.dynamic_update_index_in_dim, index=k, axis=0), xs, x
            )
            return k + 1, self.step(self.arrays, x, *self.interval(offset + k)), xs

        _, _, xs = jax.lax.while_loop(continues, body, (0, x, room))
        return xs

    def pulled_back(self, segment: Array, carry: tuple) -> tuple:
        """The cotangents at the beginning of a segment of steps, from those at its end."""
        offset = segment * self.how.stride
        last = jnp.max(self.num_steps, initial=0)
        count = jnp.minimum(self.how.stride, last - offset)
        xs = self.between(offset, count)

        def continues(carry):
            k, _ = carry
            return k >= 0

        def body(carry):
            k, (dx, darrays, dt0, dt1) = carry
            i = offset + k
            is_taken, interval = i < self.num_steps, self.interval(i)
            x = entries(xs, k)
            _, pull = jax.vjp(self.step, self.arrays, x, *interval)
            zeros = jax.tree.map(jnp.zeros_like, dx)
            darrays_i, before, dstart, dend = pull(self.select(is_taken, dx, zeros))
            is_first, is_last = is_taken & (i == 0), is_taken & (i == self.num_steps - 1)
            return k - 1, (
                self.select(is_taken, before, dx),
                jax.tree.map(jnp.add, darrays, darrays_i),
                dt0 + jnp.sum(jnp.where(is_first, dstart, 0)),
                dt1 + jnp.sum(jnp.where(is_last & (interval[1] == self.t1), dend, 0)),
            )

        _, carry = jax.lax.while_loop(continues, body, (count - 1, carry))
        return carry


def _with_zeros(cotangents: PyTree, like: PyTree[Array], num_axes: int) -> PyTree[Array]:
    """The cotangents, with the axis of saved times first, and 0 for those that are missing."""

    def fill(cotangent, x):
        if cotangent is None:
            return jnp.zeros((2, *x.shape), x.dtype)
        return jnp.moveaxis(cotangent, num_axes, 0)

    return jax.tree.map(fill, cotangents, like, is_leaf=is_none)


def _total(cotangent: Array | None) -> Array | float:
    return 0.0 if cotangent is None else jnp.sum(cotangent)
