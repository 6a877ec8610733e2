"""The laws of the design, over every Lagrangian and layer."""

import pickle

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

import hopfield_layers as hl

from .instances import LAGRANGIANS, LAYERS, SHAPE


STEPS = (2e-4, 1e-4)  # of central differences, extrapolated to fourth order
EPS = float(jnp.finfo(jnp.float64).eps)
DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]

lagrangians = pytest.mark.parametrize("lagrangian", LAGRANGIANS.values(), ids=LAGRANGIANS)
layers = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
flows = pytest.mark.parametrize("flow", ["state", "activation"])


@st.composite
def states(draw):
    """States of one scale, with ties and zeros, of moderate size: exp(βx) stays in range."""
    scale = draw(st.sampled_from([1e-6, 0.1, 1.0, 5.0, 30.0]))
    offset = draw(st.sampled_from([0.0, 0.0, 20.0]))
    entries = st.one_of(st.floats(-1, 1), st.sampled_from([-1.0, 0.0, 1.0]))
    return offset + scale * draw(arrays(np.float64, SHAPE, elements=entries))


@st.composite
def nasty_states(draw, dtype):
    """Whatever is finite: zeros of either sign, subnormals, ties, extremes, one huge entry."""
    info = jnp.finfo(dtype)
    most, tiny = float(info.max), float(info.tiny)
    special = [0.0, -0.0, most, -most, most / 2, tiny, -tiny / 2, 1.0, -1.0, 100.0, 1e4, -1e4]
    entries = st.one_of(
        st.sampled_from([x for x in special if abs(x) <= most]),
        st.floats(-most, most, allow_subnormal=True),
        st.floats(-100, 100),
    )
    fill = st.one_of(st.nothing(), entries)
    x = draw(arrays(np.float64, SHAPE, elements=entries, fill=draw(st.just(fill))))
    return jnp.clip(jnp.asarray(x), -most, most).astype(dtype)


@eqx.filter_jit
def evaluate(lagrangian, x):
    """L, g, E and H x."""
    g, curvature = jax.jvp(lagrangian.activation, (x,), (x,))
    return lagrangian(x), g, lagrangian.energy(x), curvature


@eqx.filter_jit
def derivatives(lagrangian, x):
    """∂L/∂x and H by automatic differentiation."""
    return jax.grad(lagrangian)(x), jax.jacfwd(lagrangian.activation)(x)


def assert_close(actual, expected, terms):
    """To rounding: 100 ulps of the largest of the terms that were added up."""
    tolerance = 100 * EPS * terms
    assert float(jnp.max(jnp.abs(actual - expected))) <= tolerance, (actual, expected, tolerance)


@lagrangians
@given(x=states())
def test_activation_is_the_gradient_and_energy_the_legendre_transform(lagrangian, x):
    value, g, energy, _ = evaluate(lagrangian, x)
    gradient, hessian = derivatives(lagrangian, x)
    assert value.shape == energy.shape == ()
    assert g.shape == x.shape
    sensitivity = jnp.max(jnp.sum(jnp.abs(hessian * x), axis=(-2, -1)))
    assert_close(gradient, g, 1 + jnp.max(jnp.abs(g)) + sensitivity)
    assert_close(energy, jnp.sum(x * g) - value, 1e-300 + jnp.sum(jnp.abs(x * g)) + abs(value))


@lagrangians
@given(x=states(), y=states())
def test_fenchel_young(lagrangian, x, y):
    _, g, energy, _ = evaluate(lagrangian, x)
    value, *_ = evaluate(lagrangian, y)
    gap = value + energy - jnp.sum(g * y)
    terms = abs(value) + abs(energy) + jnp.sum(jnp.abs(g * y)) + jnp.sum(jnp.abs(g * x))
    assert gap >= -20 * EPS * terms


