"""Memories: blocks of patterns, biases and masks, narrow dtypes, and temporary memory."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import mpmath
import numpy as np
import pytest

import hopfield_layers as hl
from hopfield_layers._numerics import streaming
from hopfield_layers.lagrangians import value_of_scores
from hopfield_layers.testing import energy_bound

from .compiling import compiled, temporary_bytes


KEY = jr.key(0)


class LQuartic(hl.AbstractLagrangian):
    """A user's own Lagrangian with a term per unit."""

    c: jax.Array

    def __call__(self, x):
        return jnp.sum(self.c * x**4) / 4

    def activation(self, x):
        return self.c * x**3

    def energy(self, x):
        return 3 * jnp.sum(self.c * x**4) / 4

    def coupled_axes(self, ndim):
        return ()


LAGRANGIANS = {
    "softmax": hl.LSoftmax(beta=1.3),
    "ghostmax": hl.LGhostmax(beta=0.7),
    "sparsemax": hl.LSparsemax(beta=0.3),
    "entmax": hl.LEntmax(beta=0.6, alpha=1.5),
    "entmax above 2": hl.LEntmax(beta=0.6, alpha=2.5),
    "ReLU": hl.LRelu(),
    "sigmoid": hl.LSigmoid(beta=0.5, scale=2.0),
    "a user's": LQuartic(jnp.array(0.7)),
}
UNSTREAMED = {"norm": hl.LLayerNorm(), "callable": hl.as_lagrangian(lambda h: jnp.sum(jnp.exp(h)))}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "SMALLEST_BLOCK", 8)
    monkeypatch.setattr(streaming, "LARGEST_BLOCK", 8)
    monkeypatch.setattr(streaming, "FEW_SCORES", 0)
    monkeypatch.setattr(value_of_scores, "_STATES_OF_SCORES", 0)


def derivatives(alignment, synapse, gs):
    """A, ∂A/∂g, and the gradient of ‖∂A/∂g‖² with respect to the synapse and g."""
    slopes = jax.grad(alignment, 1)
    squares = lambda *both: sum(jnp.sum(slope**2) for slope in slopes(*both))
    first = eqx.filter_grad(lambda synapse: alignment(synapse, gs))(synapse)
    second = eqx.filter_grad(lambda both: squares(*both))((synapse, gs))
    return alignment(synapse, gs), slopes(synapse, gs), first, second


def streamed(synapse, gs):
    return synapse.alignment(*gs)


def formed(synapse, gs):
    """The alignment by its formula."""
    products = [jnp.tensordot(xi, g, g.ndim) for xi, g in zip(synapse.patterns, gs, strict=True)]
    h = jnp.sum(jnp.stack(products), axis=0)
    h = h if synapse.bias is None else h + synapse.bias
    return synapse.hidden_lagrangian(h if synapse.mask is None else h[np.asarray(synapse.mask)])


def example(lagrangian, count, masked):
    """A memory of two layers, and activations."""
    keys = jr.split(KEY, 6)
    patterns = (jr.normal(keys[0], (count, 2, 3)), jr.normal(keys[1], (count, 4)))
    options = {"bias": jr.normal(keys[2], (count,))} if masked else {}
    options |= {"mask": jr.bernoulli(keys[3], 0.7, (count,))} if masked else {}
    memory = hl.HiddenSynapse.from_patterns(patterns, lagrangian, **options)
    return memory, (jr.normal(keys[4], (2, 3)), jr.normal(keys[5], (4,)))


def assert_close(one, other, tolerance=1e-10):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    for a, b in pairs:
        scale = np.max(np.abs(b), initial=1.0)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


# 29 patterns are in 4 blocks that overlap, 24 in 3 that don't.
@pytest.mark.parametrize(("count", "masked"), [(29, True), (24, False)])
@pytest.mark.parametrize("name", [*LAGRANGIANS, *UNSTREAMED])
def test_blocks_of_patterns_are_all_patterns(name, count, masked, small_blocks):
    if name in UNSTREAMED and masked:
        return
    synapse, gs = example({**LAGRANGIANS, **UNSTREAMED}[name], count, masked)
    results = []
    for alignment in (streamed, formed):
        # The mask is closed over, as `formed` needs its values.
        run = jax.jit(
            lambda patterns, gs, alignment=alignment: derivatives(
                alignment, eqx.tree_at(lambda s: s.patterns, synapse, patterns), gs
            )
        )
        results.append(run(synapse.patterns, gs))
    assert_close(*results)


