"""Solutions against SciPy's, and the arguments, results and errors of `solve`."""

import functools as ft
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array
from scipy.integrate import solve_ivp

import hopfield_layers as hl

from .compiling import compiled, temporary_bytes
from .solutions import saved, saved_times


TIGHT = diffrax.PIDController(rtol=1e-10, atol=1e-12)
X0 = np.array([0.5, -1.2, 1.5, -0.3, 0.8])
BIAS = np.array([0.1, -0.2, 0.0, 0.3, -0.1])
INPUT = np.array([0.3, 0.0, -0.4, 0.2, 0.1])
TAU = 0.7


def _softmax_hessian(z, beta=1.3):
    e = np.exp(beta * (z - z.max()))
    g = e / e.sum()
    return beta * (np.diag(g) - np.outer(g, g))


def _sparsemax_hessian(z, beta=0.9):
    descending = np.sort(beta * z)[::-1]
    thresholds = (np.cumsum(descending) - 1) / np.arange(1, z.size + 1)
    size = np.sum(descending > thresholds)
    s = (beta * z > thresholds[size - 1]).astype(float)
    return beta * (np.diag(s) - np.outer(s, s) / size)


def _layer_norm_hessian(z, gamma=1.5, eps=0.1):
    root = np.sqrt(z.var() + eps)
    unit = (z - z.mean()) / root
    return gamma / root * (np.eye(z.size) - 1 / z.size - np.outer(unit, unit) / z.size)


def _spherical_norm_hessian(z, gamma=1.5, eps=0.1):
    root = np.sqrt(z @ z + eps)
    return gamma / root * (np.eye(z.size) - np.outer(z, z) / root**2)


def _ghostmax_hessian(z, beta=1.3):
    g = np.exp(beta * z) / (1 + np.exp(beta * z).sum())
    return beta * (np.diag(g) - np.outer(g, g))


# H = ∂²L/∂x² by the formulas of the literature, in NumPy.
HESSIANS = {
    "identity": (hl.LIdentity(), lambda z: np.eye(z.size)),
    "repu": (hl.LRepu(n=3.0), lambda z: np.diag(2 * np.maximum(z, 0))),
    "relu": (hl.LRelu(), lambda z: np.diag((z > 0) * 1.0)),
    "power": (hl.LPower(p=3.0), lambda z: np.diag(2 * np.abs(z))),
    "exp": (hl.LExp(beta=1.3), lambda z: np.diag(1.3 * np.exp(1.3 * z))),
    "rexp": (hl.LRexp(beta=1.3), lambda z: np.diag(1.3 * np.exp(1.3 * z) * (z > 0))),
    "cosh": (hl.LCosh(beta=1.3), lambda z: np.diag(1.3 * np.cosh(1.3 * z))),
    "tanh": (hl.LTanh(beta=1.3), lambda z: np.diag(1.3 / np.cosh(1.3 * z) ** 2)),
    "sigmoid": (
        hl.LSigmoid(beta=1.3, scale=2.0),
        lambda z: np.diag(2.0 * 1.3 / (2 * np.cosh(1.3 * z / 2)) ** 2),
    ),
    "softmax": (hl.LSoftmax(beta=1.3), _softmax_hessian),
    "ghostmax": (hl.LGhostmax(beta=1.3), _ghostmax_hessian),
    "sparsemax": (hl.LSparsemax(beta=0.9), _sparsemax_hessian),
    "layer norm": (hl.LLayerNorm(gamma=1.5, delta=0.2, eps=0.1), _layer_norm_hessian),
    "spherical norm": (hl.LSphericalNorm(gamma=1.5, eps=0.1), _spherical_norm_hessian),
}
# The fields of these jump along the solution, and a solver locates a jump only to within a step.
KINKED = ("relu", "rexp", "sparsemax")


