"""Parameters out of their domain: they act as its edge, and training brings them back."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hopfield_layers as hl
from hopfield_layers._numerics.floors import clipped, floored
from hopfield_layers.dynamics import flow


def with_value(lagrangian, name, value):
    return eqx.tree_at(lambda m: getattr(m, name), lagrangian, jnp.array(value))


# The Lagrangian, its parameter, a value out of the domain, and one inside to be trained to.
CASES = {
    "beta": (hl.LTanh(min_beta=0.01), "beta", -0.16, 0.5),
    "beta of a softmax": (hl.LSoftmax(min_beta=0.01), "beta", -0.16, 0.5),
    "beta of entmax": (hl.LEntmax(min_beta=0.01), "beta", -0.16, 0.5),
    "gamma": (hl.LLayerNorm(), "gamma", -0.16, 0.5),
    "gamma of a spherical norm": (hl.LSphericalNorm(), "gamma", -0.16, 0.5),
    "scale": (hl.LSigmoid(), "scale", -0.16, 0.5),
    "power": (hl.LPower(), "p", 0.9, 2.5),
    "rectified power": (hl.LRepu(), "n", 0.9, 2.5),
    "alpha too small": (hl.LEntmax(beta=0.3), "alpha", 0.9, 2.0),
    "alpha too large": (hl.LEntmax(beta=0.3), "alpha", 4.2, 2.0),
}
cases = pytest.mark.parametrize(
    ("lagrangian", "name", "outside", "wanted"), CASES.values(), ids=CASES
)
X = jnp.array([0.4, -0.3, 0.9])


@cases
def test_gradient_descent_brings_it_back(lagrangian, name, outside, wanted):
    target = with_value(lagrangian, name, wanted).activation(X)

    def loss(value):
        return jnp.sum((with_value(lagrangian, name, value).activation(X) - target) ** 2)

    def outward(value):
        return -loss(value)

    gradient = jax.jit(jax.grad(loss))
    value = outside
    for _ in range(400):
        value = value - 0.5 * gradient(value)
    assert abs(value - wanted) < 0.05
    assert jax.grad(outward)(outside) == 0
    # Forward mode gives the true derivative, and so do differences.
    assert jax.jvp(loss, (outside,), (1.0,))[1] == 0
    assert jax.hessian(loss)(wanted) > 0


def test_an_entropic_index_above_its_domain_acts_as_the_largest():
    above, largest = (with_value(hl.LEntmax(beta=0.3), "alpha", value) for value in (5.0, 4.0))
    np.testing.assert_array_equal(above.activation(X), largest.activation(X))


def test_beta_that_training_drove_below_its_floor():
    # One step too long takes β from 0.5 to −0.16, where its true gradient is 0 for ever.
    target = hl.LTanh(beta=0.45).activation(X)

    def loss(beta):
        return jnp.sum((with_value(hl.LTanh(), "beta", beta).activation(X) - target) ** 2)

    gradient = jax.jit(jax.grad(loss))
    step = 0.66 / gradient(0.5)
    beta = 0.5 - step * gradient(0.5)
    assert beta == pytest.approx(-0.16)
    for _ in range(200):
        beta = beta - 0.3 * gradient(beta)
    assert beta == pytest.approx(0.45, abs=1e-6)


def test_transformations():
    def pull(x, weight):
        return weight * clipped(x, 1.0, 4.0) ** 2

    gradients = jax.vmap(jax.grad(pull), (0, None))
    x = jnp.array([-1.0, 0.5, 2.0, 5.0])
    np.testing.assert_allclose(jax.vmap(lambda x: clipped(x, 1.0, 4.0))(x), [1, 1, 2, 4])
    # Descent on −x² raises x, and on x² lowers it.
    np.testing.assert_allclose(gradients(x, -0.25), [-0.5, -0.5, -1, 0])
    np.testing.assert_allclose(jax.jit(gradients)(x, 0.1), [0, 0, 0.4, 0.8])
    # Outside the domain, gradients are at most 1 in size.
    np.testing.assert_allclose(gradients(x, -10.0), [-1, -1, -40, 0])
    np.testing.assert_allclose(gradients(x, 10.0), [0, 0, 40, 1])


@pytest.mark.parametrize("x", [0.5, 2.0])
def test_second_derivatives(x):
    def cubic(x):
        return -(floored(x, 1.0) ** 3)

    x = jnp.array(x)
    expected = 0.0 if x < 1 else -6 * x
    for second in (
        jax.jacfwd(jax.jacrev(cubic)),
        jax.jacfwd(jax.jacfwd(cubic)),
        jax.jacrev(jax.jacfwd(cubic)),
        jax.hessian(cubic),
    ):
        assert second(x) == expected
    assert jax.jvp(cubic, (x,), (jnp.ones(()),))[1] == (0.0 if x < 1 else -3 * x**2)


@pytest.mark.parametrize("factor", [-0.5, -2.0, -1e300, -np.inf, np.nan, 0.5, np.inf])
def test_a_gradient_out_of_proportion_is_bounded(factor):
    def gradient(x):
        return jax.grad(lambda x: factor * floored(x, 1.0))(jnp.array(x))

    np.testing.assert_array_equal(gradient(0.5), np.nan_to_num(np.clip(factor, -1, 0)))
    np.testing.assert_array_equal(gradient(2.0), factor)


@pytest.mark.skipif(not hasattr(flow, "time_constants"), reason="τ acts as its floor by itself")
def test_a_time_constant_comes_back():
    layer = eqx.tree_at(lambda layer: layer.tau, hl.TanhLayer(3), jnp.array(-0.1))

    def fastest(layer):
        return jnp.sum(hl.EnergyFlow(layer, "activation")(0.0, X) ** 2)

    assert eqx.filter_grad(fastest)(layer).tau == -1
    assert eqx.filter_grad(lambda layer: -fastest(layer))(layer).tau == 0
