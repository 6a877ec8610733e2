"""The flow at finite temperature: its samples have the density exp(−E/T), whatever τ is."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import hopfield_layers as hl

from .solutions import saved


KEY = jax.random.key(0)


def assert_moments(x, moments, bias=0.0):
    """The means of xⁿ are these, to five standard errors and a relative error of the steps."""
    for power, moment in moments.items():
        values = np.asarray(x, float).ravel() ** power
        error = 5 * np.std(values) / np.sqrt(values.size)
        np.testing.assert_allclose(np.mean(values), moment, rtol=bias, atol=error)


def test_gaussian_units_of_two_time_constants():
    layers = {"fast": hl.IdentityLayer(4000, tau=0.5), "slow": hl.IdentityLayer(4000, tau=2.0)}
    ham = hl.HAM(layers, {"none": lambda g: 0.0}, [(("fast",), "none")])
    held = jnp.arange(4000) < 10
    x0 = {"fast": jnp.zeros(4000), "slow": jnp.where(held, 3.0, 0.0)}
    options: dict[str, Any] = {"clamp": {"slow": held}, "inputs": {"fast": 1.5}, "dt0": 0.05}
    end = saved(hl.langevin(ham, x0, 3.0, 0.3, KEY, **options))
    assert jnp.all(end["slow"][0, :10] == 3.0)
    # E = Σ x²/2 − 1.5 Σ x_fast: from 0 the variance is T (1 − exp(−2t/τ)).
    fast, slow = end["fast"] - 1.5 * (1 - np.exp(-6)), end["slow"][0, 10:]
    assert_moments(fast, {1: 0.0, 2: 0.3 * (1 - np.exp(-12))}, bias=3e-3)
    assert_moments(slow, {1: 0.0, 2: 0.3 * (1 - np.exp(-3))}, bias=3e-3)
    assert abs(np.corrcoef(fast[0, 10:], slow)[0, 1]) < 5 / np.sqrt(3990)


def bistable():
    """E = x²/2 − 2 ln cosh 1.5x, in two wells."""
    memory = hl.HiddenSynapse(
        [1], 1, hidden_lagrangian=hl.LTanh(beta=0.5), Ws=[jnp.full((1, 1), 3)]
    )
    ham = hl.HAM({"x": hl.IdentityLayer(1, tau=0.5)}, {"memory": memory}, [(("x",), "memory")])
    return ham, lambda x: x**2 / 2 - 2 * np.log(np.cosh(1.5 * x))


@pytest.mark.parametrize("name", ["bistable", "cosh"])
def test_samples_have_the_density_of_the_energy(name):
    if name == "bistable":
        model, energy = bistable()
        x0 = {"x": jnp.where(jnp.arange(4000) % 2, 2.8, -2.8)[:, None]}
    else:
        model, energy = hl.CoshLayer(4000, tau=0.5), lambda x: x * np.sinh(x) - np.cosh(x)
        x0 = jnp.zeros(4000)
    temperature = 0.7
    density = lambda x: np.exp((energy(0.0) - energy(x)) / temperature)
    moment = lambda power: quad(lambda x: x**power * density(x), -9, 9)[0]
    end = saved(hl.langevin(model, x0, 3.0, temperature, KEY))
    expected = {power: moment(power) / moment(0) for power in (2, 4)}
    assert_moments(jax.tree.leaves(end)[0], expected, bias=3e-3)


def test_without_temperature_it_is_the_state_flow():
    ham, _ = bistable()
    x0 = {"x": jnp.array([0.3])}
    steps: dict[str, Any] = {"solver": diffrax.Heun(), "dt0": 0.1}
    constant: dict[str, Any] = {"stepsize_controller": diffrax.ConstantStepSize()}
    path = saved(hl.langevin(ham, x0, 1.0, 0.0, KEY, **steps))
    flow = saved(hl.solve(ham, x0, 1.0, **steps, **constant))
    np.testing.assert_allclose(path["x"], flow["x"], rtol=1e-12)


@pytest.mark.parametrize("solver", [diffrax.Euler(), diffrax.Heun(), diffrax.ShARK()])
def test_what_is_saved_is_not_interpolated(solver):
    # One step of a quarter of dt0, whose variance is exact for each solver.
    saveat = diffrax.SaveAt(ts=[0.25, 1.0])
    options: dict[str, Any] = {"dt0": 1.0, "solver": solver, "saveat": saveat}
    solution = hl.langevin(hl.IdentityLayer(20000), jnp.zeros(20000), 1.0, 0.5, KEY, **options)
    h = 0.25
    variance = {
        "Euler": h,
        "Heun": h * (1 - h / 2) ** 2,
        # x = W − h (W/2 + H), where the space-time area H has the variance h/12.
        "ShARK": h * ((1 - h / 2) ** 2 + h**2 / 12),
    }[type(solver).__name__]
    assert solution.stats["num_steps"] == 2
    assert_moments(saved(solution)[0], {1: 0.0, 2: variance})


def test_a_pulse_between_steps_is_seen():
    pulse = hl.PiecewiseConstantInterpolation(jnp.array([0.0, 1.0, 1.01]), jnp.array([0.0, 90, 0]))
    options: dict[str, Any] = {"inputs": pulse, "dt0": 0.4, "temperature": 0.1, "key": KEY}
    end = saved(hl.langevin(hl.IdentityLayer(4000), jnp.zeros(4000), 1.02, **options))
    assert abs(jnp.mean(end) - 0.9 * np.exp(-0.015)) < 5 * np.sqrt(0.1 / 4000)


def test_samples_of_a_batch_have_noise_of_their_own(compilations):
    layer, x0, other_key = hl.TanhLayer(3), jnp.zeros((4, 3)), jax.random.key(1)
    end = saved(hl.langevin(layer, x0, 1.0, 0.5, KEY))[:, 0]
    assert len(np.unique(end)) == 12
    np.testing.assert_array_equal(end[:2], saved(hl.langevin(layer, x0[:2], 1.0, 0.5, KEY))[:, 0])
    before = len(compilations)
    other = hl.langevin(layer, x0, 1.2, 0.4, other_key, dt0=None)
    assert len(compilations) == before
    assert jnp.all(saved(other)[:, 0] != end)
    assert saved(hl.langevin(layer, jnp.zeros((0, 3)), 1.0, 0.5, KEY)).shape == (0, 1, 3)


def test_derivatives_are_those_of_the_same_noise():
    # x = √T ξ + b (1 − exp(−t)) for an input b: the steps that are replayed draw the same ξ.
    layer = hl.IdentityLayer(5)

    def end(temperature, b):
        x = saved(hl.langevin(layer, jnp.zeros(5), 1.0, temperature, KEY, inputs=b, dt0=0.1))[0]
        return jnp.sum(x**2), x

    (square, x), slopes = jax.value_and_grad(end, (0, 1), has_aux=True)(0.5, 0.0)
    np.testing.assert_allclose(slopes[0], square / 0.5, rtol=1e-12)
    growth = 1 - (1 - 0.1 + 0.1**2 / 2) ** 10
    np.testing.assert_allclose(slopes[1], 2 * jnp.sum(x) * growth, rtol=1e-12)


def test_derivatives_with_respect_to_the_time_constant():
    # The default step is a twentieth of τ, and is not differentiated.
    def end(tau, temperature, dt0=None):
        layer, x0 = hl.TanhLayer(3, tau=tau), jnp.array([0.5, -1.0, 2.0])
        return jnp.sum(saved(hl.langevin(layer, x0, 1.0, temperature, KEY, dt0=dt0)))

    h = 1e-5
    difference = (end(1 + h, 0.1, 0.05) - end(1 - h, 0.1, 0.05)) / (2 * h)
    np.testing.assert_allclose(jax.grad(end)(1.0, 0.1), difference, rtol=1e-7)
    without_noise = (end(1 + h, 0.0, 0.05) - end(1 - h, 0.0, 0.05)) / (2 * h)
    np.testing.assert_allclose(jax.grad(end)(1.0, 0.0), without_noise, rtol=1e-7)


def test_a_batch_is_resumed():
    layer, x0 = hl.TanhLayer(3), jnp.array([[0.5, -1.0, 2.0], [1.0, 0.0, 3.0]])
    ends: dict[str, Any] = {"solver_state": True, "controller_state": True, "made_jump": True}
    # Without noise, which depends on the bits of the times at which the steps start.
    first = hl.langevin(layer, x0, 1.0, 0.0, KEY, saveat=diffrax.SaveAt(t1=True, **ends))
    states: dict[str, Any] = {name: getattr(first, name) for name in ends}
    options: dict[str, Any] = {"t0": 1.0} | states
    resumed = hl.langevin(layer, saved(first)[:, 0], 2.0, 0.0, KEY, **options)
    whole = hl.langevin(layer, x0, 2.0, 0.0, KEY)
    np.testing.assert_allclose(saved(resumed), saved(whole), rtol=1e-12)


def test_it_runs_without_calls_on_the_host():
    run = jax.jit(lambda x: hl.langevin(hl.TanhLayer(3), x, 1.0, 0.1, KEY, throw=False).ys)
    exported = jax.export.export(run)(jnp.zeros(3))
    np.testing.assert_array_equal(exported.call(jnp.zeros(3)), run(jnp.zeros(3)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"temperature": -1.0}, ValueError, r"a finite temperature ≥ 0, got -1\.0"),
        ({"temperature": jnp.ones(2)}, ValueError, r"temperature to be a number, .*\(2,\)"),
        ({"dt0": 0.0}, ValueError, r"a finite dt0 > 0, got 0\.0"),
        ({"t1": -1.0}, ValueError, "t1 > t0, got t0 = 0.0 and t1 = -1.0"),
        ({"x0": jnp.zeros(4)}, ValueError, r"\(\*batch, 3\), got \(4,\)"),
        ({"x0": jnp.full(3, jnp.nan)}, ValueError, "finite x0, got 3 NaN"),
        ({"key": 0}, TypeError, r"jax\.random\.key\(0\) for instance, got 0"),
        ({"key": jax.random.split(KEY)}, ValueError, r"one key, .*got shape \(2,\)"),
        ({"solver": diffrax.Tsit5()}, ValueError, r"diffrax\.Heun\(\) for instance, got Tsit5"),
        ({"solver": diffrax.ShOULD(0.01)}, ValueError, "of first order.*, got ShOULD"),
        ({"solver": "Heun"}, TypeError, r"diffrax\.Heun\(\) for instance, got Heun"),
        ({"max_steps": 3}, RuntimeError, "maximum number of solver steps"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
@pytest.mark.usefixtures("unchecked_types")
def test_errors(change, error, message):
    arguments: dict[str, Any] = {
        "x0": jnp.zeros(3),
        "t1": 1.0,
        "temperature": 0.5,
        "key": KEY,
    } | change
    with pytest.raises(error, match=message):
        hl.langevin(hl.TanhLayer(3), **arguments)


def test_an_error_that_jit_hides_is_one_at_run_time():
    run = jax.jit(lambda T: hl.langevin(hl.TanhLayer(3), jnp.zeros(3), 1.0, T, KEY).ys)
    run(0.5)
    with pytest.raises(Exception, match="a finite temperature"):
        jax.block_until_ready(run(-0.5))