@pytest.mark.parametrize("name", HESSIANS)
def test_state_flow_against_scipy(name):
    lagrangian, hessian = HESSIANS[name]
    layer = hl.Layer(lagrangian, 5, tau=TAU, bias=BIAS)

    def field(t, x):
        z = x - BIAS
        return -hessian(z) @ (z - np.sin(t) * INPUT) / TAU

    expected = solve_ivp(field, (0.0, 3.0), X0, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    solution = hl.solve(
        layer,
        X0,
        3.0,
        inputs=lambda t: jnp.sin(t) * INPUT,
        stepsize_controller=TIGHT,
        solver=diffrax.Dopri8(),
    )
    tolerance = 1e-6 if name in KINKED else 1e-9
    np.testing.assert_allclose(saved(solution)[-1], expected, atol=tolerance)


def test_inputs_are_those_of_the_time():
    # x = ln t solves dx/dt = 1/t; at t = 0 the input is infinite.
    inputs = lambda t: jnp.array([1 / t]) + jnp.log(t)
    layer = hl.IdentityLayer(1)
    solution = hl.solve(layer, jnp.zeros(1), 2.0, t0=1.0, inputs=inputs, stepsize_controller=TIGHT)
    np.testing.assert_allclose(saved(solution)[-1], jnp.log(2.0), atol=1e-9)


def test_stiff_plateau_against_scipy():
    # Exponential units far below 0 hardly move for a long time, and then quickly go to 0.
    x0 = np.array([-6.4, 0.7, -2.5, -8.3, 1.4])
    layer = hl.ExpLayer(5)
    reference = solve_ivp(
        lambda t, x: -x * np.exp(x),
        (0.0, 600.0),
        x0,
        method="Radau",
        rtol=1e-10,
        atol=1e-13,
        jac=lambda t, x: np.diag(-(1 + x) * np.exp(x)),
    )
    solution = hl.solve(layer, x0, 600.0, stepsize_controller=TIGHT)
    np.testing.assert_allclose(saved(solution)[-1], reference.y[:, -1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", HESSIANS)
def test_activation_flow_is_an_exponential_decay(name):
    layer = hl.Layer(HESSIANS[name][0], 5, tau=TAU, bias=BIAS)
    ts = jnp.array([0.1, 1.0, 4.0])
    solution = hl.solve(
        layer,
        X0,
        4.0,
        flow="activation",
        inputs=INPUT,
        stepsize_controller=TIGHT,
        saveat=diffrax.SaveAt(ts=ts),
    )
    target = BIAS + INPUT
    expected = target + (X0 - target) * np.exp(-ts[:, None] / TAU)
    np.testing.assert_allclose(saved(solution), expected, atol=1e-9)


def test_fixed_points_of_the_state_flow():
    # The state flow of softmax keeps Σx, that of ghostmax doesn't; dead units keep their values.
    x0 = jnp.array([0.5, -1.2, 1.5])
    softmax, ghostmax, relu = (
        saved(hl.solve(layer, x0, 200.0, stepsize_controller=TIGHT))[-1]
        for layer in (hl.SoftmaxLayer(3), hl.GhostmaxLayer(3), hl.ReluLayer(3))
    )
    np.testing.assert_allclose(softmax, jnp.full(3, jnp.mean(x0)), atol=1e-8)
    np.testing.assert_allclose(ghostmax, jnp.zeros(3), atol=1e-6)
    np.testing.assert_allclose(relu, [0.0, -1.2, 0.0], atol=1e-8)


def test_overflow_in_trial_steps_is_survived():
    # exp(x) overflows in float32 at x = 88.7.
    x0 = jnp.array([120.0, 90.0, -3.0], jnp.float32)
    layer = hl.ExpLayer(3)
    solution = hl.solve(layer, x0, 10.0)
    assert saved(solution).dtype == jnp.float32
    expected = saved(hl.solve(layer, x0.astype(jnp.float64), 10.0))
    np.testing.assert_allclose(saved(solution), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("solver", "controller"),
    [
        (diffrax.Euler(), diffrax.ConstantStepSize()),
        (diffrax.Heun(), diffrax.ConstantStepSize()),
        (diffrax.Dopri5(), diffrax.PIDController(rtol=1e-4, atol=1e-4, pcoeff=0.3, icoeff=0.4)),
        (diffrax.Kvaerno5(), None),
        (diffrax.Tsit5(), diffrax.StepTo(ts=jnp.linspace(0, 1, 21))),
    ],
    ids=["Euler", "Heun", "Dopri5-PI", "Kvaerno5", "StepTo"],
)
def test_any_solver_and_controller(solver, controller):
    dt0 = None if isinstance(controller, diffrax.StepTo) else 0.01
    solution = hl.solve(
        hl.IdentityLayer(2),
        jnp.array([[1.0, 2.0], [0.0, -1.0]]),
        1.0,
        dt0=dt0,
        solver=solver,
        stepsize_controller=controller,
    )
    expected = jnp.exp(-1.0) * jnp.array([[1.0, 2.0], [0.0, -1.0]])
    np.testing.assert_allclose(saved(solution)[:, -1], expected, rtol=1e-2)


def test_diffraxs_own_options():
    layer = hl.TanhLayer(2)
    event = diffrax.Event(lambda t, y, args, **_: layer.energy(y) - 0.1)
    solution = hl.solve(layer, jnp.array([1.0, 2.0]), 100.0, event=event, throw=False)
    assert solution.result == diffrax.RESULTS.event_occurred
    dense = hl.solve(layer, jnp.ones(2), 1.0, saveat=diffrax.SaveAt(dense=True))
    np.testing.assert_allclose(dense.evaluate(0.0), jnp.ones(2))
    _, tangent = jax.jvp(
        lambda x0: hl.solve(layer, x0, 1.0, adjoint=diffrax.DirectAdjoint()).ys,
        (jnp.ones(2),),
        (jnp.ones(2),),
    )
    assert jnp.all((tangent > 0) & (tangent < 1))
    with pytest.raises(TypeError):
        hl.solve(layer, jnp.ones(2), 1.0, no_such_option=1)  # pyright: ignore[reportCallIssue]


def test_what_is_saved_may_be_infinite_if_it_is_no_state():
    saveat = diffrax.SaveAt(t1=True, fn=lambda t, x, args: jnp.log(0 * x))
    assert jnp.all(
        saved(hl.solve(hl.IdentityLayer(2), jnp.ones(2), 1.0, saveat=saveat)) == -jnp.inf
    )


def test_a_batch_is_solved_on_from_where_it_ended():
    states = ("solver_state", "controller_state", "made_jump")
    saveat = diffrax.SaveAt(t1=True, **dict.fromkeys(states, True))
    layer, x0 = hl.IdentityLayer(2), jnp.array([[1.0, 2.0], [30.0, 40.0], [0.1, 0.0]])
    first = hl.solve(layer, x0, 1.0, saveat=saveat)
    resumed: Any = {name: getattr(first, name) for name in states}
    for batch_size in (None, 2):
        sizes = {"batch_size": batch_size}
        second = hl.solve(layer, saved(first)[:, -1], 2.0, t0=1.0, **sizes, **resumed)
        np.testing.assert_allclose(saved(second)[:, -1], np.exp(-2) * x0, rtol=1e-4)


def test_progress_is_shown(capfd):
    meter = diffrax.TextProgressMeter(minimum_increase=0.1)
    solution = hl.solve(hl.TanhLayer(2), jnp.ones((3, 2)), 10.0, progress_meter=meter)
    jax.block_until_ready(solution)
    jax.effects_barrier()
    shown = capfd.readouterr().out.split()
    assert shown[0] == "0.00%"
    assert shown[-1] == "100.00%"


def test_ten_thousand_units_without_a_matrix():
    # A Jacobian of 10⁴ × 10⁴ numbers would take 800 MB.
    layer = hl.ExpLayer(10_000)
    solver = diffrax.Kvaerno3(root_finder=hl.newton_krylov())
    x0 = jnp.linspace(-3.0, 1.0, 10_000)
    program = compiled(lambda x0: saved(hl.solve(layer, x0, 100.0, solver=solver))[-1], x0)
    assert 1e5 < temporary_bytes(program) < 5e7
    np.testing.assert_allclose(program(x0), jnp.zeros(10_000), atol=1e-6)


@pytest.mark.parametrize("batch", [(), (0,), (2,), (2, 3), (2, 0, 3)])
def test_batches(batch):
    layer = hl.SoftmaxLayer((2, 3), bias=jnp.ones((2, 3)))
    x0 = jr.normal(jr.key(0), (*batch, 2, 3))
    solution = hl.solve(layer, x0, 1.0, inputs=0.1 * x0)
    assert saved(solution).shape == (*batch, 1, 2, 3)
    assert saved_times(solution).shape == (*batch, 1)
    assert layer.energy(saved(solution)).shape == (*batch, 1)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2)])
