"""The exponential solvers: their weights, orders, dense output, and advantage on stiff problems."""

import diffrax
import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import hopfield_layers as hl
from hopfield_layers._numerics.phi_functions import phi_functions as _weights

from .instances import NETWORKS
from .solutions import saved


NETWORK = NETWORKS["tanh and softmax"]
X0 = {"a": jr.normal(jr.key(2), (5,)), "b": jnp.ones(4)}
TS = jnp.linspace(0.0, 1.0, 17)
TERM = diffrax.ODETerm(hl.EnergyFlow(NETWORK, "activation"))
SOLVERS = pytest.mark.parametrize(
    ("solver", "order"), [(hl.ETD2RK(), 2), (hl.ETD4RK(), 4)], ids=["ETD2RK", "ETD4RK"]
)


@pytest.fixture(scope="module")
def reference():
    """x at TS, by SciPy and the network's formula in NumPy."""
    W, bias = np.asarray(NETWORK.W), np.asarray(NETWORK.layers["a"].bias)

    def field(t, x):
        a, e = x[:5], np.exp(2.0 * (x[5:] - x[5:].max()))
        g = np.tanh(1.3 * (a - bias))
        return np.concatenate([-(a - bias - W @ (e / e.sum())), -(x[5:] - g @ W) / 0.1])

    x0 = np.concatenate([X0["a"], X0["b"]])
    keywords = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-13, "t_eval": TS}
    return solve_ivp(field, (0.0, 1.0), x0, **keywords).y.T


def error(ys, reference):
    return np.max(np.abs(np.concatenate([ys["a"], ys["b"]], axis=-1) - reference))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_weights_against_mpmath(dtype):
    sizes = 10.0 ** np.linspace(-30, 30, 121)
    z = np.concatenate([sizes, [0.5, 0.999, 1.0, 1.001], -sizes[sizes < 50]]).astype(dtype)
    computed = np.array(_weights(jnp.asarray(z)))
    with mpmath.workdps(200):
        for each, weights in zip(z, computed.T, strict=True):
            each = mpmath.mpf(float(each))
            phi = mpmath.exp(-each)
            for k, weight in enumerate(weights):
                phi = (1 / mpmath.factorial(k) - phi) / each
                bound = 4 * float(jnp.finfo(dtype).eps) * abs(each * phi)
                assert abs(mpmath.mpf(float(weight)) - each * phi) <= bound
    at_the_ends = np.array(_weights(jnp.array([0.0, np.inf], dtype)))
    np.testing.assert_array_equal(at_the_ends, [[0, 1], [0, 1], [0, 0.5]])


@SOLVERS
def test_the_leak_is_exact_for_each_time_constant(solver, order):
    tau, bias = jnp.array([1e-3, 1.0, 1e3]), jnp.array([0.5, -1.0, 2.0])
    layer = hl.IdentityLayer(3, tau=tau, bias=bias)
    term = diffrax.ODETerm(hl.EnergyFlow(layer, "activation"))
    solution = diffrax.diffeqsolve(term, solver, 0.0, 2.0, 1.0, jnp.ones(3))
    end = saved(solution)[-1]
    np.testing.assert_allclose(end, bias + (1 - bias) * jnp.exp(-2 / tau), rtol=1e-14)


@SOLVERS
def test_order(solver, order, reference):
    # The order at the end and that of the dense output, which for ETD4RK is one less.
    dense = min(order, 3)
    errors, saveat = [], diffrax.SaveAt(ts=TS)
    for steps in (16, 32, 64):
        dt0 = jnp.array(0.7 / steps)
        ys = saved(diffrax.diffeqsolve(TERM, solver, 0.0, 1.0, dt0, X0, saveat=saveat))
        ends = {name: y[-1:] for name, y in ys.items()}
        errors.append((error(ends, reference[-1:]), error(ys, reference)))
    for fine, coarse in zip(errors[1:], errors, strict=False):
        assert fine[0] < coarse[0] / 2 ** (order - 0.4)
        assert fine[1] < coarse[1] / 2 ** (dense - 0.4)


