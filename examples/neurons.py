# %% [markdown]
"""A model of a cortical circuit, for a neuroscientist: membranes, rates, pulses and noise.

τ dx/dt = −x + W g(x) + I(t), the activation flow of E = Σ layers E(x) − Σ W g g/2 − Σ I g

x is a membrane potential in units of the threshold, g = tanh βx a rate, τ in ms. Symmetric weights
have an energy, which falls while I stands still: `solve`, `relax` and `langevin` follow it. A
circuit of excitation and inhibition has none. It may oscillate, and diffrax alone solves it, with
the activations of the library's layers.

1. A pulse of 40 ms at 100 ms switches a bistable circuit; one of 4 ms doesn't.
2. A sweep over β and the coupling by `vmap`: the circuit keeps what it holds where β w > 1.
3. Noise of temperature T: by `langevin`, and with `EnergyFlow` in one's own `diffeqsolve`, the
   variance of linear units is T, as the theory predicts.
4. An excitatory and an inhibitory unit oscillate for ever; with the symmetric part of their W,
   which has an energy, they come to rest.

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
from drawing import BLUE, figure, HERE, RED, save


def circuit(beta: jax.Array | float, w: jax.Array | float) -> hl.HAM:
    """A fast layer that excites itself, and a slow one that follows it, with weak feedback."""
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

    def current(duration, t):
        return {"fast": 2.0 * ((t >= 100.0) & (t < 100.0 + duration))}

    def run(duration):
        # A solver sees a function of t at its stages only: the jumps say where its steps must end.
        pulse = jax.tree_util.Partial(current, duration)
        jumps = hl.InputsWithJumps(pulse, jump_ts=100.0 + jnp.array([0.0, duration]))
        saveat = diffrax.SaveAt(ts=ts)
        options = {"flow": "activation", "inputs": jumps, "saveat": saveat}
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
def noisy(num_samples: int, temperature: float = 0.125) -> None:
    """The variance of linear units under noise, in units of T: by the library, and by hand."""
    layer, x0, key = hl.IdentityLayer(num_samples), jnp.zeros(num_samples), jax.random.key(0)

    def by_hand(key):  # replace the flow, drift or noise by your own
        noise = diffrax.VirtualBrownianTree(0.0, 6.0, 1e-2, (num_samples,), key)
        spread = lambda t, x, args: lx.DiagonalLinearOperator(
            jnp.full_like(x, (2 * temperature) ** 0.5)
        )
        drift = diffrax.ODETerm(hl.EnergyFlow(layer, "activation"))
        terms = diffrax.MultiTerm(drift, diffrax.ControlTerm(spread, noise))
        return diffrax.diffeqsolve(terms, diffrax.Heun(), 0.0, 6.0, 0.05, x0).ys

    ends = {
        "langevin": hl.langevin(layer, x0, 6.0, temperature, key, dt0=0.05).ys,
        "by hand": jax.jit(by_hand)(key),
    }
    bound = 5 * np.sqrt(2 / num_samples)
    for name, end in ends.items():
        ratio = float(jnp.var(end) / temperature)
        print(f"noise, {name:11} variance {ratio:.3f} T, 5 standard errors are {bound:.3f}")
        assert abs(ratio - 1) < bound


# %% Without an energy
def rhythm() -> tuple[np.ndarray, np.ndarray]:
    """An excitatory and an inhibitory unit, with their W and with its symmetric part."""
    rates, ts = hl.TanhLayer(2), jnp.linspace(0.0, 300.0, 601)
    W = jnp.array([[2.5, -2.0], [2.0, 0.0]])  # to excitation, to inhibition

    @jax.jit
    def run(W):
        field = lambda t, x, W: (W @ rates.activation(x) - x) / 10.0
        term, saveat = diffrax.ODETerm(field), diffrax.SaveAt(ts=ts)
        steps = diffrax.PIDController(rtol=1e-6, atol=1e-8)
        x0, options = jnp.array([0.1, 0.0]), {"saveat": saveat, "stepsize_controller": steps}
        return diffrax.diffeqsolve(term, diffrax.Tsit5(), 0.0, 300.0, None, x0, W, **options).ys

    paths = np.array([run(W), run((W + W.T) / 2)])
    swings = np.ptp(paths[:, 400:], axis=1)[:, 0]
    print(f"from 200 to 300 ms  x swings by {swings[0]:.2f}, with symmetric W by {swings[1]:.1e}")
    assert swings[0] > 1
    assert swings[1] < 1e-3
    return np.asarray(ts), paths


# %% The picture
def draw(ts, traces, betas, ws, kept, times, paths) -> Figure:
    fig, (left, right, last) = figure(13.5, 3.6, 1, 3)
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
    for path, line, label in zip(paths, ("-", "--"), ("", ", symmetric W"), strict=True):
        last.plot(times, path[:, 0], color=RED, linestyle=line, label=f"excitatory{label}")
        last.plot(times, path[:, 1], color=BLUE, linestyle=line, label=f"inhibitory{label}")
    last.set(xlabel="time t (ms)", ylabel="state x", ylim=(-2, 3.6))
    last.set(title="without an energy, and with one")
    last.legend(frameon=False, fontsize="small", ncols=2, loc="upper right")
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer values and samples")
    parser.add_argument("--out", type=Path, default=HERE, help="for the picture")
    arguments, _ = parser.parse_known_args()  # a notebook has arguments of its own
    traces = pulses((4.0, 40.0))
    kept = sweep(12 if arguments.quick else 48)
    noisy(1000 if arguments.quick else 20000)
    paths = rhythm()
    arguments.out.mkdir(parents=True, exist_ok=True)
    save(draw(*traces, *kept, *paths), arguments.out / "neurons.png")


if __name__ == "__main__":
    main()
