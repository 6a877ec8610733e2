"""L, g and E against mpmath over the whole range of each dtype."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf

import hopfield_layers as hl

from .accuracy import errors, exact, LAGRANGIANS, states
from .compiling import optimized


# In units of eps times the true value times its condition number with respect to the state.
BOUND = 5.0

lagrangians = pytest.mark.parametrize("lagrangian", LAGRANGIANS.values(), ids=LAGRANGIANS)


@lagrangians
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=lambda dtype: dtype.__name__)
def test_accuracy(lagrangian, dtype):
    for batch in states(lagrangian, dtype):
        for name, ulps in errors(lagrangian, batch)._asdict().items():
            i = np.argmax(ulps)
            assert ulps[i] <= BOUND, f"{name}: {ulps[i]:.3g} ulps at {batch[i]!r}"


@lagrangians
def test_the_definitions_are_consistent(lagrangian):
    """The gradients and Hessians that the condition numbers come from, against differences of L."""
    z = [mpf(0.3), mpf(-0.2), mpf(0.11)]
    with mp.workdps(60):
        true = exact(lagrangian, z, jnp.float64)
        step = mpf(10) ** -15
        for i in range(len(z)):
            up, down = (
                exact(
                    lagrangian, [x + sign * step * (i == j) for j, x in enumerate(z)], jnp.float64
                )
                for sign in (1, -1)
            )
            assert abs((up.value - down.value) / (2 * step) - true.gradient[i]) < 1e-25
            for j in range(len(z)):
                slope = (up.gradient[j] - down.gradient[j]) / (2 * step)
                assert abs(slope - true.hessian[i][j]) < 1e-25


@optimized
def gradient(lagrangian, state):
    return jax.grad(lagrangian)(state)


@lagrangians
@pytest.mark.parametrize("z", [[0.0, 0.0, 0.0], [1.0, 1.0, -1.0], [0.3, -0.2, -0.2]], ids=str)
def test_derivatives_at_zeros_and_ties(lagrangian, z):
    if len(set(z)) == 1 and getattr(lagrangian, "eps", 1.0) == 0:
        pytest.skip("no derivative there")
    g = np.array(exact(lagrangian, [mpf(x) for x in z], jnp.float64).gradient, dtype=float)
    np.testing.assert_allclose(gradient(lagrangian, jnp.array(z)), g, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    "lagrangian",
    [hl.LSoftmax(), hl.LGhostmax(), hl.LSparsemax(), hl.LEntmax(), hl.LEntmax(alpha=3.0)],
    ids=str,
)
@pytest.mark.parametrize("state", [[2.0, 1.7, -3.0], [0.1, 0.4, 0.2]], ids=str)
def test_third_derivatives(lagrangian, state):
    # Those of H, as an implicit gradient through the state flow takes them.
    x, v = jnp.array(state), jnp.array([0.3, -0.7, 0.5])

    def along(fn):
        return lambda x: jax.jvp(fn, (x,), (v,))[1]

    second = along(along(lagrangian.activation))
    third, up, down = eqx.filter_jit(
        lambda x, h: (along(second)(x), second(x + h * v), second(x - h * v))
    )(x, 1e-4)
    np.testing.assert_allclose(third, (up - down) / 2e-4, rtol=1e-5, atol=1e-6)