def test_unusual_shapes(shape):
    layer = hl.TanhLayer(shape)
    solution = hl.solve(layer, jnp.ones((2, *shape)), 30.0)
    np.testing.assert_allclose(saved(solution), jnp.zeros((2, 1, *shape)), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.int32, bool])
def test_states_are_solved_in_float32_at_least(dtype):
    solution = hl.solve(hl.TanhLayer(2), jnp.ones(2, dtype), 1.0)
    wide = jnp.float64 if dtype in (jnp.int32, bool) else jnp.float32
    assert saved(solution).dtype == wide


class Pair(hl.AbstractEnergyModel):
    """Two identity layers joined by −x·W·y, as a user might write it."""

    W: Array
    tau: dict[str, Array]

    def __init__(self, W: Array, tau: dict[str, Array]):
        self.W = W
        self.tau = tau

    def energy(self, x):
        return jnp.sum(x["a"] ** 2) / 2 + jnp.sum(x["b"] ** 2) / 2 - x["a"] @ self.W @ x["b"]

    def activations(self, x):
        return x

    def dEdg(self, x):
        return {"a": x["a"] - self.W @ x["b"], "b": x["b"] - x["a"] @ self.W}


def test_a_users_own_model():
    W = np.array([[0.5, 0.1], [-0.2, 0.3], [0.0, 0.4]])
    model = Pair(jnp.array(W), {"a": jnp.array(0.5), "b": jnp.array(2.0)})
    x0 = {"a": jnp.array([1.0, 2.0, 3.0]), "b": jnp.array([-1.0, 0.5])}
    inputs = {"a": jnp.zeros(3), "b": jnp.array([0.2, 0.1])}
    matrix = np.block([[np.eye(3), -W], [-W.T, np.eye(2)]])
    offset = np.concatenate([inputs["a"], inputs["b"]])
    tau = np.array([0.5, 0.5, 0.5, 2.0, 2.0])
    expected = solve_ivp(
        lambda t, x: -(matrix @ x - offset) / tau,
        (0.0, 2.0),
        np.concatenate([x0["a"], x0["b"]]),
        rtol=1e-12,
        atol=1e-13,
    ).y[:, -1]
    for flow in ("state", "activation"):  # the same, as H is the identity
        ys = saved(hl.solve(model, x0, 2.0, flow=flow, inputs=inputs, stepsize_controller=TIGHT))
        np.testing.assert_allclose(np.concatenate([ys["a"][-1], ys["b"][-1]]), expected, atol=1e-8)


