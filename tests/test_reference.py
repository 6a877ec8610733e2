"""What HAMUX 0.1.0, the system that this library ports, computes in float64."""

import json
import pathlib

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hopfield_layers as hl


REFERENCE = json.loads((pathlib.Path(__file__).parent / "hamux_0_1.json").read_text())
RTOL = 1e-12


def _name(case):
    bias = "biased" if case["bias"] else "unbiased"
    return f"{case['lagrangian']}-{case['kwargs']}-{case['shape']}-{bias}"


@pytest.mark.parametrize("case", REFERENCE["layers"], ids=_name)
def test_layer(case):
    lagrangian = getattr(hl, case["lagrangian"])(**case["kwargs"])
    bias = None if case["bias"] is None else jnp.array(case["bias"])
    layer = hl.Layer(lagrangian, tuple(case["shape"]), bias=bias)
    x, g = jnp.array(case["x"]), jnp.array(case["activation"])
    z = x if bias is None else x - bias

    value = case["lagrangian_value"]
    np.testing.assert_allclose(lagrangian(z), value, rtol=RTOL)
    np.testing.assert_allclose(layer.activation(x), g, rtol=RTOL)
    np.testing.assert_array_equal(layer.dEdg(x), z)
    # The reference subtracts L from Σ z·g, and differentiates that: its rounding errors are
    # relative to these terms, not to what is left of them, 1e-5 of them for the norms.
    terms = float(jnp.sum(jnp.abs(z * g))) + abs(value)
    np.testing.assert_allclose(layer.energy(x), case["energy"], rtol=RTOL, atol=1e-15 * terms)
    largest = float(jnp.max(jnp.abs(g)))
    for gradient in (jax.grad(layer.energy)(x), -hl.EnergyFlow(layer)(0.0, x)):
        np.testing.assert_allclose(gradient, case["dEdx"], rtol=RTOL, atol=1e-15 * largest)


def test_where_the_energy_analysis_rests():
    x0, far = (jnp.array(case["x0"]) for case in REFERENCE["energy_analysis"])
    layer = hl.ExpLayer(5)
    ends = [
        hl.solve(layer, x0, 20.0).ys[-1],
        hl.solve(layer, far, 20.0).ys[-1],
        hl.solve(layer, far, 20.0, flow="activation").ys[-1],
    ]
    np.testing.assert_allclose(jax.vmap(layer.energy)(jnp.stack(ends)), [-5, -2, -5], atol=1e-6)


@pytest.mark.parametrize("case", REFERENCE["energy_analysis"], ids=["x0", "100 x0"])
def test_energy_analysis(case):
    layer = hl.ExpLayer(len(case["x0"]), beta=case["beta"])
    solution = hl.solve(
        layer,
        jnp.array(case["x0"]),
        t1=case["steps"] * case["alpha"],
        dt0=case["alpha"],
        solver=diffrax.Euler(),
        stepsize_controller=diffrax.ConstantStepSize(),
        saveat=diffrax.SaveAt(t0=True, steps=True),
        max_steps=case["steps"],
    )
    assert solution.ys is not None
    np.testing.assert_allclose(layer.energy(solution.ys[:-1]), case["energies"], rtol=RTOL)
    np.testing.assert_allclose(solution.ys[-1], case["x_final"], rtol=RTOL)
