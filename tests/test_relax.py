"""Relaxation reaches fixed points, reports correctly whether it did, and is differentiable."""

import functools
from typing import Any

import diffrax
import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import hopfield_layers as hl

from .compiling import temporary_bytes
from .counting import drives
from .instances import LAYERS, network, NETWORKS, SHAPE, Springs, two_layers


NETWORK = NETWORKS["tanh and softmax"]
X0 = {"a": jr.normal(jr.key(1), (5,)), "b": jnp.zeros(4)}
FLOWS = pytest.mark.parametrize("flow", ["state", "activation"])


def largest(tree):
    return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("dtype", "tol"), [(jnp.float64, 1e-8), (jnp.float32, 1e-4)])
def test_two_layers_with_different_time_constants(dtype, tol):
    model, x0 = two_layers(dtype)
    rest = hl.relax(model, x0, tol=tol)
    assert rest.converged
    assert drives(model, rest) <= 8
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), (model, rest.x))
    u = wide[0].dEdg(wide[1])
    assert largest(u) < tol
    # The energy is that of the fixed point.
    np.testing.assert_allclose(rest.energy, wide[0].energy(wide[1]), rtol=1e-4)


def test_explicit_steps_at_the_same_tolerances_do_not_arrive():
    model, x0 = two_layers(jnp.float64)
    rest = hl.relax(
        model,
        x0,
        tol=1e-8,
        solver=diffrax.Tsit5(),
        stepsize_controller=diffrax.PIDController(rtol=1e-2, atol=1e-2),
        max_steps=256,
        throw=False,
    )
    assert not rest.converged
    assert rest.num_steps == 256
    assert rest.residual > 1e-4


def test_time_constants_from_the_fast_to_the_slow():
    layer = hl.TanhLayer(7, tau=10.0 ** jnp.arange(-3, 4), bias=jnp.arange(7.0))
    net = network(layer, hl.SoftmaxLayer(4, tau=1e-3), 0.5)
    rest = hl.relax(net, {"a": jnp.ones(7), "b": jnp.ones(4)})
    assert rest.num_steps < 300
    assert largest(net.dEdg(rest.x)) < 1e-9


def test_a_memory_retrieves_in_one_update():
    # The patterns are well separated, and one long step of ETD2RK makes two updates.
    memory = eqx.tree_at(lambda m: m.patterns, NETWORKS["memory"], 4 * jnp.eye(5))
    x0 = memory.patterns + 0.3 * jr.normal(jr.key(3), (5, 5))
    rest = hl.relax(memory, x0)
    np.testing.assert_array_equal(rest.num_steps, jnp.ones(5))
    np.testing.assert_allclose(rest.x, memory.patterns, atol=1e-9)


@FLOWS
def test_a_relaxation_that_overshoots(flow):
    # The update of the stiffest unit overshoots to 8 times the distance, on the other side.
    springs = NETWORKS["springs"]
    rest = hl.relax(springs, jnp.array([5.0, 5.0, 5.0]), flow=flow)
    np.testing.assert_allclose(rest.x, springs.centre, atol=1e-9)
    np.testing.assert_allclose(rest.energy, -5.0, rtol=1e-15)


@FLOWS
def test_the_plateau_of_exponential_units(flow):
    x0 = jnp.array([-6.4, 0.7, -2.5, -8.3, 1.4])
    rest = hl.relax(hl.ExpLayer(5), x0, flow=flow)
    np.testing.assert_allclose(rest.x, jnp.zeros(5), atol=1e-10)
    np.testing.assert_allclose(rest.energy, -5.0, rtol=1e-15)
    assert (rest.time is not None and bool(rest.time > 4000)) == (flow == "state")