@pytest.mark.parametrize("axes", [(None, None), (0, None), (None, 0)])
@pytest.mark.parametrize("name", ["softmax", "sparsemax", "ReLU"])
def test_a_batch_is_each_sample_alone(name, axes, small_blocks):
    # 2 by 5 samples. The outer vmap or the inner one maps over the patterns of an ensemble.
    synapse, gs = example(LAGRANGIANS[name], 19, True)
    gs = [
        jnp.stack([jnp.stack([g * (1 + i + j / 5) for j in range(5)]) for i in range(2)])
        for g in gs
    ]
    sizes = [size for size, axis in zip((2, 5), axes, strict=True) if axis == 0]
    scale = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2.0, size=sizes))
    patterns = [jnp.multiply.outer(scale, xi) for xi in synapse.patterns]

    def run(patterns, gs):
        return derivatives(
            streamed, eqx.tree_at(lambda s: s.patterns, synapse, tuple(patterns)), gs
        )

    together = jax.jit(jax.vmap(jax.vmap(run, (axes[1], 0)), (axes[0], 0)))(patterns, gs)
    alone = jax.jit(run)
    for i, j in np.ndindex(2, 5):
        own = tuple(k for k, axis in zip((i, j), axes, strict=True) if axis == 0)
        expected = alone([xi[own] for xi in patterns], [g[i, j] for g in gs])
        assert_close(jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], together), expected)


def test_the_gradient_of_a_batch_is_the_sum_over_its_samples(small_blocks):
    synapse, gs = example(LAGRANGIANS["softmax"], 19, False)
    batch = [jnp.stack([g, 2 * g, -g]) for g in gs]

    def total(patterns, gs):
        memory = eqx.tree_at(lambda s: s.patterns, synapse, patterns)
        return jnp.sum(jax.vmap(memory.alignment)(*gs) ** 2)

    together = jax.jit(jax.grad(total))(synapse.patterns, batch)
    one = jax.jit(jax.grad(total))
    each = [one(synapse.patterns, [g[i : i + 1] for g in batch]) for i in range(3)]
    assert_close(together, jax.tree.map(lambda *parts: sum(parts), *each))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_hundred_thousand_patterns_against_mpmath(dtype):
    # A bias alone decides the scores, and so has no rounding of its own.
    rng = np.random.default_rng(0)
    for offset, spread in ((0.0, 3.0), (1e6, 1.0), (0.0, 60.0), (-5.0, 0.01)):
        bias = (offset + spread * np.round(rng.normal(size=100_000), 2)).astype(dtype)
        patterns = jnp.asarray(rng.normal(size=(100_000, 2)), dtype)
        for ghost, lagrangian in ((False, hl.LSoftmax(beta=1.3)), (True, hl.LGhostmax(beta=1.3))):
            memory = hl.HiddenSynapse.from_patterns(patterns, lagrangian, bias=bias)
            zero = jnp.zeros(2, dtype)
            value, slope = jax.jit(jax.value_and_grad(memory.alignment))(zero)
            beta = mpmath.mpf(float(jnp.asarray(lagrangian.beta, dtype)))
            largest = max(float(bias.max()), 0.0) if ghost else float(bias.max())
            with mpmath.workdps(40):
                unique, index = np.unique(bias, return_inverse=True)
                weights = [mpmath.exp(beta * (float(h) - largest)) for h in unique]
                counts = np.bincount(index)
                total = mpmath.fsum(w * int(n) for w, n in zip(weights, counts, strict=True))
                total += mpmath.exp(-beta * largest) if ghost else 0
                exact = largest + mpmath.log(total) / beta
                sums = [np.bincount(index, np.asarray(xi, float)) for xi in np.asarray(patterns).T]
                slopes = [
                    float(mpmath.fsum(w * s for w, s in zip(weights, column, strict=True)) / total)
                    for column in sums
                ]
            eps = float(jnp.finfo(dtype).eps)
            condition = max(abs(float(exact)), float(jnp.max(jnp.abs(bias))) / 100)
            assert abs(float(value) - float(exact)) <= 4 * eps * condition
            np.testing.assert_allclose(slope, slopes, rtol=0, atol=40 * eps)


