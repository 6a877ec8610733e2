"""Pictures of energies."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, PyTree
from matplotlib.axes import Axes
from matplotlib.cbook import normalize_kwargs
from matplotlib.lines import Line2D

from ..network import HAM
from ._paths import BOUND, canvas, draw, lined_up, times_and_states


def plot_energy(
    model: Any,
    path: Any,
    *,
    parts: bool = True,
    bound: bool = True,
    ax: Axes | None = None,
    **line: Any,
) -> Axes:
    """Draws E(t) along a path, one line per sample, and the lower bound −L(0) of a layer.

    Of a [`hopfield_layers.HAM`][] it draws the parts too, which add up to E: the energy of each
    layer, solid, and of each connection, dashed, in one colour for all samples.

    **Arguments:**

    - `model`: a [`hopfield_layers.Layer`][] or any [`hopfield_layers.AbstractEnergyModel`][].
    - `path`: the `diffrax.Solution` of [`hopfield_layers.solve`][], or a pair `(t, x)`: times of
        shape `(times,)` or `(*batch, times)`, and the state with axes `(*batch, times)` in front.
    - `parts`: whether to draw the parts of a network's energy.
    - `bound`: whether to draw the bound, of any model with a method `energy_bound`.
    - `ax`: the axes to draw into.
    - `line`: options of Matplotlib's lines, for those of E.

    **Returns:**

    The axes. Their lines have labels, of all samples' the first one; there is a legend if there are
    parts.

    **Raises:** `TypeError` if the path is neither; `ValueError` for a path without times (as
    `solve` gives it unless told by `saveat` what to save), or whose times and states don't fit each
    other or the model.

    ```python
    >>> import diffrax
    >>> import hopfield_layers as hl
    >>> import jax.numpy as jnp
    >>> from hopfield_layers.plotting import plot_energy
    >>> layer, saveat = hl.ExpLayer(3), diffrax.SaveAt(t0=True, steps=True)
    >>> solution = hl.solve(layer, jnp.ones((2, 3)), t1=10.0, saveat=saveat)
    >>> ax = plot_energy(layer, solution)
    >>> print(len(ax.lines), ax.get_ylabel())
    3 energy E

    ```
    """
    t, x = times_and_states(path)
    total, terms = _energies(model, x, parts and isinstance(model, HAM))
    t, total = lined_up(t, np.asarray(total))
    look: Any = {"label": "energy E"} | ({"color": "black", "linewidth": 2.0} if terms else {})
    look |= normalize_kwargs(line, Line2D)
    energy_bound = getattr(model, "energy_bound", None) if bound else None
    lowest = energy_bound() if energy_bound is not None else None
    ax = canvas(ax)
    if terms:
        # jit sorts dicts, so in the network's own order.
        for name in model.layers:
            draw(ax, t, terms["layers"][name], True, label=name, linestyle="-")
        for name in (connection.name for connection in model.connections):
            draw(ax, t, terms["connections"][name], True, label=name, linestyle="--")
    draw(ax, t, total, **look)
    if lowest is not None:
        ax.axhline(float(lowest), **BOUND, label="lower bound −L(0)")
    ax.set(xlabel="time t", ylabel="energy E")
    if terms:
        ax.legend(fontsize="small")
    return ax


@eqx.filter_jit
def _energies(model: Any, x: PyTree, parts: bool) -> tuple[Array, dict[str, dict[str, Array]]]:
    """E and, if asked for, its parts."""
    return model.energy(x), model.energies(x) if parts else {}