@pytest.mark.parametrize("tau", [1.0, np.geomspace(0.01, 10, 30)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_state_flow_leaves_a_saddle(dtype, tau):
    key = jr.key(5)
    patterns = jr.rademacher(key, (4, 30), dtype)
    synapse = hl.DenseSynapse([30, 30], W=patterns.T @ patterns / 60)
    layers = {"x": hl.TanhLayer(30, beta=2.0, tau=tau)}
    ham = hl.HAM(layers, {"memory": synapse}, [(("x", "x"), "memory")])
    rest = hl.relax(ham, {"x": 0.01 * jr.normal(key, (8, 30), dtype)}, flow="state")
    assert rest.converged.all()
    curvature = jax.vmap(jax.hessian(lambda x: ham.energy({"x": x})))(rest.x["x"])
    at_0 = jax.hessian(lambda x: ham.energy({"x": x}))(jnp.zeros(30, dtype))
    assert jnp.linalg.eigvalsh(at_0).min() < -1  # the saddle, beside which all samples start
    assert jnp.linalg.eigvalsh(curvature).min() > 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_time_constants_of_units_that_are_far_apart(dtype):
    basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))
    curvature = basis * np.geomspace(0.01, 1, 40) @ basis.T
    synapse = hl.DenseSynapse([40, 40], W=jnp.asarray((np.eye(40) - curvature) / 2, dtype))
    layers = {"x": hl.IdentityLayer(40, tau=np.geomspace(1e-3, 10, 40))}
    ham = hl.HAM(layers, {"W": synapse}, [(("x", "x"), "W")])
    x0 = {"x": jr.normal(jr.key(0), (4, 40), dtype)}
    rest = hl.relax(ham, x0, flow="state", tol=1e-3)
    assert rest.num_steps.max() < 100


def test_frozen_units_do_not_affect_convergence():
    # In the state flow a dead ReLU and a far negative exponential unit keep their values.
    rest = hl.relax(hl.ReluLayer(3), jnp.array([-1e6, 1e-3, 2.0]), flow="state")
    np.testing.assert_allclose(rest.x, [-1e6, 0.0, 0.0], atol=1e-9)
    rest = hl.relax(hl.ExpLayer(3), jnp.array([-105.0, 1e-3, 2.0]), flow="state")
    np.testing.assert_allclose(rest.x, [-105.0, 0.0, 0.0], atol=1e-9)
    assert rest.converged
    rest = hl.relax(hl.ReluLayer(3), jnp.array([-1e6, 1e-3, 2.0]))
    np.testing.assert_allclose(rest.x, jnp.zeros(3), atol=1e-9)


def test_the_residual_is_in_units_of_tau_dx_dt():
    layer = hl.TanhLayer(3, tau=jnp.array([1e-3, 1.0, 1e3]), bias=jnp.array([0.0, 0.5, 2.0]))
    rest = hl.relax(layer, jnp.ones(3), solver=diffrax.Euler(), max_steps=3, throw=False)
    assert not rest.converged
    np.testing.assert_allclose(rest.residual, largest(layer.dEdg(rest.x)), rtol=1e-12)


def test_steps_do_not_cycle_near_a_fixed_point_of_layer_norm():
    # Layer norm near its bias, where steps of 1.2 τ made x₁ = x₀ with u far from 0.
    Wq, Wk = jnp.eye(2), jnp.array([[-0.00219356, 0.01228359], [-0.00195167, 0.0001011]])
    attention = hl.SelfAttentionSynapse((3, 2), Wq=Wq[:, None], Wk=Wk[:, None])
    ham = hl.HAM({"x": hl.LayerNormLayer((3, 2))}, {"a": attention}, [(("x",), "a")])
    rest = hl.relax(ham, {"x": jnp.broadcast_to(jnp.array([1.0, 2.0]), (3, 2))})
    assert rest.num_steps < 200
    assert largest(ham.dEdg(rest.x)) < 1e-9


