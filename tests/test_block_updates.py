"""Block updates bring every network to rest in few drives, and the derivatives there are right."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import hopfield_layers as hl
from hopfield_layers.dynamics import anderson
from hopfield_layers.dynamics.sums_of_vectors import products, sums

from .counting import CountedModel, Counter, drives
from .instances import Springs
from .networks import binary, chain, draws_of, with_dtype


DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])


def pair(W, x: Callable[..., hl.Layer] = hl.TanhLayer, y: Callable[..., hl.Layer] = hl.TanhLayer):
    """Two layers with a dense synapse between them."""
    layers = {"x": x(W.shape[0]), "y": y(W.shape[1])}
    return hl.HAM(layers, {"W": hl.DenseSynapse(W.shape, W=W)}, [(("x", "y"), "W")])


PAIR = pair(jr.normal(jr.key(0), (4, 3)), y=hl.SoftmaxLayer)
SYMMETRIC = 0.1 * (jnp.ones((6, 6)) + jnp.diag(jnp.arange(6.0)))
SELF = hl.HAM(
    {"x": hl.TanhLayer(6)}, {"W": hl.DenseSynapse((6, 6), W=SYMMETRIC)}, [(("x", "x"), "W")]
)
QUERIES = jr.normal(jr.key(1), (5, 4))


def test_a_chain():
    # `ETD2RK` takes 100 to 500 drives.
    for scale in (0.5, 1.0, 2.0, 3.0):
        model = chain(scale)
        rest = hl.relax(model, model.init_states(rng=jr.key(1)), tol=1e-10)
        assert drives(model, rest) <= 100
        for u in jax.jit(lambda model, x: model.dEdg(x))(model, rest.x).values():
            assert jnp.max(jnp.abs(u)) < 1e-10


def test_sweeps_are_longer_far_from_a_fixed_point():
    # With Anderson's method alone these states take 54 sweeps on average.
    model = chain(2.0)
    states = [model.init_states(rng=jr.key(seed)) for seed in range(24)]
    rest = hl.relax(model, jax.tree.map(lambda *x: jnp.stack(x), *states), tol=1e-8)
    assert jnp.mean(rest.num_steps) < 50


def test_anderson_is_least_squares():
    # For one state and in batches, from as many changes as the history has room for, and one more.
    dfs, dss = jr.normal(jr.key(5), (2, 3, 4, 6))
    f, s = jr.normal(jr.key(6), (2, 3, 6))

    def extrapolated(dfs, dss, f, s):
        history = anderson.no_history(3, f)
        for df, ds in zip(dfs, dss, strict=True):
            history = anderson.pushed(history, jnp.array(True), df, ds)
        return anderson.extrapolated(history, f, s)

    weights = [np.linalg.lstsq(df[1:].T, f, rcond=None)[0] for df, f in zip(dfs, f, strict=True)]
    expected = s - jnp.einsum("bi,bin->bn", jnp.stack(weights), dss[:, 1:])
    np.testing.assert_allclose(jax.vmap(extrapolated)(dfs, dss, f, s), expected, rtol=1e-10)
    for i in range(3):
        one = extrapolated(dfs[i], dss[i], f[i], s[i])
        np.testing.assert_allclose(one, expected[i], rtol=1e-10)


@pytest.mark.parametrize("model", [chain(1.0, (6, 5, 4)), SELF])
def test_the_first_and_the_last_state_are_measured(model):
    # The displacements of a sweep of several blocks are no measure of the state itself, nor are
    # those of one block, which are rounded.
    x0 = jax.tree.map(lambda x: jnp.stack([x, 3 * x]), model.init_states(rng=jr.key(1)))
    for max_steps in (1, 4096):
        rest = hl.relax(model, x0, max_steps=max_steps, throw=False)
        residual = jax.tree.map(lambda u: jnp.max(jnp.abs(u), axis=1), model.dEdg(rest.x))
        residual = jnp.max(jnp.stack(jax.tree.leaves(residual)), axis=0)
        np.testing.assert_allclose(rest.residual, residual, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(rest.energy, model.energy(rest.x), rtol=1e-14)
        assert jnp.all(rest.converged == (max_steps > 1))
        assert jnp.all(rest.num_steps <= max_steps)
    at_rest = hl.relax(model, rest.x, max_steps=1, throw=False)
    assert jnp.all(at_rest.converged)
    assert jnp.all(at_rest.num_steps == 0)
    jax.tree.map(np.testing.assert_array_equal, at_rest.x, rest.x)


def test_the_residual_is_not_rounded():
    # With a damping of 0.05 the displacements are rounded to multiples of 20 ε |x|, that is 5e-6,
    # and u itself to about ε |x|, as |x| is 2.
    model = with_dtype(SELF, jnp.float32)
    for seed in range(3):
        x0 = {"x": 3 * jr.normal(jr.key(seed), (6,), jnp.float32)}
        rest = hl.relax(model, x0, solver=hl.BlockUpdates(damping=0.05))
        u = with_dtype(model, jnp.float64).dEdg(with_dtype(rest.x, jnp.float64))["x"]
        np.testing.assert_allclose(rest.residual, jnp.max(jnp.abs(u)), rtol=0, atol=2.5e-7)


def test_sums_and_products_in_batches():
    # Vectors with and without a batch axis, and both at once.
    a, b = jr.normal(jr.key(7), (2, 5, 6))
    for vectors, axes in (((a, b), 0), ((a, b[0]), (0, None))):
        results = jax.vmap(sums, axes)(*vectors)
        for result, vector in zip(results, vectors, strict=True):
            np.testing.assert_allclose(result, jnp.broadcast_to(vector.sum(-1), 5), rtol=1e-12)
        rows, vector = vectors
        result = jax.vmap(lambda row, vector: products((row, vector), vector), axes)(rows, vector)
        expected = [jnp.sum(row * vector, axis=-1) for row in vectors]
        expected = jnp.stack([jnp.broadcast_to(x, 5) for x in expected], axis=1)
        np.testing.assert_allclose(result, expected, rtol=1e-12)
    np.testing.assert_allclose(jnp.stack(sums(a[0], b[0])), [a[0].sum(), b[0].sum()], rtol=1e-12)


def test_anderson_near_the_origin():
    # Towards a fixed point at 0 sweeps shrink as x does, by a twentieth here.
    W = jr.normal(jr.key(2), (16, 8))
    model = pair(W * jnp.sqrt(0.95) / jnp.linalg.norm(W, 2))
    x0 = {"x": jr.normal(jr.key(3), (16, 16)), "y": jr.normal(jr.key(4), (16, 8))}
    assert jnp.max(hl.relax(model, x0).num_steps) < 40


@pytest.mark.parametrize(("load", "dtype"), [(0.14, jnp.float64), (0.25, jnp.float32)])
def test_the_binary_network(load, dtype):
    # One layer joined to itself, whose plain updates may alternate between two states.
    model, x0 = binary(load, 0.3, dtype, 40)
    rest = hl.relax(model, x0)
    assert jnp.all(rest.converged)
    assert drives(model, rest) <= 200
    assert jnp.all(rest.energy <= model.energy(x0))


@DTYPES
def test_slow_approaches(dtype):
    # At a pitchfork x falls like t^(−1/2). The memory moves by 5e-5 a sweep over a distance of 1.
    x0 = {"x": jnp.ones(1, dtype), "y": jnp.full(1, 0.5, dtype)}
    model = with_dtype(pair(jnp.ones((1, 1))), dtype)
    assert drives(model, hl.relax(model, x0)) <= 400
    memory = hl.HiddenSynapse.from_patterns(jnp.eye(2, dtype=dtype), hl.LSparsemax())
    ham = hl.HAM({"x": hl.IdentityLayer(2)}, {"memory": memory}, [(("x",), "memory")])
    inputs = {"x": jnp.array([0.0, 1e-4], dtype)}
    rest = hl.relax(with_dtype(ham, dtype), {"x": jnp.zeros(2, dtype)}, inputs=inputs)
    assert drives(ham, rest) <= 400
    np.testing.assert_allclose(rest.x["x"], [0.0, 1.0001], atol=1e-4)


@pytest.mark.parametrize("seed", [17])
def test_random_networks(seed):
    # `benchmarks.relaxation` runs over many more.
    problems = eqx.filter_vmap(draws_of(seed))(jr.split(jr.key(seed), 10))

    def relaxed(problem):
        model, x0, clamp, inputs = problem
        rest = hl.relax(model, x0, clamp=clamp, inputs=inputs, throw=False)
        field = hl.EnergyFlow(model, "activation", clamp, inputs)
        force, t = field.force(jnp.zeros(()), rest.x), jnp.zeros(())
        return rest, force, field.energy(t, x0)

    rest, force, energy_at_x0 = eqx.filter_jit(eqx.filter_vmap(relaxed))(problems)
    assert jnp.all(rest.converged)
    assert jnp.all(rest.energy <= energy_at_x0 + 1e-9 * jnp.abs(energy_at_x0))
    for name, x in rest.x.items():
        assert jnp.all(jnp.abs(force[name]) <= 1e-10 * (1 + jnp.abs(x)))


def test_the_fastest_block_moves_first():
    # The query is in x, and y is 0: if x moved first, the query would be lost.
    for tau in (1.0, 0.1):
        model = pair(3 * jnp.eye(4), hl.IdentityLayer, partial(hl.SoftmaxLayer, tau=tau))
        x0 = {"x": jnp.array([0.0, 0.0, 1.0, 0.0]), "y": jnp.zeros(4)}
        assert jnp.argmax(hl.relax(model, x0).x["x"]) == 2
    # Here y is the slow layer, and holds the query.
    model = pair(3 * jnp.eye(4), partial(hl.SoftmaxLayer, tau=0.1), hl.IdentityLayer)
    x0 = {"x": jnp.zeros(4), "y": jnp.array([0.0, 0.0, 1.0, 0.0])}
    assert jnp.argmax(hl.relax(model, x0).x["y"]) == 2


def test_blocks_are_layers_that_no_connection_joins():
    assert PAIR.blocks() == ({"x": True, "y": False}, {"x": False, "y": True})
    first, second = chain(1.0).blocks()
    assert [name for name in first if first[name]] == ["layer0", "layer2", "layer4"]
    assert [name for name in second if second[name]] == ["layer1", "layer3"]
    layers = {name: hl.TanhLayer(2) for name in "abc"}
    synapses = {"all": hl.DenseSynapse([2, 2, 2], W=jnp.ones((2, 2, 2)))}
    assert len(hl.HAM(layers, synapses, [(("a", "b", "c"), "all")]).blocks()) == 3


class Blocks(hl.AbstractEnergyModel):
    """A counted model that declares its blocks."""

    counted: CountedModel
    declared: tuple = eqx.field(static=True)

    def __init__(self, model, counter, declared):
        self.counted = CountedModel(model, counter)
        self.declared = tuple(tuple(sorted(block.items())) for block in declared)

    @property
    def tau(self):
        return self.counted.tau

    def energy(self, x):
        return self.counted.energy(x)

    def activations(self, x):
        return self.counted.activations(x)

    def dEdg(self, x):
        return self.counted.dEdg(x)

    def blocks(self):
        return tuple(dict(block) for block in self.declared)


def test_a_model_may_declare_its_blocks():
    # A sweep evaluates the drive at two states, one for each block.
    model, x0 = PAIR, {"x": QUERIES[0], "y": jnp.zeros(3)}
    counter = Counter()
    counted = Blocks(model, counter, PAIR.blocks())
    rest = jax.block_until_ready(hl.relax(counted, x0))
    np.testing.assert_allclose(rest.x["x"], hl.relax(model, x0).x["x"], rtol=1e-9)
    assert counter.count <= 2 * (rest.num_steps + 1) + 2
    wrong = Blocks(model, counter, PAIR.blocks()[:1])
    with pytest.raises(ValueError, match="each array of the state in exactly one block"):
        hl.relax(wrong, x0)


def test_history_and_damping():
    model, x0 = chain(1.0), chain(1.0).init_states(rng=jr.key(1))
    steps = [
        int(hl.relax(model, x0, solver=hl.BlockUpdates(history)).num_steps) for history in (0, 8)
    ]
    assert steps[0] > 1.5 * steps[1]
    layer = hl.TanhLayer(3, bias=jnp.ones(3))
    halves = hl.relax(
        layer, jnp.zeros(3), solver=hl.BlockUpdates(0, damping=0.5), max_steps=4, throw=False
    )
    np.testing.assert_allclose(halves.x, 1 - 0.5**4)
    wrong: tuple[dict[str, Any], ...] = ({"history": -1}, {"damping": 0.0}, {"damping": 1.5})
    for arguments in wrong:
        with pytest.raises(ValueError, match=r"Expected a (history|damping)"):
            hl.BlockUpdates(**arguments)
    wrong = ({"flow": "state"}, {"dt0": 1.0})
    for options in wrong:
        with pytest.raises(ValueError, match="BlockUpdates are for"):
            hl.relax(model, x0, solver=hl.BlockUpdates(), **options)


@pytest.mark.parametrize("stiffness", [1.9, 3.0, 100.0])
def test_updates_that_overshoot_are_damped(stiffness):
    springs = Springs(jnp.array([stiffness, 1.0]), jnp.ones(2), jnp.array(1.0))
    rest = hl.relax(springs, jnp.array([3.0, -2.0]))
    np.testing.assert_allclose(rest.x, 1.0, atol=1e-9)
    assert rest.num_steps < 40


@DTYPES
def test_an_energy_without_lower_bound(dtype):
    model = with_dtype(pair(jr.normal(jr.key(0), (5, 4)), hl.IdentityLayer, hl.ReluLayer), dtype)
    x0 = {"x": jnp.ones((3, 5), dtype), "y": jnp.ones((3, 4), dtype)}
    rest = hl.relax(model, x0, throw=False)
    assert not jnp.any(rest.converged)
    assert jnp.max(rest.num_steps) < 200
    assert jnp.all(jnp.isfinite(rest.energy))
    with pytest.raises(RuntimeError, match=r"x\['[xy]'\].* 3 of 3 samples.*no lower bound"):
        hl.relax(model, x0)
    with pytest.raises(eqx.EquinoxRuntimeError, match="no lower bound"):
        eqx.filter_jit(hl.relax)(model, x0)


def test_a_rest_far_away():
    # y = 50 + tanh(x)/10 and x = sinh(y)/10, which is about 3e20.
    model = with_dtype(pair(jnp.full((1, 1), 0.1), y=hl.CoshLayer), jnp.float32)
    x0 = {name: jnp.zeros(1, jnp.float32) for name in "xy"}
    rest = hl.relax(model, x0, inputs={"x": x0["x"], "y": jnp.full(1, 50.0)})
    np.testing.assert_allclose(rest.x["y"], 50.1, rtol=1e-6)
    np.testing.assert_allclose(rest.x["x"], np.sinh(50.1) / 10, rtol=1e-4)
    with pytest.raises(RuntimeError, match="did not bring every unit to rest"):
        hl.relax(model, x0, inputs={"x": x0["x"], "y": jnp.full(1, 50.0)}, max_steps=2)


def test_the_error_names_the_samples():
    model, x0 = PAIR, PAIR.init_states(bs=3, rng=jr.key(1))
    at_rest = hl.relax(model, x0).x
    x0 = {name: x.at[1].set(at_rest[name][1]) for name, x in x0.items()}
    message = r"in 2 of 3 samples, \(0,\), \(2,\); the slowest unit .* after 2 of 2 steps\."
    with pytest.raises(RuntimeError, match=message):
        hl.relax(model, x0, max_steps=2)


def test_progress_is_shown(capsys):
    x0, meter = {"x": QUERIES[0], "y": jnp.zeros(3)}, diffrax.TextProgressMeter()
    hl.relax(PAIR, x0, max_steps=100, progress_meter=meter)
    jax.effects_barrier()
    shown = [float(part) for part in re.findall(r"([\d.]+)%", capsys.readouterr().out)]
    assert any(0 < share < 100 for share in shown)


def test_derivatives_of_an_ill_conditioned_rest():
    # I + S H has the eigenvalues 1 ± w, so that dx/dI = 1/(1 − w) for equal inputs.
    dtype = jnp.float32
    model = with_dtype(pair(jnp.full((1, 1), 0.9995)), dtype)
    zeros = {"x": jnp.zeros(1, dtype), "y": jnp.zeros(1, dtype)}
    end = lambda i: hl.relax(model, zeros, inputs={"x": i, "y": i}).x["x"][0]
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(derivative(end)(jnp.zeros(1, dtype)), 2000.0, rtol=1e-2)


@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd])
def test_derivatives_at_a_saddle(derivative):
    # x = I + 4x at the origin, where the curvature is negative and conjugate gradients stop.
    model, zeros = pair(2 * jnp.eye(2)), {"x": jnp.zeros(2), "y": jnp.zeros(2)}
    end = lambda i: hl.relax(model, zeros, inputs={"x": i, "y": jnp.zeros(2)}).x["x"][0]
    np.testing.assert_allclose(derivative(end)(jnp.zeros(2)), [-1 / 3, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=[pytest.mark.slow] * (n != 1)) for n in range(20)]
)
def test_derivatives_of_random_networks(seed):
    model, x0, clamp, _ = draws_of(seed)(jr.key(seed))
    inputs, cotangent, way = (model.init_states(rng=key) for key in jr.split(jr.key(7), 3))

    @jax.jit
    def end(inputs):
        rest = hl.relax(model, x0, clamp=clamp, inputs=inputs, tol=1e-13, throw=False)
        g = model.activations(rest.x)
        return sum(jnp.vdot(g[name], cotangent[name]) for name in g)

    def at(h):
        return end({name: inputs[name] + h * way[name] for name in inputs})

    h = 1e-5
    difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    gradient = jax.grad(end)(inputs)
    slope = sum(jnp.vdot(gradient[name], way[name]) for name in gradient)
    np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-8)


def test_second_derivatives():
    def end(inputs):
        zeros = {"x": jnp.zeros(4), "y": jnp.zeros(3)}
        rest = hl.relax(PAIR, zeros, inputs={"x": inputs, "y": zeros["y"]}, tol=1e-12)
        return jnp.sum(rest.x["x"] ** 2)

    gradient, h, unit = jax.jit(jax.grad(end)), 1e-5, jnp.eye(4)
    differences = [(gradient(QUERIES[0] + h * e) - gradient(QUERIES[0] - h * e)) / 2 for e in unit]
    hessian = jax.jit(jax.hessian(end))(QUERIES[0])
    np.testing.assert_allclose(hessian, jnp.stack(differences) / h, atol=1e-7)


def test_second_derivatives_where_the_equation_is_linear():
    def end(b):
        return jnp.sum(hl.relax(hl.TanhLayer(2, bias=b), jnp.zeros(2), inputs=b).x ** 2)

    hessian = jax.jacfwd(jax.jacfwd(end))(jnp.array([0.1, 0.2]))  # at rest x = 2b
    np.testing.assert_allclose(hessian, 8 * jnp.eye(2), atol=1e-12)


@pytest.mark.parametrize("shared", ["x0", "inputs"])
def test_gradients_of_what_samples_share(shared):
    def loss(y, x):
        if shared == "x0":
            clamp = {"x": jnp.ones(4, bool)}
            return jnp.sum(hl.relax(PAIR, {"x": x, "y": y}, clamp=clamp).x["y"] ** 2)
        zeros = {"x": jnp.zeros(4), "y": jnp.zeros(3)}
        return jnp.sum(hl.relax(PAIR, zeros, inputs={"x": x, "y": y}).x["x"] ** 2)

    y = jnp.array([0.3, 0.0, -0.2])
    together = lambda y, x: jnp.sum(jax.vmap(lambda x: loss(y, x))(x))
    one_by_one = jax.jit(jax.grad(loss, argnums=(0, 1)))
    gradients = [one_by_one(y, x) for x in QUERIES]
    by_y, by_x = jax.grad(together, argnums=(0, 1))(y, QUERIES)
    np.testing.assert_allclose(by_y, sum(g for g, _ in gradients), atol=1e-12)
    np.testing.assert_allclose(by_x, jnp.stack([g for _, g in gradients]), atol=1e-12)


def test_a_slow_descent_ends_with_implicit_steps():
    # Sweeps would take some 10⁴; the implicit steps are exact for a quadratic energy.
    springs = Springs(10.0 ** jnp.arange(-5, 3), jnp.ones(8), jnp.array(1.0))
    rest = hl.relax(springs, jnp.zeros(8), tol=1e-9)
    np.testing.assert_allclose(rest.x, 1.0, atol=1e-3)
    assert rest.num_steps < 1100


def test_displacements_below_rounding_are_no_rest():
    # u = 1e-8 (x − 2) doesn't move an x of 1 in float32, but is above the tolerance. More sweeps
    # would change nothing.
    springs = Springs(jnp.full(3, 1e-8), jnp.full(3, 2.0), jnp.array(1.0))
    model, x0 = with_dtype((springs, jnp.ones(3)), jnp.float32)
    rest = hl.relax(model, x0, tol=1e-10, throw=False)
    assert not rest.converged
    np.testing.assert_allclose(rest.residual, 1e-8, rtol=1e-6)
    assert rest.num_steps < 50


def test_a_frustrated_network_in_float32():
    # 50 saturated units with random couplings of both signs, of which rounding hides the energy.
    A = jr.normal(jr.key(0), (50, 50), jnp.float32)
    synapse = hl.DenseSynapse((50, 50), W=-(A + A.T) / 4)
    ham = hl.HAM({"x": hl.TanhLayer(50, beta=10.0)}, {"W": synapse}, [(("x", "x"), "W")])
    x0 = {"x": jr.normal(jr.key(1), (40, 50), jnp.float32)}
    assert jnp.all(hl.relax(with_dtype(ham, jnp.float32), x0, throw=False).converged)


def test_kept_states_have_ever_less_energy():
    model = chain(2.0, (100, 80))
    x0 = model.init_states(rng=jr.key(3))
    energies = [model.energy(x0)]
    energies += [hl.relax(model, x0, max_steps=n, throw=False).energy for n in (1, 2, 5, 9, 16, 30)]
    assert all(jnp.diff(jnp.array(energies)) < 0)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("seed", range(8))
def test_energies_of_random_networks_never_rise(seed, dtype):
    problems = eqx.filter_vmap(draws_of(seed))(jr.split(jr.key(seed), 25))

    # Recomputed in float64: where large terms cancel, float32's energies are rounded.
    def energies(problem):
        model, x0, clamp, inputs = with_dtype(problem, dtype)
        states = [x0] + [
            hl.relax(model, x0, clamp=clamp, inputs=inputs, max_steps=n, throw=False).x
            for n in (1, 2, 4, 8, 16, 32)
        ]
        wide = with_dtype((model, clamp, inputs, states), jnp.float64)
        field = hl.EnergyFlow(wide[0], "activation", *wide[1:3])
        size = sum(jnp.sum(jnp.abs(x)) for x in x0.values())
        return jnp.stack([field.energy(jnp.zeros(()), x) for x in wide[3]]), size

    energy, size = eqx.filter_jit(eqx.filter_vmap(energies))(problems)
    rises = jnp.diff(energy, axis=1) / (jnp.abs(energy[:, :1]) + size[:, None])
    assert jnp.all(rises < 64 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("damping", [1.0, 0.6])
def test_three_blocks(damping):
    # A ring: each layer has its own colour.
    names = ("a", "b", "c")
    layers = {name: hl.TanhLayer(4, beta=3.0) for name in names}
    synapses, connections = {}, []
    for i, key in enumerate(jr.split(jr.key(0), 3)):
        synapses[f"W{i}"] = hl.DenseSynapse((4, 4), W=jr.normal(key, (4, 4)))
        connections.append(((names[i], names[i - 1]), f"W{i}"))
    model = hl.HAM(layers, synapses, connections)
    assert len(model.blocks()) == 3
    x0 = model.init_states(bs=6, rng=jr.key(1))
    rest = hl.relax(model, x0, solver=hl.BlockUpdates(damping=damping))
    assert jnp.all(rest.energy < model.energy(x0))
    for u in model.dEdg(rest.x).values():
        assert jnp.max(jnp.abs(u)) < 1e-9


@DTYPES
def test_an_energy_that_falls_faster_than_quadratically(dtype):
    synapses = {"quartic": lambda g: -jnp.sum(g**4)}
    model = hl.HAM({"x": hl.IdentityLayer(3)}, synapses, [(("x",), "quartic")])
    rest = hl.relax(model, {"x": jnp.ones((2, 3), dtype)}, throw=False)
    assert not jnp.any(rest.converged)
    assert jnp.max(rest.num_steps) < 200
    with pytest.raises(RuntimeError, match=r"x\['x'\].* 2 of 2 samples.*no lower bound"):
        hl.relax(model, {"x": jnp.ones((2, 3), dtype)})


def test_large_inputs_are_no_missing_bound():
    model, zeros = pair(jnp.ones((2, 2)), hl.IdentityLayer), {"x": jnp.zeros(2), "y": jnp.zeros(2)}
    x0, inputs = (
        with_dtype(tree, jnp.float32) for tree in (zeros, zeros | {"x": jnp.full(2, 1e18)})
    )
    assert hl.relax(with_dtype(model, jnp.float32), x0, inputs=inputs).converged
    # Nor is a state whose energy overflows.
    x0 = with_dtype({"x": jnp.full(2, 1e20), "y": jnp.ones(2)}, jnp.float32)
    assert hl.relax(with_dtype(model, jnp.float32), x0).converged


def test_a_sample_without_a_rest_is_masked_out_of_the_gradient():
    # The first sample grows without end, the second one is at rest at 0.
    x0 = {"x": jnp.array([[1.0, 1.0], [0.0, 0.0]]), "y": jnp.array([[1.0, 1.0], [-1.0, -1.0]])}

    def loss(W):
        rest = hl.relax(pair(W, hl.IdentityLayer, hl.ReluLayer), x0, throw=False)
        return jnp.sum(jnp.where(rest.converged[:, None], rest.x["x"], 0)), rest.converged

    gradient, converged = jax.grad(loss, has_aux=True)(jnp.full((2, 2), 3.0))
    np.testing.assert_array_equal(converged, [False, True])
    np.testing.assert_array_equal(gradient, np.zeros((2, 2)))


@pytest.mark.parametrize("flow", ["activation", "state"])
def test_closures_over_what_is_differentiated(flow):
    def energy(scale):
        layers = {"x": hl.Layer(lambda x: scale * jnp.sum(jnp.cosh(x)), 2), "y": hl.TanhLayer(2)}
        ham = hl.HAM(layers, {"W": hl.DenseSynapse((2, 2), W=W)}, [(("x", "y"), "W")])
        inputs = {"x": jnp.array([0.5, -0.2]), "y": jnp.array([0.3, 0.1])}
        return hl.relax(ham, ham.init_states(), flow=flow, inputs=inputs).energy

    W = jnp.array([[0.3, 0.1], [0.2, 0.4]])
    run = jax.jit(energy)
    expected = (run(1.0 + 1e-5) - run(1.0 - 1e-5)) / 2e-5
    assert abs(expected) > 0.1
    gradients = jax.grad(energy), jax.jit(jax.grad(energy)), jax.grad(jax.jit(energy))
    for gradient in (*gradients, jax.jacfwd(energy)):
        np.testing.assert_allclose(gradient(1.0), expected, rtol=1e-7)


def test_a_sample_without_derivative_is_named():
    # I + S H is 0 at the first state, a critical pitchfork, and positive at the second.
    synapse = hl.DenseSynapse((1, 1), W=jnp.full((1, 1), 0.5))
    model = hl.HAM({"x": hl.TanhLayer(1)}, {"W": synapse}, [(("x", "x"), "W")])

    def end(shift, throw):
        inputs = {"x": jnp.array([[0.0], [1.0]]) + shift}
        return hl.relax(model, {"x": jnp.zeros((2, 1))}, inputs=inputs, throw=throw).x["x"][:, 0]

    def slopes(throw):
        return jax.jvp(lambda shift: end(shift, throw), (0.0,), (1.0,))[1]

    with pytest.raises(RuntimeError, match=r"no derivative in 1 of 2 samples, \(0,\)"):
        jax.block_until_ready(slopes(True))
    _, slope = slopes(False)
    x = end(0.0, False)[1]
    np.testing.assert_allclose(slope, 1 / (1 - 1 / np.cosh(x) ** 2))


def test_a_sample_that_overflows_is_masked_out_of_the_gradient():
    layer = hl.ExpLayer(2)
    x0 = jnp.array([[800.0, 0.0], [0.5, 0.0]])
    clamp = jnp.array([[True, False], [False, False]])

    def loss(beta):
        scaled = eqx.tree_at(lambda m: m.lagrangian.beta, layer, beta)
        rest = hl.relax(scaled, x0, clamp=clamp, max_steps=20, throw=False)
        return jnp.sum(jnp.where(jnp.isfinite(rest.energy)[:, None], rest.x, 0))

    # The other sample rests at 0 for every β.
    np.testing.assert_array_equal(jax.grad(loss)(jnp.array(1.0)), 0)