def test_few_scores_are_one_block():
    patterns, x = jr.normal(KEY, (1200, 4)), jr.normal(jr.key(1), (5, 4))
    memory = hl.HiddenSynapse.from_patterns(patterns, LAGRANGIANS["softmax"])

    def loops(fn, x):
        program = jax.jit(jax.vmap(fn)).lower(x).compile()
        return program(x), " while(" in str(program.as_text())

    for fn in (memory.alignment, jax.grad(memory.alignment), jax.hessian(memory.alignment)):
        many, has_loop = loops(fn, jnp.tile(x, (20, 1)))
        assert has_loop
        few, has_loop = loops(fn, x)
        assert not has_loop
        np.testing.assert_allclose(few, many[:5], rtol=1e-12)


@pytest.mark.parametrize("name", LAGRANGIANS)
def test_a_mask_leaves_units_out_whatever_they_hold(name, small_blocks):
    rng = np.random.default_rng(0)
    stored, x = jnp.asarray(rng.normal(size=(7, 4))), jnp.asarray(rng.normal(size=(3, 4)))
    run = jax.jit(lambda memory, x: jax.vmap(jax.value_and_grad(memory.alignment))(x))
    few = run(hl.HiddenSynapse.from_patterns(stored, LAGRANGIANS[name]), x)
    for fill in (0.0, 1e30, jnp.nan):
        slots = jnp.full((40, 4), fill).at[np.arange(7) * 5].set(stored)
        mask = jnp.zeros(40, bool).at[np.arange(7) * 5].set(True)
        many = hl.HiddenSynapse.from_patterns(slots, LAGRANGIANS[name], mask=mask)
        assert_close(few, run(many, x))


@pytest.mark.parametrize("count", [5, 40])
def test_a_memory_of_nothing(count, small_blocks):
    x = jnp.ones(3)
    for lagrangian in LAGRANGIANS.values():
        patterns, mask = jnp.full((count, 3), jnp.nan), jnp.zeros(count, bool)
        memory = hl.HiddenSynapse.from_patterns(patterns, lagrangian, mask=mask)
        value, slope = jax.jit(jax.value_and_grad(memory.alignment))(x)
        assert value == 0
        assert not jnp.any(slope)


def test_a_growing_memory_compiles_once():
    rng = np.random.default_rng(0)
    stored = rng.normal(size=(100, 8)).astype(np.float32)
    traces = []

    @eqx.filter_jit
    def retrieve(memory, x):
        traces.append(None)
        ham = hl.HAM({"x": hl.IdentityLayer(8)}, {"m": memory}, [(("x",), "m")])
        return ham.dEdg({"x": x})["x"]

    @jax.jit
    def written(patterns, mask, slot, pattern):
        traces.append(None)
        return patterns.at[slot].set(pattern), mask.at[slot].set(True)

    memory = hl.HiddenSynapse.from_patterns(
        jnp.zeros((10_000, 8), jnp.float32), hl.LSoftmax(beta=3.0), mask=jnp.zeros(10_000, bool)
    )
    x = jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)
    for slot, pattern in enumerate(stored):
        patterns, mask = written(memory.patterns[0], memory.mask, 97 * slot, pattern)
        memory = eqx.tree_at(lambda m: (m.patterns[0], m.mask), memory, (patterns, mask))
        retrieve(memory, x)
    assert len(traces) == 2
    small = hl.HiddenSynapse.from_patterns(stored, hl.LSoftmax(beta=3.0))
    np.testing.assert_allclose(retrieve(memory, x), retrieve(small, x), rtol=1e-5, atol=1e-6)


def test_the_euclidean_memory():
    rng = np.random.default_rng(0)
    patterns, x, beta = rng.normal(size=(6, 3)), rng.normal(size=(4, 3)), 2.0
    bias = -np.sum(patterns**2, axis=-1) / 2
    memory = hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax(beta=beta), bias=bias)
    ham = hl.HAM({"x": hl.IdentityLayer(3)}, {"m": memory}, [(("x",), "m")])
    distances = np.sum((x[:, None] - patterns) ** 2, axis=-1)
    expected = -np.log(np.sum(np.exp(-beta * distances / 2), axis=-1)) / beta
    np.testing.assert_allclose(ham.energy({"x": x}), expected, rtol=1e-12)


