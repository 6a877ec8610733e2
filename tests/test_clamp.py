"""Clamped units keep their values, and the others follow the flow."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import hopfield_layers as hl

from .instances import HAMS, LAGRANGIANS, NETWORKS
from .solutions import saved


NETWORK = NETWORKS["tanh and softmax"]
X0 = {"a": jr.normal(jr.key(1), (5,)), "b": jr.normal(jr.key(2), (4,))}
CLAMP = {"a": jnp.array([True, False, True, False, False]), "b": jnp.zeros(4, bool)}


@pytest.mark.parametrize("flow", ["state", "activation"])
def test_clamped_units_have_zero_rate_and_free_units_are_unaffected(flow):
    field = hl.EnergyFlow(NETWORK, flow, CLAMP)
    rates, free = field(0.0, X0), hl.EnergyFlow(NETWORK, flow)(0.0, X0)
    for name, held in CLAMP.items():
        np.testing.assert_array_equal(rates[name], np.where(held, 0.0, free[name]))
    solution = hl.solve(NETWORK, X0, 3.0, flow=flow, clamp=CLAMP)
    rest = hl.relax(NETWORK, X0, flow=flow, clamp=CLAMP)
    for end in (jax.tree.map(lambda y: y[-1], saved(solution)), rest.x):
        np.testing.assert_array_equal(end["a"] != X0["a"], ~CLAMP["a"])
    rates = field(0.0, rest.x)
    assert jnp.max(jnp.abs(rates["a"])) < 1e-9


def test_masks_per_sample():
    layer = hl.TanhLayer(2, bias=jnp.array([1.0, 2.0]))
    masks = jnp.array([[True, False], [False, False], [True, True]])
    x0 = jnp.full((3, 2), 5.0)
    rest = hl.relax(layer, x0, clamp=masks)
    np.testing.assert_allclose(rest.x, [[5.0, 2.0], [1.0, 2.0], [5.0, 5.0]], atol=1e-9)
    end = saved(hl.solve(layer, x0, 50.0, flow="activation", clamp=masks))[:, -1]
    np.testing.assert_allclose(end, rest.x, atol=1e-4)


def test_fixed_points_depend_on_the_values_of_clamped_units_only():
    # A function of the fixed point, which depends on the clamped units' values alone.
    @jax.jit
    def free_part(x0):
        rest = hl.relax(NETWORK, x0, clamp=CLAMP, tol=1e-12)
        return jnp.sum(rest.x["a"][1] * 2 + rest.x["b"] ** 2)

    gradient = jax.grad(free_part)(X0)
    np.testing.assert_array_equal(gradient["b"], jnp.zeros(4))
    np.testing.assert_array_equal(gradient["a"] != 0, CLAMP["a"])
    for unit in (0, 2):
        h = 1e-5
        shifted = [{"a": X0["a"].at[unit].add(s), "b": X0["b"]} for s in (h, -h)]
        difference = (free_part(shifted[0]) - free_part(shifted[1])) / (2 * h)
        np.testing.assert_allclose(gradient["a"][unit], difference, rtol=1e-6)


ROWWISE = {"softmax": 1, "ghostmax": 1, "sparsemax": 1, "entmax": 1, "entmax 1.1": 1}
ROWWISE |= {"layer norm": 1, "spherical norm": 1, "softmax, first axis": 0, "entmax 2.5": 0}


@pytest.mark.parametrize("name", LAGRANGIANS)
def test_masks_that_split_what_is_coupled(name):
    # Lagrangians couple rows of 4 units or columns of 3, or none: then any mask is allowed.
    layer = hl.Layer(LAGRANGIANS[name], (3, 4), bias=jr.normal(jr.key(3), (3, 4)))
    masks = {
        None: jnp.zeros((3, 4), bool).at[1, 2].set(True),
        1: jnp.zeros((3, 4), bool).at[1].set(True),
        0: jnp.zeros((3, 4), bool).at[:, 1].set(True),
    }
    for whole, mask in masks.items():
        hl.EnergyFlow(layer, "state", mask)
        if name not in ROWWISE or whole == ROWWISE[name]:
            hl.EnergyFlow(layer, "activation", mask)
            continue
        with pytest.raises(ValueError, match="holds some but not all of the units"):
            hl.EnergyFlow(layer, "activation", mask)
        with pytest.raises(ValueError, match="holds some but not all of the units"):
            hl.relax(layer, jnp.zeros((2, 3, 4)), clamp=mask)


def test_the_energy_could_rise_with_a_split_row():
    # The reason for the error: softmax at (1, 2) with the second unit clamped has dE/dt = +0.197.
    # EnergyFlow refuses this mask under the activation flow, so its rate is written out here.
    x, layer = jnp.array([1.0, 2.0]), hl.SoftmaxLayer(2)
    slope = jax.grad(layer.energy)(x)[0]
    np.testing.assert_allclose(slope * -layer.dEdg(x)[0], 0.197, atol=5e-4)
    assert slope * hl.EnergyFlow(layer, "state", jnp.array([False, True]))(0.0, x)[0] < 0


def test_masks_traced_by_jit():
    relax = eqx.filter_jit(lambda x0, mask: hl.relax(hl.SoftmaxLayer(3), x0, clamp=mask).x)
    x0 = jnp.arange(3.0)
    np.testing.assert_array_equal(relax(x0, jnp.ones(3, bool)), x0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="holds some but not all"):
        relax(x0, jnp.array([True, False, False]))


@pytest.mark.usefixtures("unchecked_types")
def test_bad_masks():
    layer, x0 = hl.TanhLayer(3), jnp.ones(3)

    def solve(*args: Any, **keywords: Any) -> Any:
        return hl.solve(*args, t1=1.0, **keywords)

    runs: list[Callable[..., Any]] = [hl.relax, solve]
    for run in runs:
        with pytest.raises(ValueError, match=r"clamp has shape \(4,\), .* broadcast to \(3,\)"):
            run(layer, x0, clamp=jnp.ones(4, bool))
        with pytest.raises(ValueError, match="clamp of the state's structure"):
            run(layer, x0, clamp={"a": jnp.ones(3, bool)})
        with pytest.raises(ValueError, match="clamp to be boolean, got float64"):
            run(layer, x0, clamp=jnp.ones(3))
    with pytest.raises(ValueError, match=r"clamp to be a state of the model, got \(4,\): "):
        hl.EnergyFlow(layer, clamp=jnp.ones(4, bool))
    with pytest.raises(ValueError, match=r"clamp to be a state of the model, got .*'c'"):
        hl.EnergyFlow(NETWORK, clamp=CLAMP | {"c": jnp.ones(2, bool)})


def test_a_declared_coupling_and_none():
    # L couples units 0 and 1 below a threshold only, so that no probe at a few states finds it.
    def threshold(x):
        return jnp.sum(x**2) / 2 + jax.nn.relu(-x[0] - x[1] - 1) ** 2 / 2

    mask, x = jnp.array([True, False]), jnp.array([-20.0, 5.0])
    layer = hl.Layer(threshold, 2)
    with pytest.raises(ValueError, match=r"holds some but not all .* coupled_axes"):
        hl.EnergyFlow(layer, "activation", mask)
    # Why: with a coupling that is declared wrongly the energy rises, from 324.5 to 399.5.
    false = hl.Layer(hl.as_lagrangian(threshold, coupled_axes=()), 2)
    end = saved(hl.solve(false, x, 20.0, flow="activation", clamp=mask))[-1]
    energies = [false.energy(x), false.energy(end)]
    np.testing.assert_allclose(energies, [324.5, 399.5], atol=0.05)
    # The state flow has no such limit.
    end = saved(hl.solve(layer, x, 20.0, clamp=mask))[-1]
    assert layer.energy(end) < layer.energy(x)


@pytest.mark.parametrize("axes", [(), (-1,), (0,), (0, 1)])
def test_the_axes_of_a_callable(axes):
    layer = hl.Layer(hl.as_lagrangian(lambda x: jnp.sum(x**2), coupled_axes=axes), (2, 3))
    held = jnp.zeros((4, 2, 3), bool).at[1, 0, 2].set(True)
    expected = np.zeros((4, 2, 3), bool)
    expected[1, slice(None) if axes == (0, 1) or axes == (0,) else 0] |= np.arange(3) == 2
    if -1 in axes or 1 in axes:
        expected[1] |= np.any(expected[1], axis=1, keepdims=True)
    np.testing.assert_array_equal(layer.coupled(held), expected)
    with pytest.raises(ValueError, match="coupled_axes among the 1 axes"):
        hl.Layer(hl.as_lagrangian(lambda x: jnp.sum(x**2), coupled_axes=(1,)), 3)
    with pytest.raises(TypeError, match="declares its own coupled axes"):
        hl.as_lagrangian(hl.LTanh(), coupled_axes=())


def test_a_model_without_a_declaration_holds_whole_arrays():
    model = NETWORKS["springs"]
    x0 = jnp.array([2.0, -1.0, 3.0])
    rest = hl.relax(model, jnp.stack([x0, x0]), clamp=jnp.array([[True] * 3, [False] * 3]))
    np.testing.assert_allclose(rest.x, [x0, model.centre], atol=1e-8)
    with pytest.raises(ValueError, match="holds some but not all"):
        hl.relax(model, x0, clamp=jnp.array([True, False, False]))


@pytest.mark.parametrize("flow", ["state", "activation"])
def test_layers_left_out_are_free_and_without_input(flow):
    ham = HAMS["convolutional"]
    x0 = ham.init_states(bs=2, rng=jr.key(5))
    held = jnp.zeros(x0["pixels"].shape, bool).at[:, 0].set(True)
    nothing = {name: jnp.zeros(x.shape) for name, x in x0.items()}
    whole_clamp = {name: x.astype(bool) for name, x in nothing.items()} | {"pixels": held}
    inputs = 0.3 * jnp.ones((2, 2, 3))

    def run(clamp, inputs):
        return saved(hl.solve(ham, x0, 1.0, flow=flow, clamp=clamp, inputs=inputs))

    left_out = run({"pixels": held}, {"features": inputs})
    whole = run(whole_clamp, nothing | {"features": inputs + nothing["features"]})
    for name, y in left_out.items():
        np.testing.assert_array_equal(y, whole[name])
    field = hl.EnergyFlow(ham, flow, {"pixels": held}, {"features": inputs})
    np.testing.assert_array_equal(field(0.0, x0)["pixels"][:, 0], 0)
