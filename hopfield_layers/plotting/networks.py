"""Pictures of networks."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

from ..network import HAM
from ._drawing import canvas


def plot_network(ham: HAM, *, ax: Axes | None = None) -> Axes:
    """Draws the hypergraph of a network: a box for each layer, and a square for each connection.

    Lines lead from a square to the layers that it connects, two of them to a layer that it takes
    twice. Boxes show the layers' names, Lagrangians, shapes and τ; squares show the connections'
    names and synapses.

    **Arguments:**

    - `ham`: a [`hopfield_layers.HAM`][].
    - `ax`: the axes to draw into, which are returned.

    **Raises:** `TypeError` for another model.

    Examples:
        >>> synapses = {"W": hl.DenseSynapse((6, 4), key=jax.random.key(0))}
        >>> layers = {"x": hl.TanhLayer(6), "y": hl.SoftmaxLayer(4, tau=0.1)}
        >>> ax = hl.plotting.plot_network(hl.HAM(layers, synapses, [(("x", "y"), "W")]))
    """
    if not isinstance(ham, HAM):
        raise TypeError(f"Expected a HAM, got {type(ham).__name__}.")
    # Few lines cross if layers are in the order of the connections, and squares in that of layers.
    joined = [name for connection in ham.connections for name in connection.layers]
    heights = {name: -float(i) for i, name in enumerate(dict.fromkeys([*joined, *ham.layers]))}
    depths = np.array([-np.mean([heights[name] for name in c.layers]) for c in ham.connections])
    order = np.argsort(depths, kind="stable")
    # Near the wanted depths, but at least 0.7 apart.
    spaces = 0.7 * np.arange(len(order))
    joints = np.maximum.accumulate(depths[order] - spaces) + spaces
    joints = np.sum(joints - depths) / max(len(order), 1) - joints
    ax = canvas(ax, (6.4, 0.8 + 1.1 * max(len(heights), 0.7 * len(joints))))
    box = {"boxstyle": "round,pad=0.6", "facecolor": "white", "edgecolor": "black"}
    for name, y in heights.items():
        layer = ham.layers[name]
        ends = np.unique([np.min(layer.tau), np.max(layer.tau)])
        tau = " … ".join(f"{end:g}" for end in ends)
        text = f"{name}\n{type(layer.lagrangian).__name__}\n{layer.shape}, τ = {tau}"
        ax.text(0, y, text, ha="center", va="center", bbox=box, zorder=3)
    for i, y in zip(order, joints, strict=True):
        connection = ham.connections[i]
        kind = type(ham.synapses[connection.synapse]).__name__
        ax.plot([1], [y], "s", color="black", markersize=9)
        ax.text(1.08, y, f"{connection.name}\n{kind}", ha="left", va="center")
        for end, name in enumerate(connection.layers):
            # Several lines from one layer bend apart.
            twins = [i for i, other in enumerate(connection.layers) if other == name]
            bend = 0.3 * (twins.index(end) - (len(twins) - 1) / 2)
            style = {"connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0}
            ax.add_patch(FancyArrowPatch((0, heights[name]), (1, y), arrowstyle="-", **style))
    places = [*heights.values(), *joints]
    ax.set(xlim=(-0.5, 1.9), ylim=(min(places) - 0.6, max(places) + 0.6))
    ax.set_axis_off()
    return ax
