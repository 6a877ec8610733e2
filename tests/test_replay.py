"""Gradients of solutions by replaying their steps are those of Diffrax, in bounded memory."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import hopfield_layers as hl

from .compiling import compiled, temporary_bytes
from .solutions import saved


RECURSIVE = diffrax.RecursiveCheckpointAdjoint()
CONSTANT = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 1 / 128}
PARAMETERS = {
    "beta": jnp.array(1.3),
    "tau": jnp.array(0.7),
    "W": jr.normal(jr.key(0), (6, 4)),
    "inputs": 0.2 * jnp.ones((3, 6)),
    # The first sample takes more steps than the others.
    "x0": {
        "a": jr.normal(jr.key(1), (3, 6)) * jnp.array([[30.0], [1.0], [0.1]]),
        "b": jnp.zeros((3, 4)),
    },
}


def loss(p, **options: Any):
    layers = {
        "a": hl.TanhLayer(6, beta=p["beta"], tau=p["tau"]),
        "b": hl.SoftmaxLayer(4, beta=2.0),
    }
    ham = hl.HAM(layers, {"W": hl.DenseSynapse((6, 4), W=p["W"])}, [(("a", "b"), "W")])
    flow = options.pop("flow", "activation")
    solution = hl.solve(ham, p["x0"], 3.0, flow=flow, inputs={"a": p["inputs"]}, **options)
    return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(saved(solution)))


CASES: dict[str, dict[str, Any]] = {
    "Tsit5": {},
    "both ends": {"saveat": diffrax.SaveAt(t0=True, t1=True)},
    "few steps between states": {"max_steps": 50},
    "many segments": CONSTANT | {"max_steps": 400},
    "Bosh3, state flow": {"solver": diffrax.Bosh3(), "flow": "state"},
    "ETD4RK": {"solver": hl.ETD4RK()},
    "Euler": CONSTANT | {"solver": diffrax.Euler(), "max_steps": 400},
    "in parts": {"batch_size": 2},
    "out of steps": {"max_steps": 9, "throw": False},
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_diffrax(case):
    options = CASES[case]
    ours = jax.jit(jax.grad(lambda p: loss(p, **options)))(PARAMETERS)
    theirs = jax.jit(jax.grad(lambda p: loss(p, adjoint=RECURSIVE, **options)))(PARAMETERS)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)


def test_the_number_of_kept_states_changes_nothing():
    ours, theirs = (
        jax.jit(jax.grad(lambda p, n=n: loss(p, max_steps=n)))(PARAMETERS) for n in (4096, 50)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{}, CONSTANT], ids=["adaptive", "constant"])
def test_derivatives_of_a_decay(options):
    # x = exp(−(t₁ − t₀)/τ) x₀
    def end(tau, x0, t0, t1):
        layer = hl.IdentityLayer(2, tau=tau)
        controller = diffrax.PIDController(rtol=1e-10, atol=1e-12)
        tools = {"stepsize_controller": controller} | options
        return saved(hl.solve(layer, x0, t1, t0=t0, **tools))[-1, 0]

    arguments = jnp.array(0.5), jnp.array([2.0, 1.0]), jnp.array(0.3), jnp.array(1.5)
    x = 2 * np.exp(-2.4)
    by_tau, by_x0, by_t0, by_t1 = jax.jit(jax.grad(end, (0, 1, 2, 3)))(*arguments)
    np.testing.assert_allclose(by_tau, x * 1.2 / 0.25, rtol=1e-8)
    np.testing.assert_allclose(by_x0, [x / 2, 0], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(by_t0, 2 * x, rtol=1e-6)
    np.testing.assert_allclose(by_t1, -2 * x, rtol=1e-6)


def test_against_central_differences():
    tight = {"stepsize_controller": diffrax.PIDController(rtol=1e-11, atol=1e-13)}
    run = jax.jit(lambda p: loss(p, **tight))
    gradient = jax.jit(jax.grad(run))(PARAMETERS)
    for name in ("beta", "tau"):
        up, down = (run(PARAMETERS | {name: PARAMETERS[name] + h}) for h in (1e-5, -1e-5))
        np.testing.assert_allclose(gradient[name], (up - down) / 2e-5, rtol=1e-7)


def test_second_derivatives_and_vmap():
    slope = jax.grad(lambda beta: loss(PARAMETERS | {"beta": beta}))
    # 400 steps, of which every 20th is kept.
    steady = jax.grad(lambda b: loss(PARAMETERS | {"beta": b}, max_steps=400, **CONSTANT))
    second = jax.jit(jax.jacfwd(steady))(1.3)
    np.testing.assert_allclose(second, (steady(1.3 + 1e-5) - steady(1.3 - 1e-5)) / 2e-5, rtol=1e-6)
    betas = jnp.array([1.3, 1.5])
    np.testing.assert_allclose(jax.vmap(slope)(betas), [slope(beta) for beta in betas], rtol=1e-9)


def test_closures_and_empty_batches():
    def end(scale):
        layer = hl.Layer(lambda x: scale * jnp.sum(jnp.cosh(x)), 3)
        return jnp.sum(saved(hl.solve(layer, jnp.ones(3), 1.0, inputs=lambda t: scale * t)))

    expected = (end(1.2 + 1e-5) - end(1.2 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(end)(1.2), expected, rtol=1e-3)

    def of_none(beta):
        return jnp.sum(saved(hl.solve(hl.TanhLayer(3, beta=beta), jnp.ones((0, 3)), 1.0)))

    assert jax.grad(of_none)(1.2) == 0


def test_memory_does_not_grow_with_the_steps():
    # Nor with the number of samples times that of the weights.
    x0 = jax.ShapeDtypeStruct((50, 100), jnp.float64)
    W = jax.ShapeDtypeStruct((100, 100), jnp.float64)

    def end(W, x0, steps):
        layer, synapse = hl.TanhLayer(100), hl.DenseSynapse((100, 100), W=W)
        ham = hl.HAM({"x": layer}, {"W": synapse}, [(("x", "x"), "W")])
        options = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.125}
        solution = hl.solve(ham, {"x": x0}, steps / 8, max_steps=steps, throw=False, **options)
        return jnp.sum(saved(solution)["x"] ** 2)

    few, many = (
        temporary_bytes(compiled(jax.grad(lambda W, x0, n=n: end(W, x0, n)), W, x0))
        for n in (20, 2000)
    )
    state = 8 * 50 * 100
    assert many <= few + 2 * 46 * state + 50 * 2000 * 8 * 2
    assert many < 50 * 8 * 100 * 100 * 2