def test_a_tolerance_out_of_reach_gives_finite_results():
    # With a tolerance below rounding the steps grow to a bound; then Euler steps that overflow.
    for solver in (None, hl.ETD2RK()):
        rest = hl.relax(NETWORK, X0, tol=1e-300, solver=solver, throw=False)
        assert not rest.converged
        assert rest.residual < 1e-15
        assert (rest.time is None) == (solver is None)
        assert rest.time is None or jnp.isfinite(rest.time)
    x0 = jnp.array([-80.0, 80.0], jnp.float32)
    keywords = {"solver": diffrax.Euler(), "stepsize_controller": diffrax.ConstantStepSize()}
    rest = hl.relax(hl.ExpLayer(2), x0, flow="state", dt0=1e9, max_steps=5, throw=False, **keywords)
    assert not rest.converged
    np.testing.assert_array_equal(rest.x, x0)


@FLOWS
def test_alone_and_in_a_batch(flow):
    # One sample is hard: it starts where exp(x) is tiny.
    layer = hl.ExpLayer(3, bias=jnp.array([0.1, 0.2, 0.3]))
    x0 = jnp.array([[1.0, 2.0, -1.0], [-6.0, -9.0, 1.0], [0.1, 0.0, 0.0]])
    together = hl.relax(layer, x0, flow=flow)
    assert together.num_steps.shape == together.energy.shape == (3,)
    for i in range(3):
        alone = hl.relax(layer, x0[i], flow=flow)
        np.testing.assert_allclose(together.x[i], alone.x, rtol=1e-12)
        assert together.num_steps[i] == alone.num_steps
    # A sample that doesn't converge doesn't change the others.
    if flow == "state":
        steps = int(jnp.max(together.num_steps[::2]))
        assert together.num_steps[1] > steps
        short = hl.relax(layer, x0, flow=flow, max_steps=steps, throw=False)
        np.testing.assert_array_equal(short.converged, [True, False, True])
        np.testing.assert_allclose(short.x[::2], together.x[::2], rtol=1e-12)


@pytest.mark.parametrize(
    ("solver", "controller", "flow"),
    [
        (diffrax.Tsit5(), None, "activation"),
        (diffrax.Euler(), None, "activation"),
        (diffrax.Euler(), diffrax.ConstantStepSize(), "activation"),
        (diffrax.Kvaerno3(), None, "state"),
        (hl.ETD4RK(), diffrax.PIDController(rtol=1e-3, atol=1e-6), "activation"),
        (None, diffrax.PIDController(rtol=1e-3, atol=1e-6), "state"),
    ],
    ids=["Tsit5", "Euler", "Euler, constant", "Kvaerno3", "ETD4RK", "PID"],
)
def test_any_solver_and_controller(solver, controller, flow):
    x0 = {"a": X0["a"], "b": jnp.ones(4)}
    rest = hl.relax(NETWORK, x0, flow=flow, solver=solver, stepsize_controller=controller, tol=1e-7)
    u = NETWORK.dEdg(rest.x)
    if flow == "state":
        _, u = jax.jvp(NETWORK.activations, (rest.x,), (u,))
    assert largest(u) < 1e-7


# Signs of perturbations: all equal, which suffices for elementwise layers, and random ones, as some
# rows don't change when all of their units are shifted alike.
SIGNS = np.concatenate([[np.ones(SHAPE)], np.random.default_rng(0).choice([-1, 1], (5, *SHAPE))])


@functools.partial(jax.jit, static_argnums=2)
def residual_and_rounding(layer, x, flow, eps):
    """|τ dx/dt|, and its change when x is rounded."""

    def residual(x):
        u = layer.dEdg(x)
        return u if flow == "activation" else jax.jvp(layer.activations, (x,), (u,))[1]

    r = residual(x)
    moved = jax.vmap(lambda signs: residual(x * (1 + 8 * eps * signs)))
    changes = jnp.concatenate([moved(SIGNS), moved(-SIGNS)]) - r
    return jnp.abs(r), jnp.max(jnp.abs(changes), axis=0)


