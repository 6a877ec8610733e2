"""Inputs that change in time: they are seen, per sample, by every solver, and differentiated."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hopfield_layers as hl

from .solutions import saved


LAYER = hl.IdentityLayer(2)  # τ dx/dt = I − x in both flows
TS, YS = jnp.array([0.0, 60.0, 60.001]), jnp.array([0.0, 1e3, 0.0])
PULSES = {
    "grid": hl.PiecewiseConstantInterpolation(TS, YS),
    "function": hl.InputsWithJumps(lambda t: 1e3 * ((t >= 60) & (t < 60.001)), TS[1:]),
    "triangle": diffrax.LinearInterpolation(
        jnp.array([0.0, 59.9995, 60.0005, 60.0015, 100.0]), jnp.array([0.0, 0.0, 1e3, 0.0, 0.0])
    ),
}
CONSTANT = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": 0.25}
SOLVERS = {
    "Tsit5": (diffrax.Tsit5(), {}),
    "Dopri8": (diffrax.Dopri8(), {}),
    "Kvaerno3": (diffrax.Kvaerno3(), {}),
    "ETD4RK": (hl.ETD4RK(), {"flow": "activation"}),
    "Tsit5 in constant steps": (diffrax.Tsit5(), CONSTANT),
    "ImplicitEuler": (diffrax.ImplicitEuler(), CONSTANT | {"dt0": 0.01, "max_steps": 20000}),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("pulse", PULSES)
def test_a_short_pulse_is_seen(pulse, solver):
    # A pulse of area 1 in the middle of t = 0 to 100, where nothing else moves.
    method, options = SOLVERS[solver]
    options = {"saveat": diffrax.SaveAt(ts=[59.0, 61.0, 100.0])} | options
    solution = hl.solve(LAYER, jnp.zeros(2), 100.0, inputs=PULSES[pulse], solver=method, **options)
    before, after, _ = saved(solution)[:, 0]
    assert before == 0
    np.testing.assert_allclose(after, np.exp(-1), rtol=0.02)


def test_a_pulse_is_missed_without_its_times():
    solution = hl.solve(LAYER, jnp.zeros(2), 100.0, inputs=PULSES["function"].fn)
    assert jnp.all(saved(solution) == 0)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("kind", [hl.PiecewiseConstantInterpolation, diffrax.LinearInterpolation])
def test_each_sample_has_its_own_values(kind, batch_size):
    ts = jnp.array([0.0, 1.0, 2.5, 4.0])
    ys = jnp.sin(jnp.arange(24.0)).reshape(4, 3, 2)
    x0 = jnp.arange(6.0).reshape(3, 2)

    def end(x0, ys, **options):
        solution = hl.solve(LAYER, x0, 3.0, inputs=kind(ts, ys), **options)
        return saved(solution)[..., -1, :]

    together = end(x0, ys, batch_size=batch_size)
    apart = jnp.stack([end(x0[i], ys[:, i]) for i in range(3)])
    np.testing.assert_allclose(together, apart, rtol=1e-12)
    # What samples share has no batch axes.
    shared = end(x0, ys[:, 0], batch_size=batch_size)
    np.testing.assert_allclose(shared[0], apart[0], rtol=1e-12)


def test_a_grid_against_the_closed_form():
    ts, ys = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, -2.0, 0.5])
    tight = diffrax.PIDController(rtol=1e-10, atol=1e-12)

    def end(x0, ys, t1):
        inputs = hl.PiecewiseConstantInterpolation(ts, ys)
        solution = hl.solve(LAYER, x0, t1, inputs=inputs, stepsize_controller=tight)
        return saved(solution)[-1, 0]

    # Each piece leads to its value: x → y + (x − y) exp(−1), the last one for half of that time.
    arguments = jnp.array([0.3, 0.4]), ys, 2.5
    decay, half = np.exp(-1), np.exp(-0.5)
    weights = np.array([(1 - decay) * decay * half, (1 - decay) * half, 1 - half])
    x = 0.3 * decay**2 * half + weights @ np.asarray(ys)
    computed, (by_x0, by_ys, by_t1) = jax.jit(jax.value_and_grad(end, (0, 1, 2)))(*arguments)
    np.testing.assert_allclose(computed, x, rtol=1e-8)
    np.testing.assert_allclose(by_x0, [decay**2 * half, 0], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(by_ys, weights, rtol=1e-7)
    np.testing.assert_allclose(by_t1, ys[2] - x, rtol=1e-6)


@pytest.mark.parametrize("steps", [{}, CONSTANT], ids=["adaptive", "constant"])
@pytest.mark.parametrize("kind", ["grid", "function", "triangle"])
def test_derivatives_by_the_times(kind, steps):
    def end(s):
        inputs = {
            "grid": lambda: hl.PiecewiseConstantInterpolation(jnp.array([0.0, 1.0]) * s, YS[:2]),
            "function": lambda: hl.InputsWithJumps(lambda t: 1e3 * (t >= s), s[None]),
            "triangle": lambda: diffrax.LinearInterpolation(jnp.array([0, s, 1]), YS),
        }[kind]()
        tools = {"stepsize_controller": diffrax.PIDController(rtol=1e-10, atol=1e-12)} | steps
        return saved(hl.solve(LAYER, jnp.ones(2), 1.0, inputs=inputs, **tools))[-1, 0]

    s = 0.4  # where the input jumps to 1000, or bends there on its way to 0
    jump = -np.exp(s - 1)
    bend = (1 - (2 - s) * np.exp(s - 1)) / (1 - s) ** 2
    bend -= ((s - 1) * np.exp(s) + 1) / (np.e * s**2)
    expected = 1e3 * (bend if kind == "triangle" else jump)
    np.testing.assert_allclose(
        jax.jit(jax.grad(end))(jnp.array(s)), expected, rtol=1e-4 if steps else 1e-7
    )


@pytest.mark.parametrize("kind", ["grid", "function", "linear", "steps", "saves"])
def test_times_are_converted_to_the_dtype_of_the_solve(kind):
    # 0.7 is less in float32 than in float64: none of these must end there.
    ts, ones = jnp.array([0.0, 0.35, 0.7]), jnp.ones(3)
    options = {
        "grid": lambda: {"inputs": hl.PiecewiseConstantInterpolation(ts, ones)},
        "function": lambda: {"inputs": hl.InputsWithJumps(jnp.ones_like, ts)},
        "linear": lambda: {"inputs": diffrax.LinearInterpolation(ts, ones)},
        "steps": lambda: {"stepsize_controller": diffrax.StepTo(jnp.linspace(0, 0.7, 30))},
        "saves": lambda: {"saveat": diffrax.SaveAt(ts=ts)},
    }[kind]()
    solution = hl.solve(LAYER, jnp.zeros(2, jnp.float32), 0.7, **({"inputs": 1.0} | options))
    assert saved(solution).dtype == jnp.float32
    np.testing.assert_allclose(saved(solution)[-1], 1 - np.exp(-0.7), rtol=1e-5)


def test_no_jumps():
    inputs = hl.InputsWithJumps(jnp.ones_like, jnp.array([]))
    solution = hl.solve(LAYER, jnp.zeros(2), 1.0, inputs=inputs)
    np.testing.assert_allclose(saved(solution)[-1], 1 - np.exp(-1), rtol=1e-5)


def test_networks_may_leave_out_layers():
    synapses = {"W": hl.DenseSynapse((2, 3), key=jax.random.key(0))}
    layers = {"a": LAYER, "b": hl.TanhLayer(3)}
    ham = hl.HAM(layers, synapses, [(("a", "b"), "W")])

    def path(num_samples):
        ys = {"b": jnp.ones((2, num_samples, 3))}
        return diffrax.LinearInterpolation(jnp.array([0.0, 5.0]), ys)

    along = hl.solve(ham, ham.init_states(4), 5.0, inputs=path(4))
    constant = hl.solve(ham, ham.init_states(4), 5.0, inputs={"b": jnp.ones((4, 3))})
    for name in layers:
        np.testing.assert_allclose(saved(along)[name], saved(constant)[name], rtol=1e-4, atol=1e-5)
    empty = hl.solve(ham, ham.init_states(0), 5.0, inputs=path(0))
    assert saved(empty)["b"].shape == (0, 1, 3)


def test_any_path_of_diffrax():
    driver = hl.solve(LAYER, jnp.ones(2), 3.0, saveat=diffrax.SaveAt(dense=True))
    driven = saved(hl.solve(LAYER, jnp.ones(2), 3.0, inputs=driver))[-1]
    np.testing.assert_allclose(driven, 4 * np.exp(-3), rtol=1e-3)  # x' = exp(−t) − x


@pytest.mark.parametrize(
    ("inputs", "options", "error"),
    [
        (lambda: hl.PiecewiseConstantInterpolation(TS, YS[:2]), {}, "as many values"),
        (lambda: hl.PiecewiseConstantInterpolation(TS[::-1], YS), {}, "increasing"),
        (lambda: hl.PiecewiseConstantInterpolation(TS, YS), {"t0": -1.0}, "begins earlier"),
        (lambda: PULSES["triangle"], {"t1": 101.0}, "ends later"),
        (lambda: hl.PiecewiseConstantInterpolation(TS, jnp.zeros((3, 5))), {}, r"shape \(5,\)"),
        (lambda: hl.PiecewiseConstantInterpolation(TS, {"x": YS}), {}, "structure"),
        (lambda: hl.InputsWithJumps(lambda t: t, jnp.array([jnp.nan])), {}, "finite jump_ts"),
        (lambda: hl.InputsWithJumps(lambda t: t, jnp.array(1.0)), {}, "one axis"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_bad_input(inputs, options, error):
    with pytest.raises(ValueError, match=error):
        hl.solve(LAYER, jnp.zeros(2), **({"t1": 10.0} | options), inputs=inputs())


def test_relax_and_descent_take_no_inputs_that_change():
    with pytest.raises(ValueError, match="no fixed point"):
        hl.relax(LAYER, jnp.zeros(2), inputs=PULSES["grid"])
    controller = hl.energy_descent(diffrax.PIDController(rtol=1e-3, atol=1e-3), LAYER)
    with pytest.raises(ValueError, match="expected arrays"):
        hl.solve(LAYER, jnp.zeros(2), 1.0, inputs=PULSES["grid"], stepsize_controller=controller)
