"""Synapses: their formulas, derivatives, masks, weights and errors."""

import math
import pickle
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hopfield_layers as hl
from hopfield_layers.synapses import base

from .compiling import program_text
from .instances import CAUSAL, soft_absolute, SYNAPSES


synapses = pytest.mark.parametrize("name", SYNAPSES)
KEY = jr.key(0)


def activations(synapse, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape)) for shape in synapse.shapes]


def relu(h):
    return np.sum(np.maximum(h, 0) ** 2) / 2


def lse(h, beta=1.0):
    return np.logaddexp.reduce(beta * h) / beta


def beta(synapse):
    return synapse.hidden_lagrangian.beta


def attention(s, gq, gk, value=None):
    """A by loops over heads and queries, with `value` of a row of scores instead of lse."""
    value = value or (lambda scores: lse(scores, beta(s)))
    gq, gk = gq.reshape(-1, gq.shape[-1]), gk.reshape(-1, gk.shape[-1])
    total = 0.0
    for head in range(s.Wq.shape[1]):
        for i, query in enumerate(gq):
            keys = gk if s.mask is None else gk[s.mask[i]]
            if len(keys):
                total += value((keys @ s.Wk[:, head]) @ (query @ s.Wq[:, head]))
    return total


def mixer(s, g1, g2):
    scores = [np.einsum("yzab,a,b->yz", s.W, a, b) for a, b in zip(g1, g2, strict=True)]
    return sum(lse(row, beta(s)) for row in np.sum(scores, axis=0))


