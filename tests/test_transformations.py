"""jit, vmap and copies change no result, and other values compile nothing."""

import pickle

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.test_util import check_grads

import hopfield_layers as hl

from .instances import LAYERS, SHAPE
from .solutions import saved


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_transformations_change_nothing(layer, tmp_path):
    def both(layer, x):
        return layer.energy(x), layer.activation(x)

    def check(results):
        np.testing.assert_allclose(results[0], expected[0], rtol=1e-13)
        np.testing.assert_allclose(results[1], expected[1], rtol=1e-13, atol=1e-15)

    x = jr.normal(jr.key(9), (2, *SHAPE))
    expected = both(layer, x)
    traces = []

    @jax.jit
    def jitted(layer, x):
        traces.append(layer)
        return both(layer, x)

    check(jitted(layer, x))
    leaves, structure = jax.tree.flatten(layer)
    check(jitted(jax.tree.unflatten(structure, leaves), x))
    eqx.tree_serialise_leaves(tmp_path / "layer.eqx", layer)
    blank = jax.tree.map(jnp.ones_like, layer)
    check(jitted(eqx.tree_deserialise_leaves(tmp_path / "layer.eqx", blank), x))
    check(jitted(pickle.loads(pickle.dumps(layer)), x))
    assert len(traces) == 1


@pytest.mark.parametrize("lagrangian", [hl.LSoftmax(), hl.LGhostmax()], ids=repr)
@pytest.mark.parametrize("x", [[300.1, 0.0, 12.3], [3e6 + 1, 3e6 + 1, 3e6 + 1]], ids=str)
def test_the_largest_entry_of_a_product(lagrangian, x):
    # XLA may fuse 0.1·x − max into one operation that doesn't round the product, so that the
    # difference of the largest entry from itself is not 0.
    x = jnp.array(x, jnp.float32)
    z = jax.block_until_ready(np.float32(0.1) * x)
    for name in ("__call__", "energy"):
        method = getattr(lagrangian, name)
        product = jax.jit(lambda x, method=method: method(0.1 * x))
        np.testing.assert_allclose(product(x), method(z), rtol=1e-6)


@pytest.mark.parametrize(("name", "flow"), [("entmax", "state"), ("layer norm", "activation")])
def test_other_values_compile_nothing(name, flow, compilations):
    layer = LAYERS[name]
    changed = jax.tree.map(lambda leaf: 1.01 * leaf, layer)

    def run(layer, x, t1, dt0, rtol, inputs):
        hl.solve(layer, x, t1, flow=flow, inputs=0.1 * t1)
        controller = diffrax.PIDController(rtol=rtol, atol=1e-3 * rtol)
        keywords = {"flow": flow, "inputs": inputs, "stepsize_controller": controller}
        return hl.solve(layer, x, t1, dt0=dt0, **keywords)

    first, second = jr.normal(jr.key(10), (2, 2, *SHAPE))
    run(layer, first, 1.0, 0.1, 1e-4, first)
    assert len(compilations) > 0
    compilations.clear()
    run(changed, second, 2, 0.2, 1e-5, second)
    assert compilations == []


def test_a_sample_alone_is_as_in_a_batch():
    layer, x = LAYERS["softmax"], jr.normal(jr.key(8), (3, *SHAPE))
    together = hl.solve(layer, x, 3.0)
    for i in range(3):
        alone = hl.solve(layer, x[i], 3.0)
        np.testing.assert_allclose(saved(together)[i], saved(alone), rtol=1e-13, atol=1e-15)
        assert together.stats["num_steps"][i] == alone.stats["num_steps"]


def test_a_batch_of_parameters():
    betas = jnp.array([0.5, 1.0, 3.0])
    x = jr.normal(jr.key(11), SHAPE)
    energies = jax.vmap(lambda beta: hl.TanhLayer(SHAPE, beta=beta).energy(x))(betas)
    t = betas[:, None, None] * x
    terms = (t * jnp.tanh(t) - jnp.log(jnp.cosh(t))) / betas[:, None, None]
    expected = jnp.sum(terms, axis=(1, 2))
    np.testing.assert_allclose(energies, expected, rtol=1e-13)


@eqx.filter_jit
def evaluate(lagrangian, x):
    """L, g, E and H x."""
    g, curvature = jax.jvp(lagrangian.activation, (x,), (x,))
    return lagrangian(x), g, lagrangian.energy(x), curvature


@pytest.mark.parametrize(
    ("lagrangian", "name", "floor"),
    [
        (hl.LExp(), "beta", 1e-6),
        (hl.LSoftmax(min_beta=0.1), "beta", 0.1),
        (hl.LSigmoid(), "scale", 1e-30),
        (hl.LLayerNorm(), "gamma", 1e-30),
        (hl.LRepu(), "n", 1 + 1e-6),
        (hl.LPower(), "p", 1 + 1e-6),
        (hl.LEntmax(), "alpha", 1 + 1e-6),
    ],
)
def test_parameters_out_of_their_domain_act_as_the_floor(lagrangian, name, floor):
    x = jr.normal(jr.key(12), SHAPE)
    low, least = (
        eqx.tree_at(lambda m: getattr(m, name), lagrangian, jnp.array(value))
        for value in (-2.0, floor)
    )
    results = zip(evaluate(low, x), evaluate(least, x), strict=True)
    for actual, expected in results:
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("flow", ["state", "activation"])
def test_a_time_constant_below_zero_still_descends(flow):
    layer = eqx.tree_at(lambda layer: layer.tau, hl.TanhLayer(3), jnp.array(-1.0))
    rate = hl.EnergyFlow(layer, flow)(0.0, jnp.ones(3))
    assert -jnp.inf < jnp.sum(jax.grad(layer.energy)(jnp.ones(3)) * rate) < 0


@pytest.mark.parametrize("flow", ["state", "activation"])
def test_gradients_through_a_solve(flow):
    controller = diffrax.PIDController(rtol=1e-11, atol=1e-12)
    keywords = {"flow": flow, "stepsize_controller": controller}
    layer, x0 = LAYERS["tanh"], jr.normal(jr.key(6), SHAPE)
    parameters, static = eqx.partition(layer, eqx.is_inexact_array)

    @jax.jit
    def end(parameters, inputs, x0):
        layer = eqx.combine(parameters, static)
        ys = saved(hl.solve(layer, x0, 0.7, inputs=inputs, **keywords))
        return jnp.sum(jnp.sin(ys))

    inputs = 0.1 * jnp.ones(SHAPE)
    check_grads(end, (parameters, inputs, x0), order=1, modes=["rev"], rtol=1e-7, eps=1e-4)
