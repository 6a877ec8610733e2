"""Pictures of energy landscapes and phase portraits over a plane of states."""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from ..dynamics import EnergyFlow, FixedPoints
from ..model import AbstractEnergyModel, Flow, StateLike
from ._drawing import canvas, COLOURS


STABLE: dict[str, Any] = {"marker": "o", "color": "black", "zorder": 5, "linestyle": "none"}
UNSTABLE = STABLE | {"markerfacecolor": "white"}


def plot_landscape(
    model: AbstractEnergyModel,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    inputs: StateLike | None = None,
    points: FixedPoints | None = None,
    levels: int = 24,
    ax: Axes | None = None,
) -> Axes:
    """Draws the energy E − Σ I·g over the states of a model of two units, as filled contours.

    Dark is low. Stable fixed points are drawn as filled circles, unstable ones as open circles.

    **Arguments:**

    - `model`: an [`hopfield_layers.AbstractEnergyModel`][] of two units, in one array or in two.
    - `x`, `y`: the values of the first unit and of the second, in the units of the state. By
        default y is x.
    - `inputs`: the external input I, as for [`hopfield_layers.relax`][].
    - `points`: what [`hopfield_layers.fixed_points`][] returned.
    - `levels`: how many contours to draw.
    - `ax`: the axes to draw into, which are returned.

    **Raises:** `ValueError` for a model of more or fewer units, for x or y with more than one axis,
    or with fewer than two values.

    Examples:
        >>> pair = lambda g: -0.75 * jnp.sum(g**2) - 0.15 * g[0] * g[1]  # the energy of a synapse
        >>> ham = hl.HAM({"x": hl.TanhLayer(2)}, {"pair": pair}, [(("x",), "pair")])
        >>> x = jnp.linspace(-2, 2, 61)
        >>> starts = jnp.stack(jnp.meshgrid(x[::10], x[::10]), -1).reshape(-1, 2)
        >>> points = hl.fixed_points(ham, {"x": starts})
        >>> ax = hl.plotting.plot_landscape(ham, x, points=points)
    """
    x, y, grid = _grid(model, x, y)
    field = EnergyFlow(model, inputs=inputs)
    energy = eqx.filter_jit(jax.vmap(ft.partial(field.energy, 0.0)))(grid)
    ax = canvas(ax)
    filled = ax.contourf(
        x, y, np.asarray(energy).reshape(y.size, x.size), levels=levels, cmap="cividis"
    )
    ax.figure.colorbar(filled, ax=ax, label="energy E")
    return _finished(ax, points)


def plot_phase_portrait(
    model: AbstractEnergyModel,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    flow: Flow = "activation",
    inputs: StateLike | None = None,
    points: FixedPoints | None = None,
    ax: Axes | None = None,
    **stream: Any,
) -> Axes:
    """Draws the stream lines of dx/dt over the states of a model of two units.

    Regions in which dx/dt = 0, such as the dead region of ReLUs in the state flow, are grey and
    have no stream lines. Fixed points are drawn as by `plot_landscape`.

    **Arguments:** as for [`hopfield_layers.plotting.plot_landscape`][], and

    - `flow`: `"state"` or `"activation"`, as for [`hopfield_layers.EnergyFlow`][].
    - `stream`: options of Matplotlib's `streamplot`.

    **Raises:** `ValueError` as in `plot_landscape`, and for values that are not equally spaced.

    Examples:
        >>> relu = hl.ReluLayer(2)  # units below 0 are dead under the state flow
        >>> ax = hl.plotting.plot_phase_portrait(relu, jnp.linspace(-2, 2, 20), flow="state")
    """
    x, y, grid = _grid(model, x, y)
    if not all(np.allclose(np.diff(values, 2), 0, atol=1e-6 * np.ptp(values)) for values in (x, y)):
        raise ValueError("Expected equally spaced values of both units.")
    field = EnergyFlow(model, flow, inputs=inputs)
    rates = eqx.filter_jit(jax.vmap(ft.partial(field, 0.0)))(grid)
    flat = [np.asarray(leaf).reshape(x.size * y.size, -1) for leaf in jax.tree.leaves(rates)]
    u, v = np.concatenate(flat, axis=1).T.reshape(2, y.size, x.size)
    ax = canvas(ax)
    still = (u == 0) & (v == 0)
    if still.any():
        shown = np.ma.masked_where(~still, np.ones_like(u))
        ax.pcolormesh(x, y, shown, cmap="Greys", vmin=0.0, vmax=4.0, shading="nearest")
    style = {"color": COLOURS[0], "linewidth": 0.7, "arrowsize": 0.7, "density": 0.9}
    ax.streamplot(
        x, y, np.ma.masked_where(still, u), np.ma.masked_where(still, v), **style | stream
    )
    return _finished(ax, points)


def _grid(model: AbstractEnergyModel, x: ArrayLike, y: ArrayLike | None):
    """The values of both units, and the states of all pairs, the first unit fastest."""
    x = np.asarray(x, float)
    y = x if y is None else np.asarray(y, float)
    if x.ndim != 1 or y.ndim != 1 or min(x.size, y.size) < 2:
        raise ValueError(
            f"Expected at least two values of each unit, got shapes {x.shape} and {y.shape}."
        )
    init = getattr(model, "init_states", None) or getattr(model, "init_state", None)
    zero = jnp.zeros(2) if init is None else jax.eval_shape(init)
    shapes = jax.tree.map(
        lambda leaf: leaf.shape, zero, is_leaf=lambda leaf: hasattr(leaf, "shape")
    )
    sizes = [leaf.size for leaf in jax.tree.leaves(zero)]
    if sum(sizes) != 2:
        raise ValueError(f"Expected a model of two units, got a state of shapes {shapes}.")
    columns = np.stack([np.tile(x, y.size), np.repeat(y, x.size)], axis=1)
    parts = iter(np.split(columns, np.cumsum(sizes)[:-1], axis=1))
    grid = jax.tree.map(lambda leaf: jnp.asarray(next(parts)).reshape(-1, *leaf.shape), zero)
    return x, y, grid


def _finished(ax: Axes, points: FixedPoints | None) -> Axes:
    """The axes with their labels, and with the fixed points."""
    if points is not None:
        rows = [np.asarray(a).reshape(len(points.stable), -1) for a in jax.tree.leaves(points.x)]
        places = np.concatenate(rows, axis=1)
        stable = np.asarray(points.stable)
        for chosen, style in ((stable, STABLE), (~stable, UNSTABLE)):
            ax.add_line(Line2D(*places[chosen].T, **style))
    ax.set(xlabel="state x₁", ylabel="state x₂")
    return ax