@FLOWS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_converged_means_a_small_residual_at_every_scale(name, dtype, flow):
    # float16 and bfloat16 states are relaxed in float32: a few layers show it, as each dtype is a
    # program of its own.
    layer, dtypes = LAYERS[name], [dtype]
    if dtype == "float32" and name in ("exp", "softmax", "tanh"):
        dtypes += ["float16", "bfloat16"]
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), layer)

    @hypothesis.settings(max_examples=20)
    @hypothesis.given(
        seed=st.integers(0, 2**31),
        exponent=st.floats(-6, 6),
        offset=st.sampled_from([0.0, 0.0, -100.0]),
        dtype=st.sampled_from(dtypes),
        tol=st.sampled_from([1e-6, 1e-3]),
    )
    def truthful(seed, exponent, offset, dtype, tol):
        normal = np.random.default_rng(seed).normal(size=SHAPE)
        limit = float(jnp.finfo(dtype).max)
        x0 = np.clip(10.0**exponent * normal + offset, -limit, limit)
        rest = hl.relax(
            layer, jnp.asarray(x0, dtype), flow=flow, tol=tol, max_steps=100, throw=False
        )
        assert np.all(np.isfinite(rest.x))
        for each in jax.tree.leaves((rest.energy, rest.residual, rest.time)):
            assert not np.any(np.isnan(each))
        assert rest.num_steps <= 100
        eps = float(jnp.finfo(rest.x.dtype).eps)
        r, rounding = residual_and_rounding(wide, rest.x.astype(jnp.float64), flow, eps)
        assert not rest.converged or np.max(r - rounding) <= 2 * tol
        if flow == "activation":
            assert rest.converged

    truthful()


INPUTS = {"a": 0.1 * jr.normal(jr.key(7), (5,)), "b": jnp.array([0.1, 0.0, -0.2, 0.1])}
CLAMP = {"a": jnp.arange(5) < 2, "b": jnp.zeros(4, bool)}
COTANGENT = jr.normal(jr.key(8), (5,))


def outcomes(flow):
    """Two numbers that depend on the fixed point, as a function of all numbers in the inputs."""
    flat, unravel = jax.flatten_util.ravel_pytree((NETWORK, X0, INPUTS))

    def run(flat):
        model, x0, inputs = unravel(flat)
        rest = hl.relax(model, x0, flow=flow, inputs=inputs, clamp=CLAMP, tol=1e-12)
        end = rest.x if flow == "activation" else model.activations(rest.x)
        return jnp.array([COTANGENT @ end["a"] + jnp.sum(end["b"] ** 2), rest.energy])

    return run, flat


@FLOWS
def test_implicit_gradients_against_central_differences(flow):
    run, flat = outcomes(flow)
    gradients = jax.jit(jax.jacrev(run))(flat)
    steps = 1e-5 * jnp.eye(flat.size)
    values = jax.jit(lambda flats: jax.lax.map(run, flats))(
        jnp.concatenate([flat + steps, flat - steps])
    )
    differences = (values[: flat.size] - values[flat.size :]).T / 2e-5
    assert jnp.all(jnp.sum(differences != 0, axis=1) > 30)
    bound = 1e-9 * float(jnp.max(jnp.abs(differences)))
    np.testing.assert_allclose(gradients, differences, rtol=1e-6, atol=bound)


def test_gradients_of_any_size():
    # The linear solve's tolerance is relative.
    weights = lambda x0: hl.relax(NETWORK, x0, clamp=CLAMP).x["b"][1]
    small = jax.grad(lambda x0: 1e-20 * weights(x0))(X0)["a"][:2]
    assert jnp.all(small != 0)
    np.testing.assert_allclose(small, 1e-20 * jax.grad(weights)(X0)["a"][:2], rtol=1e-9)


def test_forward_and_reverse_under_vmap():
    run, flat = outcomes("activation")
    flats = flat * jnp.array([[1.0], [0.95], [1.05]])
    direction = jr.normal(jr.key(9), flat.shape)
    forward = jax.jit(jax.vmap(lambda f: jax.jvp(run, (f,), (direction,))[1]))(flats)
    reverse = jax.jit(jax.vmap(jax.jacrev(run)))(flats) @ direction
    np.testing.assert_allclose(forward, reverse, rtol=1e-9)


