"""Pictures of networks."""

from typing import Any

import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

from ..network import HAM
from ._paths import canvas


def plot_network(ham: Any, *, ax: Axes | None = None) -> Axes:
    """Draws the hypergraph: a box for each layer, a joint for each connection, a line for each end.

    The boxes have the layers' names, Lagrangians, shapes and τ, the joints the connections' names
    and synapses. A synapse that takes a layer twice has two lines to it.

    **Arguments:**

    - `ham`: a [`hopfield_layers.HAM`][].
    - `ax`: the axes to draw into.

    **Returns:**

    The axes, without a frame.

    **Raises:** `TypeError` for another model.

    ```python
    >>> import hopfield_layers as hl
    >>> import jax
    >>> from hopfield_layers.plotting import plot_network
    >>> synapse = hl.DenseSynapse((6, 4), key=jax.random.key(0))
    >>> layers = {"x": hl.TanhLayer(6), "y": hl.SoftmaxLayer(4, tau=0.1)}
    >>> ax = plot_network(hl.HAM(layers, {"W": synapse}, [(("x", "y"), "W")]))
    >>> print(ax.texts[1].get_text())
    y
    LSoftmax
    (4,), τ = 0.1

    ```
    """
    if not isinstance(ham, HAM):
        raise TypeError(f"Expected a HAM, got {type(ham).__name__}.")
    # In the order of the connections, so that few lines cross.
    ends = [name for connection in ham.connections for name in connection.layers]
    height = {name: -float(i) for i, name in enumerate(dict.fromkeys([*ends, *ham.layers]))}
    wanted = [np.mean([height[name] for name in c.layers]) for c in ham.connections]
    order = np.argsort(-np.array(wanted), kind="stable")
    joints = _spread(-np.array(wanted)[order])
    ax = canvas(ax, (6.4, 0.8 + 1.1 * max(len(height), 0.7 * len(joints))))
    box = {"boxstyle": "round,pad=0.6", "facecolor": "white", "edgecolor": "black"}
    for name, y in height.items():
        layer = ham.layers[name]
        about = f"{type(layer.lagrangian).__name__}\n{layer.shape}, τ = {_span(layer.tau)}"
        ax.text(0, y, f"{name}\n{about}", ha="center", va="center", bbox=box, zorder=3)
    for i, y in zip(order, -joints, strict=True):
        connection = ham.connections[i]
        ax.plot([1], [y], "s", color="black", markersize=9)
        kind = type(ham.synapses[connection.synapse]).__name__
        ax.text(1.08, y, f"{connection.name}\n{kind}", ha="left", va="center")
        for end, name in enumerate(connection.layers):
            # The lines to one layer are bent apart.
            twins = [j for j, other in enumerate(connection.layers) if other == name]
            bend = 0.3 * (twins.index(end) - (len(twins) - 1) / 2)
            look = {"connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0}
            line = FancyArrowPatch((0, height[name]), (1, y), arrowstyle="-", **look)
            ax.add_patch(line)
    places = [*height.values(), *-joints]
    ax.set(xlim=(-0.5, 1.9), ylim=(min(places) - 0.6, max(places) + 0.6))
    ax.set_axis_off()
    return ax


def _span(tau: Array) -> str:
    """The values of τ."""
    values = np.unique(np.asarray(tau))
    return " … ".join(f"{value:g}" for value in values[[0, -1][: values.size]])


def _spread(wanted: np.ndarray, gap: float = 0.7) -> np.ndarray:
    """Ascending positions near the wanted ones, and as far apart as `gap`."""
    places = np.array(wanted, float)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    return places - np.mean(places - wanted) if len(places) else places
