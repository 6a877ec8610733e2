"""The laws of `hopfield_layers.testing`, for every Lagrangian and layer, and exact descents.

Those of synapses, networks and other models are in `test_checks`, as reports.
"""

import itertools

import diffrax
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import hopfield_layers as hl
from hopfield_layers.testing import (
    assert_energy_bounded,
    assert_energy_descends,
    assert_gradients,
    assert_lagrangian,
    networks,
    states,
)

from .instances import LAGRANGIANS, LAYERS, SHAPE, VARIANTS


# float16 and bfloat16 are both computed in float32: each Lagrangian is tested with one of them.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for i, name in enumerate(LAGRANGIANS)
        for dtype in (jnp.float64, jnp.float32, (jnp.float16, jnp.bfloat16)[i % 2])
        if name not in (*VARIANTS, "softmax, first axis", "entmax 2.5") or dtype is jnp.float64
    ],
)
def test_lagrangians(name, dtype):
    lagrangian = LAGRANGIANS[name]
    # A plain callable may overflow at extreme states.
    drawn = states(SHAPE, dtype=dtype, extremes=name != "callable")

    @settings(max_examples=25)
    @given(x=drawn, y=drawn)
    def holds(x, y):
        assert_lagrangian(lagrangian, x, y)

    holds()


@pytest.mark.parametrize("name", LAYERS)
def test_energy_is_bounded(name):
    @settings(max_examples=25)
    @given(x=states(LAYERS[name], extremes=False))
    def holds(x):
        assert_energy_bounded(LAYERS[name], x)

    holds()


# beartype chooses the items to check with the random module, which Hypothesis warns about.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@settings(max_examples=20)
@given(data=st.data())
def test_energy_of_random_networks(data):
    network = data.draw(networks())
    x = data.draw(states(network, extremes=False))
    assert_energy_bounded(network, x)


LOOSE = diffrax.PIDController(rtol=1e-1, atol=1e-1)
# Euler's steps are 200 τ long, a hundred times the limit of stability.
CASES = {
    "Euler": ("state", diffrax.Euler(), diffrax.ConstantStepSize()),
    "Heun": ("state", diffrax.Heun(), LOOSE),
    "Tsit5": ("state", diffrax.Tsit5(), LOOSE),
    "ETD2RK": ("activation", hl.ETD2RK(), LOOSE),
}


# Every layer with one of the four in turn, as the rule is the same for all solvers and compiling
# takes the time. The reports of `test_checks` have both flows of networks and other models.
TURNS = itertools.cycle(CASES)


@pytest.mark.parametrize(("name", "case"), [(name, next(TURNS)) for name in LAYERS])
def test_energy_descends_exactly(name, case):
    model, (flow, solver, controller) = LAYERS[name], CASES[case]
    slowest = float(jnp.max(model.tau))

    @settings(max_examples=3)
    @given(x=states(model, scale=st.sampled_from([3.0, 0.1])))
    def holds(x):
        assert_energy_descends(
            model,
            x,
            flow,
            t1=600 * slowest,
            dt0=200 * slowest,
            solver=solver,
            stepsize_controller=hl.energy_descent(controller, model),
        )

    holds()


def test_energy_descends_with_inputs_and_clamped_units():
    x = np.random.default_rng(0).normal(size=4)
    clamp, inputs = jnp.arange(4) < 2, jnp.array([2.0, -1.0, 0.5, 0.0])
    layer = hl.TanhLayer(4, beta=2.0)
    assert_energy_descends(layer, x, "activation", clamp=clamp, inputs=inputs)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name):
    @settings(max_examples=5)
    @given(x=states(LAYERS[name], scale=1.0))
    def holds(x):
        assert_gradients(LAYERS[name], x)

    holds()