@pytest.mark.usefixtures("unchecked_types")
def test_bad_input():
    layer, x0 = hl.TanhLayer(3), jnp.ones(3)
    with pytest.raises(ValueError, match=r"t1 > t0.*t0 = 1.*t1 = 1"):
        hl.solve(layer, x0, 1.0, t0=1.0)
    with pytest.raises(ValueError, match="t1 > t0"):
        hl.solve(layer, x0, jnp.nan)
    assert jnp.all(saved(hl.solve(layer, x0, 1.0, t0=1.0, throw=False)) == x0)
    with pytest.raises(ValueError, match="finite x0, got 2 NaN or infinite of 3"):
        hl.solve(layer, jnp.array([jnp.nan, jnp.inf, 0.0]), 1.0)
    with pytest.raises(ValueError, match=r'flow="state" or flow="activation", got \'up\''):
        hl.solve(layer, x0, 1.0, flow="up")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"\*batch, 3\), got \(2, 4\)"):
        hl.solve(layer, jnp.ones((2, 4)), 1.0)
    with pytest.raises(TypeError, match="real numbers, got complex128"):
        hl.solve(layer, x0 + 1j, 1.0)
    with pytest.raises(ValueError, match=r"shape \(4,\), .* broadcast to \(3,\)"):
        hl.solve(layer, x0, 1.0, inputs=jnp.ones(4))
    with pytest.raises(ValueError, match=r"shape \(2, 3\), .* broadcast to \(3,\)"):
        hl.solve(layer, jnp.ones((2, 3)), 1.0, inputs=lambda t: jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="state's structure"):
        hl.solve(layer, x0, 1.0, inputs={"a": x0})
    with pytest.raises(ValueError, match=r"t1 to be a number, got shape \(2,\)"):
        hl.solve(layer, x0, jnp.ones(2))
    with pytest.raises(ValueError, match=r"dt0 to be a number, got shape \(3,\)"):
        hl.solve(layer, x0, 1.0, dt0=0.1 * jnp.ones(3))
    with pytest.raises(TypeError, match="Expected an AbstractEnergyModel"):
        hl.solve(hl.LTanh(), x0, 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="dt0"):
        hl.solve(layer, x0, 1.0, stepsize_controller=diffrax.ConstantStepSize())
    with pytest.raises(eqx.EquinoxRuntimeError, match="max_steps"):
        hl.solve(layer, x0, 1e3, max_steps=3)
    assert hl.solve(layer, x0, 1e3, max_steps=3, throw=False).result != diffrax.RESULTS.successful
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"inputs or the model's parameters are NaN"):
        hl.solve(layer, x0, 1.0, inputs=jnp.full(3, jnp.nan))


