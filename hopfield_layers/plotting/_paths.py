"""Axes to draw into, and what there is to draw against time."""

from typing import Any

import diffrax
import numpy as np
from jaxtyping import PyTree
from matplotlib.axes import Axes


# The lower bound of an energy.
BOUND = {"color": "black", "linestyle": "--", "linewidth": 1.0}


def canvas(ax: Axes | None, size: tuple[float, float] | None = None) -> Axes:
    """`ax`, or that of a new figure."""
    if ax is not None:
        return ax
    from matplotlib import pyplot  # which chooses a backend, so only if there is need of one

    return pyplot.subplots(figsize=size, layout="constrained")[1]


def times_and_states(path: Any, least: int = 2) -> tuple[np.ndarray, PyTree]:
    """The times and states of a solution or a pair, or an error unless it has `least` times."""
    solution = isinstance(path, diffrax.Solution)
    if not solution and not (isinstance(path, tuple) and len(path) == 2):
        raise TypeError(
            f"Expected a diffrax.Solution or a pair of times and states, got {type(path).__name__}."
        )
    t, x = (path.ts, path.ys) if solution else path
    saved = not solution or hasattr(t, "shape")  # neither None nor a tree of several SaveAts
    t = np.asarray(t if saved else (), float)
    count = np.max(np.sum(np.isfinite(t), axis=-1), initial=0) if t.ndim else 0
    if count < least:
        raise ValueError(
            f"Expected a path of {least} times at least, got {count}: solve with saveat, for "
            "instance diffrax.SaveAt(t0=True, steps=True), to save more than the end."
        )
    return t, x


def lined_up(t: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as `(samples, times)`."""
    try:
        fits = values.shape[-1:] == t.shape[-1:] and np.broadcast_shapes(t.shape, values.shape)
    except ValueError:
        fits = False
    if fits != values.shape or values.size == 0:
        raise ValueError(
            "Expected times of shape (times,) or (*batch, times) and states with axes (*batch, "
            f"times) in front, got {t.shape} and {values.shape}."
        )
    t = np.broadcast_to(t, values.shape)
    return t.reshape(-1, t.shape[-1]), values.reshape(-1, t.shape[-1])


def draw(ax: Axes, t: np.ndarray, values: Any, one_colour: bool = False, **line: Any) -> None:
    """Draws a line for each sample, without its unused room; the first has the label."""
    label = line.pop("label", None)
    for times, sample in zip(t, np.reshape(values, t.shape), strict=True):
        used = np.isfinite(times)
        (drawn,) = ax.plot(times[used], sample[used], label=label, **line)
        label = None
        if one_colour:
            line["color"] = drawn.get_color()