@layers
@given(x=states())
def test_energy_bound(layer, x):
    bound = layer.energy_bound()
    _, g, energy, _ = evaluate(layer.lagrangian, x)
    assert energy >= bound - 20 * EPS * (abs(bound) + jnp.sum(jnp.abs(x * g)))
    at_rest = evaluate(layer.lagrangian, jnp.zeros(SHAPE))[2]
    np.testing.assert_allclose(at_rest, bound, rtol=1e-14, atol=1e-300)


@lagrangians
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@given(data=st.data())
def test_nothing_finite_gives_nan(lagrangian, dtype, data):
    if lagrangian is LAGRANGIANS["callable"]:
        pytest.skip("a plain callable is as good as it is")
    x = data.draw(nasty_states(dtype))
    wide = evaluate(lagrangian, x.astype(jnp.float64))
    results = zip(["L", "g", "E", "H x"], evaluate(lagrangian, x), wide, strict=True)
    for name, result, true in results:
        assert result.dtype == dtype
        assert not jnp.any(jnp.isnan(result)), name
        if dtype != jnp.float64 and name != "H x":
            surely = jnp.abs(true) < 0.99 * float(jnp.finfo(dtype).max)
            assert jnp.all(jnp.isfinite(result) | ~surely), name


def probe(layer, x):
    """A scalar in which every result has its part."""
    weights = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    g = jnp.sum(weights * layer.activation(x))
    return g + layer.energy(x) + layer.lagrangian(layer.dEdg(x)) + layer.energy_bound()


