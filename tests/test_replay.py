"""Gradients of solutions by replaying their steps are those of Diffrax, in bounded memory."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array

import hopfield_layers as hl

from .compiling import compiled, temporary_bytes
from .solutions import saved


RECURSIVE = diffrax.RecursiveCheckpointAdjoint()
TIGHT = diffrax.PIDController(rtol=1e-10, atol=1e-12)
CONSTANT = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 1 / 128}


class Units(hl.AbstractEnergyModel):
    """Tanh units joined by −g·W·g/2: a network that compiles quickly."""

    beta: Array
    tau: Array
    W: Array

    def energy(self, x):
        g, z = self.activations(x), self.beta * x
        own = (z * g - jnp.log(jnp.cosh(z))).sum(axis=-1) / self.beta
        return own - jnp.einsum("...i,ij,...j", g, self.W, g) / 2

    def activations(self, x):
        return jnp.tanh(self.beta * x)

    def dEdg(self, x):
        return x - self.activations(x) @ (self.W + self.W.T) / 2


PARAMETERS = {
    "beta": jnp.array(1.3, float),
    "tau": jnp.array(0.7, float),
    "W": jr.normal(jr.key(0), (6, 6)) / 2,
    "inputs": 0.2 * jnp.ones((3, 6)),
    # The first sample takes more steps than the others.
    "x0": jr.normal(jr.key(1), (3, 6)) * jnp.array([[30.0], [1.0], [0.1]]),
}


def total(solution):
    return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(saved(solution)))


def loss(p, **options: Any):
    options = {"flow": "activation"} | options
    return total(
        hl.solve(Units(p["beta"], p["tau"], p["W"]), p["x0"], 3.0, inputs=p["inputs"], **options)
    )


def network_loss(p, **options: Any):
    layers = {
        "a": hl.TanhLayer(6, beta=p["beta"], tau=p["tau"]),
        "b": hl.SoftmaxLayer(4, beta=2.0),
    }
    ham = hl.HAM(layers, {"W": hl.DenseSynapse((6, 4), W=p["W"][:, :4])}, [(("a", "b"), "W")])
    x0 = {"a": p["x0"], "b": jnp.zeros((3, 4))}
    return total(hl.solve(ham, x0, 3.0, inputs={"a": p["inputs"]}, **options))


CASES: dict[str, dict[str, Any]] = {
    "both ends": {"saveat": diffrax.SaveAt(t0=True, t1=True)},
    "many segments": CONSTANT | {"max_steps": 400},
    "Bosh3, state flow": {"solver": diffrax.Bosh3(), "flow": "state"},
    "ETD4RK": {"solver": hl.ETD4RK()},
    "Euler": CONSTANT | {"solver": diffrax.Euler(), "max_steps": 400},
    "out of steps": {"max_steps": 9, "throw": False},
}


def gradient(**options: Any):
    return jax.jit(jax.grad(lambda p: loss(p, **options)))(PARAMETERS)


def assert_same(ours, theirs, rtol, atol):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_diffrax(case):
    ours, theirs = gradient(**CASES[case]), gradient(adjoint=RECURSIVE, **CASES[case])
    assert_same(ours, theirs, rtol=1e-7, atol=1e-10)


def test_neither_kept_states_nor_parts_change_gradients():
    ours, theirs = gradient(), gradient(adjoint=RECURSIVE)
    few, parts = gradient(max_steps=50), gradient(batch_size=2)
    assert_same(ours, few, rtol=1e-12, atol=1e-14)
    for each in (ours, few, parts):
        assert_same(each, theirs, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("steps", ["adaptive", "constant", "given", "downhill"])
def test_derivatives_of_a_decay(steps):
    # x = exp(−(t₁ − t₀)/τ) x₀, by steps that depend on what is differentiated.
    def end(tau, x0, t0, t1):
        layer = hl.IdentityLayer(2, tau=tau)
        controller, dt0 = {
            "adaptive": (TIGHT, tau / 50),
            "constant": (diffrax.ConstantStepSize(), tau / 64),
            "given": (diffrax.StepTo(jnp.linspace(t0, t1, 200)), None),
            "downhill": (hl.energy_descent(TIGHT, layer), None),
        }[steps]
        solution = hl.solve(layer, x0, t1, t0=t0, dt0=dt0, stepsize_controller=controller)
        return saved(solution)[-1, 0]

    arguments = jnp.array(0.5), jnp.array([2.0, 1.0]), jnp.array(0.3), jnp.array(1.5)
    x = 2 * np.exp(-2.4)
    by_tau, by_x0, by_t0, by_t1 = jax.jit(jax.grad(end, (0, 1, 2, 3)))(*arguments)
    np.testing.assert_allclose(by_tau, x * 1.2 / 0.25, rtol=1e-8)
    np.testing.assert_allclose(by_x0, [x / 2, 0], rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(by_t0, 2 * x, rtol=1e-6)
    np.testing.assert_allclose(by_t1, -2 * x, rtol=1e-6)


class Gaps(diffrax.AbstractStepSizeController):
    """Steps of 0.1, of which each but the first begins 0.01 late."""

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return t0 + 0.1, 1

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        number = controller_state + 1
        return True, t1 + 0.01, 0.1 * number, False, number, diffrax.RESULTS.successful


def test_steps_with_gaps_between_them():
    # x = exp(−0.91/τ) x₀, as nothing happens in the nine gaps.
    def end(tau):
        layer = hl.IdentityLayer(1, tau=tau)
        return saved(hl.solve(layer, jnp.ones(1), 1.0, stepsize_controller=Gaps()))[-1, 0]

    slope = jax.jit(jax.grad(end))(0.7)
    np.testing.assert_allclose(slope, 0.91 / 0.49 * np.exp(-1.3), rtol=1e-6)


def test_derivatives_of_narrow_parameters_are_summed_in_float32():
    def end(tau):
        layer = hl.IdentityLayer(1, tau=tau)
        return saved(hl.solve(layer, jnp.ones(1, jnp.float32), 1.0, **CONSTANT))[-1, 0]

    by_tau = jax.jit(jax.grad(end))(jnp.array(0.5, jnp.bfloat16))
    np.testing.assert_allclose(by_tau, 4 * np.exp(-2), rtol=2**-7)


def test_networks_against_central_differences():
    tight = {"stepsize_controller": diffrax.PIDController(rtol=1e-11, atol=1e-13)}
    run = jax.jit(jax.value_and_grad(lambda p: network_loss(p, **tight)))
    _, slopes = run(PARAMETERS)
    for name, p in PARAMETERS.items():
        direction = jr.normal(jr.key(2), p.shape)
        up, down = (run(PARAMETERS | {name: p + h * direction})[0] for h in (1e-5, -1e-5))
        slope = jnp.sum(slopes[name] * direction)
        np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-7)


def test_second_derivatives():
    # 400 steps, of which every 20th is kept.
    slope = jax.grad(lambda b: loss(PARAMETERS | {"beta": b}, max_steps=400, **CONSTANT))
    second, slope = jax.jit(jax.jacfwd(slope))(1.3), jax.jit(slope)
    np.testing.assert_allclose(second, (slope(1.3 + 1e-5) - slope(1.3 - 1e-5)) / 2e-5, rtol=1e-6)


def test_vmap():
    slope = jax.grad(lambda beta: loss(PARAMETERS | {"beta": beta}))
    together, slope = jax.jit(jax.vmap(slope)), jax.jit(slope)
    betas = jnp.array([1.3, 1.5])
    np.testing.assert_allclose(together(betas), [slope(beta) for beta in betas], rtol=1e-9)


def test_closures():
    @jax.jit
    @jax.value_and_grad
    def run(scale):
        layer = hl.Layer(lambda x: scale * jnp.sum(jnp.cosh(x)), 3)
        return jnp.sum(saved(hl.solve(layer, jnp.ones(3), 1.0, inputs=lambda t: scale * t)))

    (up, _), (down, _), (_, slope) = (run(1.2 + h) for h in (1e-5, -1e-5, 0))
    np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-3)


def test_empty_batches():
    def end(beta):
        return jnp.sum(saved(hl.solve(hl.TanhLayer(3, beta=beta), jnp.ones((0, 3)), 1.0)))

    assert jax.grad(end)(1.2) == 0


def test_memory_does_not_grow_with_the_steps():
    # Nor with the number of samples times that of the weights.
    x0 = jax.ShapeDtypeStruct((50, 100), jnp.float64)
    W = jax.ShapeDtypeStruct((100, 100), jnp.float64)

    def end(W, x0, steps):
        model = Units(jnp.array(1.0), jnp.array(1.0), W)
        options = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.125}
        solution = hl.solve(model, x0, steps / 8, max_steps=steps, throw=False, **options)
        return jnp.sum(saved(solution) ** 2)

    few, many = (
        temporary_bytes(compiled(jax.grad(lambda W, x0, n=n: end(W, x0, n)), W, x0))
        for n in (20, 2000)
    )
    state = 8 * 50 * 100
    assert many <= few + 2 * 46 * state + 50 * 2000 * 8 * 2
    assert many < 50 * 8 * 100 * 100 * 2
