# %% [markdown]
"""All fixed points of three small energies, with `hl.fixed_points`.

∂E/∂g = (x − b) + ∂E_s/∂g − I = 0; stable where I + S H > 0 on the range of H

1. Two rectified units that inhibit each other, E_s = w g₁ g₂: two rests and a saddle, and in the
   state flow, which cannot move dead units, a region without any motion.
2. A tanh unit that excites itself, E_s = −w g²/2, under a swept input: hysteresis between the
   folds at ±I_c, where I_c = w √(1 − 1/w) − artanh √(1 − 1/w).
3. The log-sum-ReLU (Epanechnikov) energy E = −log(ε + Σ_μ relu(1 − β‖x − ξ_μ‖²/2)) of M = 12
   patterns (arXiv:2506.10801) as a custom synapse. Its minima are the centres of the subsets of
   patterns whose balls overlap there, which are also enumerated exactly. Random starts find every
   minimum of this set of patterns, but not of every set: 6000 starts missed one minimum in 5 of 10
   sets that were tried, and found no wrong one.

Prints a table and writes landscape.png next to this file, or to `--out FOLDER`.
"""

# %%
import argparse
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from matplotlib.figure import Figure

import hopfield_layers as hl
from drawing import BLUE, figure, HERE, RED, save


# %% Two rectified units
def rectified(w: float = 2.0) -> hl.HAM:
    synapse = lambda g: w * g[0] * g[1] - jnp.sum(g)
    return hl.HAM({"x": hl.ReluLayer(2)}, {"W": synapse}, [(("x",), "W")])


def portrait() -> tuple[hl.HAM, hl.FixedPoints]:
    """The rests (1, −1) and (−1, 1), and the saddle at (1, 1)/3."""
    ham = rectified()
    starts = jnp.array([[1.2, -0.5], [-0.5, 1.2], [0.5, 0.6], [2.0, 1.0]])
    newton = optx.Newton(rtol=1e-6, atol=1e-6)
    points = hl.fixed_points(ham, {"x": starts}, root_finder=newton)
    found = np.asarray(points.x["x"])
    expected = np.array([[1.0, -1.0], [-1.0, 1.0], [1 / 3, 1 / 3]])
    distance = np.linalg.norm(found[:, None] - expected, axis=-1)
    error = max(distance.min(0).max(), distance.min(1).max())
    print(f"rectified pair     {len(found)} of 3 fixed points, error {error:.1e}")
    assert len(found) == 3
    assert error < 1e-4
    assert int(points.stable.sum()) == 2
    return ham, points


# %% Hysteresis
def hysteresis(count: int, w: float = 2.0) -> tuple[np.ndarray, np.ndarray, float]:
    """The activations of the bistable unit as the input rises and as it falls."""
    ham = hl.HAM({"x": hl.TanhLayer(1)}, {"W": lambda g: -w * jnp.sum(g**2) / 2}, [(("x",), "W")])
    sweep = np.linspace(-1.0, 1.0, count)

    def follow(x, value):
        # Follows the flow, because accelerated updates may reach the other branch.
        tools = {"solver": hl.ETD2RK(), "throw": False}
        rest = hl.relax(ham, {"x": x}, inputs={"x": value[None]}, **tools).x["x"]
        return rest, jnp.tanh(rest[0])

    run = jax.jit(lambda inputs: jax.lax.scan(follow, jnp.array([2.0]) * inputs[0], inputs)[1])
    branches = np.stack([run(jnp.asarray(sweep)), run(jnp.asarray(sweep[::-1]))[::-1]])
    g = np.sqrt(1 - 1 / w)
    fold = w * g - np.arctanh(g)
    step = sweep[1] - sweep[0]
    jumps = [sweep[np.argmax(branches[0] > 0)], sweep[np.argmax(branches[1] > 0)]]
    print(f"hysteresis         jumps at {jumps[0]:+.3f} and {jumps[1]:+.3f}, folds at ±{fold:.3f}")
    assert abs(jumps[0] - fold) < 1.5 * step
    assert abs(jumps[1] + fold) < 1.5 * step
    return sweep, branches, fold


