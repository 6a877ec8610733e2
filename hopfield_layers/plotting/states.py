"""Pictures of states and activations."""

import math
from typing import Any

import diffrax
import numpy as np
from jaxtyping import PyTree
from matplotlib.axes import Axes
from matplotlib.cbook import normalize_kwargs
from matplotlib.lines import Line2D

from .._arrays import as_state
from ..layers import Layer
from ..network import HAM
from ._paths import canvas, draw, lined_up, times_and_states


def plot_states(
    model: Any,
    path: Any,
    *,
    layer: str | None = None,
    activations: bool = False,
    kind: str | None = None,
    ax: Axes | None = None,
    **options: Any,
) -> Axes:
    """Draws x, or g, of a layer: as lines against time, or as images side by side.

    The last axis in front of the layer's shape, which is time along a path, runs to the right and
    all others down. An image is a layer of shape `(height, width)` or `(height, width, channels)`
    with 1 or 3 channels, or a column for a layer of one axis. Three channels are red, green and
    blue, scaled so that the least is 0 and the largest 1.

    **Arguments:**

    - `model`: a [`hopfield_layers.Layer`][] or a [`hopfield_layers.HAM`][].
    - `path`: a path as in [`hopfield_layers.plotting.plot_energy`][], or a state alone.
    - `layer`: the name of the network's layer. It may be left out if there is but one.
    - `activations`: whether to draw g instead of x.
    - `kind`: `"images"` or `"traces"`, one line per unit and sample. By default traces for a path
        of several times of a layer of up to one axis, and images otherwise.
    - `ax`: the axes to draw into.
    - `options`: options of Matplotlib's `imshow`, or of its lines.

    **Returns:**

    The axes.

    **Raises:** `TypeError` for another model; `ValueError` for an unknown layer or kind, a layer
    that is no image, traces without times, and as in
    [`hopfield_layers.plotting.plot_energy`][].

    ```python
    >>> import hopfield_layers as hl
    >>> import jax
    >>> from hopfield_layers.plotting import plot_states
    >>> layer = hl.TanhLayer((8, 6))
    >>> ax = plot_states(layer, layer.init_state(bs=5, rng=jax.random.key(0)), activations=True)
    >>> print(ax.images[0].get_array().shape)  # five images, with gaps of one
    (8, 34)

    ```
    """
    timed, least = isinstance(path, diffrax.Solution | tuple), 2 if kind == "traces" else 1
    t, x = times_and_states(path, least) if timed else (None, path)
    layer_, x = _one_layer(model, x, layer)
    x = as_state(x, layer_.shape)
    batch = x.shape[: x.ndim - len(layer_.shape)]
    if x.size == 0:
        raise ValueError(f"Expected a state of one unit and one sample at least, got {x.shape}.")
    values = np.array(layer_.activation(x) if activations else x, float)
    if t is not None:
        t, _ = lined_up(t, np.zeros(batch))
        values = values.reshape(*t.shape, *layer_.shape)
    if kind is None:
        many = t is not None and t.shape[-1] > 1
        kind = "traces" if many and len(layer_.shape) < 2 else "images"
    name = "activation g" if activations else "state x"
    if kind == "images":
        return _images(values, layer_.shape, t, ax, options)
    if kind != "traces" or t is None:
        raise ValueError(f"Expected kind to be 'images' or, of a path, 'traces', got {kind!r}.")
    line: Any = normalize_kwargs(options, Line2D)
    ax = canvas(ax)
    units = values.reshape(*t.shape, -1)
    for unit in range(units.shape[-1]):
        draw(ax, t, units[..., unit], True, **line)
    ax.set(xlabel="time t", ylabel=name)
    return ax


def _one_layer(model: Any, x: PyTree, name: str | None) -> tuple[Layer, Any]:
    """The layer to draw, and its state."""
    if isinstance(model, Layer) and name is None:
        return model, x
    if not isinstance(model, HAM):
        raise TypeError(f"Expected a HAM, or a Layer and no name, got {type(model).__name__}.")
    if name is None and len(model.layers) == 1:
        (name,) = model.layers
    if name not in model.layers:
        raise ValueError(f"Expected layer to be one of {list(model.layers)}, got {name!r}.")
    model.activations(x)  # which says whether x is a state
    return model.layers[name], x[name]


def _images(
    values: np.ndarray, shape: tuple[int, ...], t: Any, ax: Axes | None, options: Any
) -> Axes:
    """Draws the last axis in front of the shape to the right and all others down."""
    height, width, channels = (*shape, 1, 1, 1)[:3]
    if len(shape) > 3 or channels not in (1, 3):
        raise ValueError(
            "Expected a layer of one axis, or of shape (height, width) or (height, width, 1 or 3) "
            f"to draw as images, got {shape}."
        )
    if t is not None:
        used = np.isfinite(t)
        values[~used] = np.nan
        values, t = values[:, used.any(0)], t[:, used.any(0)]
    rows = math.prod(values.shape[: values.ndim - len(shape)][:-1])
    tiles = values.reshape(rows, -1, height, width, channels)
    down, right = max(height // 16, 1), max(width // 16, 1) if len(shape) > 1 else 0
    tiles = np.pad(tiles, [(0, 0)] * 2 + [(0, down), (0, right), (0, 0)], constant_values=np.nan)
    image = tiles.swapaxes(1, 2).reshape(rows * (height + down), -1, channels)
    image = image[:-down, : image.shape[1] - right]
    finite = image[np.isfinite(image)]
    least, most = (np.min(finite), np.max(finite)) if finite.size else (0.0, 0.0)
    if channels == 3:
        image = (image - least) / (most - least or 1.0)
        image = np.nan_to_num(image, nan=1.0, posinf=1.0, neginf=0.0)
    size = max(-least, most) or 1.0
    look = {"cmap": "RdBu_r"} | ({} if "norm" in options else {"vmin": -size, "vmax": size})
    ax = canvas(ax)
    ax.imshow(image, **look | {"aspect": "equal" if len(shape) > 1 else "auto"} | options)
    ax.set(xticks=[], yticks=[])
    if t is not None and np.all(t == t[0]):
        some = np.unique(np.linspace(0, t.shape[1] - 1, min(t.shape[1], 6)).round().astype(int))
        ax.set_xticks((width + right) * some + (width - 1) / 2, [f"{t[0, i]:.3g}" for i in some])
        ax.set_xlabel("time t")
    return ax
