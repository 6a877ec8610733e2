"""Pictures show the right numbers, and drawing them has no side effects."""

import doctest
import inspect
import itertools
import subprocess
import sys
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

import hopfield_layers as hl
from hopfield_layers import plotting

from .instances import HAMS


mpl.use("Agg")
from matplotlib import pyplot


EVERY_STEP = diffrax.SaveAt(t0=True, steps=True)


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    """Fails if a figure is shown, and closes pyplot's figures before and after each test."""
    monkeypatch.setattr(pyplot, "show", lambda *_, **__: pytest.fail("shown"))
    pyplot.close("all")
    yield
    pyplot.close("all")


@pytest.fixture
def ax():
    return Figure().subplots()


def labels(ax):
    return [line.get_label() for line in ax.lines if not line.get_label().startswith("_")]


@pytest.fixture(scope="module")
def fall():
    """Two samples, one of which takes more steps than the other."""
    layer = hl.ExpLayer(3, bias=jnp.array([0.1, -0.2, 0.3]))
    x0 = jnp.array([[0.5, -0.5, 1.0], [0.1, -0.2, 0.3]])
    return layer, hl.solve(layer, x0, 8.0, saveat=EVERY_STEP, max_steps=40)


@pytest.fixture(scope="module")
def descent():
    ham = HAMS["shared"]
    x0 = ham.init_states(bs=2, rng=jax.random.key(0))
    return ham, hl.solve(ham, x0, 3.0, saveat=diffrax.SaveAt(ts=jnp.linspace(0.0, 3.0, 4)))


@pytest.mark.parametrize("name", plotting.__all__)
def test_docstring(name):
    names = {"hl": hl, "jax": jax, "jnp": jnp}  # as the package's docstring says
    example = doctest.DocTestParser().get_doctest(
        inspect.getdoc(getattr(plotting, name)) or "", names, name, None, None
    )
    assert example.examples
    with jax.enable_x64(False):
        failures, _ = doctest.DocTestRunner(verbose=False).run(example)
    assert failures == 0