NARROW = [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.int8, jnp.uint8]


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_patterns_stay_narrow(dtype, tmp_path):
    rng = np.random.default_rng(0)
    low = 0 if dtype == jnp.uint8 else -3
    wide = jnp.asarray(rng.integers(low, 4, size=(3000, 16)), jnp.float32)
    narrow, exact = (
        hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax(beta=0.3))
        for patterns in (wide.astype(dtype), wide)
    )
    assert narrow.patterns[0].dtype == dtype
    x = jnp.asarray(rng.normal(size=(4, 16)), jnp.float32)
    value, slope = (jax.vmap(jax.value_and_grad(m.alignment))(x) for m in (narrow, exact))
    assert value[0].dtype == value[1].dtype == jnp.float32
    assert_close(value, slope, 1e-6)
    path = tmp_path / "memory.eqx"
    eqx.tree_serialise_leaves(path, narrow)
    if dtype != jnp.float8_e4m3fn:  # which Equinox writes and doesn't read
        loaded = eqx.tree_deserialise_leaves(path, narrow)
        np.testing.assert_array_equal(loaded.patterns[0], narrow.patterns[0])
    assert path.stat().st_size < 3000 * 16 * (jnp.dtype(dtype).itemsize + 0.1)

    def total(memory):
        return jnp.sum(jax.vmap(memory.alignment)(x))

    gradient = eqx.filter_grad(total)(narrow).patterns[0]
    if jnp.issubdtype(dtype, jnp.integer):
        assert gradient is None
        with pytest.raises(TypeError, match="int8"):
            jax.grad(lambda p: total(eqx.tree_at(lambda m: m.patterns[0], narrow, p)))(
                narrow.patterns[0]
            )
    else:
        expected = eqx.filter_grad(total)(exact).patterns[0].astype(dtype).astype(jnp.float32)
        eps = float(jnp.finfo(dtype).eps)
        tiny = float(jnp.finfo(dtype).smallest_subnormal)
        np.testing.assert_allclose(gradient.astype(jnp.float32), expected, rtol=2 * eps, atol=tiny)
    # No wide copy of the patterns is made.
    many = jax.ShapeDtypeStruct((100_000, 16), dtype)
    assert temporary_bytes(compiled(drive(hl.LSoftmax()), many, x)) < 0.1 * 100_000 * 16


def test_patterns_are_not_copied():
    patterns = jnp.ones((5, 2, 3))
    memory = hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax())
    assert memory.patterns[0].unsafe_buffer_pointer() == patterns.unsafe_buffer_pointer()
    np.testing.assert_array_equal(memory.Ws[0], patterns.reshape(5, 6).T)
    columns = hl.HiddenSynapse([(2, 3)], 5, Ws=memory.Ws)
    np.testing.assert_array_equal(columns.patterns[0], patterns)


# Besides its arguments and results a program may take 2 % of the patterns and 20 states.
@pytest.mark.parametrize("name", ["softmax", "ghostmax", "ReLU", "sparsemax"])
@pytest.mark.parametrize(
    ("count", "units", "samples"),
    [(100_000, 64, 256), (1_000_000, 64, 1000), (99_991, 64, 64), (4000, 784, 1000)],
)
def test_temporaries_of_a_drive(name, count, units, samples):
    allowed = 0.02 * count * units * 4 + 20 * samples * units * 4
    program = compiled(drive(LAGRANGIANS[name]), *shapes(count, units, samples))
    assert temporary_bytes(program) <= allowed


@pytest.mark.parametrize(("count", "units", "samples"), [(20_000, 784, 256), (100_000, 64, 256)])
def test_temporaries_of_a_relaxation(count, units, samples):
    def relax(patterns, x, inputs):
        ham = network(LAGRANGIANS["softmax"], patterns)
        return hl.relax(ham, {"x": x}, inputs={"x": inputs}, throw=False).x["x"]

    def loss(*arguments):
        return jnp.sum(relax(*arguments) ** 2)

    patterns, x = shapes(count, units, samples)
    allowed = 0.02 * count * units * 4 + 20 * samples * units * 4
    # The program of the gradient contains the relaxation.
    assert temporary_bytes(compiled(jax.grad(loss, 2), patterns, x, x)) <= allowed


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("units", [1, 3])
def test_energy_of_large_scores_in_blocks(units, scale):
    # For one unit XLA contracts the products with the differences of scores. If the patterns are
    # repeated, the largest score is that of two.
    once = np.float32(scale) * np.random.default_rng(0).standard_normal((3000, units), np.float32)
    x = np.linspace(-2, 2, 64 * units, dtype=np.float32).reshape(64, units)
    for patterns in (once, np.concatenate([once, once])):
        ham = network(hl.LSoftmax(beta=0.5), jnp.asarray(patterns))
        energy = compiled(lambda ham, x: ham.energy({"x": x}), ham, x)(ham, x)
        scores = x.astype(np.float64) @ patterns.astype(np.float64).T
        alignment = np.logaddexp.reduce(0.5 * scores, axis=1) / 0.5
        expected = np.sum(x.astype(np.float64) ** 2, axis=1) / 2 - alignment
        np.testing.assert_allclose(energy, expected, rtol=1e-6, atol=1e-6 * scale)


