"""Error messages for wrong arguments: what was expected, what was passed, and what to write."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import hopfield_layers as hl
from hopfield_layers.testing import check_lagrangian


pytestmark = pytest.mark.usefixtures("unchecked_types")
LAYER, X0 = hl.TanhLayer(3), jnp.ones(3)
HAM = hl.HAM(
    {"y": hl.TanhLayer(3), "x": hl.SoftmaxLayer(2)},
    {"W": hl.DenseSynapse((3, 2), W=jnp.ones((3, 2)))},
    [(("y", "x"), "W")],
)
STATE = {"x": jnp.zeros(2), "y": jnp.ones(3)}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clamp": "x"}, ValueError, "clamp to be boolean, got str: .* tree of boolean masks"),
        ({"saveat": np.array([0.5])}, TypeError, r"saveat .*diffrax\.SaveAt\(ts=\.\.\.\)"),
        ({"solver": diffrax.Euler()}, ValueError, "no error estimate .*ConstantStepSize.* and dt0"),
        (
            {"solver": diffrax.ItoMilstein(), "dt0": 0.1},
            ValueError,
            r"ItoMilstein solves stochastic .*hopfield_layers\.langevin.*ControlTerm",
        ),
        ({"solver": diffrax.SemiImplicitEuler(), "dt0": 0.1}, ValueError, "a single ODETerm"),
        ({"solver": "Tsit5"}, TypeError, r"diffrax\.Tsit5\(\) for instance, got 'Tsit5'"),
        ({"stepsize_controller": "PI"}, TypeError, r"diffrax\.PIDController\(.*, got 'PI'"),
        ({"flow": "up"}, ValueError, 'flow="state" or flow="activation", got \'up\''),
        (
            {"stepsize_controller": diffrax.ConstantStepSize()},
            ValueError,
            "Constant steps need their size, dt0",
        ),
        ({"dt0": 0.0}, ValueError, "dt0 > 0"),
        ({"dt0": "a"}, TypeError, "dt0 to be a number, got 'a'"),
        ({"t0": None}, TypeError, "t0 to be a number, got None"),
        ({"adjoint": None}, TypeError, r"adjoint to be a diffrax\.AbstractAdjoint, got None"),
        ({"event": 3}, TypeError, r"event to be a diffrax\.Event, got 3"),
        ({"batch_size": 0}, ValueError, "batch_size of 1 at least, got 0"),
        ({"saveat": diffrax.SaveAt(ts=[0.5, 0.4])}, ValueError, r"SaveAt .* from t0 to t1"),
        ({"saveat": diffrax.SaveAt(ts=[0.5, 2.0])}, ValueError, r"SaveAt .* from t0 to t1"),
        (
            {"stepsize_controller": diffrax.StepTo(ts=jnp.array([0.0, 0.5, 0.9]))},
            ValueError,
            r"StepTo .*ts\[-1\] = t1",
        ),
        (
            {
                "stepsize_controller": hl.energy_descent(
                    diffrax.StepTo(ts=jnp.array([0.0, 0.5, 0.9])), LAYER
                )
            },
            ValueError,
            r"StepTo .*ts\[-1\] = t1",
        ),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_solve(options, error, message):
    with pytest.raises(error, match=message):
        hl.solve(LAYER, X0, 1.0, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_steps": None}, TypeError, "max_steps to be a number, 4096 .*, got None"),
        ({"max_steps": 0}, ValueError, "max_steps of 1 at least, got 0"),
        ({"tol": -1.0}, ValueError, "finite tol > 0, got -1"),
        ({"inputs": lambda t: t}, ValueError, "depend on t have no fixed point"),
        ({"progress_meter": "x"}, TypeError, r"diffrax\.AbstractProgressMeter, got 'x'"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_relax(options, error, message):
    with pytest.raises(error, match=message):
        hl.relax(LAYER, X0, **options)


def test_a_key_for_the_number_of_samples():
    for init in (LAYER.init_state, HAM.init_states):
        for key in (jr.key(0), jr.PRNGKey(0)):
            with pytest.raises(ValueError, match="pass a key as rng=key"):
                init(key)  # pyright: ignore[reportArgumentType]
        init(bs=np.int64(2))


def test_a_layer_for_a_lagrangian():
    with pytest.raises(TypeError, match=r"layer\.lagrangian"):
        check_lagrangian(LAYER)


@pytest.mark.parametrize("make", [hl.LSoftmax, hl.LGhostmax, hl.LTanh, hl.LExp, hl.LEntmax])
@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_an_inverse_temperature_that_is_not_positive(make, beta):
    with pytest.raises(ValueError, match="beta must be finite and greater than 0, got"):
        make(beta=beta)


def test_a_wrong_structure_names_the_layers():
    for name in ("clamp", "inputs"):
        options: dict[str, Any] = {name: {"z": jnp.zeros(3, bool)}}
        with pytest.raises(ValueError, match=rf"{name} .*layers \['x', 'y'\]"):
            hl.relax(HAM, STATE, **options)
    with pytest.raises(ValueError, match=r"no layer 'z', there are \['y', 'x'\]"):
        hl.EnergyFlow(HAM, clamp={"z": jnp.zeros(3, bool)})


class LStatic(eqx.Module):
    """A convex callable with a number that is no leaf of it."""

    width: float = eqx.field(static=True, default=1.0)

    def __call__(self, x):
        """The pseudo-Huber function."""
        return jnp.sum(jnp.sqrt(self.width**2 + x**2))


def test_a_static_number_would_not_be_loaded():
    with pytest.raises(ValueError, match=r"LStatic\.width is static.* not restore"):
        hl.make_layer(LStatic)(3, width=2.0)


class LHuber(eqx.Module):
    """The same with a number that is a leaf."""

    width: float = 1.0

    def __call__(self, x):
        """The pseudo-Huber function."""
        return jnp.sum(jnp.sqrt(self.width**2 + x**2))


def test_a_number_of_a_callable_is_trained_saved_and_loaded(tmp_path):
    make = hl.make_layer(LHuber)
    layer = make(3, width=2.0)
    slope = jax.grad(lambda layer: layer.energy(jnp.zeros(3)))(layer)
    np.testing.assert_allclose(jax.tree.leaves(slope.lagrangian), [-3.0])  # E(0) = −3 width
    eqx.tree_serialise_leaves(tmp_path / "layer.eqx", layer)
    loaded = eqx.tree_deserialise_leaves(tmp_path / "layer.eqx", make(3))
    np.testing.assert_allclose(loaded.energy(jnp.zeros(3)), -6.0)
    assert jax.tree.leaves(loaded.lagrangian) == [2.0]


class LBranch(eqx.Module):
    """A callable that branches on its number."""

    p: float = 2.0

    def __call__(self, x):
        """The pseudo-Huber function, or a parabola."""
        if self.p > 1:
            return jnp.sum(jnp.sqrt(self.p**2 + x**2))
        return jnp.sum(x**2) / 2


@pytest.mark.parametrize("flow", ["state", "activation"])
def test_a_callable_may_branch_on_its_number(flow):
    layer = hl.make_layer(LBranch)(3, p=1.5)
    x0 = jnp.array([0.5, -1.0, 2.0], jnp.float32)  # not widened by the number: 64 bits are enabled
    for energy in (layer.energy, eqx.filter_jit(layer.energy)):
        assert energy(x0).dtype == jnp.float32
    for inputs in (None, jnp.array([0.1, 0.2, 0.3], jnp.float32)):
        result = eqx.filter_jit(hl.relax)(layer, x0, flow=flow, inputs=inputs)
        assert result.x.dtype == jnp.float32
        assert result.converged
    slope = eqx.filter_grad(lambda x0: jnp.sum(hl.relax(layer, x0, flow=flow).x ** 2))(x0)
    assert slope.dtype == jnp.float32


def test_errors_in_inputs_are_their_own():
    mixed = {1: 0.0, "a": 1.0}

    def unknown(t):
        return later * mixed[1] * t

    with pytest.raises(NameError, match="later"):
        hl.solve(hl.TanhLayer(3), jnp.zeros(3), 1.0, inputs=unknown)
    later = mixed[1]
    with pytest.raises(KeyError, match="b"):
        hl.solve(hl.TanhLayer(3), jnp.zeros(3), 1.0, inputs=lambda t: mixed["b"] * later * t)


def test_coupled_axes_that_are_no_tuple():
    with pytest.raises(TypeError, match=r"Expected a tuple of axes, \(0,\) for instance, got 0\."):
        hl.as_lagrangian(jnp.sum, coupled_axes=0)  # pyright: ignore[reportArgumentType]