def test_without_matplotlib():
    code = """
import sys
sys.modules["matplotlib"] = None
import hopfield_layers
try:
    import hopfield_layers.plotting
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "hopfield_layers[plots]"' in run.stdout


def test_core_without_matplotlib():
    code = "import sys, hopfield_layers; print('matplotlib' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_new_axes_only_without_any(ax, fall):
    layer, solution = fall
    draw = {
        "lagrangian": lambda **ax: plotting.plot_lagrangian(hl.LTanh(), **ax),
        "energy": lambda **ax: plotting.plot_energy(layer, solution, **ax),
        "states": lambda **ax: plotting.plot_states(layer, solution, **ax),
        "network": lambda **ax: plotting.plot_network(HAMS["pair"], **ax),
    }
    for plot in draw.values():
        assert plot(ax=ax) is ax
    assert pyplot.get_fignums() == []
    drawn = [plot() for plot in draw.values()]
    assert pyplot.get_fignums() == [1, 2, 3, 4]
    assert [pyplot.figure(number) for number in (1, 2, 3, 4)] == [ax.figure for ax in drawn]
    with pytest.raises(ValueError, match="one of"):
        plotting.plot_states(HAMS["pair"], HAMS["pair"].init_states())
    assert len(pyplot.get_fignums()) == 4


def test_lagrangian_of_a_unit(ax):
    x = np.linspace(-2, 3, 11)
    plotting.plot_lagrangian(hl.LExp(beta=2.0), x, ax=ax)
    assert labels(ax) == ["L", "g", "E", "−L(0)"]
    for line, y in zip(
        ax.lines, [np.exp(2 * x) / 2, np.exp(2 * x), (x - 0.5) * np.exp(2 * x)], strict=False
    ):
        np.testing.assert_array_equal(line.get_xdata(), x)
        np.testing.assert_allclose(line.get_ydata(), y, rtol=1e-14)
    np.testing.assert_array_equal(ax.lines[3].get_ydata(), [-0.5, -0.5])


def test_lagrangian_along_a_direction(ax):
    x, d = np.linspace(-2, 3, 11), np.array([1.0, 0.0, -2.0])
    plotting.plot_lagrangian(hl.LSoftmax(), x, direction=d, ax=ax)
    Z = np.sum(np.exp(x[:, None] * d), axis=1)
    g = np.sum(d * np.exp(x[:, None] * d), axis=1) / Z
    for line, y in zip(ax.lines, [np.log(Z), g, x * g - np.log(Z)], strict=False):
        np.testing.assert_allclose(line.get_ydata(), y, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ax.lines[3].get_ydata(), -np.log(3))
    assert "direction" in ax.get_xlabel()


def test_energy_of_a_layer(ax, fall):
    layer, solution = fall
    count = np.sum(np.isfinite(solution.ts), axis=1)
    assert 1 < count[1] < count[0] < solution.ts.shape[1]
    plotting.plot_energy(layer, solution, ax=ax, lw=3, c="red")
    assert labels(ax) == ["energy E", "lower bound −L(0)"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_legend()) == ("time t", "energy E", None)
    *lines, bound = ax.lines
    for line, t, x, n in zip(lines, solution.ts, solution.ys, count, strict=True):
        z = np.asarray(x[:n] - layer.bias)
        np.testing.assert_array_equal(line.get_xdata(), t[:n])
        np.testing.assert_allclose(line.get_ydata(), np.sum((z - 1) * np.exp(z), -1), rtol=1e-12)
        assert (line.get_linewidth(), line.get_color()) == (3, "red")
    np.testing.assert_allclose(bound.get_ydata(), -3)


def test_energy_of_times_and_states(ax):
    layer, t = hl.IdentityLayer(2), [0.0, 1.0, 3.0]
    x = np.arange(12.0).reshape(2, 3, 2)
    plotting.plot_energy(layer, (t, x), bound=False, ax=ax)
    plotting.plot_energy(layer, (t, x[0]), bound=False, ax=ax)
    assert len(ax.lines) == 3
    for line, samples in zip(ax.lines, [*x, x[0]], strict=True):
        np.testing.assert_array_equal(line.get_xdata(), t)
        np.testing.assert_allclose(line.get_ydata(), np.sum(samples**2, -1) / 2)


def test_energy_of_a_network(ax, descent):
    ham, solution = descent
    plotting.plot_energy(ham, solution, ax=ax)
    names = [*ham.layers, *(connection.name for connection in ham.connections)]
    assert labels(ax) == [*names, "energy E"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == labels(ax)
    assert len(ax.lines) == 2 * (len(names) + 1)
    drawn = np.stack([line.get_ydata() for line in ax.lines]).reshape(len(names) + 1, 2, 4)
    energies = ham.energies(solution.ys)
    expected = energies["layers"] | energies["connections"]
    np.testing.assert_allclose(drawn[:-1], [expected[name] for name in names], rtol=1e-12)
    np.testing.assert_allclose(drawn[-1], np.sum(drawn[:-1], axis=0), rtol=1e-12)
    colours = [line.get_color() for line in ax.lines]
    assert colours[::2] == colours[1::2]
    assert len(set(colours)) == len(names) + 1
    assert {line.get_linestyle() for line in ax.lines[-2 - 2 * len(ham.connections) : -2]} == {"--"}
    alone = plotting.plot_energy(ham, solution, parts=False, ax=Figure().subplots())
    assert (labels(alone), len(alone.lines)) == (["energy E"], 2)


def test_states_as_traces(ax, fall):
    layer, solution = fall
    plotting.plot_states(layer, solution, ax=ax)
    assert len(ax.lines) == 6
    assert ax.get_ylabel() == "state x"
    for i, line in enumerate(ax.lines):  # the samples of each unit
        used = np.isfinite(solution.ts[i % 2])
        np.testing.assert_array_equal(line.get_ydata(), solution.ys[i % 2, used, i // 2])
        assert line.get_color() == ax.lines[i // 2 * 2].get_color()
    assert len({line.get_color() for line in ax.lines}) == 3


def test_states_as_images(ax):
    layer = hl.TanhLayer((3, 2, 1))
    x = np.random.default_rng(0).normal(size=(2, 4, 3, 2, 1))
    plotting.plot_states(layer, x, activations=True, ax=ax, cmap="viridis")
    (image,) = ax.images
    assert image.get_cmap().name == "viridis"
    assert image.get_array().shape == (7, 11)
    for row in range(2):
        for column in range(4):
            tile = image.get_array()[4 * row : 4 * row + 3, 3 * column : 3 * column + 2]
            np.testing.assert_allclose(tile, np.tanh(x[row, column, ..., 0]), rtol=1e-12)
    assert np.all(np.isnan(np.ma.filled(image.get_array()[3], np.nan)))
    one = plotting.plot_states(layer, x[0, 0], ax=Figure().subplots())
    np.testing.assert_array_equal(one.images[0].get_array(), x[0, 0, ..., 0])


def test_states_against_time_as_images(ax, descent, fall):
    ham, solution = descent
    plotting.plot_states(ham, solution, layer="unused", ax=ax)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1", "2", "3"]
    np.testing.assert_allclose(ax.get_xticks(), [0.5, 3.5, 6.5, 9.5])
    np.testing.assert_array_equal(ax.images[0].get_array()[:2, 6:8], solution.ys["unused"][0, 2])
    # Each sample has its own times, and columns of its units.
    layer, solution = fall
    columns = plotting.plot_states(layer, solution, kind="images", ax=Figure().subplots())
    values = columns.images[0].get_array()
    assert values is not None
    drawn = np.ma.filled(values, np.nan)
    count = np.sum(np.isfinite(solution.ts), axis=1)
    assert drawn.shape == (7, count[0])
    assert len(columns.get_xticks()) == 0
    np.testing.assert_array_equal(drawn[4:, : count[1]], solution.ys[1, : count[1]].T)
    assert np.all(np.isnan(drawn[4:, count[1] :]))


def test_states_in_colour(ax):
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3))
    plotting.plot_states(hl.ExpLayer((4, 5, 3)), x, ax=ax)
    drawn = ax.images[0].get_array()
    assert drawn.shape == (4, 11, 3)
    np.testing.assert_allclose(drawn[:, :5], (x[0] - x.min()) / np.ptp(x), rtol=1e-12)
    np.testing.assert_array_equal(drawn[:, 5], 1)
    ax.figure.canvas.draw()


@pytest.mark.parametrize("name", HAMS)
def test_network(ax, name):
    ham = HAMS[name]
    plotting.plot_network(ham, ax=ax)
    texts = [text.get_text() for text in ax.texts]
    assert len(texts) == len(ham.layers) + len(ham.connections)
    for layer_name, layer in ham.layers.items():
        (text,) = (text for text in texts if text.startswith(f"{layer_name}\n"))
        assert type(layer.lagrangian).__name__ in text
        assert str(layer.shape) in text
    for connection in ham.connections:
        kind = type(ham.synapses[connection.synapse]).__name__
        assert f"{connection.name}\n{kind}" in texts
    assert len(ax.lines) == len(ham.connections)
    assert len(ax.patches) == sum(len(connection.layers) for connection in ham.connections)
    heights = sorted(text.get_position()[1] for text in ax.texts if text.get_ha() == "left")
    assert all(upper - lower > 0.69 for lower, upper in itertools.pairwise(heights))
    ax.figure.canvas.draw()


def test_network_ends():
    layers = {"a": hl.TanhLayer(2, tau=jnp.array([0.5, 2.0])), "b": hl.TanhLayer(2, tau=0.25)}
    synapses = {"W": hl.DenseSynapse([2, 2, 2], W=jnp.ones((2, 2, 2)))}
    ax = plotting.plot_network(hl.HAM(layers, synapses, [(("a", "b", "b"), "W")]))
    assert [text.get_text().split("τ = ")[-1] for text in ax.texts[:2]] == ["0.5 … 2", "0.25"]
    place = {text.get_text()[0]: text.get_position() for text in ax.texts[:2]}
    (joint,) = (np.asarray(line.get_xydata())[0] for line in ax.lines)
    ends = [np.asarray(patch.get_path().vertices) for patch in ax.patches]
    np.testing.assert_allclose([end[-1] for end in ends], [joint] * 3, atol=1e-9)
    places = [place[name] for name in "abb"]
    np.testing.assert_allclose([end[0] for end in ends], places, atol=1e-9)
    assert not np.allclose(ends[1], ends[2])
    alone = plotting.plot_network(hl.HAM({"a": hl.TanhLayer(2)}, {}, []))
    assert len(alone.texts) == 1


@pytest.mark.usefixtures("unchecked_types")
def test_errors(ax, fall, descent):
    layer, _ = fall
    ham, path = descent
    x = jnp.zeros((4, 3))
    end = hl.solve(layer, x[0], 1.0)
    several = diffrax.SaveAt(subs=[diffrax.SubSaveAt(t1=True), diffrax.SubSaveAt(t0=True)])
    for bad, match in (
        (end, "2 times at least, got 1: solve with saveat"),
        (hl.solve(layer, x[0], 1.0, saveat=several), "got 0"),
        (hl.solve(layer, x[0], 1.0, saveat=diffrax.SaveAt(dense=True)), "got 0"),
        ((0.0, x), "got 0"),
        ((jnp.full(4, jnp.inf), x), "got 0"),
        ((jnp.arange(3.0), x), r"\(3,\) and \(4,\)"),
        ((jnp.arange(3.0), x[0]), r"\(3,\) and \(\)"),
        ((jnp.arange(8.0).reshape(2, 4), x), r"\(2, 4\) and \(4,\)"),
        ((jnp.arange(4.0), jnp.zeros((0, 4, 3))), r"\(0, 4\)"),
        ((jnp.arange(4.0), x[:, :2]), r"\(\*batch, 3\)"),
    ):
        with pytest.raises(ValueError, match=match):
            plotting.plot_energy(layer, bad, ax=ax)
        if bad is not end:
            with pytest.raises(ValueError, match=r"got|Expected"):
                plotting.plot_states(layer, bad, ax=ax)
    with pytest.raises(ValueError, match="2 times at least"):
        plotting.plot_states(layer, end, kind="traces", ax=ax)
    with pytest.raises(ValueError, match="of the layers"):
        plotting.plot_energy(ham, (path.ts, {"a": path.ys["a"]}), ax=ax)
    with pytest.raises(TypeError, match="pair of times and states, got list"):
        plotting.plot_energy(layer, [0.0, 1.0], ax=ax)  # pyright: ignore[reportArgumentType]
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "one of"),
        ({"layer": "d"}, "got 'd'"),
        ({"layer": "a", "kind": "film"}, "got 'film'"),
    ]
    for options, match in cases:
        with pytest.raises(ValueError, match=match):
            plotting.plot_states(ham, path, ax=ax, **options)
    with pytest.raises(ValueError, match="got 'traces'"):
        plotting.plot_states(layer, x, kind="traces", ax=ax)
    with pytest.raises(ValueError, match=r"got \(2, 3, 4\)"):
        plotting.plot_states(hl.TanhLayer((2, 3, 4)), jnp.zeros((2, 3, 4)), ax=ax)
    with pytest.raises(TypeError, match="no name"):
        plotting.plot_states(layer, x, layer="a", ax=ax)
    with pytest.raises(TypeError, match="Expected a HAM, got Layer"):
        plotting.plot_network(layer, ax=ax)
    with pytest.raises(TypeError, match=r"layer\.lagrangian"):
        plotting.plot_lagrangian(layer, ax=ax)
    with pytest.raises(ValueError, match="two points"):
        plotting.plot_lagrangian(hl.LTanh(), 1.0, ax=ax)
    with pytest.raises(ValueError, match="axis 1"):
        plotting.plot_lagrangian(hl.LSoftmax(axis=1), ax=ax)
    assert ax.has_data() is False


def test_landscape_and_phase_portrait(ax):
    pair = hl.ReluLayer(2)
    points = hl.fixed_points(pair, jnp.zeros((1, 2)))
    x, y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 9)
    assert plotting.plot_landscape(pair, x, y, points=points, inputs=jnp.ones(2), ax=ax) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("state x₁", "state x₂")
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.0, 0.0]], atol=1e-9)
    # E − Σ I g = Σ (relu(x)²/2 − relu(x)) lies between −1 and 0 here.
    low, high = ax.collections[0].get_clim()
    assert -1.1 <= low <= -0.9
    assert -0.1 <= high <= 0.1
    portrait = plotting.plot_phase_portrait(pair, x, y, flow="state", ax=Figure().subplots())
    ground = portrait.collections[0].get_array()
    assert ground is not None
    dead = np.ma.getmaskarray(ground).reshape(9, 5) == 0
    np.testing.assert_array_equal(dead, (x <= 0) & (y[:, None] <= 0))
    with pytest.raises(ValueError, match="two units"):
        plotting.plot_landscape(hl.ReluLayer(3), x, ax=ax)
    with pytest.raises(ValueError, match="equally spaced"):
        plotting.plot_phase_portrait(pair, [0.0, 1.0, 3.0], ax=ax)
    with pytest.raises(ValueError, match="of each unit"):
        plotting.plot_landscape(pair, [0.0], ax=ax)
