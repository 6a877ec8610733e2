"""The laws reject every wrong model, each by the law that it breaks, and no right one."""

import re
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hopfield_layers as hl
from hopfield_layers.testing import (
    assert_energy_bounded,
    assert_energy_descends,
    assert_gradients,
    assert_lagrangian,
    check_lagrangian,
    energy_bound,
    lagrangians,
    LAWS,
    layers,
    networks,
    states,
    Violation,
)
from hopfield_layers.testing.strategies import KINDS

from . import zoo, zoo_parts
from .instances import SYNAPSES


# beartype picks the items that it checks with the random module.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


def broken_laws(check, **arguments):
    """The laws that `check` finds broken, by the first one of each drawn example."""
    laws = set()

    @hypothesis.settings(max_examples=30, phases=[hypothesis.Phase.generate])
    @hypothesis.given(st.fixed_dictionaries(arguments))
    def run(drawn):
        try:
            check(**drawn)
        except Violation as violation:
            laws.add(violation.law)

    run()
    return laws


# Where the law that is broken may not be the first one at every state.
BESIDES = {
    "log-sum-ReLU, concave": {"Fenchel–Young"},
    "layer norm with γ < 0": {"Fenchel–Young"},
    "a double well": {"Fenchel–Young"},
    # The variance of equal units far out is a difference of large squares.
    "layer norm of the rows, Lagrangian of the whole": {"convex"},
    "a dent that midpoints step over": {"convex"},
    "another branch under jit": {"gradient"},
    "units uphill": {"descent"},
    # Where the state is symmetric, E happens to have the slope of its rule.
    "a Legendre transform with g for a gradient": {"drive"},
}


@pytest.mark.parametrize("name", zoo.LAGRANGIANS)
def test_wrong_lagrangians(name):
    lagrangian, law = zoo.LAGRANGIANS[name]
    shape = (2, 3) if "rows" in name else (5,)
    drawn = states(shape, dtype=jnp.float32, extremes=False)
    if law == "gradients":
        laws = broken_laws(lambda x: assert_gradients(lagrangian, x), x=drawn)
    else:
        laws = broken_laws(lambda x, y: assert_lagrangian(lagrangian, x, y), x=drawn, y=drawn)
    assert law in laws
    assert laws <= {law} | BESIDES.get(name, set())


@pytest.mark.parametrize("name", zoo.MODELS)
def test_wrong_models(name):
    model, law, keywords = zoo.MODELS[name]
    shape = model.layer.shape if isinstance(model, zoo.WrongModel) else (5,)
    drawn = states(shape, scale=1.0)
    if law == "gradients":
        laws = broken_laws(lambda x: assert_gradients(model, x), x=drawn)
    elif "bound" in keywords:
        laws = broken_laws(lambda x: assert_energy_bounded(model, x, **keywords), x=drawn)
    else:
        laws = broken_laws(lambda x: assert_energy_descends(model, x, **keywords), x=drawn)
    assert law in laws
    assert laws <= {law} | BESIDES.get(name, set())


def test_each_law_has_a_model_that_breaks_it():
    broken = {law for _, law in zoo.LAGRANGIANS.values()}
    broken |= {law for _, law, _ in zoo.MODELS.values()}
    for wrong in (zoo_parts.SYNAPSES, zoo_parts.NETWORKS, zoo_parts.MODELS):
        broken |= {law for _, _, law in wrong.values()}
    assert broken | {"gradient of rest"} == set(LAWS)  # whose test is in test_checks


def test_a_violation_says_what_where_and_by_how_much():
    lagrangian, _ = zoo.LAGRANGIANS["activation stale in one branch"]
    x = jnp.array([1.0, 2.0, 8.0])
    with pytest.raises(AssertionError) as caught:
        assert_lagrangian(lagrangian, x, x)
    violation = caught.value
    assert isinstance(violation, Violation)
    assert violation.law == "gradient"
    text = str(violation)
    assert text.startswith(
        "gradient: g(x) = ∂L/∂x, and ∂A/∂g agrees with central differences, "
        "does not hold at unit [2].\n"
    )
    assert "6 = 8 is missed by 2; rounding explains 9.95e-14." in text  # 64 ε (6 + 0 + 1)
    assert "x = [1., 2., 8.]" in text


def test_undecided_laws_are_not_violated():
    # Where L, g and E leave the range, at kinks, and where a row is NaN from the start.
    huge = jnp.full(3, 3e38, jnp.float32)
    assert_lagrangian(hl.LExp(), huge, -huge)
    assert_lagrangian(hl.LRelu(), jnp.zeros(3), jnp.zeros(3))
    assert_gradients(hl.ReluLayer(3, bias=jnp.zeros(3)), jnp.zeros(3))
    # Kinks that cancel each other's bend, and powers near 1, whose differences hardly converge.
    for lagrangian in (hl.LRexp(), *(hl.LPower(p) for p in (1.1, 1.5, 2.0625, 2.5))):
        assert_gradients(hl.Layer(lagrangian, 3, bias=jnp.zeros(3)), jnp.zeros(3))
    assert_energy_bounded(hl.ExpLayer(3), 1e3 * jnp.ones(3))


