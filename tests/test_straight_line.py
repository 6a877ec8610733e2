"""Unrolled Runge–Kutta steps are those of diffrax's own solvers, and so are their derivatives."""

import functools as ft

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from hopfield_layers.dynamics.straight_line import straight_line, StraightLine

from .solutions import saved


W = jr.normal(jr.key(0), (5, 5))
Y0 = {"a": jnp.linspace(-1, 1, 5), "b": jnp.array(0.3)}
SOLVERS = {
    solver.__name__: solver
    for solver in (
        diffrax.Heun,
        diffrax.Midpoint,
        diffrax.Ralston,
        diffrax.Bosh3,
        diffrax.Tsit5,
        diffrax.Dopri5,
        diffrax.Dopri8,
    )
}


def field(t, y, args):
    pull = jnp.tanh(W @ y["a"]) - y["a"] * jnp.cos(t)
    return {"a": args * pull, "b": jnp.sin(t) * jnp.sum(y["a"]) - y["b"]}


def solution(solver, y0=Y0, args=1.0, adjoint=None, **options):
    controller = diffrax.PIDController(rtol=1e-5, atol=1e-7)
    options = {"stepsize_controller": controller, "max_steps": 4096} | options
    adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
    term = diffrax.ODETerm(field)
    return diffrax.diffeqsolve(term, solver, 0.0, 2.0, 0.1, y0, args, adjoint=adjoint, **options)


def assert_same(ours, theirs, rtol=1e-11):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_steps_and_dense_outputs(name):
    solver = SOLVERS[name]()
    assert isinstance(straight_line(solver), StraightLine)
    saveat = diffrax.SaveAt(t1=True, dense=True, solver_state=True, ts=jnp.linspace(0, 2, 7))
    jumps = diffrax.ClipStepSizeController(
        diffrax.PIDController(rtol=1e-5, atol=1e-7), jump_ts=jnp.array([0.7])
    )
    ours, theirs = (
        solution(s, saveat=saveat, stepsize_controller=jumps)
        for s in (straight_line(solver), solver)
    )
    assert_same(ours.stats, theirs.stats)
    assert_same(saved(ours), saved(theirs))
    if theirs.solver_state is not None:
        assert_same(ours.solver_state, theirs.solver_state[1])
    assert_same(ours.evaluate(1.234), theirs.evaluate(1.234))
    assert_same(ours.derivative(1.234), theirs.derivative(1.234))


class RK4(diffrax.AbstractERK):
    """A user's own method, which has no error estimate."""

    tableau = diffrax.ButcherTableau(
        a_lower=(np.array([0.5]), np.array([0, 0.5]), np.array([0, 0, 1.0])),
        b_sol=np.array([1, 2, 2, 1]) / 6,
        b_error=np.zeros(4),
        c=np.array([0.5, 0.5, 1]),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 4


def test_a_method_without_an_error_estimate():
    steps = diffrax.ConstantStepSize()
    ours, theirs = (solution(s, stepsize_controller=steps) for s in (straight_line(RK4()), RK4()))
    assert isinstance(straight_line(RK4()), StraightLine)
    assert_same(saved(ours), saved(theirs))


@pytest.mark.parametrize("name", ["Heun", "Tsit5", "Dopri8"])
def test_derivatives(name):
    solver = SOLVERS[name]()

    def end(y0, args, solver):
        return jnp.sum(saved(solution(solver, y0, args))["a"])

    ours, theirs = (
        jax.jit(jax.grad(ft.partial(end, solver=s), (0, 1)))(Y0, 1.0)
        for s in (straight_line(solver), solver)
    )
    assert_same(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize(
    "adjoint", [diffrax.DirectAdjoint(), diffrax.BacksolveAdjoint(), diffrax.ForwardMode()]
)
def test_adjoints(adjoint):
    def end(solver, args):
        options = {"adjoint": adjoint, "max_steps": 64}
        return jnp.sum(saved(solution(solver, args=args, **options))["a"])

    derivative = jax.jacfwd if isinstance(adjoint, diffrax.ForwardMode) else jax.grad
    ours, theirs = (
        jax.jit(derivative(ft.partial(end, s)))(1.0)
        for s in (straight_line(diffrax.Tsit5()), diffrax.Tsit5())
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_events():
    event = diffrax.Event(lambda t, y, args, **_: y["b"] - 0.1)
    ours, theirs = (
        solution(s, event=event) for s in (straight_line(diffrax.Tsit5()), diffrax.Tsit5())
    )
    assert_same((saved(ours), ours.ts), (saved(theirs), theirs.ts))


def test_other_solvers_are_left_alone():
    class Own(diffrax.AbstractERK):
        tableau = diffrax.Tsit5.tableau
        interpolation_cls = diffrax.Tsit5.interpolation_cls

        def step(self, *args, **kwargs):
            raise AssertionError

    for solver in (diffrax.Euler(), diffrax.Kvaerno5(), diffrax.ImplicitEuler(), Own()):
        assert straight_line(solver) is solver