def test_values_out_of_range():
    # Large values are right as long as nothing overflows, and then there is an error.
    x0 = jnp.array([1e30, 1.0], jnp.float32)
    solution = hl.solve(hl.IdentityLayer(2), x0, 1.0, flow="activation")
    np.testing.assert_allclose(saved(solution)[-1], jnp.exp(-1) * x0, rtol=1e-4)
    euler = {"solver": diffrax.Euler(), "stepsize_controller": diffrax.ConstantStepSize()}
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"left the range of float32.*float64"):
        hl.solve(hl.ExpLayer(1), jnp.array([200.0], jnp.float32), 1.0, dt0=0.1, **euler)
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"left the range of float32.*float64"):
        hl.solve(hl.ExpLayer(1), jnp.array([3e38], jnp.float32), 1.0)
    x = jnp.array([6e4, 5e3], jnp.float16)
    np.testing.assert_array_equal(hl.EnergyFlow(hl.IdentityLayer(2), "activation")(0.0, x), -x)


def test_bad_input_traced_by_jit():
    solve = eqx.filter_jit(lambda x0, t1: hl.solve(hl.TanhLayer(3), x0, t1).ys)
    with pytest.raises(eqx.EquinoxRuntimeError, match="finite x0"):
        solve(jnp.array([0.0, jnp.nan, 1.0]), jnp.array(1.0))
    with pytest.raises(eqx.EquinoxRuntimeError, match="t1 > t0"):
        solve(jnp.ones(3), jnp.array(-1.0))