def test_gradients_ignore_the_mean_that_the_state_flow_keeps():
    # x* keeps the mean of x0, but dx*/dx0 ignores that: dx*/db is I, as for the activation flow.
    layer, x0 = hl.SoftmaxLayer(3), jnp.array([0.3, -0.2, 0.5])
    rest = hl.relax(layer, x0, flow="state")
    np.testing.assert_allclose(rest.x, jnp.full(3, 0.2), atol=1e-9)
    jacobian = jax.jacobian(lambda x0: hl.relax(layer, x0, flow="state").x)(x0)
    np.testing.assert_array_equal(jacobian, jnp.zeros((3, 3)))
    # Exactly I, as the derivative is that of u = 0; H u has none with respect to the mean.
    end = lambda bias: hl.relax(hl.SoftmaxLayer(3, bias=bias), x0, flow="state").x
    np.testing.assert_allclose(jax.jacobian(end)(jnp.zeros(3)), jnp.eye(3), atol=1e-12)


def test_gradients_where_clamped_units_split_a_row():
    # Under the state flow the fixed point then has H u = 0 without u = 0.
    x0, clamp = jnp.array([0.3, -0.2, 0.5, 0.1]), jnp.array([True, False, False, True])

    def end(bias):
        layer = hl.SoftmaxLayer(4, beta=2.0, bias=bias)
        rest = hl.relax(layer, x0, flow="state", clamp=clamp, tol=1e-12)
        return jnp.concatenate([rest.x, layer.g(rest.x), rest.energy[None]])

    bias = jnp.array([0.4, 0.1, -0.3, 0.2])
    steps = 1e-5 * jnp.eye(4)
    differences = (jax.vmap(end)(bias + steps) - jax.vmap(end)(bias - steps)).T / 2e-5
    assert jnp.linalg.norm(differences[1:3]) > 0.1
    np.testing.assert_allclose(jax.jacobian(end)(bias), differences, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"solver": hl.BlockUpdates()},
        {
            "solver": diffrax.Tsit5(),
            "stepsize_controller": diffrax.PIDController(rtol=1e-6, atol=1e-6),
        },
    ],
    ids=["BlockUpdates", "Tsit5"],
)
def test_memory_of_the_gradient_does_not_grow_with_the_steps(options):
    model, x0 = NETWORK, X0

    def loss(model, max_steps):
        rest = hl.relax(model, x0, max_steps=max_steps, throw=False, **options)
        return jnp.sum(rest.x["a"])

    sizes = []
    for max_steps in (10, 1000):
        gradient: Any = eqx.filter_jit(eqx.filter_grad(lambda m, n=max_steps: loss(m, n)))
        compiled = gradient.lower(model).compile().compiled
        sizes.append(temporary_bytes(compiled))
    assert sizes[0] == sizes[1] > 0


def test_other_values_compile_nothing(compilations):
    def run(model, x0, inputs, *, tol, rtol):
        hl.relax(model, x0, inputs=inputs, clamp=CLAMP)
        controller = diffrax.PIDController(rtol=rtol, atol=rtol)
        hl.relax(model, x0, tol=tol, stepsize_controller=controller)

    changed: Any = jax.tree.map(lambda leaf: 1.01 * leaf, (NETWORK, X0, INPUTS))
    run(NETWORK, X0, INPUTS, tol=1, rtol=1e-3)
    assert len(compilations) > 0
    compilations.clear()
    run(*changed, tol=2e-7, rtol=1e-4)
    assert compilations == []


def test_under_jit_it_is_compiled_once(compilations):
    relax = jax.jit(lambda layer, x0: hl.relax(layer, x0).x)
    layer = hl.TanhLayer(3, bias=jnp.arange(3.0))
    relax(layer, jnp.ones(3))
    x0, layer = 5 * jnp.ones(3), hl.TanhLayer(3, tau=2.0, bias=2 * jnp.ones(3))
    compilations.clear()
    end = relax(layer, x0)
    assert compilations == []
    np.testing.assert_allclose(end, [2.0, 2.0, 2.0], atol=1e-9)


