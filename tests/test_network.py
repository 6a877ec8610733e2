"""Hierarchical associative memories: their energies, gradients, dynamics and errors."""

import pickle
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hopfield_layers as hl

from .compiling import program_text
from .instances import HAMS, ripple
from .solutions import saved, saved_times


hams = pytest.mark.parametrize("name", HAMS)
KEY = jr.key(0)


def state(ham, *batch, scale=1.0):
    rng = np.random.default_rng(1)
    return {
        name: jnp.asarray(scale * rng.normal(size=(*batch, *layer.shape)))
        for name, layer in ham.layers.items()
    }


def assert_trees_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


@eqx.filter_jit
def everything(ham, xs):
    return ham.energy(xs), ham.energies(xs), ham.activations(xs), ham.dEdg(xs)


@hams
def test_energy_and_its_gradient(name):
    # E as the sum of its terms, and ∂E/∂x = H ∂E/∂g against differences of E.
    ham = HAMS[name]
    xs = state(ham)
    flat, unravel = ravel_pytree(xs)
    steps = 1e-5 * np.eye(flat.size)

    @jax.jit
    def run(ham, xs, flats):
        gs = ham.activations(xs)
        layer_energies = [layer.energy(xs[name]) for name, layer in ham.layers.items()]
        connection_energies = [
            ham.synapses[connection.synapse].energy(*(gs[layer] for layer in connection.layers))
            for connection in ham.connections
        ]
        _, slopes = jax.jvp(ham.activations, (xs,), (ham.dEdg(xs),))
        values = jax.vmap(lambda flat: ham.energy(unravel(flat)))(flats)
        return (
            ham.energy(xs),
            ham.energies(xs),
            (layer_energies, connection_energies),
            ravel_pytree(slopes)[0],
            values,
        )

    flats = jnp.concatenate([flat + steps, flat - steps])
    energy, energies, expected, slopes, values = run(ham, xs, flats)
    names = list(ham.layers), [connection.name for connection in ham.connections]
    for kind, kind_names, each in zip(("layers", "connections"), names, expected, strict=True):
        np.testing.assert_allclose([energies[kind][n] for n in kind_names], each, rtol=1e-13)
    np.testing.assert_allclose(energy, sum(map(sum, expected)), rtol=1e-13)
    differences = (values[: flat.size] - values[flat.size :]) / 2e-5
    np.testing.assert_allclose(slopes, differences, rtol=1e-7, atol=1e-9)


def test_the_drive_is_that_of_the_shifted_state():
    ham = HAMS["pair"]
    xs = state(ham)
    W, biases = ham.synapses["W"].W, {name: layer.bias for name, layer in ham.layers.items()}
    x, h = (xs[name] - biases[name] for name in ("x", "h"))
    weights = np.exp(2 * h) / np.sum(np.exp(2 * h))
    _, _, gs, u = everything(ham, xs)
    np.testing.assert_allclose(gs["h"], weights, rtol=1e-13)
    np.testing.assert_allclose(u["x"], x - W @ weights, rtol=1e-12)
    np.testing.assert_allclose(u["h"], h - x @ W, rtol=1e-12)


@pytest.mark.parametrize("name", ["convolutional", "shared"])
def test_batches(name):
    ham = HAMS[name]
    xs = state(ham, 2, 3)
    energy, energies, gs, u = everything(ham, xs)
    assert {e.shape for e in [energy, *jax.tree.leaves(energies)]} == {(2, 3)}
    alone = everything(ham, jax.tree.map(lambda x: x[1, 2], xs))
    together = jax.tree.map(lambda leaf: leaf[1, 2], (energy, energies, gs, u))
    assert_trees_close(together, alone, rtol=1e-12, atol=1e-14)
    empty = jax.eval_shape(everything, ham, state(ham, 0))
    assert empty[0].shape == (0,)
    assert all(leaf.shape[0] == 0 for leaf in jax.tree.leaves(empty))


def test_dtypes():
    ham = HAMS["convolutional"]
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        xs = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), state(ham))
        assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(everything, ham, xs))} == {
            jnp.dtype(dtype)
        }
    # Only the results of half precision are rounded.
    half = jax.tree.map(lambda x: x.astype(jnp.float16), state(ham))
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), half)
    results, expected = everything(ham, half), everything(ham, wide)
    assert_trees_close(results, expected, rtol=1.1 * 2.0**-11, atol=1e-5)
    integers = jax.tree.map(lambda x: jnp.round(x).astype(int), state(ham))
    for leaf in jax.tree.leaves(jax.eval_shape(everything, ham, integers)):
        assert leaf.dtype == jnp.float64


