# %% [markdown]
"""A model of a cortical circuit, for a neuroscientist: membranes, rates, pulses and noise.

τ dx/dt = −x + W g(x) + I(t), the activation flow of E = Σ layers E(x) − Σ W g g/2 − Σ I g

x is a membrane potential in units of the threshold, g = tanh βx a rate, τ in ms. Symmetric weights
have an energy, which falls while I stands still; here a recurrent layer and a slower one. `solve`
with the activation flow needs ∂E/∂g only. Noise is diffrax's: `EnergyFlow` as the drift.

1. A pulse of 40 ms at 100 ms switches a bistable circuit; one of 4 ms doesn't.
2. A sweep over β and the coupling by `vmap`: the circuit keeps what it holds where β w > 1.
3. With noise in one's own `diffeqsolve` the variance is the exact σ²/2 at τ = 1.

Prints a table and writes neurons.png next to this file, or to `--out FOLDER`.
"""

# %%
import argparse
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from matplotlib.figure import Figure

import hopfield_layers as hl
from energy_pictures import BLUE, figure, RED, save


def circuit(beta: jax.Array | float, w: jax.Array | float) -> hl.HAM:
    """A fast layer that excites itself, and a slow one that follows it and feeds little back."""
    layers = {"fast": hl.TanhLayer(1, tau=10.0, beta=beta), "slow": hl.TanhLayer(1, tau=100.0)}
    recurrent = lambda g: -w * jnp.sum(g**2) / 2
    joined = hl.DenseSynapse((1, 1), W=jnp.full((1, 1), 0.1))
    connections = [(("fast",), "recurrent"), (("fast", "slow"), "joined")]
    return hl.HAM(layers, {"recurrent": recurrent, "joined": joined}, connections)


# %% Pulses
def pulses(durations: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The fast and the slow state at given times, after a pulse of each duration."""
    ham, ts = circuit(1.5, 1.0), jnp.linspace(0.0, 400.0, 201)
    start = hl.relax(ham, {"fast": jnp.array([-1.0]), "slow": jnp.zeros(1)}).x

    def run(duration):
        stops = jnp.array([0.0, 100.0, 0.0]).at[2].set(100.0 + duration)
        pulse = hl.PiecewiseConstantInterpolation(stops, {"fast": jnp.array([[0.0], [2.0], [0.0]])})
        saveat = diffrax.SaveAt(ts=ts)
        options = {"flow": "activation", "inputs": pulse, "saveat": saveat}
        path = hl.solve(ham, start, 400.0, **options).ys
        assert path is not None
        return path

    paths = [run(duration) for duration in durations]
    traces = np.array([[path["fast"][:, 0], path["slow"][:, 0]] for path in paths])
    switched = traces[:, 0, -1] > 0
    for duration, end in zip(durations, traces[:, 0, -1], strict=True):
        print(f"pulse of {duration:4.0f} ms   x at 400 ms: {end:+.3f}")
    assert switched.tolist() == [False, True]
    return np.asarray(ts), traces


# %% A sweep
def sweep(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The activation that is left of a start at x = 2, for each β and w."""
    betas, ws = jnp.linspace(0.4, 3.0, count), jnp.linspace(0.2, 2.0, count)

    def left(beta, w):
        layer = hl.TanhLayer(1, beta=beta)
        ham = hl.HAM({"x": layer}, {"w": lambda g: -w * jnp.sum(g**2) / 2}, [(("x",), "w")])
        rest = hl.relax(ham, {"x": jnp.array([2.0])}, throw=False)
        return ham.activations(rest.x)["x"][0]

    kept = jax.jit(jax.vmap(jax.vmap(left, (None, 0)), (0, None)))(betas, ws)
    gain = np.asarray(betas[:, None] * ws)
    clear = np.abs(gain - 1) > 0.1
    wrong = int(np.sum(((np.asarray(kept) > 0.05) != (gain > 1)) & clear))
    print(f"sweep              {wrong} of {clear.sum()} differ from βw > 1")
    assert wrong == 0
    return np.asarray(betas), np.asarray(ws), np.asarray(kept)


# %% Noise
def noisy(num_samples: int, sigma: float = 0.5) -> float:
    """The variance of a linear layer under noise, in units of σ²/2."""
    flow = hl.EnergyFlow(hl.IdentityLayer(num_samples), "activation")

    def run(key):
        noise = diffrax.VirtualBrownianTree(0.0, 6.0, 1e-3, (num_samples,), key)
        spread = lambda t, x, args: lx.DiagonalLinearOperator(jnp.full_like(x, sigma))
        terms = diffrax.MultiTerm(diffrax.ODETerm(flow), diffrax.ControlTerm(spread, noise))
        solver = diffrax.Heun()
        return diffrax.diffeqsolve(terms, solver, 0.0, 6.0, 0.02, jnp.zeros(num_samples)).ys

    ratio = float(jnp.var(jax.jit(run)(jax.random.key(0))) / (sigma**2 / 2))
    bound = 5 * np.sqrt(2 / num_samples)
    print(f"noise              variance {ratio:.3f} of σ²/2, 5 standard errors are {bound:.3f}")
    assert abs(ratio - 1) < bound
    return ratio


# %% The picture
def draw(ts, traces, betas, ws, kept) -> Figure:
    fig, (left, right) = figure(10, 3.6, 1, 2)
    for trace, colour, label in zip(traces, (BLUE, RED), ("4 ms", "40 ms"), strict=True):
        left.plot(ts, trace[0], color=colour, label=f"fast, pulse of {label}")
        left.plot(ts, trace[1], color=colour, linestyle="--", label=f"slow, pulse of {label}")
    left.axvline(100, color="black", linewidth=0.8, linestyle=":")
    left.set(xlabel="time t (ms)", ylabel="state x", title="a pulse at 100 ms (dotted)")
    left.legend(frameon=False, fontsize="small")
    image = right.pcolormesh(ws, betas, kept, cmap="cividis", shading="nearest")
    right.plot(ws, 1 / ws, color="white", linestyle="--", label="βw = 1")
    right.set(ylim=(betas[0], betas[-1]), xlabel="coupling w", ylabel="gain β")
    right.set(title="what is left of a start at x = 2")
    right.legend(labelcolor="white", frameon=False, loc="lower left")
    fig.colorbar(image, ax=right, label="activation g")
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer values and samples")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="for the picture")
    arguments = parser.parse_args()
    traces = pulses((4.0, 40.0))
    kept = sweep(12 if arguments.quick else 48)
    noisy(1000 if arguments.quick else 20000)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save(draw(*traces, *kept), arguments.out / "neurons.png")


if __name__ == "__main__":
    main()
