"""Reports of synapses, networks and models: wrong ones are caught by the law that they break."""

import textwrap
import threading
from typing import get_args

import jax.numpy as jnp
import pytest

import hopfield_layers as hl
from hopfield_layers.model import Flow
from hopfield_layers.testing import (
    assert_energy_descends,
    check_lagrangian,
    check_layer,
    check_model,
    check_network,
    check_synapse,
    parametrize_with_laws,
    Violation,
)
from hopfield_layers.testing.model_laws import descent_laws
from hopfield_layers.testing.rest_laws import rest_laws
from hopfield_layers.testing.verdict import excesses

from . import zoo, zoo_parts
from .instances import BOUNDS, HAMS, NETWORKS, SYNAPSES, TEMPLATES


# beartype picks the items that it checks with the random module.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


# Networks have their own check, in `test_right_networks`.
SLOW = ("tanh and softmax", "identity and ReLU")


def broken(report):
    return {(finding.part, finding.law) for finding in report.findings if finding.is_broken}


def program_of(report):
    (text,) = [f.counterexample for f in report.findings if f.counterexample]
    _, program = text.split("Reproduce it with:\n")
    return textwrap.dedent(program)


@pytest.mark.parametrize("name", SYNAPSES)
def test_right_synapses(name):
    synapse = SYNAPSES[name]
    report = check_synapse(synapse, synapse.shapes, max_examples=20)
    assert report.ok, report


# The other networks take a minute each.
@pytest.mark.parametrize(
    "name", [n if n == "pair" else pytest.param(n, marks=pytest.mark.slow) for n in HAMS]
)
def test_right_networks(name):
    bound = BOUNDS[name](HAMS[name]) if name in BOUNDS else None
    report = check_network(HAMS[name], bound=bound, max_examples=20)
    assert report.ok, report
    assert not report.notes  # a bound is known
    # The library's own parts aren't checked again, but what they are together is.
    assert {finding.part for finding in report.findings} == {""}
    assert "block updates" in {finding.law for finding in report.findings}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NETWORKS]
)
def test_right_models(name):
    bound = BOUNDS[name](NETWORKS[name]) if name in BOUNDS else None
    report = check_model(NETWORKS[name], TEMPLATES[name], bound=bound, max_examples=20)
    assert report.ok, report


@pytest.mark.parametrize("name", zoo_parts.SYNAPSES)
def test_wrong_synapses(name):
    synapse, shapes, law = zoo_parts.SYNAPSES[name]
    report = check_synapse(synapse, shapes, max_examples=20)
    # Far out, where the law of symmetry is undecided, and where a difference steps over a jump, the
    # slope is the first that is wrong.
    beside = {("", "gradient")} if law in ("symmetric", "continuous") else set()
    assert broken(report) - beside == {("", law)}, report


@pytest.mark.parametrize("name", zoo_parts.NETWORKS)
def test_wrong_networks(name):
    ham, part, law = zoo_parts.NETWORKS[name]
    report = check_network(ham, max_examples=20)
    assert broken(report) == {(part, law)}, report
    with pytest.raises(Violation, match=f"^{law}:"):
        exec(program_of(report), {})


def test_the_program_of_a_function_runs_by_itself():
    offset = 0.5
    report = check_synapse(lambda g: jnp.sum(jnp.log(jnp.cosh(g - offset))), [3], max_examples=5)
    with pytest.raises(Violation, match=r"^finite:"):
        exec(program_of(report), {})


def test_the_program_of_what_cannot_be_pickled_says_so():
    lock = threading.Lock()

    def energy(g):
        with lock:
            return jnp.sum(jnp.log(jnp.cosh(g)))

    report = check_synapse(energy, [3], max_examples=5)
    assert "model = ...  # the one that was checked" in program_of(report)


@pytest.mark.parametrize("name", zoo_parts.MODELS)
def test_wrong_models(name):
    model, bound, law = zoo_parts.MODELS[name]
    x = zoo_parts.STATES.get(name, jnp.zeros(5))
    report = check_model(model, x, bound=bound, max_examples=20)
    assert broken(report) == {("", law)}, report