def test_initial_states():
    ham = HAMS["convolutional"]
    zeros = ham.init_states()
    assert {name: x.shape for name, x in zeros.items()} == {
        name: layer.shape for name, layer in ham.layers.items()
    }
    drawn = jax.tree.map(np.asarray, jax.jit(lambda key: ham.init_states(400, key))(KEY))
    assert drawn["pixels"].shape == (400, 4, 4, 1)
    assert all(abs(np.std(x) - 1) < 0.1 for x in drawn.values())
    assert not np.any(drawn["pixels"].ravel()[:1200] == drawn["label"].ravel())
    assert not any(np.any(x) for x in zeros.values())
    assert jax.tree.structure(ham.tau) == jax.tree.structure(zeros)
    assert ham.tau["label"] == 0.2


@hams
def test_transformations_change_nothing(name, tmp_path):
    ham = HAMS[name]
    xs, traces = state(ham), []

    @jax.jit
    def run(ham, xs):
        traces.append(ham)
        return ham.energy(xs), ham.dEdg(xs)

    expected = run(ham, xs)
    leaves, structure = jax.tree.flatten(ham)
    eqx.tree_serialise_leaves(tmp_path / "ham.eqx", ham)
    blank = jax.tree.map(jnp.ones_like, ham)
    copies = [
        jax.tree.unflatten(structure, leaves),
        eqx.tree_deserialise_leaves(tmp_path / "ham.eqx", blank),
        pickle.loads(pickle.dumps(ham)),
    ]
    for copy in copies:
        assert_trees_close(run(copy, xs), expected, rtol=0)
        assert copy.connections == ham.connections
    assert len(traces) == 1


def test_the_order_of_names_does_not_matter():
    ham = HAMS["pair"]
    layers = dict(reversed(ham.layers.items()))
    same = hl.HAM(layers, ham.synapses, ham.connections)
    assert list(layers) != list(ham.layers) == list(same.layers)
    assert jax.tree.structure(same) == jax.tree.structure(ham)


def test_an_ensemble():
    def make(key):
        synapse = hl.DenseSynapse([3, 4], key=key, stdinit=1.0)
        layers = {"x": hl.TanhLayer(3), "y": hl.SoftmaxLayer(4, use_bias=True, key=key)}
        return hl.HAM(layers, {"W": synapse, "f": ripple}, [(["x", "y"], "W"), (["x"], "f")])

    keys = jr.split(KEY, 3)
    ensemble = eqx.filter_vmap(make)(keys)
    assert ensemble.synapses["W"].W.shape == (3, 3, 4)
    xs = state(make(KEY), 3)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def settled(ham, xs):
        rest = hl.relax(ham, xs, tol=1e-12)
        return jnp.sum(rest.x["y"] ** 2) + rest.energy

    for run, rtol in ((everything, 1e-12), (settled, 1e-9)):
        together = eqx.filter_vmap(run)(ensemble, xs)
        for i, key in enumerate(keys):
            alone = run(make(key), jax.tree.map(lambda x, i=i: x[i], xs))
            one = jax.tree.map(lambda leaf, i=i: leaf[i], together)
            assert_trees_close(one, alone, rtol=rtol, atol=1e-14)


def test_synapses_as_users_write_them():
    class Plain:  # no pytree
        def energy(self, g):
            return jnp.sum(g)

    def scaled(g):
        return scale * jnp.sum(g**2)

    scale = 2.0
    layers = {"x": hl.IdentityLayer(3)}
    synapses = {
        "plain": Plain(),
        "function": scaled,
        "partial": jax.tree_util.Partial(lambda k, g: k * jnp.sum(g), jnp.array(3.0)),
    }
    ham = hl.HAM(layers, synapses, [(["x"], name) for name in synapses])
    x = jnp.array([1.0, 2.0, 3.0])
    run = jax.jit(jax.value_and_grad(lambda ham, x: ham.energy({"x": x}), (0, 1)))
    energy, (by_ham, by_x) = run(ham, x)
    np.testing.assert_allclose(energy, 7 + 6 + 28 + 18)
    np.testing.assert_allclose(by_x, x + 1 + 4 * x + 3)
    np.testing.assert_allclose(jax.tree.leaves(by_ham.synapses["partial"]), [6.0])
    shared = HAMS["shared"].synapses["repulsion"]
    assert type(shared).__name__ == "Repulsion"  # not wrapped


