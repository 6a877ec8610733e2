"""`trainable_weights` selects the weights of every model, and more where that is asked for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hopfield_layers as hl

from .instances import HAMS, LAGRANGIANS, LAYERS, NETWORKS, SYNAPSES


def selected(model, **options):
    """The names of the selected fields, from the outermost one on."""
    mask = hl.trainable_weights(model, **options)
    assert jax.tree.structure(mask) == jax.tree.structure(model)
    assert all(type(leaf) is bool for leaf in jax.tree.leaves(mask))
    paths = jax.tree_util.tree_leaves_with_path(mask)
    return {jax.tree_util.keystr(path) for path, is_weight in paths if is_weight}


WEIGHTS = {
    "hidden": {".patterns[0]", ".patterns[1]"},
    "memory": {".patterns[0]"},
    "convolution": {".kernel"},
    "convolution, pooled": {".kernel"},
    "attention": {".Wq", ".Wk"},
    "attention, masked": {".Wq", ".Wk"},
    "self-attention": {".Wq", ".Wk"},
    "bias": {".b"},
}


@pytest.mark.parametrize("name", SYNAPSES)
def test_synapses(name):
    assert selected(SYNAPSES[name]) == WEIGHTS.get(name, {".W"})


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    assert selected(LAYERS[name]) == (set() if LAYERS[name].bias is None else {".bias"})
    assert ".tau" in selected(LAYERS[name], also=["tau"])


@pytest.mark.parametrize("name", LAGRANGIANS)
def test_lagrangians_have_no_weights(name):
    assert selected(LAGRANGIANS[name]) == set()


def test_networks():
    biases = {".layers['x'].bias", ".layers['h'].bias"}
    assert selected(HAMS["pair"]) == {*biases, ".synapses['W'].W"}
    assert ".synapses['repulsion'].strength" in selected(HAMS["shared"])
    assert selected(NETWORKS["tanh and softmax"]) == {
        ".W",
        ".layers['a'].bias",
    }
    # The β of a user's own model is a weight, as nothing declares it otherwise; its τ is not.
    assert selected(NETWORKS["memory"]) == {".patterns", ".beta"}
    assert selected(NETWORKS["springs"]) == {".stiffness", ".centre"}


def test_what_has_no_derivative_is_no_weight():
    patterns, mask = jnp.ones((2, 3), jnp.int8), jnp.ones(2, bool)
    memory = hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax(), mask=mask)
    assert selected(memory) == set()
    with_bias = hl.HiddenSynapse.from_patterns(jnp.ones((2, 3)), hl.LSoftmax(), bias=jnp.ones(2))
    assert selected(with_bias) == {".patterns[0]", ".bias"}


def test_a_lagrangian_of_ones_own_has_no_weights():
    class Mine(eqx.Module):
        scale: jax.Array

        def __call__(self, x):
            return self.scale * jnp.sum(x**2) / 2

    layer = hl.Layer(Mine(jnp.asarray(2.0)), 3, bias=jnp.ones(3))
    assert selected(layer) == {".bias"}
    assert len(selected(layer, also=("lagrangian",))) == 2


def test_more_where_asked_for():
    ham = HAMS["pair"]
    more = selected(ham, also=("beta", "tau")) - selected(ham)
    assert more == {
        ".layers['h'].lagrangian.beta",
        ".layers['h'].tau",
        ".layers['x'].tau",
    }
    attention = SYNAPSES["attention"]
    of_hidden = selected(attention, also=("hidden_lagrangian",)) - selected(attention)
    assert of_hidden == {".hidden_lagrangian.beta"}


def test_errors():
    with pytest.raises(TypeError, match="pass \\('beta',\\)"):
        hl.trainable_weights(HAMS["pair"], also="beta")
    with pytest.raises(ValueError, match=r"no floating arrays in a field \['betta'\]"):
        hl.trainable_weights(HAMS["pair"], also=("betta", "tau"))
    with pytest.raises(ValueError, match="mask"):  # which has no derivative
        hl.trainable_weights(SYNAPSES["attention, masked"], also=("mask",))


def test_partition_and_masks_of_optax():
    ham = HAMS["pair"]
    weights, constants = eqx.partition(ham, hl.trainable_weights(ham))
    assert eqx.tree_equal(eqx.combine(weights, constants), ham)
    assert len(jax.tree.leaves(weights)) == 3

    # Weight decay alone, of everything and of the weights: gradients are 0.
    parameters = eqx.filter(ham, eqx.is_inexact_array)
    gradients = jax.tree.map(jnp.zeros_like, parameters)
    for mask in (hl.trainable_weights, hl.trainable_weights(ham)):
        decay = optax.add_decayed_weights(-0.5)
        optimizer = optax.masked(decay, mask)
        updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
        decayed = eqx.apply_updates(ham, updates)
        np.testing.assert_allclose(decayed.synapses["W"].W, 0.5 * ham.synapses["W"].W)
        np.testing.assert_allclose(decayed.layers["x"].bias, 0.5 * ham.layers["x"].bias)
        assert eqx.tree_equal(decayed.tau, ham.tau)
        assert eqx.tree_equal(decayed.layers["h"].lagrangian, ham.layers["h"].lagrangian)
