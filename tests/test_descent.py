"""Under `energy_descent` the energy never rises; over all models, see test_laws.py."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.typing import ArrayLike

import hopfield_layers as hl

from .instances import NETWORKS
from .solutions import saved, saved_times


LOOSE = diffrax.PIDController(rtol=1e-1, atol=1e-1)
CONSTANT = diffrax.ConstantStepSize()


@jax.jit
def energies(model, xs, inputs):
    """E − I·g at each state, and the size of the terms that add up to it."""
    gs = model.activations(xs)
    products = jax.tree.map(lambda x, g: jnp.abs(x * g), xs, gs)
    sums = [jnp.sum(p.reshape(len(p), -1), axis=1) for p in jax.tree.leaves(products)]
    energy = model.energy(xs) - sum(
        jnp.sum((inputs * g).reshape(len(g), -1), axis=1) for g in jax.tree.leaves(gs)
    )
    return energy, jnp.abs(energy) + sum(sums)


def rises(model, solution, inputs: ArrayLike = 0.0):
    """The rise of E − I·g on each accepted step, less 16 times the rounding of its terms."""
    taken = np.isfinite(saved_times(solution))
    # The entries of steps that were not taken are infinite: replace them by x0.
    xs = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, x[:1]), saved(solution))
    energy, size = (np.asarray(each)[taken] for each in energies(model, xs, inputs))
    assert len(energy) > 1
    return np.diff(energy) - 16 * np.finfo(energy.dtype).eps * (size[1:] + size[:-1])


def test_constant_steps_alone_raise_the_energy():
    keywords = {"dt0": 4.0, "solver": diffrax.Euler(), "stepsize_controller": CONSTANT}
    saveat = diffrax.SaveAt(t0=True, steps=True)
    layer = hl.TanhLayer(3)
    x0 = jnp.array([1.0, 2.0, 3.0])
    solution = hl.solve(layer, x0, 40.0, flow="activation", saveat=saveat, **keywords)
    assert np.max(rises(layer, solution)) > 0.01


def test_inputs_and_clamped_units():
    layer, inputs = hl.TanhLayer(3), jnp.array([2.0, -1.0, 0.5])
    x0 = jnp.array([[1.0, 2.0, 3.0], [-2.0, 0.0, 1.0]])
    keywords = {
        "flow": "activation",
        "clamp": jnp.array([True, False, False]),
        "inputs": inputs,
        "solver": diffrax.Euler(),
        "stepsize_controller": hl.energy_descent(CONSTANT, layer),
        "saveat": diffrax.SaveAt(t0=True, steps=True),
    }
    solution = hl.solve(layer, x0, 60.0, dt0=5.0, **keywords)
    ts, ys = saved_times(solution), saved(solution)
    for i in range(2):
        one = eqx.tree_at(lambda s: (s.ts, s.ys), solution, (ts[i], ys[i]))
        assert np.max(rises(layer, one, inputs)) <= 0
    np.testing.assert_array_equal(ys[:, 0, 0], x0[:, 0])
    taken = jnp.sum(jnp.isfinite(ts), axis=1) - 1
    np.testing.assert_allclose(ys[0, taken[0], 1:], inputs[1:], atol=1e-3)


def test_in_a_plain_diffeqsolve():
    layer, inputs = hl.SoftmaxLayer((2, 3), tau=0.5), jnp.ones((2, 3))
    flow = hl.EnergyFlow(layer, "activation", inputs=inputs)
    x0 = jr.normal(jr.key(0), (4, 2, 3))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(flow),
        diffrax.Euler(),
        0.0,
        20.0,
        5.0,
        x0,
        stepsize_controller=hl.energy_descent(CONSTANT, flow),
        saveat=diffrax.SaveAt(steps=True),
    )
    taken = jnp.isfinite(saved_times(solution))
    energy = flow.energy(0.0, saved(solution)[taken])
    assert jnp.all(jnp.diff(energy, axis=0) <= 1e-14)
    assert energy.shape[0] > 10


def test_constant_steps_return_to_their_grid():
    # Steps on which the energy would rise are split, and end on the grid again.
    model = hl.IdentityLayer(1)
    ts = jnp.array([0.0, 0.5, 1.0, 6.0, 6.5])
    for controller, dt0, grid in (
        (diffrax.StepTo(ts), None, ts),
        (CONSTANT, 5.0, jnp.array([0.0, 5.0, 10.0])),
    ):
        solution = hl.solve(
            model,
            jnp.ones(1),
            grid[-1],
            dt0=dt0,
            solver=diffrax.Euler(),
            stepsize_controller=hl.energy_descent(controller, model),
            saveat=diffrax.SaveAt(t0=True, steps=True),
        )
        ts = saved_times(solution)
        taken = ts[jnp.isfinite(ts)]
        assert taken.size > grid.size
        assert np.all(np.isin(grid, taken))


def test_rounding_errors_of_the_energy_reject_few_steps():
    # At the fixed point E(x₁) − E(x₀) is rounding error; few steps are rejected nevertheless.
    model = NETWORKS["memory"]
    rest = hl.relax(model, 3 * jr.normal(jr.key(4), (5,))).x
    plain = diffrax.PIDController(rtol=1e-6, atol=1e-6)
    for flow in ("state", "activation"):
        without, with_descent = (
            hl.solve(model, rest, 200.0, flow=flow, stepsize_controller=controller)
            for controller in (plain, hl.energy_descent(plain, model))
        )
        assert with_descent.stats["num_steps"] <= 2 * without.stats["num_steps"] + 10


def test_implicit_solvers_take_its_tolerances():
    layer = hl.ExpLayer(3)
    controller = hl.energy_descent(diffrax.PIDController(rtol=1e-6, atol=1e-8), layer)
    x0 = jnp.array([-3.0, 1.0, 0.5])
    keywords = {"solver": diffrax.Kvaerno5(), "stepsize_controller": controller}
    end = saved(hl.solve(layer, x0, 100.0, **keywords))[-1]
    expected = saved(hl.solve(layer, x0, 100.0))[-1]
    np.testing.assert_allclose(end, expected, atol=1e-4)


@pytest.mark.usefixtures("unchecked_types")
def test_bad_input():
    with pytest.raises(TypeError, match=r"step size controller of diffrax, .*got 0\.1"):
        hl.energy_descent(0.1, hl.TanhLayer(3))  # pyright: ignore[reportArgumentType]
    layer, inputs = hl.TanhLayer(3), lambda t: jnp.full(3, t)
    with pytest.raises(ValueError, match="inputs that depend on t"):
        hl.energy_descent(CONSTANT, hl.EnergyFlow(layer, inputs=inputs))
    controller = hl.energy_descent(LOOSE, layer)
    with pytest.raises(ValueError, match="inputs that depend on t"):
        hl.solve(layer, jnp.ones(3), 1.0, inputs=inputs, stepsize_controller=controller)
    with pytest.raises(TypeError, match="AbstractEnergyModel"):
        hl.energy_descent(CONSTANT, hl.LTanh())  # pyright: ignore[reportArgumentType]