def test_energy_where_two_scores_are_close():
    # For one unit the largest term isn't exactly 1, and near S = 1.5 another one is about 1/2.
    patterns = np.full((4000, 1), -5000, np.float32)
    patterns[:2, 0] = 1000.123, 999.037
    gap = float(patterns[0, 0]) - float(patterns[1, 0])
    x = (np.log(2) / gap + np.linspace(-3e-4, 3e-4, 3000)).astype(np.float32)[:, None]
    ham = network(hl.LSoftmax(), jnp.asarray(patterns))
    energy = compiled(lambda ham, x: ham.energy({"x": x}), ham, x)(ham, x)
    wide = x.astype(np.float64)
    scores = wide @ patterns.astype(np.float64).T
    expected = wide[:, 0] ** 2 / 2 - np.logaddexp.reduce(scores, axis=1)
    np.testing.assert_allclose(energy, expected, rtol=1e-6)


def test_all_scores_never_exist():
    # The scores of all patterns take as much room as these.
    count, units = 400_000, 64

    def loss(patterns, x):
        ham = network(LAGRANGIANS["softmax"], patterns)
        return jnp.sum(hl.relax(ham, {"x": x}, inputs={"x": x}, throw=False).x["x"] ** 2)

    allowed = {
        drive(LAGRANGIANS["sparsemax"]): 0.05,
        jax.grad(loss, 1): 0.05,
        jax.grad(loss): 1.05,  # the gradient of the patterns, besides the result
    }
    for program, share in allowed.items():
        taken = temporary_bytes(compiled(program, *shapes(count, units, 64)))
        assert taken <= share * count * units * 4


def network(lagrangian, patterns):
    units = patterns.shape[1]
    two = [jnp.zeros((units, 2), patterns.dtype)]
    memory = hl.HiddenSynapse([units], 2, Ws=two, hidden_lagrangian=lagrangian)
    memory = eqx.tree_at(lambda m: m.patterns[0], memory, patterns)
    return hl.HAM({"x": hl.IdentityLayer(units)}, {"m": memory}, [(("x",), "m")])


def drive(lagrangian):
    return lambda patterns, x: network(lagrangian, patterns).dEdg({"x": x})["x"]


def shapes(count, units, samples):
    sizes = ((count, units), (samples, units))
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in sizes]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_blocks_of_keys(masked, monkeypatch):
    options = {"num_heads": 2, "zspace_dim": 3, "stdinit": 0.3, "key": KEY}
    options |= {"mask": jr.bernoulli(KEY, 0.6, (7, 19)).at[2].set(False)} if masked else {}
    synapse = hl.AttentionSynapse([(7, 5), (19, 4)], **options)
    gs = (jr.normal(KEY, (7, 5)), jr.normal(KEY, (19, 4)))
    weights, rest = eqx.partition(synapse, eqx.is_inexact_array)

    def run(weights, gs):
        return derivatives(streamed, eqx.combine(weights, rest), gs)

    at_once = jax.jit(run)(weights, gs)
    monkeypatch.setattr(streaming, "SMALLEST_BLOCK", 8)
    monkeypatch.setattr(streaming, "LARGEST_BLOCK", 8)
    monkeypatch.setattr(streaming, "FEW_SCORES", 0)
    assert_close(at_once, jax.jit(lambda *both: run(*both))(weights, gs))


def test_blocks_are_larger_on_accelerators():
    synapse = hl.HiddenSynapse.from_patterns(jnp.ones((70_000, 64), jnp.float32), hl.LSoftmax())
    slopes = jax.jit(lambda synapse, g: jax.vmap(jax.grad(synapse.energy))(g))
    traced = slopes.trace(synapse, jnp.ones((1024, 64), jnp.float32))
    rows = {}
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        (rows[platform],) = set(re.findall(r"dynamic_slice.*-> tensor<(\d+)x64xf32>", text))
    assert rows == {"cpu": "1000", "cuda": "17500", "tpu": "17500"}
    # A block has at most 2²⁵ scores and entries, unless the blocks for CPUs have more.
    for width in (0, 1, 65, 320, 16_000, 10**6, 10**9):
        size = streaming.block_size(10**7, width)
        assert size * width <= max(2**25, streaming.LARGEST_BLOCK * width)
        assert size >= streaming.SMALLEST_BLOCK