def test_repr():
    ham = HAMS["shared"]
    # 3 β, 6 τ, 3 + 4 biases, 27 weights and a strength; sigmoid has a scale too
    count = sum(leaf.size for leaf in jax.tree.leaves(ham))
    assert repr(ham).splitlines() == [
        f"HAM with {count} parameters",
        f"  layer a: {ham.layers['a'].lagrangian}, shape=(3,), tau=1.0",
        f"  layer b: {ham.layers['b'].lagrangian}, shape=(3,), tau=f64[3]",
        f"  layer c: {ham.layers['c'].lagrangian}, shape=(3,), tau=2.0",
        "  layer unused: LRelu(), shape=(2, 2), tau=1.0",
        "  connection triple(a, b, c): DenseSynapse",
        "  connection repulsion(a, b): Repulsion",
        "  connection between b and c: Repulsion",
        "  connection ripple(b): EnergySynapse",
    ]
    assert count == 4 + 6 + 7 + 27 + 1


X, Y = hl.IdentityLayer(3), hl.SoftmaxLayer((2, 2))
W = hl.DenseSynapse([3, (2, 2)], W=jnp.ones((3, 4)))


def build(*connections: Any, synapse: Any = W) -> hl.HAM:
    return hl.HAM({"x": X, "y": Y}, {"W": synapse}, connections)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: build((("x", "z"), "W")), r"'W\(x, z\)': no layer 'z', there are \['x', 'y'\]"),
        (lambda: build((("x", "y"), "V")), r"'V\(x, y\)': no synapse 'V', there are \['W'\]"),
        (lambda: build((("x", "y"), "V", "v")), r"'v': no synapse 'V'"),
        (lambda: build((("x",), "W")), r"'W\(x\)'.*\(\(3,\), \(2, 2\)\), got \(\(3,\),\)"),
        (lambda: build((("y", "x"), "W")), r"'W\(y, x\)'.*\{'y': \(2, 2\), 'x': \(3,\)\}"),
        (lambda: build((("x", "x"), "W")), r"'W\(x, x\)'.*got \(\(3,\), \(3,\)\)"),
        (lambda: build((("x", "y"), "W"), (("x", "y"), "W")), r"the name 'W\(x, y\)'"),
        (lambda: build((("x", "y"), "W", "c"), (("x", "y"), "W", "c")), "the name 'c'"),
        (lambda: build(("xy", "W")), r"a connection .* got \('xy', 'W'\)"),
        (lambda: build("xW"), "a connection .* got 'xW'"),
        (lambda: build((("x", "y"),)), "a connection .* got"),
        (lambda: build(((), "W")), "a connection .* got"),
        (lambda: build((("x", 1), "W")), "a connection .* got"),
        (lambda: build((("x", "y"), W)), "a connection .* by name, got"),
        (lambda: build((("x", "y"), "W"), synapse=lambda g: jnp.sum(g)), r"'W\(x, y\)'.*argument"),
        (lambda: build((("x",), "W"), synapse=lambda g: g), r"real scalar .* float64\[3\]"),
        (
            lambda: build((("x",), "W"), synapse=lambda g: jnp.sum(g) * 1j),
            r"real scalar .* complex128\[\]",
        ),
        (lambda: build((("x",), "W"), synapse=lambda g: 1), r"real scalar .* got"),
        (lambda: build((("x",), "W"), synapse=lambda g: None), r"'W\(x\)'"),
        (lambda: hl.HAM({}, {}, []), "one layer at least"),
    ],
)
def test_bad_networks(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("unchecked_types")
def test_bad_types():
    for synapse, message in (
        (hl.DenseSynapse, "Synapse 'W': expected a synapse, got the class DenseSynapse"),
        (3, "Synapse 'W': .* got 3"),
    ):
        with pytest.raises(TypeError, match=message):
            build(synapse=synapse)
    with pytest.raises(TypeError, match="layer 'x' to be a Layer, got LTanh"):
        hl.HAM({"x": hl.LTanh()}, {}, [])  # pyright: ignore[reportArgumentType]


@pytest.mark.usefixtures("unchecked_types")
def test_bad_states():
    ham = build((("x", "y"), "W"))
    x, y = jnp.ones(3), jnp.ones((2, 2))
    methods: list[Callable[..., Any]] = [ham.energy, ham.energies, ham.activations, ham.dEdg]
    for method in methods:
        for xs in ({"x": x}, {"x": x, "y": y, "z": x}, {}):
            with pytest.raises(ValueError, match=r"layers \['x', 'y'\], .* got one of \["):
                method(xs)
        with pytest.raises(ValueError, match=r"layer 'y' of shape \(\*batch, 2, 2\), got \(3,\)"):
            method({"x": x, "y": x})
        with pytest.raises(ValueError, match=r"same batch axes .*'x': \(5,\), 'y': \(\)"):
            method({"x": jnp.ones((5, 3)), "y": y})
    with pytest.raises(TypeError, match="real numbers, got complex"):
        ham.energy({"x": x + 1j, "y": y})
    with pytest.raises(ValueError, match=r"same batch axes"):
        hl.solve(ham, {"x": jnp.ones((5, 3)), "y": jnp.ones((4, 2, 2))}, 1.0)


def test_energy_descent_and_exponential_steps():
    # Euler steps four times as long as the fast layer's τ, and ETD2RK, which is exact for each τ.
    ham = HAMS["pair"]
    xs = state(ham, scale=2.0)
    controller = hl.energy_descent(diffrax.ConstantStepSize(), ham)
    saveat = diffrax.SaveAt(t0=True, steps=True)
    options = {"solver": diffrax.Euler(), "stepsize_controller": controller, "dt0": 0.4}
    solution = hl.solve(ham, xs, 4.0, flow="activation", saveat=saveat, **options)
    energies = np.asarray(jax.jit(lambda ys: ham.energy(ys))(saved(solution)))
    energies = energies[np.isfinite(saved_times(solution))]
    assert len(energies) > 10
    assert np.max(np.diff(energies)) <= 0
    alone = hl.HAM(ham.layers, {}, [])
    ys = saved(hl.solve(alone, xs, 0.7, flow="activation", solver=hl.ETD2RK()))
    for name, layer in ham.layers.items():
        decay = np.exp(-0.7 / layer.tau)
        expected = layer.bias + (xs[name] - layer.bias) * decay
        np.testing.assert_allclose(ys[name][-1], expected, rtol=1e-9)


def test_relaxation_with_clamped_units_and_inputs(compilations):
    ham = HAMS["pair"]
    xs = state(ham, 3)
    clamp = {"x": jnp.arange(6) < 2, "h": jnp.zeros(4, bool)}
    inputs = {"x": 0.1 * xs["x"][0], "h": 0.1 * xs["h"][0]}

    @jax.jit
    def relax(ham, xs, inputs):
        rest = hl.relax(ham, xs, clamp=clamp, inputs=inputs, tol=1e-9)
        return rest, ham.dEdg(rest.x), ham.energy(rest.x), ham.activations(rest.x)

    rest, u, energy, gs = relax(ham, xs, inputs)
    assert jnp.all(rest.converged)
    for name, held in clamp.items():
        np.testing.assert_array_equal(rest.x[name][:, held], xs[name][:, held])
        free = np.asarray(u[name] - inputs[name])[:, ~held]
        np.testing.assert_allclose(free, 0, atol=1e-8)
    work = gs["x"] @ inputs["x"] + gs["h"] @ inputs["h"]
    np.testing.assert_allclose(rest.energy, energy - work, rtol=1e-12)
    # Other values compile nothing.
    changed = jax.tree.map(lambda leaf: 1.01 * leaf, (ham, xs, inputs))
    compilations.clear()
    assert jnp.all(relax(*changed)[0].converged)
    assert compilations == []
    with pytest.raises(ValueError, match="some but not all of the units that a Lagrangian couples"):
        hl.EnergyFlow(ham, "activation", clamp | {"h": jnp.arange(4) < 2})


def test_a_memory_retrieves_what_is_known_in_part():
    patterns = jnp.sign(jnp.asarray(np.random.default_rng(0).normal(size=(20, 32))))
    memory = hl.HiddenSynapse.from_patterns(patterns, hl.LSparsemax())
    ham = hl.HAM({"x": hl.IdentityLayer(32)}, {"memory": memory}, [(("x",), "memory")])
    known = {"x": jnp.arange(32) < 16}
    start = {"x": jnp.where(known["x"], patterns, 0.0)}
    rest = hl.relax(ham, start, clamp=known)
    np.testing.assert_allclose(rest.x["x"], patterns, atol=1e-9)


def test_implicit_gradients_against_central_differences():
    ham = HAMS["convolutional"]
    xs = state(ham)
    flat, unravel = ravel_pytree((ham, xs))

    def outcome(flat):
        ham, xs = unravel(flat)
        clamp = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), xs)
        clamp["pixels"] = clamp["pixels"].at[0].set(True)
        rest = hl.relax(ham, xs, clamp=clamp, tol=1e-12)
        return jnp.sum(jnp.sin(rest.x["label"])) + jnp.sum(rest.x["features"] ** 2)

    run = jax.jit(jax.value_and_grad(outcome))
    _, gradient = run(flat)
    steps = 1e-5 * np.eye(flat.size)
    differences = np.array([(run(flat + h)[0] - run(flat - h)[0]) / 2e-5 for h in steps])
    assert np.sum(differences != 0) > 70
    atol = 1e-8 * np.max(np.abs(differences))
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=atol)