@pytest.mark.parametrize("batch", [(0,), (2, 3), (2, 0)])
def test_batches_and_empty_ones(batch):
    layer = hl.SoftmaxLayer((2, 3), bias=jnp.ones((2, 3)))
    rest = hl.relax(layer, jr.normal(jr.key(0), (*batch, 2, 3)), inputs=jnp.ones(3))
    assert rest.x.shape == (*batch, 2, 3)
    assert rest.energy.shape == rest.residual.shape == rest.converged.shape == batch
    np.testing.assert_allclose(rest.x, jnp.full((*batch, 2, 3), 2.0), atol=1e-9)
    # E − I·g
    g = layer.activation(rest.x)
    np.testing.assert_allclose(rest.energy, layer.energy(rest.x) - g.sum((-1, -2)), rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "flow"), [((), "activation"), ((0,), "state"), ((3, 0, 2), "activation")]
)
def test_unusual_shapes(shape, flow):
    end = lambda bias: hl.relax(hl.TanhLayer(shape, bias=bias), jnp.ones((2, *shape)), flow=flow).x
    ends, pull = jax.vjp(end, jnp.full(shape, 0.5))
    np.testing.assert_allclose(ends, jnp.full((2, *shape), 0.5), atol=1e-9)
    # Both samples depend on the bias, so that their derivatives add up.
    np.testing.assert_allclose(pull(jnp.ones((2, *shape)))[0], jnp.full(shape, 2.0), rtol=1e-9)


def test_out_of_steps():
    layers = {"a": hl.ExpLayer(3), "b": hl.TanhLayer(2, tau=5.0)}
    pair = eqx.tree_at(lambda n: (n.layers, n.W), NETWORK, (layers, jnp.zeros((3, 2))))
    x0 = {"a": jnp.array([0.0, -9.0, 0.0]), "b": jnp.zeros(2)}
    keywords = {"flow": "state", "max_steps": 5}
    with pytest.raises(RuntimeError, match=r"slowest unit is x\['a'\]\[1\] .* = 0.0.* 5 steps"):
        hl.relax(pair, x0, **keywords)
    message = "max_steps or a larger tol.*float64.*newton_krylov"
    with pytest.raises(RuntimeError, match=message):
        hl.relax(pair, x0, **keywords)
    with pytest.raises(eqx.EquinoxRuntimeError, match=message):
        eqx.filter_jit(lambda x0: hl.relax(pair, x0, **keywords).x)(x0)
    rest = hl.relax(pair, x0, **keywords, throw=False)
    assert not rest.converged
    x = rest.x["a"][1]
    np.testing.assert_allclose(rest.residual, -x * np.exp(x), rtol=1e-12)
    np.testing.assert_allclose(rest.energy, pair.energy(rest.x), rtol=1e-12)
    assert rest.time is not None
    assert 0 < rest.time < 1e6


@pytest.mark.parametrize("controller", [None, diffrax.ConstantStepSize()])
def test_the_energy_is_that_of_x_after_rejected_steps(controller):
    # Steps of 10 τ of the fast unit are too long, so that some of these runs end with a rejection.
    springs = Springs(jnp.array([1.0, 4.0]), jnp.ones(2), jnp.array([1.0, 0.1]))
    if controller is not None:
        controller = hl.energy_descent(controller, springs)
    energies = []
    for max_steps in (1, 4, 8):
        options = {"stepsize_controller": controller, "dt0": 1.0, "max_steps": max_steps}
        rest = hl.relax(springs, jnp.array([3.0, -2.0]), throw=False, **options)
        np.testing.assert_allclose(rest.energy, springs.energy(rest.x), rtol=1e-13)
        energies.append(float(rest.energy))
    assert energies[0] == springs.energy(jnp.array([3.0, -2.0])), "the first step is rejected"
    assert energies[-1] < energies[0]