def assert_gradients(probe, module, x):
    """Reverse mode against differences along two directions in the space of all parameters."""
    parameters, rest = eqx.partition(module, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(parameters)
    fn = jax.jit(lambda flat: probe(eqx.combine(unravel(flat), rest), x))
    exact = jax.jit(jax.grad(fn))(flat)
    for direction in jr.normal(jr.key(1), (2, flat.size)):
        coarse, fine = (
            (fn(flat + h * direction) - fn(flat - h * direction)) / (2 * h) for h in STEPS
        )
        np.testing.assert_allclose(exact @ direction, (4 * fine - coarse) / 3, rtol=1e-7, atol=1e-8)


@layers
def test_gradients_of_parameters(layer):
    assert_gradients(probe, layer, jr.normal(jr.key(4), SHAPE))


@pytest.mark.parametrize("flow", ["state", "activation"])
def test_gradients_through_a_solve(flow):
    layer = LAYERS["tanh"]

    class Solved(eqx.Module):
        layer: hl.Layer
        inputs: jax.Array

    def probe(solved, x):
        controller = diffrax.PIDController(rtol=1e-11, atol=1e-12)
        solution = hl.solve(
            solved.layer,
            x,
            0.7,
            flow=flow,
            inputs=solved.inputs,
            stepsize_controller=controller,
        )
        return jnp.sum(jnp.sin(solution.ys))

    solved = Solved(layer, 0.1 * jnp.ones(SHAPE))
    assert_gradients(probe, solved, jr.normal(jr.key(5), SHAPE))
    x0 = jr.normal(jr.key(6), SHAPE)
    check_grads(lambda x0: probe(solved, x0), (x0,), order=1, modes=["rev"])


@eqx.filter_jit
def descent(layer, x, flow):
    """dE/dt along the flow, and the size of the terms that add up to it."""
    rate = hl.EnergyFlow(layer, flow)(0.0, x)
    slope = jax.grad(layer.energy)(x)
    terms = 1 + jnp.abs(slope) + jnp.max(jnp.abs(layer.activation(x)))
    return jnp.sum(slope * rate), jnp.sum(terms * jnp.abs(rate))


@layers
@flows
@given(x=states())
def test_energy_never_rises_along_the_field(layer, flow, x):
    slope, terms = descent(layer, x, flow)
    assert slope <= 20 * EPS * terms


@eqx.filter_jit
def trajectory(layer, x, flow):
    """The energies at the steps, the states there, and which of them were taken."""
    controller = diffrax.PIDController(rtol=1e-9, atol=1e-11)
    saveat = diffrax.SaveAt(t0=True, steps=True)
    solution = hl.solve(
        layer, x, 20.0, flow=flow, stepsize_controller=controller, saveat=saveat, max_steps=1024
    )
    return layer.energy(solution.ys), solution.ys, jnp.isfinite(solution.ts)


# A few kinds, as tests/test_descent.py has all; the activation flow is the same for all.
SOLVED = ("identity", "repu", "exp", "tanh", "softmax", "sparsemax", "layer norm")


@pytest.mark.parametrize(
    ("name", "flow"),
    [*((name, "state") for name in SOLVED), ("exp", "activation"), ("entmax", "activation")],
)
def test_energy_never_rises_along_a_solution(name, flow):
    layer = LAYERS[name]
    x = 2 * jr.normal(jr.key(7), (2, *SHAPE))
    energies, xs, taken = map(np.asarray, trajectory(layer, x, flow))
    assert np.min(np.sum(taken, axis=1)) > 4
    for i in range(2):
        assert np.max(np.diff(energies[i][taken[i]])) <= 1e-8
    assert np.min(energies[taken]) >= layer.energy_bound() - 1e-8
    if flow == "activation":
        ends = np.min(energies, axis=1, where=taken, initial=np.inf)
        np.testing.assert_allclose(ends, layer.energy_bound(), atol=1e-2)

    # No sample depends on its neighbours, down to the steps that it takes.
    _, others, taken_by_others = map(np.asarray, trajectory(layer, x.at[1].mul(5.0), flow))
    assert np.array_equal(xs[0], others[0])
    assert np.array_equal(taken[0], taken_by_others[0])
    assert not np.array_equal(xs[1], others[1])


def test_a_sample_alone_is_as_in_a_batch():
    layer, x = LAYERS["softmax"], jr.normal(jr.key(8), (3, *SHAPE))
    together = hl.solve(layer, x, 3.0)
    for i in range(3):
        alone = hl.solve(layer, x[i], 3.0)
        np.testing.assert_allclose(together.ys[i], alone.ys, rtol=1e-13, atol=1e-15)
        assert together.stats["num_steps"][i] == alone.stats["num_steps"]


@layers
def test_transformations_change_nothing(layer, tmp_path):
    def both(layer, x):
        return layer.energy(x), layer.activation(x)

    def check(results):
        np.testing.assert_allclose(results[0], expected[0], rtol=1e-13)
        np.testing.assert_allclose(results[1], expected[1], rtol=1e-13, atol=1e-15)

    x = jr.normal(jr.key(9), (2, *SHAPE))
    expected = both(layer, x)
    jitted = jax.jit(both)
    check(jitted(layer, x))
    leaves, structure = jax.tree.flatten(layer)
    check(jitted(jax.tree.unflatten(structure, leaves), x))
    eqx.tree_serialise_leaves(tmp_path / "layer.eqx", layer)
    blank = jax.tree.map(jnp.ones_like, layer)
    check(jitted(eqx.tree_deserialise_leaves(tmp_path / "layer.eqx", blank), x))
    check(jitted(pickle.loads(pickle.dumps(layer)), x))
    assert jitted._cache_size() == 1


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


def test_a_batch_of_parameters():
    betas = jnp.array([0.5, 1.0, 3.0])
    x = jr.normal(jr.key(11), SHAPE)
    energies = jax.vmap(lambda beta: hl.TanhLayer(SHAPE, beta=beta).energy(x))(betas)
    t = betas[:, None, None] * x
    terms = (t * jnp.tanh(t) - jnp.log(jnp.cosh(t))) / betas[:, None, None]
    expected = jnp.sum(terms, axis=(1, 2))
    np.testing.assert_allclose(energies, expected, rtol=1e-13)


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


def test_a_time_constant_below_zero_still_descends():
    layer = eqx.tree_at(lambda layer: layer.tau, hl.TanhLayer(3), jnp.array(-1.0))
    slope, _ = descent(layer, jnp.ones(3), "state")
    assert -jnp.inf < slope < 0
