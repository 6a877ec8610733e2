"""Pictures of energies."""

import equinox as eqx
from matplotlib.axes import Axes
from matplotlib.cbook import normalize_kwargs
from matplotlib.lines import Line2D

from ..model import AbstractEnergyModel
from ..network import HAM
from ._drawing import BOUND, canvas, draw, Path, sample_times, times_and_states


def plot_energy(
    model: AbstractEnergyModel,
    path: Path,
    *,
    parts: bool = True,
    bound: bool = True,
    ax: Axes | None = None,
    **line: object,
) -> Axes:
    """Draws E(t) along a path, one line per sample, and the lower bound −L(0) of a layer.

    For a [`hopfield_layers.HAM`][] it also draws the terms that add up to E: the energy of each
    layer (solid) and of each connection (dashed), each in one colour for all samples.

    **Arguments:**

    - `model`: any [`hopfield_layers.AbstractEnergyModel`][].
    - `path`: the `diffrax.Solution` of [`hopfield_layers.solve`][], or a pair `(t, x)`: times of
        shape `(times,)` or `(*batch, times)`, and the state with axes `(*batch, times)` in front.
    - `parts`: whether to draw the terms of a network's energy.
    - `bound`: whether to draw the bound, if the model has a method `energy_bound`.
    - `ax`: the axes to draw into, which are returned.
    - `line`: options of Matplotlib's lines, for the lines of E.

    **Raises:** `TypeError` if the path is neither; `ValueError` for a path of fewer than two times
    (pass `saveat` to `solve` to save more), or whose times and states don't fit each other or the
    model.

    Examples:
        >>> import diffrax
        >>> layer, saveat = hl.ExpLayer(3), diffrax.SaveAt(t0=True, steps=True)
        >>> x0 = jnp.array([[1.0, 0.5, -0.5], [2.0, -1.0, 0.0]])
        >>> solution = hl.solve(layer, x0, t1=10.0, saveat=saveat)
        >>> ax = hl.plotting.plot_energy(layer, solution)
    """
    t, x = times_and_states(path)
    energy, style = eqx.filter_jit(model.energy)(x), {"label": "energy E"}
    t, ax = sample_times(t, energy.shape), canvas(ax)
    if parts and isinstance(model, HAM):
        style |= {"color": "black", "linewidth": 2.0}
        terms = eqx.filter_jit(model.energies)(x)
        # jit sorts the keys of dicts, so the order is the model's own.
        for name in model.layers:
            draw(ax, t, terms["layers"][name], True, label=name, linestyle="-")
        for _, _, name in model.connections:
            draw(ax, t, terms["connections"][name], True, label=name, linestyle="--")
    draw(ax, t, energy, False, **style | normalize_kwargs(line, Line2D))
    if bound and (energy_bound := getattr(model, "energy_bound", None)):
        ax.axhline(float(energy_bound()), **BOUND, label="lower bound −L(0)")
    ax.set(xlabel="time t", ylabel="energy E")
    if parts and isinstance(model, HAM):
        ax.legend(fontsize="small", frameon=False)
    return ax