@pytest.mark.parametrize("kind", KINDS)
def test_assumptions_of_the_bounds(kind):
    h = np.random.default_rng(0).normal(scale=3.0, size=(50, 4))
    lagrangian = kind()
    if kind not in (hl.LLayerNorm, hl.LSphericalNorm):
        assert np.all(jax.vmap(lagrangian.activation)(jnp.abs(h)) >= 0)
        values, at_absolutes = (jax.vmap(lagrangian)(x) for x in (h, jnp.abs(h)))
        assert np.all(values <= at_absolutes + 1e-12)


@pytest.mark.parametrize("name", SYNAPSES)
def test_bounds_of_synapses(name):
    synapse = SYNAPSES[name]
    layers = {f"x{i}": hl.TanhLayer(shape) for i, shape in enumerate(synapse.shapes)}
    ham = hl.HAM(layers, {"s": synapse}, [(tuple(layers), "s")])
    # Where tanh units may be, whose own energy is at least 0, and in the corners above all.
    rng = np.random.default_rng(0)
    gs = [jnp.asarray(rng.choice([-1, -0.3, 0, 1], (200, *shape))) for shape in synapse.shapes]
    bound, energies = jax.jit(lambda: (energy_bound(ham), jax.vmap(synapse.energy)(*gs)))()
    assert bound is not None
    assert np.all(energies >= bound - 1e-12)


def test_there_is_no_bound_for_unknown_synapses():
    layers = {"a": hl.TanhLayer(3)}
    hidden = hl.HiddenSynapse([3], 2, Ws=[jnp.ones((3, 2))], hidden_lagrangian=jnp.sum)
    for synapse in (hidden, lambda g: -jnp.sum(g)):
        assert energy_bound(hl.HAM(layers, {"s": synapse}, [(("a",), "s")])) is None
    known = hl.HiddenSynapse([3], 2, Ws=[jnp.ones((3, 2))], hidden_lagrangian=hl.LSoftmax())
    bound = energy_bound(hl.HAM(layers, {"s": known}, [(("a",), "s")]))
    assert bound is not None
    np.testing.assert_allclose(bound, -3 - np.log(2))


