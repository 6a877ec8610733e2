"""The results of HAMUX 0.1.0, the system that this library ports, in float64."""

import functools as ft
import json
import pathlib
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hopfield_layers as hl

from .solutions import saved


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
    # The reference subtracts L from Σ z·g and differentiates the difference. Its rounding errors
    # are relative to these terms, and the difference may be 1e-5 of them, as for the norms.
    terms = float(jnp.sum(jnp.abs(z * g))) + abs(value)
    np.testing.assert_allclose(layer.energy(x), case["energy"], rtol=RTOL, atol=1e-15 * terms)
    largest = float(jnp.max(jnp.abs(g)))
    for gradient in (jax.grad(layer.energy)(x), -hl.EnergyFlow(layer)(0.0, x)):
        np.testing.assert_allclose(gradient, case["dEdx"], rtol=RTOL, atol=1e-15 * largest)


def test_fixed_points_of_the_energy_analysis():
    x0, far = (jnp.array(case["x0"]) for case in REFERENCE["energy_analysis"])
    layer = hl.ExpLayer(5)
    ends = [
        saved(hl.solve(layer, x0, 20.0))[-1],
        saved(hl.solve(layer, far, 20.0))[-1],
        saved(hl.solve(layer, far, 20.0, flow="activation"))[-1],
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
    ys = saved(solution)
    np.testing.assert_allclose(layer.energy(ys[:-1]), case["energies"], rtol=RTOL)
    np.testing.assert_allclose(ys[-1], case["x_final"], rtol=RTOL)


def _synapse(kind, shapes, weights):
    """The synapse of this library for one of HAMUX's names."""
    w: dict[str, Any] = {name: jnp.array(value) for name, value in weights.items() if name != "Ws"}
    if kind == "DenseSynapse":
        return hl.DenseSynapse(shapes, **w)
    if kind == "DenseMatrixSynapseWithHiddenLayer":
        Ws = [jnp.array(W) for W in weights["Ws"]]
        return hl.HiddenSynapse(shapes, 7, hidden_lagrangian=hl.LSoftmax(beta=1.5), Ws=Ws)
    if kind == "SelfAttentionSynapse":
        softmax = hl.LSoftmax(beta=0.8)
        return hl.SelfAttentionSynapse(
            *shapes, hidden_lagrangian=softmax, num_heads=2, zspace_dim=3, **w
        )
    if kind == "BinaryMixerSynapse":
        heads, z, _, _ = w["W"].shape
        return hl.MixerSynapse(shapes, num_heads=heads, zspace_dim=z, **w)
    pool = {"ConvSynapse": None, "ConvSynapseWithPool": "avg"}[kind]
    return hl.ConvSynapse(shapes, 3, pool=pool, kernel=w["kernel_HWIO"])


@pytest.mark.parametrize("case", REFERENCE["hams"], ids=lambda case: case["name"])
def test_ham(case):
    layers = {
        f"x{i}": hl.Layer(
            getattr(hl, layer["lagrangian"])(**layer["kwargs"]), layer["shape"], layer["tau"]
        )
        for i, layer in enumerate(case["layers"])
    }
    connections = [([f"x{i}" for i in joined], f"s{s}") for joined, s in case["connections"]]
    synapses = {
        name: _synapse(kind, [layers[layer].shape for layer in joined], weights)
        for (joined, name), kind, weights in zip(
            connections, case["synapses"], case["weights"], strict=True
        )
    }
    ham = hl.HAM(layers, synapses, connections)
    x0, dEdg, ends = (
        {f"x{i}": jnp.array(x) for i, x in enumerate(case[key])}
        for key in ("x0", "dEdg", "euler_x20")
    )

    solution = hl.solve(
        ham,
        x0,
        t1=20 * case["euler_dt"],
        dt0=case["euler_dt"],
        flow="activation",
        solver=diffrax.Euler(),
        stepsize_controller=diffrax.ConstantStepSize(),
        saveat=diffrax.SaveAt(t0=True, steps=True),
        max_steps=20,
    )
    ys = saved(solution)
    # The reference convolves in float32 even in its float64 tables, and how a sum in float32 is
    # rounded depends on the processor.
    convolves = isinstance(synapses["s0"], hl.ConvSynapse)
    assert_close = ft.partial(
        np.testing.assert_allclose,
        rtol=1e-6 if convolves else 1e-10,
        atol=1e-6 if convolves else 1e-14,
    )
    terms, energies, slopes = eqx.filter_jit(_energies)(ham, ys)
    for kind, key in (("layers", "layer_energy"), ("connections", "synapse_energy")):
        assert_close(sum(energy[0] for energy in terms[kind].values()), case[key])
    assert_close(energies[0], case["energy"])
    assert_close(energies[:20], case["euler_energies"])
    for name, y in ys.items():
        np.testing.assert_array_equal(y[0], x0[name])
        assert_close(y[-1], ends[name])
        assert_close(slopes[name][0], dEdg[name])


def _energies(ham, xs):
    return ham.energies(xs), ham.energy(xs), ham.dEdg(xs)