def convolve(g, kernel, strides, pads):
    """By loops over the output."""
    g = np.pad(g, [*pads, (0, 0)])
    size = kernel.shape[:-2]
    counts = [(n - k) // s + 1 for n, k, s in zip(g.shape, size, strides, strict=False)]
    out = np.zeros((*counts, kernel.shape[-1]))
    for i in np.ndindex(*counts):
        window = tuple(slice(j * s, j * s + k) for j, s, k in zip(i, strides, size, strict=True))
        out[i] = np.tensordot(g[window], kernel, kernel.ndim - 1)
    return out


def pooled(out, window, strides, reduce):
    counts = [(n - w) // s + 1 for n, w, s in zip(out.shape, window, strides, strict=False)]
    result = np.zeros((*counts, out.shape[-1]))
    for i in np.ndindex(*counts):
        part = tuple(slice(j * s, j * s + w) for j, s, w in zip(i, strides, window, strict=True))
        result[i] = reduce(out[part].reshape(-1, out.shape[-1]), axis=0)
    return result


def same(shape, size, strides):
    """The padding that keeps the size, up to strides; an odd one pads more at the end."""
    totals = [
        max((math.ceil(n / s) - 1) * s + k - n, 0)
        for n, k, s in zip(shape, size, strides, strict=False)
    ]
    return [(t // 2, t - t // 2) for t in totals]


def pooled_convolution(s, g1, g2):
    out = convolve(g1, s.kernel, (1, 1), [(0, 1), (1, 1)])
    return np.sum(g2 * pooled(out, (2, 2), (2, 2), np.max))


# Of each synapse, in numpy; given the synapse with numpy arrays in it.
FORMULAS = {
    "dense, one layer": lambda s, g: s.W @ g.ravel(),
    "dense": lambda s, g1, g2: g1.ravel() @ s.W @ g2,
    "dense, three layers": lambda s, *g: np.einsum("ijk,i,j,k", s.W, g[0], g[1].ravel(), g[2]),
    "hidden": lambda s, g1, g2: relu(g1.ravel() @ s.Ws[0] + g2 @ s.Ws[1]),
    "memory": lambda s, g: lse(s.Ws[0].T @ g.ravel(), beta(s)),
    "hidden tensor": lambda s, g1, g2: sum(
        lse(h, beta(s)) for h in np.einsum("yzij,i,j->yz", s.W, g1.ravel(), g2)
    ),
    "convolution": lambda s, g1, g2: np.sum(g2 * convolve(g1, s.kernel, (1, 1), [(1, 1)] * 2)),
    "convolution, pooled": pooled_convolution,
    "attention": lambda s, gq, gk: attention(s, gq, gk),
    "attention, masked": lambda s, gq, gk: attention(s, gq, gk),
    "self-attention": lambda s, g: attention(s, g, g),
    "mixer": lambda s, g1, g2: mixer(s, g1, g2),
    "bias": lambda s, g: np.sum(s.b * g),
}


@synapses
def test_formula_and_derivatives(name):
    # Against central differences: of the formula in numpy, and of its gradient for the curvature.
    synapse, formula = SYNAPSES[name], FORMULAS[name]
    floats, rest = eqx.partition((synapse, activations(synapse)), eqx.is_inexact_array)
    flat, unravel = ravel_pytree(floats)

    def energy(flat):
        synapse, gs = eqx.combine(unravel(flat), rest)
        return synapse.energy(*gs)

    def expected(flat):
        synapse, gs = jax.tree.map(np.asarray, eqx.combine(unravel(flat), rest))
        return -formula(synapse, *gs)

    @jax.jit
    def derivatives(flat, direction):
        gradient, curvature = jax.jvp(jax.grad(energy), (flat,), (direction,))
        return energy(flat), gradient, curvature

    direction = jnp.asarray(np.random.default_rng(1).normal(size=flat.shape))
    value, gradient, curvature = derivatives(flat, direction)
    np.testing.assert_allclose(value, expected(flat), rtol=1e-12)
    steps = 1e-5 * np.eye(flat.size)
    differences = [(expected(flat + h) - expected(flat - h)) / 2e-5 for h in steps]
    np.testing.assert_allclose(gradient, differences, rtol=1e-7, atol=1e-8)
    up, down = (derivatives(flat + h * direction, direction)[1] for h in (1e-5, -1e-5))
    np.testing.assert_allclose(curvature, (up - down) / 2e-5, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["hidden", "attention"])
def test_any_axis_and_a_callable_mean_the_same(kind):
    def make(lagrangian):
        if kind == "hidden":
            options = {"key": jr.key(1), "stdinit": 0.8, "hidden_lagrangian": lagrangian}
            return hl.HiddenSynapse([3], 4, **options)
        options = {"key": jr.key(1), "num_heads": 2, "zspace_dim": 4, "stdinit": 0.8}
        return hl.SelfAttentionSynapse((2, 3), hidden_lagrangian=lagrangian, **options)

    lagrangians = [hl.LSoftmax(), hl.LSoftmax(axis=0), lambda h: jax.nn.logsumexp(h)]
    gs = activations(make(hl.LSoftmax()))
    run = eqx.filter_jit(lambda synapse, g: jax.value_and_grad(synapse.energy)(g))
    (value, gradient), *others = (run(make(lagrangian), *gs) for lagrangian in lagrangians)
    for other, other_gradient in others:
        np.testing.assert_allclose(other, value, rtol=1e-13)
        np.testing.assert_allclose(other_gradient, gradient, rtol=1e-12)
    with pytest.raises(ValueError, match="acts along axis 1"):
        make(hl.LSoftmax(axis=1))


def test_a_function_that_closes_over_its_parameter():
    def energy(beta):
        lagrangian = lambda h: jax.nn.logsumexp(beta * h) / beta
        memory = hl.HiddenSynapse.from_patterns(jnp.eye(3), lagrangian)
        return memory.energy(jnp.arange(3.0))

    step = 1e-5
    difference = (-lse(np.arange(3.0), 2 + step) + lse(np.arange(3.0), 2 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(energy))(2.0), difference, rtol=1e-8)


def test_a_lagrangian_of_coupled_units_acts_on_each_row():
    # The rows of a layer norm are a head's keys of one query, and of no other.
    synapse = hl.SelfAttentionSynapse(
        (4, 3),
        key=KEY,
        num_heads=2,
        zspace_dim=2,
        stdinit=1.0,
        hidden_lagrangian=hl.LLayerNorm(),
    )
    (g,) = activations(synapse)
    Q, K = (np.einsum("nd,dhz->hnz", g, W) for W in (synapse.Wq, synapse.Wk))
    S = np.einsum("hqz,hkz->hqk", Q, K)
    expected = 4 * np.sum(np.sqrt(np.var(S, axis=-1) + 1e-5))
    np.testing.assert_allclose(synapse.alignment(g), expected, rtol=1e-12)


def sparsemax(h):
    """max p·h − (‖p‖² − 1)/2 over the simplex, by sorting."""
    ordered = np.sort(h)[::-1]
    thresholds = (np.cumsum(ordered) - 1) / np.arange(1, len(h) + 1)
    p = np.maximum(h - thresholds[ordered > thresholds][-1], 0)
    return p @ h - (p @ p - 1) / 2


MASKABLE = {
    "softmax": (hl.LSoftmax(), lse),
    "ghostmax": (hl.LGhostmax(), lambda h: lse(np.append(h, 0.0))),
    "sparsemax": (hl.LSparsemax(), sparsemax),
    "relu": (hl.LRelu(), relu),
    "exp": (hl.LExp(), lambda h: np.sum(np.exp(h))),
}


@eqx.filter_jit
@eqx.filter_value_and_grad
def aligned(arguments):
    synapse, gs = arguments
    return synapse.alignment(*gs)


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, np.float64) for name in MASKABLE), ("softmax", np.float32)]
)
def test_a_masked_pair_is_left_out(name, dtype):
    lagrangian, value = MASKABLE[name]
    gs = [g.astype(dtype) for g in activations(SYNAPSES["attention, masked"])]
    # Also for scores of very different sizes.
    for stdinit in (0.7, 0.5 if name == "exp" else 1e3):
        synapse = hl.AttentionSynapse(
            [(4, 3), (5, 4)],
            key=jr.key(2),
            num_heads=2,
            zspace_dim=3,
            stdinit=stdinit,
            mask=CAUSAL,
            hidden_lagrangian=lagrangian,
        )
        A, gradients = aligned((synapse, gs))
        plain, *plain_gs = jax.tree.map(np.asarray, (synapse, *gs))
        rtol = 1e-5 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(A, attention(plain, *plain_gs, value=value), rtol=rtol)
        for leaf in jax.tree.leaves(eqx.filter(gradients, eqx.is_inexact_array)):
            assert jnp.all(jnp.isfinite(leaf))
        to_queries, to_keys = gradients[1]
        assert not jnp.any(to_queries[0])  # has no key
        assert not jnp.any(to_keys[3:])  # have no query
        assert jnp.any(to_queries[2]) or name == "relu"
        assert jnp.any(to_keys[1])


