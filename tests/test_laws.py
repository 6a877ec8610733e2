"""The laws of `hopfield_layers.testing`, for every Lagrangian, layer, synapse and network."""

import itertools

import diffrax
import hypothesis.strategies as st
import jax
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

from .instances import HAMS, LAGRANGIANS, LAYERS, NETWORKS, SHAPE, SYNAPSES, VARIANTS


# The laws of a synapse are those of a network with it. Its units are tanh, which bound the energy.
JOINED = {
    f"synapse: {name}": hl.HAM(
        {f"x{i}": hl.TanhLayer(shape, tau=0.5 + i) for i, shape in enumerate(synapse.shapes)},
        {"s": synapse},
        [([f"x{i}" for i in range(len(synapse.shapes))], "s")],
    )
    for name, synapse in SYNAPSES.items()
}
MODELS = LAYERS | NETWORKS | HAMS
TEMPLATES = {  # states of the models that don't declare their shapes
    "tanh and softmax": {"a": jnp.zeros(5), "b": jnp.zeros(4)},
    "identity and ReLU": {"a": jnp.zeros(5), "b": jnp.zeros(4)},
    "memory": jnp.zeros(5),
    "springs": jnp.zeros(3),
}


def states_of(name, **options):
    return states(TEMPLATES.get(name, (MODELS | JOINED)[name]), **options)


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


# Bounds of the models for which `assert_energy_bounded` knows none.
BOUNDS = {
    # ½‖x‖² − max x·pattern − lse(0)
    "memory": lambda m: -jnp.max(jnp.sum(m.patterns**2, 1)) / 2 - jnp.log(7) / m.beta,
    "springs": lambda m: -5.0,
    "tanh and softmax": lambda m: m.layers["b"].energy_bound() - jnp.sum(jnp.abs(m.W)),
    # The repulsion is not negative, and the ripple is at least −0.3 for each of its three units.
    "shared": lambda m: (
        sum(layer.energy_bound() for layer in m.layers.values())
        - jnp.sum(jnp.abs(m.synapses["triple"].W))
        - 0.9
    ),
}


@pytest.mark.parametrize("name", [*LAYERS, *BOUNDS, *(n for n in HAMS if n not in BOUNDS), *JOINED])
def test_energy_is_bounded(name):
    model = (MODELS | JOINED)[name]

    @settings(max_examples=25)
    @given(x=states_of(name, extremes=False))
    def holds(x):
        assert_energy_bounded(model, x, bound=BOUNDS[name](model) if name in BOUNDS else None)

    holds()


# beartype chooses the items to check with the random module, which Hypothesis warns about.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@settings(max_examples=40)
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


# The activation flow of every model, and its state flow with one of the three solvers in turn: the
# rule is the same for all solvers, and compiling takes the time.
TURNS = itertools.cycle(["Euler", "Heun", "Tsit5"])


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in MODELS for case in ("ETD2RK", next(TURNS))]
)
def test_energy_descends_exactly(name, case):
    model, (flow, solver, controller) = MODELS[name], CASES[case]
    slowest = max(float(jnp.max(tau)) for tau in jax.tree.leaves(model.tau))

    @settings(max_examples=3)
    @given(x=states_of(name, scale=st.sampled_from([3.0, 0.1])))
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


# For a few layers only, as the exact law is tested for all.
@pytest.mark.parametrize(
    ("name", "flow"),
    [
        ("exp", "state"),
        ("sparsemax", "activation"),
        ("layer norm", "state"),
        *((name, flow) for name in HAMS for flow in ("state", "activation")),
    ],
)
def test_energy_descends_to_the_tolerance(name, flow):
    @settings(max_examples=5)
    @given(x=states_of(name, scale=1.0))
    def holds(x):
        assert_energy_descends(MODELS[name], x, flow)

    holds()


def test_energy_descends_with_inputs_and_clamped_units():
    x = np.random.default_rng(0).normal(size=4)
    clamp, inputs = jnp.arange(4) < 2, jnp.array([2.0, -1.0, 0.5, 0.0])
    layer = hl.TanhLayer(4, beta=2.0)
    assert_energy_descends(layer, x, "activation", clamp=clamp, inputs=inputs)


@pytest.mark.parametrize("name", [*MODELS, *JOINED])
def test_gradients(name):
    @settings(max_examples=5)
    @given(x=states_of(name, scale=1.0))
    def holds(x):
        assert_gradients((MODELS | JOINED)[name], x)

    holds()
