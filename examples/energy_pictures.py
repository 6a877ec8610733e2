"""The pictures of `energy_analysis.py`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.scipy.special import expi
from matplotlib.figure import Figure

from drawing import BLUE, BOUND, COLOURS, draw_row, figure, GREEN, RED


class Run(NamedTuple):
    """A solve: x is (samples, times, *shape), the energy (samples, times)."""

    name: str
    t: np.ndarray
    x: np.ndarray
    energy: np.ndarray
    bound: float
    steps: int
    evaluations: int


def staircase(x0: np.ndarray, t: np.ndarray) -> np.ndarray:
    """E(t) of exponential units once the positive ones have come to rest, exactly.

    The units are independent: dx/dt = −x eˣ takes a unit from x0 to x in t = Ei(−x0) − Ei(−x).
    """
    energy = np.full(t.shape, -float(np.sum(x0 > 0)))
    for s0 in -x0[x0 < 0]:
        s = np.geomspace(s0, 1e-3, 5000)[1:]
        energy += np.interp(t, np.asarray(expi(s0) - expi(s)), -np.exp(-s) * (1 + s))
    return energy


def draw_fall(runs: Sequence[Run]) -> Figure:
    """The first experiment: energy, and energy above the bound, against time."""
    state, euler, _ = runs
    fig, (left, right) = figure(8.2, 3.4, 1, 2)
    for ax, shift in ((left, 0.0), (right, state.bound)):
        label = f"adaptive (Tsit5), {state.steps} steps to t = 20 τ"
        ax.plot(state.t, state.energy[0] - shift, "o-", ms=5, color=BLUE, label=label)
        label = "Euler, 100 steps to t = 10 τ"
        ax.plot(euler.t, euler.energy[0] - shift, ".", ms=3.5, color=RED, label=label)
    left.axhline(state.bound, **BOUND, label="lower bound −L(0) = −5")
    left.set(xlim=(-0.2, 10.2), xlabel="time t / τ", ylabel="energy E")
    left.set_title("Five exponential units from a normal x₀", fontsize=11)
    left.legend(frameon=False)
    right.set(yscale="log", ylim=(1e-15, 2), xlabel="time t / τ", ylabel="E + L(0)")
    right.set_title("Energy above the bound", fontsize=11)
    return fig


def draw_plateau(runs: Sequence[Run]) -> Figure:
    """The second experiment: the fall to the plateau, and from the plateau."""
    state, euler, activation = runs
    fig, (left, right) = figure(9, 4.4, 1, 2)
    left.plot(euler.t, euler.energy[0] - euler.bound, color=RED, lw=6, alpha=0.6)
    left.plot(state.t, state.energy[0] - state.bound, "o-", ms=3, lw=1, color=BLUE)
    left.plot(activation.t, activation.energy[0] - activation.bound, color=GREEN)
    left.set(xscale="log", yscale="log", xlim=(2e-8, 60), ylim=(1e-9, 1e8))
    left.set(xlabel="time t / τ", ylabel="E + L(0), energy above the bound")
    left.set_title("From 100 x₀: the state flow stops short of the bound", fontsize=10)
    left.text(3e-8, 1e4, "100 Euler steps\nof 5·10⁻⁸ τ", color=RED, va="top")
    left.text(3e-7, 100, f"state flow,\n{state.steps} adaptive steps", color=BLUE, va="top")
    left.text(1.5, 1, "plateau, E = −2", color=BLUE, ha="right", va="top")
    left.text(0.6, 1e-4, "activation flow,\nto the bound", color=GREEN, ha="right", va="top")

    t = np.geomspace(state.t[-1], 1e49, 3000)
    right.axhline(state.bound, **BOUND)
    right.plot(t, staircase(state.x[0, 0], t), ":", color=BLUE)
    right.plot(state.t, state.energy[0], color=BLUE, lw=3)
    right.plot(activation.t, activation.energy[0], color=GREEN)
    right.set(xscale="log", xlim=(0.1, 1e50), ylim=(-5.25, -1.5), yticks=range(-5, -1))
    right.set(xlabel="time t / τ", ylabel="energy E")
    right.set_title("A plateau, not the bound: three units are frozen", fontsize=10)
    right.text(1e4, -1.95, "E = −2: units at −25, −64 and −106 frozen", color=BLUE, va="bottom")
    for x, y, ha, until in (
        (1e10, -2.5, "left", "−25: until 2·10⁹ τ"),
        (1e27, -3.5, "left", "−64: until 10²⁶ τ"),
        (1e43, -4.5, "right", "−106: until 8·10⁴³ τ\n(dotted: exact solution)"),
    ):
        right.text(x, y, until, color=BLUE, ha=ha, va="center")
    right.text(1e49, -5.05, "lower bound −L(0) = −5", ha="right", va="top")
    right.text(1e2, -4.5, "activation\nflow", color=GREEN, va="center")
    return fig


def draw_kinds(runs: Sequence[Run]) -> Figure:
    """The third experiment: energy against time, a panel for each kind of layer."""
    fig, axes = figure(8.6, 8.2, 4, 4, sharex=True)
    for ax, r in zip(axes.flat, runs, strict=False):
        for energy, colour in zip(r.energy, COLOURS, strict=True):
            ax.semilogx(r.t[1:], energy[1:], color=colour, lw=1.2)
        ax.axhline(r.bound, **BOUND)
        kind, _, parameters = r.name.partition(", ")
        ax.set_title(f"{kind}\n{parameters}".strip(), fontsize=9)
        if np.min(r.energy[:, -1]) > r.bound + 0.1:
            ax.text(
                100, r.bound, "units without\nweight are frozen", ha="right", va="bottom", size=9
            )
    fig.supxlabel("time t / τ")
    fig.supylabel("energy E (dashed: its lower bound −L(0))")
    axes.flat[-1].set_axis_off()
    for i, (digit, colour) in enumerate(zip(runs[0].x[:, 0], COLOURS, strict=True)):
        inset = axes.flat[-1].inset_axes((0.35 * (i % 3), 0.5 - 0.5 * (i // 3), 0.3, 0.45))
        inset.imshow(digit, cmap="gray_r")
        inset.set(xticks=[], yticks=[])
        inset.spines[:].set(color=colour, linewidth=2.5)
    return fig


def draw_digits(runs: Sequence[Run]) -> Figure:
    """The third experiment: one digit on its way, for some kinds of layer."""
    kinds = {
        "Relu": "units below 0\nare frozen",
        "Tanh": "each unit falls,\nsaturated ones late",
        "Softmax": "each row evens out,\nits sum stays",
        "Sparsemax": "of each row only\nthe brightest do",
    }
    times = (0, 0.3, 1, 3, 10, 100)
    fig, axes = figure(8, 4.4, len(kinds), len(times))
    for row, (kind, note) in zip(axes, kinds.items(), strict=True):
        (r,) = (r for r in runs if r.name.startswith(kind))
        images = [r.x[2, np.argmin(abs(r.t - t))] for t in times]
        draw_row(row, f"{kind}:\n{note}", images, cmap="RdBu_r")
    for ax, t in zip(axes[0], times, strict=True):
        ax.set_title(f"t = {t:g} τ", fontsize=9)
    fig.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.6, label="unit x")
    return fig