def test_bad_masks():
    def make(mask, **kwargs):
        return hl.SelfAttentionSynapse((4, 3), key=KEY, mask=mask, **kwargs)

    with pytest.raises(ValueError, match=r"boolean mask of shape \(4, 4\).*got bool\[4, 5\]"):
        make(CAUSAL)
    with pytest.raises(ValueError, match=r"boolean mask of shape \(4, 4\).*got int"):
        make(np.ones((4, 4), int))
    for lagrangian in (hl.LLayerNorm(), soft_absolute):
        with pytest.raises(ValueError, match="that can leave a unit out"):
            make(np.ones((4, 4), bool), hidden_lagrangian=lagrangian)


@synapses
def test_results_have_the_dtype_of_the_activations(name):
    synapse = SYNAPSES[name]
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        gs = [jax.ShapeDtypeStruct(shape, dtype) for shape in synapse.shapes]
        value, gradient = jax.eval_shape(lambda *gs: jax.value_and_grad(synapse.energy)(*gs), *gs)
        assert value.dtype == gradient.dtype == dtype


def test_pure_energies_convert_nothing(monkeypatch):
    class Own(hl.AbstractSynapse):
        def alignment(self, g1, g2):
            return jnp.sum(g1 * g2)

    gs = jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0])
    dense = hl.DenseSynapse([2, 2], W=jnp.eye(2))
    energies = [synapse.energy(*gs) for synapse in (dense, Own())]
    monkeypatch.delattr(base, "as_float")
    assert energies == [base.pure_energy(synapse)(*gs) for synapse in (dense, Own())] == [-7.0] * 2


@pytest.mark.parametrize("name", ["dense", "attention, masked", "convolution, pooled"])
def test_computed_in_single_precision_at_least(name):
    # Only the result is rounded.
    synapse = SYNAPSES[name]
    gs = [g.astype(jnp.float16) for g in activations(synapse)]
    alignment = eqx.filter_jit(synapse.alignment)
    result, wide = alignment(*gs), alignment(*(g.astype(jnp.float64) for g in gs))
    assert abs(float(result) - float(wide)) <= 2.0**-11 * abs(float(wide)) + 1e-5