# %% An energy of one's own
class Epanechnikov(hl.AbstractSynapse):
    """−‖g‖²/2 + E(g), so that with the layer's ‖x‖²/2 it is the log-sum-ReLU energy alone."""

    patterns: jax.Array
    beta: float

    def alignment(self, g):
        heights = jax.nn.relu(1 - self.beta * jnp.sum((g - self.patterns) ** 2, axis=1) / 2)
        return jnp.sum(g**2) / 2 + jnp.log(1e-3 + jnp.sum(heights))


def minima(patterns: np.ndarray, beta: float) -> np.ndarray:
    """All minima: means of subsets of patterns, if exactly the balls of this subset contain it.

    In a region where the same balls overlap, Σ relu is a concave parabola about their mean.
    """
    found = []
    for size in range(1, len(patterns) + 1):
        for subset in itertools.combinations(range(len(patterns)), size):
            mean = patterns[list(subset)].mean(0)
            inside = beta * ((patterns - mean) ** 2).sum(1) < 2
            if set(np.flatnonzero(inside)) == set(subset):
                found.append(mean)
    return np.array(found)


def epanechnikov(num_starts: int) -> tuple[hl.HAM, hl.FixedPoints, np.ndarray]:
    """All minima and nothing else, from random starts in the balls of a favourable set."""
    rng = np.random.default_rng(2)
    patterns, beta = rng.uniform(-1, 1, (12, 2)), 12.0
    synapse = Epanechnikov(jnp.asarray(patterns), beta)
    ham = hl.HAM({"x": hl.IdentityLayer(2)}, {"E": synapse}, [(("x",), "E")])
    places = patterns[rng.integers(0, 12, num_starts)] + rng.uniform(-0.4, 0.4, (num_starts, 2))
    points = hl.fixed_points(ham, {"x": jnp.asarray(places)})
    found, expected = np.asarray(points.x["x"]), minima(patterns, beta)
    # Outside all balls the energy is flat, so that starts there are already at rest.
    heights = np.asarray(points.energy) < -np.log(1e-3) - 1e-3
    found = found[heights & np.asarray(points.stable)]
    distance = np.linalg.norm(found[:, None] - expected, axis=-1)
    missed, invented = (distance.min(0) > 1e-3).sum(), (distance.min(1) > 1e-3).sum()
    print(f"Epanechnikov       {len(expected)} minima: {missed} missed, {invented} invented")
    print(f"                   the largest distance {distance.min(1).max():.1e}")
    assert missed == 0
    assert invented == 0
    return ham, points, expected


# %% The picture
def draw(ham, points, sweep, branches, fold, memory, minima) -> Figure:
    fig, axes = figure(11, 6.6, 2, 2)
    values = jnp.linspace(-1.6, 1.6, 61)
    for ax, flow in zip(axes[0], ("activation", "state"), strict=True):
        hl.plotting.plot_phase_portrait(ham, values, flow=flow, points=points, ax=ax)
        ax.set(title=f"two rectified units, {flow} flow", aspect="equal")
    ax = axes[1, 0]
    ax.plot(sweep, branches[0], color=BLUE, label="rising input")
    ax.plot(sweep, branches[1], color=RED, linestyle="--", label="falling input")
    for value in (-fold, fold):
        ax.axvline(value, color="black", linewidth=0.8, linestyle=":")
    ax.set(xlabel="input I", ylabel="activation g", title="hysteresis; dotted: the folds")
    ax.legend(frameon=False)
    hl.plotting.plot_landscape(memory, jnp.linspace(-1.4, 1.4, 141), ax=axes[1, 1])
    axes[1, 1].plot(*minima.T, "o", color="white", markeredgecolor="black", markersize=4)
    axes[1, 1].set(title=f"log-sum-ReLU energy: all {len(minima)} minima", aspect="equal")
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer inputs and starts")
    parser.add_argument("--out", type=Path, default=HERE, help="for the picture")
    arguments, _ = parser.parse_known_args()  # a notebook has arguments of its own
    pair = portrait()
    swept = hysteresis(41 if arguments.quick else 201)
    memory, _, centres = epanechnikov(6000 if arguments.quick else 20000)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save(draw(*pair, *swept, memory, centres), arguments.out / "landscape.png")


if __name__ == "__main__":
    main()