def test_batch_size():
    layer = hl.IdentityLayer(3)
    x0 = jr.normal(jr.key(0), (2, 5, 3))
    inputs = jr.normal(jr.key(1), (5, 3))
    together = hl.solve(layer, x0, 2.0, inputs=inputs)
    for batch_size in (1, 4, 100):
        parts = hl.solve(layer, x0, 2.0, inputs=inputs, batch_size=batch_size)
        np.testing.assert_allclose(saved(parts), saved(together), rtol=1e-12)
        np.testing.assert_array_equal(parts.stats["num_steps"], together.stats["num_steps"])
    assert len(np.unique(together.stats["num_steps"])) > 1
    assert jnp.all(hl.relax(layer, x0, inputs=inputs, batch_size=4).converged)
    assert saved(hl.solve(layer, x0[0, 0], 2.0, batch_size=3)).shape == (1, 3)
    assert saved(hl.solve(layer, x0[:, :0], 2.0, batch_size=3)).shape == (2, 0, 1, 3)

    def end(inputs, **options):
        return jnp.sum(saved(hl.solve(layer, x0, 2.0, inputs=inputs, **options)) ** 2)

    ours, theirs = (jax.jit(jax.grad(f))(inputs) for f in (ft.partial(end, batch_size=4), end))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    wrong: Any
    for wrong, error in ((0, ValueError), (-2, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="batch_size"):
            hl.solve(layer, x0, 2.0, batch_size=wrong)
        with pytest.raises(error, match="batch_size"):
            hl.relax(layer, x0, batch_size=wrong)


@pytest.mark.parametrize("num_slow", [0, 1, 8, 9, 70])
def test_the_last_samples_of_a_batch_go_on_alone(num_slow):
    layer, x0 = hl.ExpLayer(2), jr.normal(jr.key(0), (70, 2))
    inputs = jnp.zeros((70, 2)).at[jr.permutation(jr.key(1), 70)[:num_slow]].set(2.0)
    together = hl.solve(layer, x0, 20.0, inputs=inputs, max_steps=80, throw=False)
    # A program for the last eighth of the first 64, and one for the 6 others.
    apart = hl.solve(layer, x0, 20.0, inputs=inputs, max_steps=80, batch_size=64, throw=False)
    steps = together.stats["num_steps"]
    assert jnp.sum(steps > 50) == num_slow
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        eqx.filter(apart, eqx.is_array),
        eqx.filter(together, eqx.is_array),
    )


def test_batched_solutions_are_vmapped_like_those_of_diffrax():
    saveat = diffrax.SaveAt(t1=True, dense=True)
    x0 = jnp.arange(6.0).reshape(3, 2)
    solution = hl.solve(hl.IdentityLayer(2), x0, 2.0, saveat=saveat)
    ys = jax.vmap(lambda solution: solution.evaluate(1.0))(solution)
    np.testing.assert_allclose(ys, x0 * np.exp(-1), rtol=1e-4)


@pytest.mark.parametrize("run", ["solve", "relax", "gradient"])
def test_programs_that_raise_nothing_are_exported(run):
    layer = hl.SoftmaxLayer(4)

    def end(x0):
        return saved(hl.solve(layer, x0, 2.0, throw=False))

    fn = {
        "solve": end,
        "relax": lambda x0: hl.relax(layer, x0, throw=False).x,
        "gradient": jax.grad(lambda x0: jnp.sum(end(x0) ** 2)),
    }[run]
    x0 = layer.init_state(3, jr.key(1))
    fn = jax.jit(fn)
    exported = jax.export.export(fn)(x0)
    assert "callback" not in exported.mlir_module()
    np.testing.assert_allclose(exported.call(x0), fn(x0), rtol=1e-12)