CONVOLUTIONS = {
    "1-D": ((9, 2), (3, 3), {"kernel_size": 4, "strides": 3, "padding": "SAME"}),
    "1-D, valid": ((9, 2), (6, 3), {"kernel_size": (4,), "padding": "VALID"}),
    "2-D": ((7, 6, 2), (4, 6, 1), {"kernel_size": (3, 2), "strides": (2, 1)}),
    "2-D, padded": ((4, 5, 1), (6, 4, 2), {"kernel_size": 2, "padding": [(1, 2), (0, 0)]}),
    "3-D": ((3, 4, 3, 2), (2, 2, 2, 2), {"kernel_size": 3, "strides": 2}),
    "1-D, pooled": ((9, 2), (4, 3), {"kernel_size": 3, "pool": "max"}),
    "2-D, pooled": (
        (6, 7, 2),
        (4, 3, 2),
        {"kernel_size": 3, "pool": "avg", "pool_window": 3, "pool_strides": (1, 2)},
    ),
    "3-D, pooled": (
        (4, 4, 5, 1),
        (2, 4, 1, 2),
        {"kernel_size": 2, "pool": "max", "pool_window": (2, 1, 3)},
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    first, second, options = CONVOLUTIONS[name]
    synapse = hl.ConvSynapse([first, second], key=KEY, stdinit=1.0, **options)
    g1, g2 = activations(synapse)
    space = len(first) - 1
    strides = np.broadcast_to(options.get("strides", 1), space)
    padding = options.get("padding", "SAME")
    pads = same(first, synapse.kernel.shape[:-2], strides) if padding == "SAME" else padding
    pads = [(0, 0)] * space if padding == "VALID" else pads
    out = convolve(np.asarray(g1), np.asarray(synapse.kernel), strides, pads)
    if "pool" in options:
        window = np.broadcast_to(options.get("pool_window", 2), space)
        steps = np.broadcast_to(options.get("pool_strides", window), space)
        out = pooled(out, window, steps, {"max": np.max, "avg": np.mean}[options["pool"]])
    assert out.shape == second
    result = jax.jit(lambda *gs: jax.grad(synapse.alignment, 1)(*gs))(g1, g2)
    np.testing.assert_allclose(result, out, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match=re.escape(f"second layer of the shape {second}")):
        hl.ConvSynapse([first, (*second[:-2], 9, second[-1])], key=KEY, **options)


# How many matrix products or convolutions one gradient of the energy takes: forward, then
# backward for each of the activations.
PRODUCTS = {
    "dense": ("dot", 2),
    "hidden": ("dot", 4),
    "memory": ("dot", 2),
    "attention": ("dot", 7),
    "convolution": ("convolution", 2),
}


@pytest.mark.parametrize(
    ("name", "batch"), [*((name, (3,)) for name in PRODUCTS), ("dense", ()), ("convolution", ())]
)
def test_compiles_to_products(name, batch):
    synapse = SYNAPSES[name]
    operation, count = PRODUCTS[name]
    argnums = tuple(range(len(synapse.shapes)))

    def gradient(synapse, *gs):
        fn = jax.grad(synapse.energy, argnums)
        return (jax.vmap(fn) if batch else fn)(*gs)

    gs = [jax.ShapeDtypeStruct((*batch, *shape), jnp.float32) for shape in synapse.shapes]
    text = program_text(jax.jit(gradient).lower(synapse, *gs).compile())
    assert text.count(f" {operation}(") == count, text
    assert " while(" not in text


def test_weights_instead_of_a_key():
    W, shapes = jr.normal(KEY, (2, 3)), [(2, 3), (5, 4)]
    Wq, Wk = jnp.ones((3, 2, 7)), jnp.ones((4, 2, 7))
    given = {
        "W": hl.DenseSynapse([2, 3], W=W),
        "Ws": hl.HiddenSynapse([2, 3], 4, Ws=[jnp.ones((2, 4)), jnp.ones((3, 4))]),
        "Wq": hl.AttentionSynapse(shapes, Wq=Wq, Wk=Wk, num_heads=2, zspace_dim=7),
        "kernel": hl.ConvSynapse([(4, 2), (4, 3)], 3, kernel=jnp.ones((3, 2, 3))),
        "b": hl.BiasSynapse((2, 3), b=W),
    }
    for name, synapse in given.items():
        assert getattr(synapse, name) is not None
        assert jax.eval_shape(synapse.energy, *activations(synapse)).shape == ()
    assert hl.DenseSynapse([2], W=np.array([1, 2])).W.dtype == jnp.float64
    for std in (0.02, 3.0):
        drawn = hl.DenseSynapse([100, 100], key=KEY, stdinit=std).W
        assert abs(jnp.std(drawn) / std - 1) < 0.05
    drawn = hl.AttentionSynapse([(2, 9)] * 2, key=KEY)
    assert not jnp.any(drawn.Wq == drawn.Wk)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hl.DenseSynapse([2, 3]), "either a key or W, got no W"),
        (lambda: hl.DenseSynapse([2], key=KEY, W=jnp.ones(2)), "either a key or W, got both"),
        (lambda: hl.DenseSynapse([2, 3], W=jnp.ones((3, 2))), r"\(2, 3\), got \(3, 2\)"),
        (lambda: hl.DenseSynapse(3, key=KEY), "tuple of shapes, one per layer, got 3"),  # pyright: ignore[reportArgumentType]
        (lambda: hl.DenseSynapse([], key=KEY), r"tuple of shapes, one per layer, got \[\]"),
        (lambda: hl.DenseSynapse(["x"], key=KEY), "integers ≥ 0, got 'x'"),  # pyright: ignore[reportArgumentType]
        (lambda: hl.HiddenSynapse([2, 3], 4), r"either a key or Ws\[0\] and Ws\[1\]"),
        (lambda: hl.HiddenSynapse([2, 3], 4, Ws=[jnp.ones((2, 4))]), "Ws for 2 layers, got 1"),
        (
            lambda: hl.HiddenSynapse([2, 3], 4, Ws=[jnp.ones((2, 4)), jnp.ones((4, 3))]),
            r"Ws\[1\] of shape \(3, 4\), got \(4, 3\)",
        ),
        (lambda: hl.HiddenSynapse([2], -1, key=KEY), "integers ≥ 0, got -1"),
        (
            lambda: hl.HiddenSynapse([2], 0, key=KEY, hidden_lagrangian=hl.LSoftmax()),
            "at least one unit",
        ),
        (
            lambda: hl.HiddenTensorSynapse([2], 3, W=jnp.ones((3, 2))),
            r"W of shape \(1, 3, 2\), got \(3, 2\)",
        ),
        (lambda: hl.MixerSynapse([(5, 2)], key=KEY), "tuple of shapes, 2 of them"),
        (lambda: hl.MixerSynapse([(5, 2), (4, 2)], key=KEY), "two layers of the same tokens"),
        (lambda: hl.MixerSynapse([(5, 2), ()], key=KEY), "one axis at least"),
        (
            lambda: hl.AttentionSynapse([(5, 2), (4, 2)], Wq=jnp.ones((2, 1, 64))),
            "either a key or Wq and Wk, got no Wk",
        ),
        (
            lambda: hl.SelfAttentionSynapse((5, 2), Wq=jnp.ones((2, 8)), Wk=jnp.ones((2, 1, 64))),
            r"Wq of shape \(2, 1, 64\), got \(2, 8\)",
        ),
        (lambda: hl.SelfAttentionSynapse((), key=KEY), "one axis at least"),
        (lambda: hl.BiasSynapse(3, b=jnp.ones(4)), r"b of shape \(3,\), got \(4,\)"),
        (lambda: hl.ConvSynapse([(4, 1), (4, 4, 1)], 3, key=KEY), r"shapes \(\*space, channels\)"),
        (lambda: hl.ConvSynapse([4, 4], 3, key=KEY), r"shapes \(\*space, channels\)"),
        (lambda: hl.ConvSynapse([(4, 1)] * 2, (3, 3), key=KEY), "kernel_size of 1 sizes"),
        (lambda: hl.ConvSynapse([(4, 1)] * 2, 0, key=KEY), "kernel_size .* greater than 0, got 0"),
        (lambda: hl.ConvSynapse([(4, 1)] * 2, 3, key=KEY, strides=0), "strides .* got 0"),
        (lambda: hl.ConvSynapse([(4, 1)] * 2, 3, key=KEY, padding="same"), "padding .* got 'same'"),  # pyright: ignore[reportArgumentType]
        (lambda: hl.ConvSynapse([(4, 1)] * 2, 3, key=KEY, padding=[1]), "padding .* got"),  # pyright: ignore[reportArgumentType]
        (lambda: hl.ConvSynapse([(4, 1)] * 2, 3, key=KEY, pool="sum"), "pool to be .* got 'sum'"),  # pyright: ignore[reportArgumentType]
        (lambda: hl.ConvSynapse([(4, 1)] * 2, 3, key=KEY, pool_window=2), 'need pool="avg"'),
        (
            lambda: hl.ConvSynapse([(4, 1)] * 2, 3, kernel=jnp.ones((3, 1))),
            r"kernel of shape \(3, 1, 1\), got \(3, 1\)",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_activations():
    synapse = SYNAPSES["dense"]
    for gs in ([jnp.ones((2, 3))], [jnp.ones((2, 3)), jnp.ones(5)], [jnp.ones((7, 2, 3))] * 2):
        with pytest.raises(ValueError, match=r"expected .* \(\(2, 3\), \(4,\)\), got"):
            synapse.alignment(*gs)
    with pytest.raises(TypeError, match="real numbers, got complex"):
        synapse.alignment(jnp.ones((2, 3)), jnp.ones(4, complex))
    with pytest.raises(TypeError, match="real numbers, got complex"):
        hl.DenseSynapse([2], W=jnp.ones(2, complex))


def test_layers_without_units():
    empty = [
        hl.DenseSynapse([0, 3], key=KEY),
        hl.HiddenSynapse([(2, 0)], 3, key=KEY),
        hl.HiddenSynapse([2], 0, key=KEY),
        hl.HiddenTensorSynapse([0, 3], 2, key=KEY),
        hl.MixerSynapse([(0, 2)] * 2, key=KEY, hidden_lagrangian=hl.LRelu()),
        hl.AttentionSynapse([(0, 2), (3, 2)], key=KEY),
        hl.AttentionSynapse([(3, 2), (3, 0)], key=KEY, num_heads=0),
        hl.BiasSynapse((0, 2), key=KEY),
        hl.ConvSynapse([(4, 0), (4, 2)], 3, key=KEY),
    ]
    states = [activations(synapse) for synapse in empty]
    energies = jax.jit(lambda gs: [s.energy(*g) for s, g in zip(empty, gs, strict=True)])(states)
    np.testing.assert_array_equal(energies, np.zeros(len(empty)))
    with pytest.raises(ValueError, match="at least one unit"):
        hl.AttentionSynapse([(3, 2), (0, 2)], key=KEY)


@synapses
def test_transformations_change_nothing(name, tmp_path):
    synapse = SYNAPSES[name]
    leaves, structure = jax.tree.flatten(synapse)
    eqx.tree_serialise_leaves(tmp_path / "synapse.eqx", synapse)
    blank = jax.tree.map(jnp.zeros_like, synapse)
    for copy in (
        jax.tree.unflatten(structure, leaves),
        pickle.loads(pickle.dumps(synapse)),
        eqx.tree_deserialise_leaves(tmp_path / "synapse.eqx", blank),
    ):
        assert eqx.tree_equal(copy, synapse)
        assert repr(copy).startswith(f"{type(synapse).__name__}(")


def test_given_weights_have_their_own_numbers_of_heads_and_units():
    Wq, Wk = jnp.ones((3, 2, 5)), jnp.ones((4, 2, 5))
    assert hl.AttentionSynapse([(2, 3), (6, 4)], Wq=Wq, Wk=Wk).Wq.shape == (3, 2, 5)
    assert hl.SelfAttentionSynapse((2, 3), Wq=Wq, Wk=Wq).Wk.shape == (3, 2, 5)
    assert hl.MixerSynapse([(6, 2), (6, 3)], W=jnp.ones((4, 5, 2, 3))).W.shape == (4, 5, 2, 3)
    tensor = hl.HiddenTensorSynapse([2, 3], 7, W=jnp.ones((4, 7, 2, 3)))
    assert tensor.W.shape == (4, 7, 2, 3)
    with pytest.raises(ValueError, match=r"Wq of shape \(3, 3, 5\), got \(3, 2, 5\)"):
        hl.AttentionSynapse([(2, 3), (6, 4)], num_heads=3, Wq=Wq, Wk=Wk)