def test_errors_are_raised_under_forward_differentiation():
    layer, x0 = hl.ExpLayer(3), jnp.array([0.0, -9.0, 0.0])
    end = lambda x0: hl.relax(layer, x0, flow="state", max_steps=5).x
    with pytest.raises(RuntimeError, match=r"slowest unit is x\[1\]"):
        jax.jvp(end, (x0,), (x0,))


@FLOWS
def test_large_states_have_not_converged(flow):
    # Far out |τ dx/dt| may be small relative to |x|, which must not count as convergence.
    unbounded = Springs(jnp.array([-0.5, 1.0]), jnp.zeros(2), jnp.array(1.0))
    rest = hl.relax(unbounded, jnp.ones(2), flow=flow, throw=False)
    assert not rest.converged
    np.testing.assert_allclose(rest.residual, abs(rest.x[0]) / 2, rtol=1e-12)
    for x0, tau in ((jnp.full(3, 1e300), 1.0), (jnp.full(3, 1e38, jnp.float32), 1e-3)):
        rest = hl.relax(hl.IdentityLayer(3, tau=tau), x0, flow=flow, max_steps=20, throw=False)
        assert not rest.converged or jnp.max(jnp.abs(rest.x)) < 1e-4
        np.testing.assert_allclose(rest.residual, jnp.max(jnp.abs(rest.x)), rtol=1e-6)


@FLOWS
def test_nan_is_reported_at_once(flow):
    layer = eqx.tree_at(lambda m: m.bias, hl.TanhLayer(3, use_bias=True), jnp.full(3, jnp.nan))
    with pytest.raises(RuntimeError, match="NaN or leaves the range"):
        hl.relax(layer, jnp.ones(3), flow=flow)
    rest = hl.relax(layer, jnp.ones(3), flow=flow, throw=False)
    assert not rest.converged
    assert rest.num_steps <= 1
    np.testing.assert_array_equal(rest.residual, jnp.inf)


def test_states_that_overflow_are_not_converged():
    x0 = jnp.array([200.0, 1.0], jnp.float32)
    rest = hl.relax(hl.ExpLayer(2), x0, flow="state", max_steps=20, throw=False)
    assert not rest.converged
    assert jnp.all(jnp.isfinite(rest.x))
    rest = hl.relax(hl.ExpLayer(2), x0)
    np.testing.assert_allclose(rest.x, jnp.zeros(2), atol=1e-4)


