"""Distinct rests, saddles, their eigenvalues and shares are those of closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optimistix as optx
import pytest

import hopfield_layers as hl

from .instances import Springs


def pair(w, dtype=jnp.float64):
    """E_s = −w g₁ g₂: the rests have x₁ = w tanh x₂ and x₂ = w tanh x₁."""
    synapse = hl.DenseSynapse((1, 1), W=jnp.full((1, 1), w, dtype))
    layers = {"a": hl.TanhLayer(1), "b": hl.TanhLayer(1, tau=3.0)}
    return hl.HAM(layers, {"W": synapse}, [(("a", "b"), "W")])


def starts(dtype=jnp.float64):
    """Eight starts, none with x₁ = −x₂, each together with its mirror image."""
    half = 2 * jr.normal(jr.key(0), (4, 2, 1))
    both = jnp.concatenate([half, -half]).astype(dtype)
    return {"a": both[:, 0], "b": both[:, 1]}


NEWTON = optx.Newton(rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_two_rests_of_a_pair(dtype):
    points = hl.fixed_points(pair(2.0, dtype), starts(dtype), num_eigenvalues=3)
    x = 2.0
    for _ in range(100):
        x = 2 * np.tanh(x)
    tol = 1e-9 if dtype == jnp.float64 else 1e-4
    np.testing.assert_allclose(np.sort(points.x["a"][:, 0]), [-x, x], atol=tol)
    np.testing.assert_array_equal(np.sign(points.x["a"]), np.sign(points.x["b"]))
    energy = 2 * (x * np.tanh(x) - np.log(np.cosh(x))) - 2 * np.tanh(x) ** 2
    np.testing.assert_allclose(points.energy, [energy] * 2, atol=tol)
    # The eigenvalues of I + S H with H = 1 − g² of both units are 1 ∓ w (1 − g²).
    h = 2 / np.cosh(x) ** 2
    np.testing.assert_allclose(points.eigenvalues[:, :2], [[1 - h, 1 + h]] * 2, atol=10 * tol)
    assert jnp.all(jnp.isinf(points.eigenvalues[:, 2]))
    assert points.stable.tolist() == [True, True]
    assert points.counts.tolist() == [4, 4]
    assert points.shares.tolist() == [0.5, 0.5]
    assert points.num_unconverged == 0
    assert points.energy.dtype == points.eigenvalues.dtype == dtype
    sides = jnp.sign(points.x["a"][points.index, 0])
    np.testing.assert_array_equal(sides, np.sign(starts()["a"] + starts()["b"])[:, 0])


def test_saddle_by_a_root_finder():
    points = hl.fixed_points(pair(2.0), starts(), root_finder=NEWTON, num_eigenvalues=2)
    saddle = int(jnp.argmax(points.energy))
    assert points.stable.tolist() == [i != saddle for i in range(len(points.stable))]
    np.testing.assert_allclose(points.x["a"][saddle], 0, atol=1e-10)
    np.testing.assert_allclose(points.eigenvalues[saddle], [-1.0, 3.0], atol=1e-9)
    np.testing.assert_allclose(points.energy[saddle], 0, atol=1e-12)


@pytest.mark.parametrize(("w", "number"), [(0.9, 1), (1.1, 2)])
def test_pitchfork(w, number):
    points = hl.fixed_points(pair(w), starts())
    assert len(points.energy) == number
    assert jnp.all(points.stable)
    origin = hl.fixed_points(pair(w), pair(w).init_states())
    np.testing.assert_allclose(origin.eigenvalues, [[1 - w]], atol=1e-12)
    assert origin.stable.tolist() == [w < 1]
    assert origin.index.shape == ()


def test_orthogonal_patterns_of_a_memory():
    memory = hl.HiddenSynapse.from_patterns(4 * jnp.eye(5), hl.LSoftmax(beta=2.0))
    ham = hl.HAM({"x": hl.IdentityLayer(5)}, {"M": memory}, [(("x",), "M")])
    x = 4 * jnp.eye(5).repeat(2, 0).reshape(5, 2, 5)
    points = hl.fixed_points(ham, {"x": x})
    # x = 4 softmax(8 x), so that x − 4 eᵢ is less than 16 exp(−32).
    np.testing.assert_allclose(np.sort(points.x["x"], axis=0)[-1], [4.0] * 5, atol=1e-10)
    assert points.counts.tolist() == [2] * 5
    assert jnp.all(points.index[:, 0] == points.index[:, 1])
    np.testing.assert_allclose(points.eigenvalues[:, 0], 1, atol=1e-9)


def large(n):
    """E = ½ Σ (1 + cᵢ) xᵢ², with eigenvalues 1 + cᵢ."""
    c = jnp.linspace(-0.5, 2.0, n)
    c = c.at[3].set(-0.9)
    layers = {"x": hl.IdentityLayer(n)}
    return hl.HAM(layers, {"S": lambda g: jnp.sum(c * g**2) / 2}, [(("x",), "S")])


@pytest.mark.parametrize("n", [20, 300])
def test_eigenvalues_with_and_without_a_matrix(n):
    points = hl.fixed_points(large(n), {"x": jnp.zeros((1, n))}, num_eigenvalues=2)
    np.testing.assert_allclose(points.eigenvalues, [[0.1, 0.5]], atol=1e-6)


@pytest.mark.parametrize("n", [4, 300])
def test_dead_units_and_clamped_units_have_no_eigenvalue(n):
    # x = a − 2 Σ g at rest: the second unit is alive and the others, but for the clamped one, dead.
    a = jnp.zeros(n).at[1].set(8.0)
    synapse = lambda g: jnp.sum(g) ** 2 - jnp.dot(a, g)
    ham = hl.HAM({"x": hl.ReluLayer(n)}, {"S": synapse}, [(("x",), "S")])
    x = jnp.zeros(n).at[0].set(1.0)
    clamp = {"x": jnp.arange(n) == 0}
    points = hl.fixed_points(ham, {"x": x}, clamp=clamp, num_eigenvalues=2)
    assert points.num_unconverged == 0
    np.testing.assert_allclose(points.x["x"][0], [1.0, 2.0] + [-6.0] * (n - 2), atol=1e-8)
    np.testing.assert_allclose(points.eigenvalues, [[3.0, np.inf]], rtol=1e-9)


def test_inputs_and_a_model_of_ones_own():
    springs = Springs(jnp.array(2.0), jnp.array(0.0), jnp.array(1.0))
    starts = jr.normal(jr.key(0), (2, 3, 4))
    points = hl.fixed_points(springs, starts, inputs=jnp.ones(4))
    np.testing.assert_allclose(points.x, [[0.5] * 4], atol=1e-9)
    np.testing.assert_allclose(points.eigenvalues, [[2.0]], rtol=1e-9)
    assert points.index.shape == (2, 3)
    assert points.counts.tolist() == [6]


def test_starts_that_come_to_none():
    ham = large(4)
    x = jnp.array([[1.0, 1, 1, 1], [jnp.nan, 0, 0, 0]])
    points = hl.fixed_points(ham, {"x": x})
    assert (points.num_unconverged, points.index.tolist()) == (1, [0, -1])
    assert points.shares.tolist() == [0.5]
    none = hl.fixed_points(ham, {"x": x[1:]})
    assert (none.x["x"].shape, none.eigenvalues.shape) == ((0, 4), (0, 1))


@pytest.mark.usefixtures("unchecked_types")
def test_errors():
    layer, x = hl.TanhLayer(3), jnp.zeros((2, 3))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"separation": 0.0}, "separation > 0"),
        ({"num_eigenvalues": 0}, "of at least 1"),
        ({"inputs": jnp.arange(6.0).reshape(2, 3)}, "that all starts share"),
        ({"inputs": lambda t: t}, "depend on t"),
        ({"root_finder": NEWTON, "dt0": 0.1}, "got both"),
        ({"tol": -1.0}, "tol > 0"),
    ]
    for options, match in cases:
        with pytest.raises(ValueError, match=match):
            hl.fixed_points(layer, x, **options)
    with pytest.raises(ValueError, match="can't be traced"):
        jax.jit(lambda x: hl.fixed_points(layer, x).energy)(x)
