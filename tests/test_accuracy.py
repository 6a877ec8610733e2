"""L, g and E against mpmath over the whole range of each dtype, and what no state may give."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf

from .accuracy import errors, exact, LAGRANGIANS, states


# In units of eps times the true value times its condition number with respect to the state.
BOUND = 5.0

KINDS = list(dict.fromkeys(map(type, LAGRANGIANS.values())))

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


@eqx.filter_jit
def gradient(lagrangian, state):
    return jax.grad(lagrangian)(state)


@lagrangians
@pytest.mark.parametrize("z", [[0.0, 0.0, 0.0], [1.0, 1.0, -1.0], [0.3, -0.2, -0.2]], ids=str)
def test_derivatives_at_zeros_and_ties(lagrangian, z):
    if len(set(z)) == 1 and getattr(lagrangian, "eps", 1.0) == 0:
        pytest.skip("no derivative there")
    g = np.array(exact(lagrangian, [mpf(x) for x in z], jnp.float64).gradient, dtype=float)
    np.testing.assert_allclose(gradient(lagrangian, jnp.array(z)), g, rtol=1e-13, atol=1e-15)


def nasty_states(dtype, shape):
    """Zeros of both signs, ties, the extremes, one huge entry, subnormals."""
    info = jnp.finfo(dtype)
    most, tiny = float(info.max), float(info.tiny)
    one = np.arange(np.prod(shape)).reshape(shape) == 1
    alternating = np.where(np.arange(np.prod(shape)).reshape(shape) % 2, 1.0, -1.0)
    rows = np.where(np.arange(shape[0]) % 2, 1.0, -1.0).reshape(-1, *[1] * (len(shape) - 1))
    levels = [0.0, tiny, tiny / 2, 4 * tiny, tiny**0.5, 1e-3, 1.0, 30.0, 100.0, 1e4]
    levels += [most**0.5, most / 3, most / 2, most]
    patterns = [np.ones(shape), -np.ones(shape), alternating, rows * np.ones(shape)]
    patterns += [np.where(one, 1.0, 0.0), np.where(one, -1.0, 0.0), np.where(one, 1.0, -0.0)]
    random = np.random.default_rng(1)
    patterns += [np.clip(random.normal(size=shape) / 2, -1, 1)]
    states = [level * pattern for level in levels for pattern in patterns]
    states += [
        np.where(one, level, random.normal(size=shape)) for level in (most, -most, 1e4, -1e4)
    ]
    return jnp.clip(jnp.asarray(np.stack(states)), -most, most).astype(dtype)


@eqx.filter_jit
def results(lagrangian, states):
    def fn(z):
        curvature = jax.jvp(lagrangian.activation, (z,), (z,))[1]
        return lagrangian(z), lagrangian.activation(z), lagrangian.energy(z), curvature

    return jax.vmap(fn)(states)


@pytest.mark.parametrize(
    "kind", dict.fromkeys(map(type, LAGRANGIANS.values())), ids=lambda k: k.__name__
)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (jnp.float16, (5,)),
        (jnp.bfloat16, (3, 4)),
        (jnp.float32, (3, 4)),
        (jnp.float64, (5,)),
    ],
)
def test_nothing_finite_gives_nan(kind, dtype, shape):
    batch = nasty_states(dtype, shape)
    for lagrangian in (x for x in LAGRANGIANS.values() if type(x) is kind):
        values = jax.device_get(results(lagrangian, batch))
        for name, value in zip(["L", "g", "E", "Hz"], values, strict=True):
            bad = np.isnan(value).reshape(len(batch), -1).any(axis=1)
            assert not np.any(bad), f"{name} is NaN at {batch[bad][0]!r}"