@pytest.mark.usefixtures("unchecked_types")
def test_bad_input():
    layer, x0 = hl.TanhLayer(3), jnp.ones(3)
    for tol in (0.0, -1.0, jnp.nan):
        with pytest.raises(ValueError, match="finite tol > 0, got"):
            hl.relax(layer, x0, tol=tol)
        with pytest.raises(ValueError, match="finite dt0 > 0, got"):
            hl.relax(layer, x0, dt0=tol)
    for controller in (
        diffrax.StepTo(jnp.arange(3.0)),
        hl.energy_descent(diffrax.StepTo(jnp.arange(3.0)), layer),
        diffrax.PIDController(rtol=1e-3, atol=1e-3, step_ts=jnp.arange(3.0)),  # pyright: ignore[reportCallIssue]
    ):
        with pytest.raises(ValueError, match="no times to step to"):
            hl.relax(layer, x0, stepsize_controller=controller)
    with pytest.raises(eqx.EquinoxRuntimeError, match="tol > 0"):
        eqx.filter_jit(lambda tol: hl.relax(layer, x0, tol=tol).x)(jnp.array(0.0))
    with pytest.raises(ValueError, match=r"number, got shape \(3,\)"):
        hl.relax(layer, x0, tol=jnp.ones(3))
    with pytest.raises(ValueError, match="depend on t have no fixed point"):
        hl.relax(layer, x0, inputs=lambda t: t * x0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"inputs has shape \(4,\), .* broadcast to \(3,\)"):
        hl.relax(layer, x0, inputs=jnp.ones(4))
    with pytest.raises(ValueError, match="inputs of the state's structure"):
        hl.relax(layer, x0, inputs={"a": x0})
    with pytest.raises(ValueError, match="max_steps of 1 at least, got 0"):
        hl.relax(layer, x0, max_steps=0)
    with pytest.raises(ValueError, match=r'flow="state" or flow="activation", got \'up\''):
        hl.relax(layer, x0, flow="up")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="finite x0, got 1 NaN"):
        hl.relax(layer, x0.at[1].set(jnp.nan))
    with pytest.raises(TypeError, match="Expected an AbstractEnergyModel"):
        hl.relax(hl.LTanh(), x0)  # pyright: ignore[reportArgumentType]
    for state in ([1.0, 2.0, 3.0], {"a": x0}):
        with pytest.raises(ValueError, match=r"Expected a state of the .*, got PyTreeDef"):
            hl.relax(layer, state)
    with pytest.raises(ValueError, match="state of one array at least"):
        hl.relax(layer, {})
    with pytest.raises(TypeError, match=r"diffrax[\s\S]*Tsit5|Tsit5[\s\S]*diffrax"):
        hl.relax(layer, x0, solver="Tsit5")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"diffrax[\s\S]*0\.1|0\.1[\s\S]*diffrax"):
        hl.relax(layer, x0, stepsize_controller=0.1)  # pyright: ignore[reportArgumentType]
    for split in (diffrax.KenCarp4(), diffrax.SemiImplicitEuler()):
        with pytest.raises(ValueError, match="single ODETerm, got"):
            hl.relax(layer, x0, solver=split)
        with pytest.raises(ValueError, match="single ODETerm, got"):
            hl.solve(layer, x0, 1.0, solver=split)
    with pytest.raises(ValueError, match="restart of 1 at least, got 0"):
        hl.newton_krylov(restart=0)
    with pytest.raises(ValueError, match="Constant steps have no tolerances"):
        hl.relax(
            layer,
            x0,
            solver=diffrax.ImplicitEuler(),
            stepsize_controller=diffrax.ConstantStepSize(),
        )


def test_a_sample_of_nan_leaves_the_others_alone():
    x0 = jnp.array([[1.0, -0.5], [jnp.nan, 1.0], [0.3, 2.0]])
    rest = hl.relax(hl.TanhLayer(2), x0, throw=False)
    np.testing.assert_array_equal(rest.converged, [True, False, True])
    np.testing.assert_allclose(rest.x[jnp.array([0, 2])], 0, atol=1e-8)


def test_errors_of_a_model_keep_their_messages():
    def lagrangian(x):
        return jnp.sum(eqx.error_if(x, x > 0.5, "outside of the table") ** 2) / 2

    layer = hl.Layer(hl.as_lagrangian(lagrangian), 3)
    with pytest.raises(eqx.EquinoxRuntimeError, match="outside of the table"):
        hl.relax(layer, jnp.ones(3))


@pytest.mark.parametrize("batch", [(2, 3), (130,)])
def test_layers_without_units_in_batches(batch):
    layers = {"x": hl.TanhLayer(0), "y": hl.TanhLayer(3)}
    ham = hl.HAM(layers, {"W": hl.DenseSynapse((0, 3), W=jnp.zeros((0, 3)))}, [(("x", "y"), "W")])
    x0 = {"x": jnp.ones((*batch, 0)), "y": jnp.ones((*batch, 3))}

    def rest(inputs, batch_size=None):
        return hl.relax(ham, x0, inputs={"x": 0.0, "y": inputs}, batch_size=batch_size).x

    for batch_size in (None, 2):
        assert rest(0.5, batch_size)["x"].shape == x0["x"].shape
        np.testing.assert_allclose(rest(0.5, batch_size)["y"], 0.5)
    ys = hl.solve(ham, x0, 1.0, flow="activation", batch_size=2).ys
    assert ys is not None
    assert ys["x"].shape == (*batch, 1, 0)
    np.testing.assert_allclose(ys["y"], np.exp(-1), rtol=1e-3)
    slope = jax.grad(lambda inputs: jnp.sum(rest(inputs)["y"]))(0.5)
    np.testing.assert_allclose(slope, 3 * np.prod(batch))
