"""Calls that a type checker must flag: one on each line that ends in the marker `# wrong`.

Nothing imports or runs this file. `.ci/check_wrong_calls.py` runs pyright on it and compares the
lines that it flags with the marked ones: each must be flagged, and no other.
"""

import diffrax
import jax
import jax.numpy as jnp

import hopfield_layers as hl
from hopfield_layers.plotting import plot_states
from hopfield_layers.testing import assert_energy_bounded, assert_energy_descends, states


key = jax.random.key(0)
x0 = jnp.ones(3)
layer = hl.TanhLayer(3)
synapse = hl.DenseSynapse([3, 3], key=key)
ham = hl.HAM({"x": layer}, {"W": synapse}, [(("x", "x"), "W")])

# A misspelt or foreign parameter of each convenience layer.
hl.IdentityLayer(3, beta=1.0)  # wrong
hl.RepuLayer(3, m=2.0)  # wrong
hl.ReluLayer(3, taus=1.0)  # wrong
hl.PowerLayer(3, n=2.0)  # wrong
hl.ExpLayer(3, betas=1.0)  # wrong
hl.RexpLayer(3, Beta=1.0)  # wrong
hl.CoshLayer(3, b=1.0)  # wrong
hl.TanhLayer(3, betta=2.0)  # wrong
hl.SigmoidLayer(3, scales=1.0)  # wrong
hl.SoftmaxLayer(3, axes=-1)  # wrong
hl.GhostmaxLayer(3, gamma=1.0)  # wrong
hl.SparsemaxLayer(3, alpha=2.0)  # wrong
hl.EntmaxLayer(3, alfa=1.5)  # wrong
hl.LayerNormLayer(3, epsilon=1e-5)  # wrong
hl.SphericalNormLayer(3, beta=1.0)  # wrong

# Layers and Lagrangians.
hl.TanhLayer("three")  # wrong
hl.TanhLayer(3.5)  # wrong
hl.TanhLayer()  # wrong
hl.TanhLayer(3, tau="slow")  # wrong
hl.TanhLayer(3, use_bias="yes")  # wrong
hl.TanhLayer(3, bias=[[1.0], "two"])  # wrong
hl.TanhLayer(3, key="seed")  # wrong
hl.SoftmaxLayer(3, axis="last")  # wrong
hl.LTanh("three")  # wrong
hl.LTanh(betta=2.0)  # wrong
hl.LSoftmax(axis=None)  # wrong
hl.Layer("tanh", 3)  # wrong
hl.Layer(hl.LTanh(), "three")  # wrong
hl.Layer(hl.LTanh(), 3, name=5)  # wrong
hl.make_layer("LTanh")  # wrong
hl.as_lagrangian(3)  # wrong
layer.energy()  # wrong
layer.energy("state")  # wrong
layer.init_state(bs="many")  # wrong
layer.init_states(2)  # wrong

# Synapses and networks.
hl.DenseSynapse(6, key=key)  # wrong
hl.DenseSynapse([3, 3], key="seed")  # wrong
hl.DenseSynapse([3, 3], key=key, stdint=0.02)  # wrong
hl.HiddenSynapse([3], "many", key=key)  # wrong
hl.HiddenSynapse([3], 5, key=key, hidden_lagrangian="relu")  # wrong
hl.ConvSynapse([(4, 4, 1), (4, 4, 2)], 3, key=key, pool="median")  # wrong
hl.AttentionSynapse([(4, 3), (5, 3)], key=key, heads=2)  # wrong
hl.BiasSynapse(shape=[(3,), "four"], key=key)  # wrong
hl.HAM([layer], {"W": synapse}, [(("x", "x"), "W")])  # wrong
hl.HAM({"x": hl.LTanh()}, {}, [])  # wrong
hl.HAM({"x": layer}, {"W": synapse})  # wrong
hl.HAM({"x": layer}, {"W": synapse}, 3)  # wrong
ham.energy(x0)  # wrong
ham.init_state(2)  # wrong

# The flow, and who is held.
hl.EnergyFlow(layer, "both")  # wrong
hl.EnergyFlow(hl.LTanh())  # wrong
hl.EnergyFlow(layer, clamp="x")  # wrong
hl.EnergyFlow(layer, input=x0)  # wrong

# Solutions.
hl.solve("no model", 1.0, 1.0, flow="sate")  # wrong
hl.solve("no model", 1.0, 1.0)  # wrong
hl.solve(layer, 1.0, 1.0, flow="sate")  # wrong
hl.solve(layer, x0)  # wrong
hl.solve(layer, x0, "soon")  # wrong
hl.solve(layer, x0, 1.0, clamp="x")  # wrong
hl.solve(layer, x0, 1.0, solver="Tsit5")  # wrong
hl.solve(layer, x0, 1.0, solver=diffrax.Tsit5)  # wrong
hl.solve(layer, x0, 1.0, saveat=jnp.linspace(0.0, 1.0, 5))  # wrong
hl.solve(layer, x0, 1.0, stepsize_controller=0.1)  # wrong
hl.solve(layer, x0, 1.0, max_steps="many")  # wrong
hl.solve(layer, x0, 1.0, inputs="none")  # wrong

# Relaxations.
hl.relax(hl.LTanh(), x0)  # wrong
hl.relax(layer, x0, flow="up")  # wrong
hl.relax(layer, x0, clamp="x")  # wrong
hl.relax(layer, x0, max_steps=None)  # wrong
hl.relax(layer, x0, tol="small")  # wrong
hl.relax(layer, x0, tolerance=1e-3)  # wrong
hl.relax(layer, x0, solver="ETD2RK")  # wrong
hl.relax(layer, x0, throw="never")  # wrong
hl.relax(layer, x0, saveat=diffrax.SaveAt(t1=True))  # wrong
hl.energy_descent(0.1, layer)  # wrong
hl.energy_descent(diffrax.ConstantStepSize(), hl.LTanh())  # wrong
hl.newton_krylov(restart="often")  # wrong

# Laws and pictures.
assert_energy_bounded(layer, "x")  # wrong
assert_energy_descends(layer, "x0")  # wrong
assert_energy_descends(layer, x0, clamp="x")  # wrong
states("three")  # wrong
plot_states(layer, "path")  # wrong