@pytest.mark.usefixtures("unchecked_types")
def test_bad_arguments():
    layer = hl.TanhLayer(3)
    with pytest.raises(ValueError, match="one shape and dtype"):
        assert_lagrangian(hl.LTanh(), jnp.zeros(3), jnp.zeros(4))
    for accept in (
        lambda: check_lagrangian(layer),
        lambda: assert_lagrangian(layer, jnp.zeros(3), jnp.zeros(3)),
        lambda: layers(layer),
    ):
        with pytest.raises(TypeError, match=r"got the layer Layer: call check_layer\(layer\)"):
            accept()
    for accept in (
        lambda: assert_energy_bounded(hl.LTanh(), jnp.zeros(3)),  # pyright: ignore[reportArgumentType]
        lambda: assert_energy_descends(hl.LTanh(), jnp.zeros(3)),  # pyright: ignore[reportArgumentType]
        lambda: energy_bound(hl.LTanh()),  # pyright: ignore[reportArgumentType]
    ):
        match = r"AbstractEnergyModel, Layer\(lagrangian, shape\) .* got LTanh"
        with pytest.raises(TypeError, match=match):
            accept()
    with pytest.raises(TypeError, match="Expected a Lagrangian or a convex callable, got 3"):
        assert_gradients(3, jnp.zeros(3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Expected a bound: none is known for this WrongModel"):
        assert_energy_bounded(zoo.WrongModel(), jnp.zeros(5))
    for model in (lambda x: x, hl.LTanh(), zoo.WrongModel()):
        with pytest.raises(TypeError, match="a model, a shape or a tree of arrays"):
            states(model)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="LTanh has no parameter 'bta'"):
        lagrangians(hl.LTanh, bta=3.0)
    with pytest.raises(ValueError, match=r"a graph of \['hypergraph', .*, got 'dense'"):
        find(networks("dense"), lambda _: True)


def find(strategy, condition):
    """Any example that meets the condition."""
    settings = hypothesis.settings(max_examples=2000, phases=[hypothesis.Phase.generate])
    return hypothesis.find(strategy, condition, settings=settings)


def simplest(strategy, condition):
    """The first example that meets the condition, shrunk."""
    return hypothesis.find(strategy, condition, settings=hypothesis.settings(max_examples=2000))


def test_states_have_special_values():
    drawn = states((3,), dtype=jnp.float32).map(np.asarray)
    info = np.finfo(np.float32)
    assert find(drawn, lambda x: np.all(x == 0)).shape == (3,)
    find(drawn, lambda x: bool(np.any(np.signbit(x) & (x == 0))))
    find(drawn, lambda x: np.any((x != 0) & (np.abs(x) < info.tiny)))
    find(drawn, lambda x: np.any(np.abs(x) == info.max))
    find(drawn, lambda x: x[0] == x[1] != x[2])
    find(drawn, lambda x: np.all(x == x[0]) & (x[0] > 10))
    find(drawn, lambda x: np.sum(np.abs(x) >= 1e3 * (1 + np.median(np.abs(x)))) == 1)
    # Simplest first.
    np.testing.assert_array_equal(simplest(drawn, lambda x: x[1] > 0.3 > x[0]), [0.0, 1.0, 0.0])


@hypothesis.given(data=st.data())
def test_arguments_of_strategies_are_values_or_strategies(data):
    layer = data.draw(
        layers(lagrangians(hl.LSigmoid, beta=st.just(3.0)), (2, 3), tau=0.5, bias=None)
    )
    assert (layer.lagrangian.beta, layer.shape, layer.tau, layer.bias) == (3.0, (2, 3), 0.5, None)
    batch = data.draw(st.sampled_from([(), (2,)]))
    x = data.draw(states(layer, scale=1e-3, dtype=st.just(jnp.float16), batch=batch))
    assert (x.shape, x.dtype) == ((*batch, 2, 3), jnp.float16)
    assert jnp.max(jnp.abs(x)) <= 1.1  # an offset of 1000 times the scale
    tree = data.draw(states({"a": layer, "b": jnp.zeros(2)}, scale=1.0))
    assert (tree["a"].shape, tree["b"].shape) == ((2, 3), (2,))


def test_every_kind_is_drawn():
    assert {kind.__name__ for kind in KINDS} == {
        name for name in hl.__all__ if name[0] == "L" and name[1].isupper()
    }
    last = KINDS[-1]
    layer = simplest(layers(), lambda layer: isinstance(layer.lagrangian, last))
    # The simplest of them.
    assert (layer.lagrangian, layer.shape, layer.tau) == (last(), (5,), 1.0)
    np.testing.assert_array_equal(layer.bias, np.zeros(5))


def test_a_report_of_a_right_lagrangian(capfd):
    report = check_lagrangian(hl.LSoftmax(beta=3.0), max_examples=30, progress=True)
    assert report.ok
    of_lagrangians = list(LAWS)[: list(LAWS).index("mask")]
    own = [law for law in of_lagrangians if law not in ("sign", "symmetric")]
    assert [finding.law for finding in report.findings][: len(own)] == own
    of_layers = {"batch", "bounded", "slope", "drive", "descent", "gradients"}
    assert of_layers <= {finding.law for finding in report.findings}
    assert all(f.worst <= 1 and f.examples > 0 for f in report.findings)
    lines = str(report).splitlines()
    assert lines[0] == "LSoftmax(beta=3.0)"
    assert lines[1].split() == ["law", "examples", "worst", "verdict"]
    assert len(lines) == 2 + len(report.findings)
    assert all(line.endswith(("holds", "yes")) for line in lines[2:])
    assert "100%" in capfd.readouterr().err


def test_a_report_of_a_wrong_lagrangian():
    report = check_lagrangian(lambda x: jnp.sum(jnp.log(jnp.cosh(x))), max_examples=30)
    assert not report.ok
    broken = [finding for finding in report.findings if finding.counterexample]
    assert [finding.law for finding in broken] == ["finite"]
    # The simplest states at which it overflows: which one depends on the random choices.
    assert re.search(r"x = \[1000\.,( +0\.,?){4}\]|x = \[(1000\.(, )?){5}\]", str(report))
    html = report._repr_html_()
    assert html.count("<tr>") == 1 + len(report.findings)
    assert "BROKEN" in html


@pytest.mark.parametrize(
    ("lagrangian", "law"),
    [
        (zoo.LAGRANGIANS["a term per unit"][0], "scalar"),
        (lambda x: x**2, "scalar"),
        (lambda x: jnp.sum(x**2) if jnp.sum(x) > 0 else jnp.sum(x), "jit"),
    ],
)
def test_a_report_of_a_lagrangian_that_raises_errors(lagrangian, law):
    report = check_lagrangian(lagrangian)
    assert [finding.law for finding in report.findings] == [law]
    assert not report.ok


def test_a_right_callable_far_out():
    # H vanishes there as a difference of terms of size β.
    def lagrangian(x):
        return jax.nn.logsumexp(100 * x) / 100

    layer = hl.Layer(lagrangian, 5)
    for x in ([1000.0, 0, 0, 0, 0], [300.0, 300, 0, 0, 0], [0.01, 0, 0, 0, 0]):
        assert_energy_descends(layer, jnp.array(x, jnp.float32))


@pytest.mark.parametrize("missing", ["hypothesis", "tqdm"])
def test_without_the_extra(missing):
    code = f"""
import sys
sys.modules[{missing!r}] = None
import hopfield_layers
try:
    import hopfield_layers.testing
except ImportError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "hopfield_layers[testing]"' in run.stdout