def test_an_empty_batch_on_accelerators():
    synapse = hl.AttentionSynapse([(7, 4), (3000, 4)], num_heads=1, zspace_dim=3, key=KEY)
    slopes = jax.jit(lambda synapse, *gs: jax.vmap(jax.grad(synapse.energy))(*gs))
    traced = slopes.trace(synapse, jnp.ones((0, 7, 4)), jnp.ones((0, 3000, 4)))
    assert traced.lower(lowering_platforms=("cuda",)).as_text()


def test_the_scores_of_many_tokens_never_exist():
    tokens = 16384
    synapse = eqx.filter_eval_shape(
        lambda: hl.SelfAttentionSynapse((tokens, 16), key=KEY, zspace_dim=16)
    )
    g = jax.ShapeDtypeStruct((tokens, 16), jnp.float32)
    program = compiled(lambda synapse, g: jax.grad(synapse.energy)(g), synapse, g)
    assert temporary_bytes(program) <= 0.3 * tokens**2 * 4


# One value per head of each parameter is as a synapse per head.
PER_HEAD = {
    "LSoftmax": (hl.LSoftmax, {"beta": [0.5, 2.0]}),
    "LEntmax": (hl.LEntmax, {"beta": [0.5, 2.0], "alpha": [1.3, 1.8]}),
    "LRepu": (hl.LRepu, {"n": [2.0, 3.0]}),
}


@pytest.mark.parametrize("name", PER_HEAD)
def test_parameters_per_head(name):
    make, values = PER_HEAD[name]
    rng = np.random.default_rng(0)
    shapes, gs = [(4, 3), (4, 2)], [jnp.asarray(rng.normal(size=s)) for s in ((4, 3), (4, 2))]
    Wq, Wk = (jnp.asarray(rng.normal(size=(d, 2, 3))) for d in (3, 2))
    W, tensor = (
        jnp.asarray(rng.normal(size=(2, 3, 3, 2))),
        jnp.asarray(rng.normal(size=(2, 3, 12, 8))),
    )

    def synapses(lagrangian, heads):
        options = {"hidden_lagrangian": lagrangian}
        return [
            hl.AttentionSynapse(shapes, Wq=Wq[:, heads], Wk=Wk[:, heads], **options),
            hl.MixerSynapse(shapes, W=W[heads], **options),
            hl.HiddenTensorSynapse(shapes, 3, W=tensor[heads], **options),
        ]

    def energies(parameters):
        both = make(**parameters)
        return jnp.stack([synapse.energy(*gs) for synapse in synapses(both, slice(0, 2))])

    def separate(parameters):
        total = jnp.zeros(3)
        for head in range(2):
            own = make(**{name: value[head] for name, value in parameters.items()})
            parts = synapses(own, slice(head, head + 1))
            total += jnp.stack([synapse.energy(*gs) for synapse in parts])
        return total

    parameters = {name: jnp.asarray(value) for name, value in values.items()}
    run = lambda fn: jax.jit(lambda p: (fn(p), jax.jacrev(fn)(p)))(parameters)
    assert_close(run(energies), run(separate))
    three = {name: jnp.ones(3) * 2 for name in values}
    with pytest.raises(ValueError, match=r"or one for each of 2 heads, got shape \(3,\)"):
        hl.MixerSynapse(shapes, W=W, hidden_lagrangian=make(**three))
    with pytest.raises(ValueError, match=r"expected one \w+, got shape \(2,\)"):
        hl.HiddenSynapse([3], 4, key=KEY, hidden_lagrangian=make(**parameters))


