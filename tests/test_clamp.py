"""Units that are held."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import hopfield_layers as hl

from .instances import LAGRANGIANS, NETWORKS


NETWORK = NETWORKS["tanh and softmax"]
X0 = {"a": jr.normal(jr.key(1), (5,)), "b": jr.normal(jr.key(2), (4,))}
CLAMP = {"a": jnp.array([True, False, True, False, False]), "b": jnp.zeros(4, bool)}


@pytest.mark.parametrize("flow", ["state", "activation"])
def test_held_units_stay_and_the_others_move_as_they_would_beside_them(flow):
    field = hl.EnergyFlow(NETWORK, flow, CLAMP)
    rates, free = field(0.0, X0), hl.EnergyFlow(NETWORK, flow)(0.0, X0)
    for name, held in CLAMP.items():
        np.testing.assert_array_equal(rates[name], np.where(held, 0.0, free[name]))
    solution = hl.solve(NETWORK, X0, 3.0, flow=flow, clamp=CLAMP)
    rest = hl.relax(NETWORK, X0, flow=flow, clamp=CLAMP)
    for end in (jax.tree.map(lambda y: y[-1], solution.ys), rest.x):
        moved = end["a"] != X0["a"]
        np.testing.assert_array_equal(moved, ~CLAMP["a"])
    rates = field(0.0, rest.x)
    assert jnp.max(jnp.abs(rates["a"])) < 1e-9


def test_masks_per_sample():
    layer = hl.TanhLayer(2, bias=jnp.array([1.0, 2.0]))
    masks = jnp.array([[True, False], [False, False], [True, True]])
    x0 = jnp.full((3, 2), 5.0)
    rest = hl.relax(layer, x0, clamp=masks)
    np.testing.assert_allclose(rest.x, [[5.0, 2.0], [1.0, 2.0], [5.0, 5.0]], atol=1e-9)
    end = hl.solve(layer, x0, 50.0, flow="activation", clamp=masks).ys[:, -1]
    np.testing.assert_allclose(end, rest.x, atol=1e-4)


def test_gradients_flow_to_their_values_alone():
    # The fixed point of a memory's free units, given the held ones.
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
    # The layer is (3, 4): rows of 4, or columns of 3; elementwise ones may be split anywhere.
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
    # Why: softmax at (1, 2) with the second unit held has dE/dt = +0.197.
    x = jnp.array([1.0, 2.0])
    layer = hl.SoftmaxLayer(2)
    slope = jax.grad(layer.energy)(x)[0] * -layer.dEdg(x)[0]
    np.testing.assert_allclose(slope, 0.197, atol=5e-4)
    assert (
        jax.grad(layer.energy)(x)[0]
        * hl.EnergyFlow(layer, "state", jnp.array([False, True]))(0.0, x)[0]
        < 0
    )


def test_masks_known_to_jit_alone():
    relax = eqx.filter_jit(lambda x0, mask: hl.relax(hl.SoftmaxLayer(3), x0, clamp=mask).x)
    x0 = jnp.arange(3.0)
    np.testing.assert_array_equal(relax(x0, jnp.ones(3, bool)), x0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="holds some but not all"):
        relax(x0, jnp.array([True, False, False]))


def test_bad_masks():
    layer, x0 = hl.TanhLayer(3), jnp.ones(3)
    for run in (hl.relax, lambda *args, **kwargs: hl.solve(*args, 1.0, **kwargs)):
        with pytest.raises(ValueError, match=r"clamp has shape \(4,\), .* broadcast to \(3,\)"):
            run(layer, x0, clamp=jnp.ones(4, bool))
        with pytest.raises(ValueError, match="clamp of the state's structure"):
            run(layer, x0, clamp={"a": jnp.ones(3, bool)})
        with pytest.raises(ValueError, match="clamp to be boolean, got float64"):
            run(layer, x0, clamp=jnp.ones(3))
    with pytest.raises(ValueError, match=r"clamp to be a state of the model, got \(4,\): "):
        hl.EnergyFlow(layer, clamp=jnp.ones(4, bool))
    term = diffrax.ODETerm(hl.EnergyFlow(NETWORK, clamp=CLAMP | {"c": jnp.ones(2, bool)}))
    with pytest.raises(ValueError, match="clamp of the state's structure"):
        diffrax.diffeqsolve(term, diffrax.Heun(), 0.0, 1.0, 0.1, X0)
