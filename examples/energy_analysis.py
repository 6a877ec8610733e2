# %%
"""The energy of neuron layers along their state flow, τ dx/dt = −∂E/∂x: three experiments.

1. Five exponential units fall from a normal x0 to the bound −L(0) = −5.
2. From 100·x0 they come to rest at −2: a plateau, on which three units are frozen.
3. Every kind of layer relaxes from images of digits.

The first two are those of HAMUX 0.1, whose 100 Euler steps are drawn beside the adaptive ones.
Prints a table and writes four pictures, next to this file or to `--out FOLDER`.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import hopfield_layers as hl
from drawing import HERE, save
from energy_pictures import draw_digits, draw_fall, draw_kinds, draw_plateau, Run


jax.config.update("jax_enable_x64", True)

# One sample of five units, a normal draw in float32.
X0 = np.array([[-0.6439155, 0.07092398, -0.24706888, -1.057074, 0.13556838]], np.float32)
X0 = X0.astype(float)
SHAPE = (8, 8, 1)
DIGITS = load_digits(return_X_y=True)[0][:6].reshape(-1, *SHAPE) / 8 - 1  # in [-1, 1]
TIMES = np.r_[0, np.logspace(-2, 2, 101)]
# The last six act along axis 1, on each row of the image separately: axis −1 has only one unit.
KINDS = [
    (hl.IdentityLayer, {}),
    (hl.ReluLayer, {}),
    (hl.RepuLayer, {"n": 3.0}),
    (hl.PowerLayer, {"p": 3.0}),
    (hl.ExpLayer, {"beta": 1.0}),
    (hl.RexpLayer, {"beta": 1.0}),
    (hl.CoshLayer, {"beta": 1.0}),
    (hl.TanhLayer, {"beta": 2.0}),
    (hl.SigmoidLayer, {"beta": 4.0}),
    (hl.SoftmaxLayer, {"beta": 1.0, "axis": 1}),
    (hl.GhostmaxLayer, {"beta": 1.0, "axis": 1}),
    (hl.SparsemaxLayer, {"beta": 0.5, "axis": 1}),
    (hl.EntmaxLayer, {"beta": 0.5, "axis": 1}),
    (hl.LayerNormLayer, {"eps": 0.1, "axis": 1}),
    (hl.SphericalNormLayer, {"eps": 1.0, "axis": 1}),
]


# %% One model for all kinds of layers, so that they share a compiled solve.
class OneOf(hl.AbstractEnergyModel):
    """The layer `layers[which]`. `which` is an array, so that all layers share a compiled solve."""

    layers: tuple[hl.Layer, ...]
    which: jax.Array
    tau: float = 1.0

    def energy(self, x):
        return self._switch(hl.Layer.energy, x)

    def activations(self, x):
        return self._switch(hl.Layer.activations, x)

    def dEdg(self, x):
        return self._switch(hl.Layer.dEdg, x)

    def _switch(self, method, x):
        return jax.lax.switch(self.which, [partial(method, layer) for layer in self.layers], x)


energy_of = jax.jit(lambda model, x: model.energy(x))


def run(name: str, model: Any, bound: Any, x0: Any, t1: float, dt0: float, **options: Any) -> Run:
    """Solves, and counts the steps (rejected ones too) of the sample that needs the most.

    Euler evaluates dx/dt once per step. Tsit5 evaluates it once at the start, and then at all
    stages of a step except the first, which is the last stage of the previous step. If it rejects
    the first step it evaluates the start again, which is not counted.
    """
    solution = hl.solve(model, x0, t1, dt0=dt0, **options)
    t = np.asarray(solution.ts)[0]
    x = np.asarray(solution.ys)[:, np.isfinite(t)]  # the padding after the last step is inf
    energy = np.asarray(energy_of(model, solution.ys))[:, np.isfinite(t)]
    steps = int(np.max(solution.stats["num_steps"]))
    stages = diffrax.Tsit5.tableau.num_stages
    evaluations = steps if "solver" in options else steps * (stages - 1) + 1
    return Run(name, t[np.isfinite(t)], x, energy, 0.0 + float(bound), steps, evaluations)


# %% The experiments.
def exponential(x0: np.ndarray, step: float) -> tuple[Run, Run, Run]:
    """The state flow by adaptive steps and by 100 Euler steps, and the activation flow."""
    layer = hl.ExpLayer(x0.shape[1:])
    start = partial(run, model=layer, bound=layer.energy_bound(), x0=x0, dt0=step)
    every_step = diffrax.SaveAt(t0=True, steps=True)
    fixed = {"solver": diffrax.Euler(), "stepsize_controller": diffrax.ConstantStepSize()}
    many = diffrax.SaveAt(t0=True, ts=jnp.geomspace(1e-9, 20, 500))
    return (
        start("state flow", t1=20, saveat=every_step),
        start(f"state flow, Euler, step {step:g}", t1=100 * step, saveat=every_step, **fixed),
        start("activation flow", t1=20, saveat=many, flow="activation"),
    )


def every_kind() -> list[Run]:
    """The state flow of each kind of layer, from the digits."""
    layers = tuple(make(SHAPE, **parameters) for make, parameters in KINDS)
    saveat = diffrax.SaveAt(ts=jnp.asarray(TIMES))
    runs = []
    for i, (make, parameters) in enumerate(KINDS):
        name = ", ".join([make.__name__, *(f"{k} {v:g}" for k, v in parameters.items())])
        model, bound = OneOf(layers=layers, which=jnp.asarray(i)), layers[i].energy_bound()
        runs.append(run(name, model, bound, DIGITS, TIMES[-1], dt0=1e-3, saveat=saveat))
    return runs


def table(title: str, runs: Sequence[Run]) -> None:
    print(f"\n{title}\n{'':34}{'E(start)':>16}{'E(end)':>16}{'-L(0)':>12}", end="")
    print(f"{'steps':>7}{'evaluations':>13}")
    for r in runs:
        first, last = r.energy[:, [0, -1]].mean(0)
        print(f"{r.name:34}{first:16.6f}{last:16.6f}{r.bound:12.6f}{r.steps:7}{r.evaluations:13}")


# %% The table, the pictures and what is claimed.
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE, help="for the pictures")
    out = parser.parse_known_args()[0].out  # a notebook has arguments of its own
    fall, plateau, kinds = exponential(X0, 0.1), exponential(100 * X0, 5e-8), every_kind()
    print("Steps include the rejected ones; evaluations are those of dx/dt.")
    table("Five exponential units from x0", fall)
    table("Five exponential units from 100 x0", plateau)
    table(f"{len(DIGITS)} digits: the mean of their energies, the most of their steps", kinds)
    out.mkdir(parents=True, exist_ok=True)
    save(draw_fall(fall), out / "energy_analysis_fall.png")
    save(draw_plateau(plateau), out / "energy_analysis_plateau.png")
    save(draw_kinds(kinds), out / "energy_analysis_layers.png")
    save(draw_digits(kinds), out / "energy_analysis_digits.png")

    # What is claimed: no energy rises or falls below its bound, and where each comes to rest.
    for r in (fall[0], plateau[0], plateau[2], *kinds):
        slack = 1e-6 * np.max(np.abs(r.energy))  # of the solver's tolerances
        assert np.all(np.diff(r.energy, axis=1) <= slack), r.name
        assert np.all(r.energy >= r.bound - slack), r.name
    ends = [float(r.energy[0, -1]) for r in (fall[0], plateau[0], plateau[2])]
    assert np.allclose(ends, [-5, -2, -5], atol=1e-4), ends


if __name__ == "__main__":
    main()