def test_fixed_points_of_the_two_flows():
    # E is convex, so that both flows end at its minimum, except that under the state flow a dead
    # unit keeps its value, although u is not 0 there.
    W = jnp.array([[0.3, 0.2, 0.1, 0.4], [0.1, 0.2, 0.3, 0.2], [0.2, 0.3, 0.2, 0.1]])
    layers = {
        "x": hl.IdentityLayer(3, bias=jnp.array([0.5, 0.3, 0.2])),
        "y": hl.ReluLayer(4, tau=0.5, bias=jnp.full(4, 0.5)),
    }
    synapses = {
        "W": hl.DenseSynapse([3, 4], W=W),
        "b": hl.BiasSynapse(3, b=jnp.array([1.5, 0.9, 0.6])),
    }
    ham = hl.HAM(layers, synapses, [(("x", "y"), "W"), (("x",), "b")])
    y0 = jnp.array([[1.0, 0.9, 0.8, 2.0], [1.0, 0.9, -3.0, 2.0]])
    x0 = {"x": jnp.ones((2, 3)), "y": y0}
    state, activation = (hl.relax(ham, x0, flow=flow).x for flow in ("state", "activation"))
    for x in (jax.tree.map(lambda x: x[0], state), activation):
        assert jnp.max(jnp.abs(ravel_pytree(ham.dEdg(x))[0])) < 1e-8
    for name in layers:
        np.testing.assert_allclose(state[name][0], activation[name][0], atol=1e-8)
        np.testing.assert_allclose(activation[name][1], activation[name][0], atol=1e-8)
    assert jnp.all(activation["y"] > 0)
    assert state["y"][1, 2] == -3.0
    assert ham.energy(state)[1] > ham.energy(activation)[1] + 0.01


def test_one_gradient_evaluates_each_synapse_once():
    ham = HAMS["convolutional"]
    xs = jax.tree.map(lambda x: x.astype(jnp.float32), state(ham, 5))
    text = program_text(jax.jit(lambda ham, xs: ham.dEdg(xs)).lower(ham, xs).compile())
    # Forward and backward, and the activations of each layer once.
    assert text.count(" convolution(") == 2
    assert text.count(" dot(") == 2
    assert text.count(" tanh(") == 1


def test_layers_are_printed_in_the_order_given():
    ham = hl.HAM({"y": hl.TanhLayer(2), "x": hl.LayerNormLayer(3, eps=1e-3)}, {}, [])
    lines = repr(ham).split("\n")
    assert [line.split(":")[0] for line in lines[1:]] == ["  layer y", "  layer x"]
    assert "eps=0.001" in lines[2]
    assert "eps=1e-05" in repr(hl.LLayerNorm())
    assert "eps=1e-05" in repr(hl.LSphericalNorm())