@pytest.mark.parametrize("name", ["softmax", "ghostmax", "sparsemax", "entmax", "entmax above 2"])
def test_a_row_of_minus_infinity_is_no_row(name):
    lagrangian = LAGRANGIANS[name]
    x = jnp.array([[1.0, -jnp.inf, 2.0], [-jnp.inf] * 3])
    for fn in (lagrangian, lagrangian.energy):
        np.testing.assert_allclose(fn(x), fn(x[:1]), rtol=1e-14)
    np.testing.assert_array_equal(lagrangian.activation(x)[1], 0)
    assert lagrangian.activation(x)[0, 1] == 0
    assert fn(x[1]) == 0


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": jnp.ones(4)}, r"bias of shape \(5,\), got \(4,\)"),
        ({"bias": jnp.ones((5, 1))}, r"bias of shape \(5,\), got \(5, 1\)"),
        ({"mask": jnp.ones(5)}, r"boolean mask of shape \(5,\), the hidden units, got float"),
        ({"mask": jnp.ones(4, bool)}, r"boolean mask of shape \(5,\).*got bool\[4\]"),
        ({"mask": jnp.ones(5, bool), "hidden_lagrangian": hl.LLayerNorm()}, "can leave a unit out"),
        ({"key": KEY}, "one of a key, Ws and patterns"),
        ({"Ws": [jnp.ones((3, 5))]}, "one of a key, Ws and patterns"),
        ({"patterns": [jnp.ones((3, 5))]}, r"patterns of shapes \(\(5, 3\),\), got \(\(3, 5\),\)"),
    ],
)
def test_bad_memories(options, message):
    arguments = {"patterns": [jnp.ones((5, 3))]} | options
    with pytest.raises(ValueError, match=message):
        hl.HiddenSynapse([3], 5, **arguments)


def test_patterns_of_other_dtypes():
    for values in (np.arange(6), np.arange(6) > 2):
        memory = hl.HiddenSynapse.from_patterns(values.reshape(2, 3), hl.LSoftmax())
        assert memory.patterns[0].dtype == jnp.float64
    with pytest.raises(TypeError, match="real numbers, got complex"):
        hl.HiddenSynapse.from_patterns(1j * jnp.ones((2, 3)), hl.LSoftmax())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_memories_of_few_or_no_units(count, small_blocks):
    for units, batch in ((0, 5), (2, 0)):
        memory = hl.HiddenSynapse.from_patterns(jnp.ones((20 * count, units)), hl.LRelu())
        run = jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(memory.energy))))
        energies, slopes = run(jnp.ones((2, batch, units)))
        assert energies.shape == (2, batch)
        assert slopes.shape == (2, batch, units)


def test_from_patterns():
    patterns = jr.normal(KEY, (5, 2, 3))
    memory = hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax(beta=9.0))
    assert memory.shapes == ((2, 3),)
    np.testing.assert_array_equal(memory.Ws[0].T.reshape(5, 2, 3), patterns)
    separate = hl.HiddenSynapse.from_patterns((patterns, np.arange(20).reshape(5, 4)), hl.LRelu())
    assert separate.shapes == ((2, 3), (4,))
    g1, g2 = jr.normal(KEY, (2, 3)), jnp.arange(4.0) / 10
    h = np.einsum("kij,ij->k", patterns, g1) + np.arange(20).reshape(5, 4) @ g2
    np.testing.assert_allclose(separate.alignment(g1, g2), np.sum(np.maximum(h, 0) ** 2) / 2)
    for wrong in ((patterns, patterns[:4]), jnp.array(1.0), (patterns, jnp.array(1.0)), ()):
        with pytest.raises(ValueError, match=r"patterns of shape \(K, \*shape\)"):
            hl.HiddenSynapse.from_patterns(wrong, hl.LSoftmax())


@pytest.mark.parametrize("name", ["softmax", "sparsemax", "ReLU"])
def test_other_activations_compile_nothing(name, caplog):
    synapse = hl.HiddenSynapse.from_patterns(jr.normal(KEY, (1500, 3)), LAGRANGIANS[name])
    x = list(jr.normal(KEY, (5, 3)))
    synapse.alignment(x[0])
    jax.grad(synapse.alignment)(x[0])
    with jax.log_compiles():
        for other in x[1:]:
            synapse.alignment(other)
            jax.grad(synapse.alignment)(other)
    assert not [record for record in caplog.records if "Compiling" in record.getMessage()]


