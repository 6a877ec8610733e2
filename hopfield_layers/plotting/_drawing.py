"""Axes to draw into, and the times and values of a path."""

import diffrax
import numpy as np
from jaxtyping import PyTree
from matplotlib.axes import Axes
from numpy.typing import ArrayLike


Path = diffrax.Solution | tuple[ArrayLike, PyTree]
BOUND = {"color": "black", "linestyle": "--", "linewidth": 1.0}  # the line of a lower bound
# Colours that readers with any colour vision tell apart. Source: Okabe & Ito, "Color universal
# design" (2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")


def canvas(ax: Axes | None, size: tuple[float, float] | None = None) -> Axes:
    """`ax`, or the axes of a new figure, whose lines have `COLOURS`."""
    if ax is None:
        from matplotlib import pyplot  # imported late, because this chooses a backend

        ax = pyplot.subplots(figsize=size, layout="constrained")[1]
        ax.set_prop_cycle(color=COLOURS)
    return ax


def times_and_states(path: Path, least: int = 2) -> tuple[np.ndarray, PyTree]:
    """The times and states of a path, or an error unless it has `least` times."""
    if isinstance(path, diffrax.Solution):
        # Without saved times `ts` is None, and with several SubSaveAts it is a tree.
        t, x = path.ts if hasattr(path.ts, "shape") else (), path.ys
    elif isinstance(path, tuple) and len(path) == 2:
        t, x = path
    else:
        raise TypeError(
            f"Expected a diffrax.Solution or a pair of times and states, got {type(path).__name__}."
        )
    t = np.asarray(t, float)
    count = np.max(np.sum(np.isfinite(t), axis=-1), initial=0) if t.ndim else 0
    if count < least:
        raise ValueError(
            f"Expected a path of {least} times at least, got {count}: solve with saveat, for "
            "instance diffrax.SaveAt(t0=True, steps=True), to save more than the end."
        )
    return t, x


def sample_times(t: np.ndarray, batch: tuple[int, ...]) -> np.ndarray:
    """The times of each sample, `(samples, times)`, for states with these axes in front."""
    if 0 in batch or t.shape not in (batch, batch[-1:]):
        raise ValueError(
            "Expected times of shape (times,) or (*batch, times) and states with axes (*batch, "
            f"times) in front, got {t.shape} and {batch}."
        )
    return np.broadcast_to(t, batch).reshape(-1, batch[-1])


def draw(ax: Axes, t: np.ndarray, values: ArrayLike, one_colour: bool, **line) -> None:
    """Draws each sample, without the padding after the last step; the first has the label."""
    for times, sample in zip(t, np.reshape(values, t.shape), strict=True):
        used = np.isfinite(times)
        (drawn,) = ax.plot(times[used], sample[used], **line)
        line["label"] = None
        if one_colour:
            line["color"] = drawn.get_color()