@pytest.mark.parametrize("flow", get_args(Flow))
def test_a_rule_of_the_wrong_sign_is_caught_along_both_flows(flow):
    synapse, _, _ = zoo_parts.SYNAPSES["a rule of the wrong sign"]
    ham = zoo_parts.pair(synapse, hl.IdentityLayer(3), hl.IdentityLayer(2))
    x = {"a": jnp.array([1.0, -0.5, 2.0]), "b": jnp.array([0.5, 1.0])}
    with pytest.raises(Violation, match=r"^slope:"):
        assert_energy_descends(ham, x, flow)
    # The energy rises on every step, so that the solve rejects all of them and never moves.
    laws = descent_laws(ham, x, flow)
    assert excesses({"descent": laws["descent"][1:]})["descent"] > 1


def test_costs_are_reported():
    report = check_model(zoo_parts.Wasteful(layer=zoo.LAYER), jnp.zeros(5), max_examples=10)
    assert report.ok
    verdicts = {finding.law: finding.verdict for finding in report.findings}
    assert verdicts["evaluations"] == verdicts["compilations"] == "no"


def test_a_rest_without_its_derivative():
    model, _, _ = zoo_parts.MODELS["a bias without gradient"]
    laws = rest_laws(model, jnp.ones(5))
    assert excesses(laws)["gradient of rest"] > 1


PYTEST = """
import jax.numpy as jnp
import hopfield_layers as hl
from hopfield_layers.testing import parametrize_with_laws

named = {
    "naive": lambda x: jnp.sum(jnp.log(jnp.cosh(x))),
    "product": (lambda g, h: -jnp.sum(g) * jnp.sum(h), [3, 2]),
}
reasons = {"naive-finite": "cosh overflows", "product-vmap": "it holds"}


@parametrize_with_laws(named, expected_failures=reasons, max_examples=10)
def test_laws(law):
    law()
"""


def test_a_test_for_each_law(pytester):
    pytester.makepyfile(PYTEST)
    run = pytester.runpytest("-q", "-rA", "-p", "no:randomly", "-k", "finite or vmap or convex")
    run.assert_outcomes(passed=3, xfailed=1, failed=1)
    run.stdout.fnmatch_lines(["*XPASS(strict)* it holds*"])


def test_unknown_expected_failures():
    with pytest.raises(ValueError, match="No object has the laws"):
        parametrize_with_laws([hl.LTanh()], expected_failures={"mask": "no mask"})


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("check", "wrong", "instead"),
    [
        (check_lagrangian, hl.TanhLayer(3), r"call check_layer\(layer\) or pass layer.lagrangian"),
        (check_layer, hl.LTanh(), r"call check_lagrangian\(lagrangian\)"),
        (check_network, hl.TanhLayer(3), r"call check_layer\(layer\)"),
        (check_network, zoo_parts.Minus(), r"call check_synapse\(synapse, shapes\)"),
        (lambda s: check_synapse(s, [3]), hl.TanhLayer(3), r"call check_layer\(layer\)"),
        (lambda m: check_model(m, 0.0), zoo_parts.Minus(), r"check_synapse\(synapse, shapes\)"),
        (lambda m: check_model(m, 0.0), hl.LTanh(), r"call check_lagrangian\(lagrangian\)"),
        (lambda m: check_model(m, 0.0), jnp.sum, r"check_lagrangian\(lagrangian\) or check_syn"),
        (check_network, jnp.sum, r"call check_lagrangian\(lagrangian\) or check_synapse"),
        (check_layer, 3.0, r"Expected a layer, got 3.0\.$"),
    ],
)
def test_wrong_kinds(check, wrong, instead):
    with pytest.raises(TypeError, match=instead):
        check(wrong)


def test_a_layer_without_units():
    report = check_layer(hl.TanhLayer(0), max_examples=5)
    assert report.ok, report