@pytest.mark.parametrize("name", ["softmax", "ghostmax", "sparsemax", "entmax"])
def test_scores_far_below_those_that_are_masked(name, small_blocks):
    # A Euclidean memory has scores like these, and a masked one counts as 0.
    patterns = 30.0 * jr.normal(KEY, (40, 4))
    bias, stored = -jnp.sum(patterns**2, axis=1) / 2, jnp.arange(40) % 5 == 0
    few, many = (
        hl.HiddenSynapse.from_patterns(
            patterns[some], LAGRANGIANS[name], bias=bias[some], mask=mask
        )
        for some, mask in ((stored, None), (slice(None), stored))
    )
    x = (jr.normal(KEY, (4,)),)
    run = eqx.filter_jit(lambda memory, x: derivatives(streamed, memory, x))
    (*firsts, own, (_, dx)), (*others, masked, (_, other_dx)) = run(few, x), run(many, x)
    assert_close((firsts[:2], dx), (others[:2], other_dx), 1e-8)
    assert_close(own.hidden_lagrangian, masked.hidden_lagrangian, 1e-8)
    (gradient,), (other,) = own.patterns, masked.patterns
    assert_close(gradient, jnp.compress(stored, other, axis=0), 1e-8)


@pytest.mark.parametrize("name", ["softmax", "ghostmax", "sparsemax", "entmax"])
def test_scores_of_minus_infinity(name, small_blocks):
    patterns = jr.normal(KEY, (40, 4))
    bias = jnp.where(jnp.arange(40) < 9, 0.0, -jnp.inf)
    few = hl.HiddenSynapse.from_patterns(patterns[:9], LAGRANGIANS[name])
    many = hl.HiddenSynapse.from_patterns(patterns, LAGRANGIANS[name], bias=bias)

    @eqx.filter_jit
    def run(memory, x):
        gradient = eqx.filter_grad(lambda memory: memory.alignment(x))(memory)
        return memory.alignment(x), jax.grad(memory.alignment)(x), gradient.hidden_lagrangian

    x = jr.normal(KEY, (4,))
    assert_close(run(few, x), run(many, x))


def test_relaxing_and_solving_through_blocks(small_blocks):
    patterns = jr.normal(KEY, (30, 6))
    x = {"x": jr.normal(KEY, (3, 6))}

    def memory(patterns):
        synapse = hl.HiddenSynapse.from_patterns(patterns, hl.LSoftmax(beta=2.0))
        return hl.HAM({"x": hl.IdentityLayer(6)}, {"m": synapse}, [(("x",), "m")])

    def formed(patterns):
        synapse = lambda g: -jax.nn.logsumexp(2 * patterns @ g) / 2
        return hl.HAM({"x": hl.IdentityLayer(6)}, {"m": synapse}, [(("x",), "m")])

    def ends(make, patterns):
        ham = make(patterns)
        solution = hl.solve(ham, x, 1.0, flow="activation")
        assert solution.ys is not None
        both = hl.relax(ham, x).x["x"], solution.ys["x"]
        return sum(jnp.sum(end**2) for end in both), both

    def run(make):
        loss = functools.partial(ends, make)
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(patterns)

    ((_, end), slope), ((_, other), other_slope) = run(memory), run(formed)
    assert_close(end, other, 1e-6)
    assert_close(slope, other_slope, 1e-5)


@pytest.mark.parametrize("name", LAGRANGIANS)
def test_nan_in_gives_nan_out(name, small_blocks):
    memory = hl.HiddenSynapse.from_patterns(jr.normal(KEY, (30, 4)), LAGRANGIANS[name])
    value, slope = jax.jit(jax.value_and_grad(memory.alignment))(jnp.array([1.0, jnp.nan, 0, 0]))
    assert jnp.isnan(value)
    assert jnp.all(jnp.isnan(slope))


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.int8])
def test_bounds_with_biases_and_masks(dtype):
    patterns = jnp.array([[3, -1], [1, 2], [-100, 100]], dtype)
    for bias in (-5.0, 0.0, 5.0):
        memory = hl.HiddenSynapse.from_patterns(
            patterns, hl.LSoftmax(), bias=jnp.full(3, bias), mask=jnp.array([True, True, False])
        )
        layer = hl.IdentityLayer(2)
        ham = hl.HAM({"x": layer}, {"m": memory}, [(("x",), "m")])
        bound = energy_bound(ham)
        assert bound is not None
        np.testing.assert_allclose(bound, -5 - np.log(2) - bias)
        assert jnp.all(ham.energy({"x": 3 * jr.normal(KEY, (200, 2))}) >= bound)
        tanh = hl.HAM({"x": hl.TanhLayer(2)}, {"m": memory}, [(("x",), "m")])
        bound = energy_bound(tanh)
        assert bound is not None
        np.testing.assert_allclose(bound, -np.logaddexp(4, 3) - abs(bias), rtol=1e-6)