@SOLVERS
def test_adaptive_steps_keep_their_tolerance(solver, order, reference):
    for tol in (1e-3, 1e-5):
        controller = diffrax.PIDController(rtol=tol, atol=tol)
        saveat = diffrax.SaveAt(ts=TS)
        keywords = {"solver": solver, "stepsize_controller": controller, "saveat": saveat}
        ys = saved(hl.solve(NETWORK, X0, 1.0, flow="activation", **keywords))
        assert error(ys, reference) < 10 * tol


@SOLVERS
def test_backwards_in_time(solver, order, reference):
    end = {"a": jnp.array(reference[-1, :5]), "b": jnp.array(reference[-1, 5:])}
    # Backwards the leak is growth, by e⁵ in the fast layer, which also amplifies the errors.
    saveat = diffrax.SaveAt(ts=TS[:7:-1])
    solution = diffrax.diffeqsolve(TERM, solver, 1.0, TS[8], -1 / 256, end, saveat=saveat)
    assert error(saved(solution), reference[:7:-1]) < {2: 5e-3, 4: 1e-7}[order]


@SOLVERS
@pytest.mark.parametrize("tau", [1e-3, 1.0, 1e3])
def test_the_leak_is_exact(solver, order, tau):
    # Also at times within a step, and with inputs.
    layer = hl.TanhLayer(2, tau=tau, bias=jnp.array([0.5, -1.0]))
    flow = hl.EnergyFlow(layer, "activation", inputs=jnp.array([0.1, 0.2]))
    x0, target = jnp.array([2.0, 3.0]), jnp.array([0.6, -0.8])
    for t1 in jnp.array([1e-6, 1.0, 1e6]) * tau:
        ts = jnp.array([0.2, 0.7, 1.0]) * t1
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(flow), solver, 0.0, t1, t1, x0, saveat=diffrax.SaveAt(ts=ts)
        )
        expected = x0 - np.expm1(-ts[:, None] / tau) * -1 * (x0 - target)
        np.testing.assert_allclose(saved(solution), expected, rtol=1e-14, atol=1e-15)


def test_a_huge_step_is_the_discrete_update():
    # T(T(x)), with T(x) = Xᵀ softmax(β X x) the modern Hopfield network's update.
    memory = NETWORKS["memory"]
    X = np.asarray(memory.patterns)
    x = x0 = np.array([1.0, -0.5, 0.3, 0.2, -1.0])
    for _ in range(2):
        weights = np.exp(3.0 * X @ x)
        x = weights / weights.sum() @ X
    term = diffrax.ODETerm(hl.EnergyFlow(memory, "activation"))
    solution = diffrax.diffeqsolve(term, hl.ETD2RK(), 0.0, 1e16, 1e16, jnp.array(x0))
    np.testing.assert_allclose(saved(solution)[-1], x, rtol=1e-13)


def test_a_fast_layer_does_not_limit_exponential_steps():
    # The leak of the fast layer limits the steps of Tsit5, but not those of ETD4RK.
    network = eqx.tree_at(lambda n: n.layers["b"].tau, NETWORK, jnp.array(1e-3))
    steps, controller = {}, diffrax.PIDController(rtol=1e-4, atol=1e-4)
    for solver in (hl.ETD4RK(), diffrax.Tsit5()):
        keywords = {"solver": solver, "stepsize_controller": controller}
        solution = hl.solve(network, X0, 2.0, flow="activation", **keywords)
        steps[type(solver)] = int(solution.stats["num_steps"])
    assert 4 * steps[hl.ETD4RK] < steps[diffrax.Tsit5]


@SOLVERS
def test_only_for_the_activation_flow(solver, order):
    message = 'expected an EnergyFlow with flow="activation", got'
    with pytest.raises(ValueError, match=message):
        hl.solve(NETWORK, X0, 1.0, solver=solver)
    with pytest.raises(ValueError, match=message):
        hl.relax(NETWORK, X0, flow="state", solver=solver)
    term = diffrax.ODETerm(lambda t, x, args: -x)
    with pytest.raises(ValueError, match=message):
        diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.1, jnp.ones(2))
